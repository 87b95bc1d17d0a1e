"""Cursors: one message for each, written with the position that the last one has, so that the higher wins.

What this process has written is remembered for a while and merged into what it reads: a replica may not have it yet.
"""

from __future__ import annotations

from collections import Counter, OrderedDict
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final

import msgspec
import trio

from storage.errors import Busy, Failed
from storage.jetstream.acting import replacing
from storage.jetstream.engine import CONFLICTS, PATIENCE_SECONDS, Engine
from storage.nats.errors import JetStreamError, NatsError, Unanswered
from storage.nats.jetstream import BATCH_MESSAGES_MAX, Found
from storage.records import AcknowledgedBy, Cursor, CursorMove, Epoch, Seq, SubscriberId, Window

REMEMBERED_MAX: Final = 50_000
"""Cursors that are remembered, those written last. Beyond: a read may miss a write of this process for a moment."""


class CursorSaid(msgspec.Struct, frozen=True):
    """A cursor as it is stored."""

    sub: str | None
    device: str | None
    epoch: str
    seq: int
    seen_at: float
    acknowledged_at: float | None
    acknowledged_by: AcknowledgedBy | None

    @property
    def cursor(self) -> Cursor:
        """As it is shown."""
        return Cursor(
            SubscriberId(self.sub, self.device),
            Epoch(self.epoch),
            Seq(self.seq),
            self.seen_at,
            self.acknowledged_at,
            self.acknowledged_by,
        )


def said_of(cursor: Cursor) -> CursorSaid:
    """A cursor as it is to be stored."""
    return CursorSaid(
        cursor.subscriber.sub,
        cursor.subscriber.device,
        cursor.epoch,
        cursor.seq,
        cursor.seen_at,
        cursor.acknowledged_at,
        cursor.acknowledged_by,
    )


@dataclass(frozen=True, slots=True)
class _Kept:
    """A cursor as this process knows it."""

    pos: int
    """Where it lies, or did."""
    cursor: Cursor | None
    """`None`: it was dropped."""

    @property
    def expected(self) -> int:
        """What the engine has as the last position of its subject."""
        return 0 if self.cursor is None else self.pos


_Whose = tuple[str, SubscriberId]


