"""The in-memory twin: a store for tests and simulations, judged by the same contract suite as the real one.

Deterministic, without threads, so that Trio's autojump clock can be used. Nothing survives it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import trio

from storage import storable
from storage.clock import Clock
from storage.errors import CannotCopy, KeyReused, NoSuchDiagnosis, NoSuchRevocation, StorageError
from storage.records import (
    IDEMPOTENCY_KEY_SECONDS,
    OUTBOX_EVENTS_MAX,
    AccessRow,
    Appended,
    AuditRow,
    Backup,
    Cursor,
    CursorMove,
    Diagnosis,
    Epoch,
    Erased,
    Erasure,
    Event,
    Evicted,
    NewAccessRow,
    NewAuditRow,
    NewEvent,
    Outbox,
    Registered,
    Revocation,
    Seq,
    Slice,
    StoreStatistics,
    SubscriberId,
    Window,
)


@dataclass(slots=True)
class _Stream:
    """Everything of one diagnosis."""

    diagnosis: Diagnosis
    events: list[Event] = field(default_factory=list)
    head: int = 0
    floor: int = 0
    purged: int = 0
    keys: dict[str, tuple[bytes, Seq, float]] = field(default_factory=dict)
    """Digest, number and time of the event each key made."""
    cursors: dict[SubscriberId, Cursor] = field(default_factory=dict)

    @property
    def window(self) -> Window:
        return Window(self.diagnosis.epoch, Seq(self.head), Seq(self.floor), Seq(self.purged))


class PendingAppend:
    """The handle of an append; done already, but a waiter still has to wait."""

    __slots__ = ("_outcomes",)

    def __init__(self, outcomes: Sequence[Appended | StorageError]) -> None:
        self._outcomes = outcomes

    async def wait(self) -> Sequence[Appended | StorageError]:
        await trio.lowlevel.checkpoint()
        return self._outcomes


class MemoryStore:
    """A `storage.store.Store`; see there for what each method does."""

    def __init__(self, *, clock: Clock, new_epoch: Callable[[], str]) -> None:
        self._clock = clock
        self._new_epoch = new_epoch
        self._streams: dict[str, _Stream] = {}
        self._audit: list[AuditRow] = []
        self._revocations: dict[int, Revocation] = {}
        self._revocations_made = 0
        self._accesses: list[AccessRow] = []
        self._audit_rows_made = self._access_rows_made = 0
        self._operations = 0
        self.before_change: Callable[[], None] = lambda: None
        """Called before anything changes; a test makes it raise what a store raises (or a bug)."""

    def append_nowait(self, diagnosis_id: str, events: Sequence[NewEvent]) -> PendingAppend:
        self._changing()
        return PendingAppend([self._append(diagnosis_id, event) for event in events])

    def _append(self, diagnosis_id: str, event: NewEvent) -> Appended | StorageError:
        if (refusal := storable.refusal_of(event)) is not None:
            return refusal
        stream = self._streams.get(diagnosis_id)
        if stream is None:
            return NoSuchDiagnosis(diagnosis_id)
        now = self._clock.wall()
        epoch = stream.diagnosis.epoch
        if event.key is not None and (made := stream.keys.get(event.key)) is not None:
            digest, seq, at = made
            if at + IDEMPOTENCY_KEY_SECONDS > now:
                same = digest == event.digest
                return (
                    Appended(seq, at, epoch, replayed=True) if same else KeyReused("the key belongs to another event")
                )
        stream.head += 1
        seq = Seq(stream.head)
        stream.events.append(Event(seq, now, event.kind, event.body))
        del stream.events[:-OUTBOX_EVENTS_MAX]
        stream.floor = max(stream.floor, stream.head - OUTBOX_EVENTS_MAX)
        if event.key is not None:
            stream.keys[event.key] = (event.digest, seq, now)
        return Appended(seq, now, epoch, replayed=False)

    async def read_after(self, diagnosis_id: str, seq: Seq, limit: int = 100) -> Slice:
        await trio.lowlevel.checkpoint()
        stream = self._stream(diagnosis_id)
        return Slice(stream.window, tuple(event for event in stream.events if event.seq > seq)[:limit])

    async def register(
        self, diagnosis_id: str, owner: str, viewers: Sequence[str], audit: NewAuditRow | None = None
    ) -> Registered:
        await trio.lowlevel.checkpoint()
        storable.check(diagnosis_id, owner, tuple(viewers), audit)
        self._changing()
        stream = self._streams.get(diagnosis_id)
        before = None if stream is None else stream.diagnosis
        if stream is None:
            made = Diagnosis(diagnosis_id, owner, tuple(viewers), Epoch(self._new_epoch()), self._clock.wall())
            stream = self._streams[diagnosis_id] = _Stream(made)
        stream.diagnosis = replace(stream.diagnosis, owner=owner, viewers=tuple(viewers))
        self._record(audit)
        return Registered(stream.diagnosis, created=before is None, before=before)

    async def get(self, diagnosis_id: str) -> Diagnosis:
        return self._stream(diagnosis_id).diagnosis

    async def diagnoses(self, *, owner: str | None = None, after: str = "", limit: int = 100) -> Sequence[Diagnosis]:
        await trio.lowlevel.checkpoint()
        return [stream.diagnosis for stream in self._page(owner, after)[:limit]]

    async def outboxes(self, *, owner: str | None = None, after: str = "", limit: int = 100) -> Sequence[Outbox]:
        await trio.lowlevel.checkpoint()
        return [Outbox(stream.diagnosis, stream.window, _lowest(stream)) for stream in self._page(owner, after)[:limit]]

    async def count_diagnoses(self, *, owner: str | None = None) -> int:
        await trio.lowlevel.checkpoint()
        return len(self._page(owner, ""))

    async def delete(self, diagnosis_id: str, audit: NewAuditRow | None = None) -> Diagnosis:
        await trio.lowlevel.checkpoint()
        stream = self._stream(diagnosis_id)
        self._changing()
        del self._streams[diagnosis_id]
        self._record(audit)
        return stream.diagnosis

    async def move_cursors(self, moves: Sequence[CursorMove]) -> Sequence[Seq | None]:
        await trio.lowlevel.checkpoint()
        storable.check(tuple(moves))
        self._changing()
        return [self._move_cursor(move) for move in moves]

    def _move_cursor(self, move: CursorMove) -> Seq | None:
        stream = self._streams.get(move.diagnosis_id)
        if stream is None or stream.diagnosis.epoch != move.epoch:
            return None
        seq = Seq(min(move.seq, stream.head))
        old = stream.cursors.get(move.subscriber)
        if old is None:
            new = Cursor(move.subscriber, move.epoch, seq, move.at, None)
        elif old.epoch != move.epoch:
            new = Cursor(move.subscriber, move.epoch, seq, max(old.seen_at, move.at), None)
        else:
            grown = seq > old.seq
            acknowledged_at = move.at if grown else old.acknowledged_at
            new = replace(
                old, seq=max(old.seq, seq), seen_at=max(old.seen_at, move.at), acknowledged_at=acknowledged_at
            )
        stream.cursors[move.subscriber] = new
        return new.seq

    async def cursors(self, diagnosis_id: str) -> Sequence[Cursor]:
        await trio.lowlevel.checkpoint()
        found = self._stream(diagnosis_id).cursors.values()
        return sorted(found, key=lambda one: (one.subscriber.sub or "", one.subscriber.device or ""))

    async def forget(
        self, diagnosis_id: str, subscribers: Sequence[SubscriberId], audit: NewAuditRow | None = None
    ) -> int:
        await trio.lowlevel.checkpoint()
        stream = self._stream(diagnosis_id)
        storable.check(tuple(subscribers), audit)
        self._changing()
        self._record(audit)
        return sum(stream.cursors.pop(one, None) is not None for one in subscribers)

    async def purge(self, diagnosis_id: str, audit: NewAuditRow | None = None) -> Window:
        await trio.lowlevel.checkpoint()
        stream = self._stream(diagnosis_id)
        self._changing()
        stream.events.clear()
        stream.floor = stream.purged = stream.head
        self._record(audit)
        return stream.window

    async def revoke(
        self, *, sub: str | None = None, token_id: str | None = None, audit: NewAuditRow | None = None
    ) -> Revocation:
        await trio.lowlevel.checkpoint()
        storable.check(sub, token_id, audit)
        self._changing()
        self._record(audit)
        self._revocations_made += 1
        made = Revocation(self._revocations_made, sub, token_id, self._clock.wall())
        others = {n: one for n, one in self._revocations.items() if (one.sub, one.token_id) != (sub, token_id)}
        self._revocations = others | {made.number: made}
        return made

    async def revocations(self, *, after: int = 0, limit: int = 100) -> Sequence[Revocation]:
        await trio.lowlevel.checkpoint()
        return [one for number, one in self._revocations.items() if number > after][:limit]

    async def lift_revocation(self, number: int, audit: NewAuditRow | None = None) -> Revocation:
        await trio.lowlevel.checkpoint()
        if number not in self._revocations:
            raise NoSuchRevocation(str(number))
        self._changing()
        self._record(audit)
        return self._revocations.pop(number)

    async def expire_revocations(self, until: float) -> int:
        await trio.lowlevel.checkpoint()
        self._changing()
        before = len(self._revocations)
        self._revocations = {number: one for number, one in self._revocations.items() if one.at > until}
        return before - len(self._revocations)

    async def record(self, row: NewAuditRow) -> None:
        await trio.lowlevel.checkpoint()
        storable.check(row)
        self._changing()
        self._record(row)

    async def audit(self, *, before: int | None = None, limit: int = 100) -> Sequence[AuditRow]:
        await trio.lowlevel.checkpoint()
        return [row for row in reversed(self._audit) if before is None or row.number < before][:limit]

    async def record_accesses(self, rows: Sequence[NewAccessRow]) -> None:
        await trio.lowlevel.checkpoint()
        self._changing()
        for row in rows:
            self._access_rows_made += 1
            number = self._access_rows_made
            self._accesses.append(AccessRow(number, row.at, row.what, row.diagnosis_id, row.subscriber))

    async def accesses(self, *, before: int | None = None, limit: int = 100) -> Sequence[AccessRow]:
        await trio.lowlevel.checkpoint()
        return [row for row in reversed(self._accesses) if before is None or row.number < before][:limit]

    async def evict_before(self, at: float, *, after: str = "", diagnoses: int = 64) -> Evicted:
        await trio.lowlevel.checkpoint()
        self._changing()
        page = self._page(None, after)[:diagnoses]
        windows = {}
        for stream in page:
            newest = max((event.seq for event in stream.events if event.at < at), default=None)
            if newest is not None:
                stream.events = [event for event in stream.events if event.seq > newest]
                stream.floor = max(stream.floor, newest)
                windows[stream.diagnosis.diagnosis_id] = stream.window
        return Evicted(windows, page[-1].diagnosis.diagnosis_id if len(page) == diagnoses else None)

    async def expire(self, *, audit_before: float | None, accesses_before: float | None, limit: int = 256) -> int:
        await trio.lowlevel.checkpoint()
        self._changing()
        now, rows = self._clock.wall(), len(self._audit) + len(self._accesses)
        expired = [
            (stream, key)
            for stream in self._streams.values()
            for key, (_, _, at) in stream.keys.items()
            if at + IDEMPOTENCY_KEY_SECONDS <= now
        ][:limit]
        for stream, key in expired:
            del stream.keys[key]
        if audit_before is not None:
            self._audit = [row for row in self._audit[:limit] if row.at >= audit_before] + self._audit[limit:]
        if accesses_before is not None:
            kept = [row for row in self._accesses[:limit] if row.at >= accesses_before]
            self._accesses = kept + self._accesses[limit:]
        return len(expired) + rows - len(self._audit) - len(self._accesses)

    async def erase(self, erasure: Erasure, audit: NewAuditRow) -> Erased:
        await trio.lowlevel.checkpoint()
        self._changing()
        sub, cursors, viewers, owned = erasure.sub, 0, 0, []
        for diagnosis_id, stream in sorted(self._streams.items()):
            for one in [one for one in stream.cursors if one.sub == sub]:
                del stream.cursors[one]
                cursors += 1
            if sub in stream.diagnosis.viewers:
                left = tuple(viewer for viewer in stream.diagnosis.viewers if viewer != sub)
                stream.diagnosis = replace(stream.diagnosis, viewers=left)
                viewers += 1
            if stream.diagnosis.owner == sub:
                owned.append(diagnosis_id)
        before = [*self._audit, *self._accesses]
        self._audit = [erasure.rewrite(row) for row in self._audit]
        nobody = SubscriberId(erasure.stand_in, None)
        self._accesses = [
            replace(row, subscriber=nobody) if row.subscriber.sub == sub else row for row in self._accesses
        ]
        after = [*self._audit, *self._accesses]
        changed = [old != new for old, new in zip(before, after, strict=True)]
        audit_rows = sum(changed[: len(self._audit)])
        self._record(audit)
        return Erased(cursors, viewers, audit_rows, sum(changed) - audit_rows, tuple(owned))

    async def backup(self, path: Path) -> Backup:
        raise CannotCopy("a store in memory has nothing to copy")

    async def check(self) -> Sequence[str]:
        await trio.lowlevel.checkpoint()
        return []

    def statistics(self) -> StoreStatistics:
        return StoreStatistics(0, 0, 0, self._operations, self._operations, 1, 0.0, 0.0, 0.0, 0)

    def _stream(self, diagnosis_id: str) -> _Stream:
        try:
            return self._streams[diagnosis_id]
        except KeyError:
            raise NoSuchDiagnosis(diagnosis_id) from None

    def _page(self, owner: str | None, after: str) -> list[_Stream]:
        return [
            stream
            for diagnosis_id, stream in sorted(self._streams.items())
            if diagnosis_id > after and owner in (None, stream.diagnosis.owner)
        ]

    def _changing(self) -> None:
        self.before_change()
        self._operations += 1

    def _record(self, row: NewAuditRow | None) -> None:
        if row is not None:
            self._audit_rows_made += 1
            number, at = self._audit_rows_made, self._clock.wall()
            self._audit.append(AuditRow(number, at, row.who, row.what, row.target, row.before, row.after))


def _lowest(stream: _Stream) -> Seq | None:
    epoch = stream.diagnosis.epoch
    return min((one.seq if one.epoch == epoch else Seq(0) for one in stream.cursors.values()), default=None)