class Cursors:
    """The cursors of an installation, as this process sees them."""

    def __init__(self, engine: Engine, head: Callable[[str, int], Awaitable[int]]) -> None:
        """Cursors whose heads are asked for so: the newest number of a registered diagnosis, or a number given that is
        not below the second argument."""
        self._engine = engine
        self._head = head
        self._kept: OrderedDict[_Whose, _Kept] = OrderedDict()

    async def move(self, moves: Sequence[CursorMove]) -> Sequence[Seq | None]:
        """As `CursorStore.move_cursors`."""
        by_whose: dict[_Whose, list[CursorMove]] = {}
        for move in moves:
            diagnosis = self._engine.known.diagnosis(move.diagnosis_id)
            if diagnosis is not None and diagnosis.epoch == move.epoch:
                by_whose.setdefault((move.diagnosis_id, move.subscriber), []).append(move)
        heads = await self._heads([move for one in by_whose.values() for move in one])
        left = list(by_whose)
        deadline = trio.current_time() + PATIENCE_SECONDS
        was_sent = False
        while left:
            if trio.current_time() > deadline:
                raise Failed("cursors are not stored: the engine does not answer") if was_sent else Busy("it is away")
            unknown = [whose for whose in left if whose not in self._kept]
            for whose, found in zip(
                unknown, await self._engine.together([partial(self._last, one) for one in unknown]), strict=True
            ):
                self._keep(whose, found)
            chosen = left[:BATCH_MESSAGES_MAX]
            moved = {whose: self._moved(whose, by_whose[whose], heads[whose[0]]) for whose in chosen}
            try:
                was_sent = True
                await self._write(moved)
                left = left[len(chosen) :]
            except NatsError as error:
                if isinstance(error, JetStreamError) and error.err_code in CONFLICTS | {0}:
                    self._forget(chosen)
                elif isinstance(error, Unanswered):
                    self._forget(chosen)
                    await self._engine.wait_a_little()
                elif self._engine.is_passing(error):
                    await self._engine.wait_a_little()
                else:
                    raise Failed(f"the engine refuses: {error}") from error
        return [self._stored(move) for move in moves]

    def _stored(self, move: CursorMove) -> Seq | None:
        kept = self._kept.get((move.diagnosis_id, move.subscriber))
        return None if kept is None or kept.cursor is None or kept.cursor.epoch != move.epoch else kept.cursor.seq

    async def _heads(self, moves: Sequence[CursorMove]) -> dict[str, int]:
        wanted: dict[str, int] = {}
        for move in moves:
            wanted[move.diagnosis_id] = max(move.seq, wanted.get(move.diagnosis_id, 0))
        heads = await self._engine.together([partial(self._head, *one) for one in wanted.items()])
        return dict(zip(wanted, heads, strict=True))

    def _moved(self, whose: _Whose, moves: Sequence[CursorMove], head: int) -> Cursor:
        cursor = self._kept[whose].cursor
        for move in moves:
            cursor = moved(cursor, move, head)
        assert cursor is not None, "there is at least one move"
        return cursor

    async def _write(self, cursors: dict[_Whose, Cursor]) -> None:
        layout = self._engine.layout
        messages = []
        for whose, cursor in cursors.items():
            said = msgspec.json.encode(said_of(cursor))
            messages.append(replacing(layout.cursor(*whose), said, self._kept[whose].expected))
        stored = await self._engine.jetstream.store(messages)
        for pos, (whose, cursor) in enumerate(cursors.items(), start=stored.pos - len(cursors) + 1):
            self._keep(whose, _Kept(pos, cursor))

    async def _last(self, whose: _Whose) -> _Kept:
        found = await self._engine.last(self._engine.layout.cursors, self._engine.layout.cursor(*whose))
        return _Kept(0, None) if found is None else _Kept(found.pos, _read(found))

    def _keep(self, whose: _Whose, kept: _Kept) -> None:
        self._kept[whose] = kept
        self._kept.move_to_end(whose)
        if len(self._kept) > REMEMBERED_MAX:
            self._kept.popitem(last=False)

    def _forget(self, whose: Sequence[_Whose]) -> None:
        for one in whose:
            self._kept.pop(one, None)

    async def of(self, diagnosis_id: str) -> Sequence[Cursor]:
        """All cursors of a diagnosis, by `SubscriberId.order`. To be called patiently."""
        layout = self._engine.layout
        found = {}
        for one in await self._engine.all_of(layout.cursors, layout.cursors_of(diagnosis_id)):
            if (cursor := _read(one)) is not None:
                found[cursor.subscriber] = _Kept(one.pos, cursor)
        for (of, subscriber), kept in self._kept.items():
            if of == diagnosis_id and kept.pos >= found.get(subscriber, kept).pos:
                found[subscriber] = kept
        cursors = [kept.cursor for kept in found.values() if kept.cursor is not None]
        return sorted(cursors, key=lambda one: one.subscriber.order)

    async def above(self, windows: Mapping[str, Window]) -> Sequence[str]:
        """Cursors beyond the newest number of their diagnosis, in words. To be called patiently."""
        layout, problems = self._engine.layout, Counter[str]()
        found: Sequence[Found] = ()
        while page := await self._engine.page(layout.cursors, layout.all_cursors, found[-1].pos + 1 if found else 1):
            found = page
            for one in page:
                diagnosis_id, cursor = one.subject.split(".")[1], _read(one)
                window = windows.get(diagnosis_id)
                if window is not None and cursor is not None:
                    problems[diagnosis_id] += cursor.epoch == window.epoch and cursor.seq > window.head
        return [
            f"diagnosis {one}: {count} subscribers have acknowledged more than was ever numbered"
            for one, count in problems.items()
            if count
        ]

    async def one(self, diagnosis_id: str, subscriber: SubscriberId) -> Cursor | None:
        """The cursor of one subscriber, from the leader. To be called patiently."""
        kept = await self._last((diagnosis_id, subscriber))
        return kept.cursor

    async def drop(self, diagnosis_id: str, subscribers: Sequence[SubscriberId]) -> int:
        """Drop some; how many there were. To be called patiently."""
        layout, dropped = self._engine.layout, 0
        for subscriber in subscribers:
            dropped += await self._engine.jetstream.purge(layout.cursors, layout.cursor(diagnosis_id, subscriber))
            self._is_dropped((diagnosis_id, subscriber))
        return dropped

    async def drop_all(self, diagnosis_id: str) -> None:
        """Drop those of a diagnosis. To be called patiently."""
        await self._engine.jetstream.purge(self._engine.layout.cursors, self._engine.layout.cursors_of(diagnosis_id))
        for whose in [one for one in self._kept if one[0] == diagnosis_id]:
            self._is_dropped(whose)

    async def drop_by(self, sub: str) -> int:
        """Drop those of a person; how many there were. To be called patiently."""
        dropped = await self._engine.jetstream.purge(self._engine.layout.cursors, self._engine.layout.cursors_by(sub))
        for whose in [one for one in self._kept if one[1].sub == sub]:
            self._is_dropped(whose)
        return dropped

    def _is_dropped(self, whose: _Whose) -> None:
        if (kept := self._kept.get(whose)) is not None:
            self._kept[whose] = replace(kept, cursor=None)


def moved(old: Cursor | None, move: CursorMove, head: int) -> Cursor:
    """A cursor after a move, by the rules of `CursorMove`."""
    seq = Seq(min(move.seq, head))
    at = move.seen_at if move.acknowledged_at is None else move.acknowledged_at
    if old is None or old.epoch != move.epoch:
        seen_at = move.seen_at if old is None else max(old.seen_at, move.seen_at)
        acknowledged_at = None if move.acknowledged_by is None else at
        return Cursor(move.subscriber, move.epoch, seq, seen_at, acknowledged_at, move.acknowledged_by)
    new = replace(old, seq=max(old.seq, seq), seen_at=max(old.seen_at, move.seen_at))
    return replace(new, acknowledged_at=at, acknowledged_by=move.acknowledged_by) if seq > old.seq else new


def _read(found: Found) -> Cursor | None:
    try:
        return msgspec.json.decode(found.data, type=CursorSaid).cursor
    except (msgspec.MsgspecError, UnicodeDecodeError):
        return None
