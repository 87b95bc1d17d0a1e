"""The in-memory twin: a store for tests and simulations, judged by the same contract suite as the real one.

Deterministic, without threads, so that Trio's autojump clock can be used. What it holds is in a `MemoryEngine`, which
several stores may share, as processes share a replicated engine. Nothing survives the engine.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Coroutine, Sequence
from dataclasses import replace
from functools import wraps
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, TypeVar

import trio

from storage import changes, checks, records
from storage.belief import Kept, Moment
from storage.clock import Timekeeper
from storage.damage import Damage, FoundDamage, TellsDamage
from storage.errors import (
    Busy,
    Failed,
    KeyReused,
    KeysExhausted,
    NoSuchDiagnosis,
    NoSuchRevocation,
    NotDamaged,
    NotSupported,
    OutboxDamaged,
    StorageError,
)
from storage.memory_engine import MemoryEngine, Stream
from storage.pages import within
from storage.store import Committed, PendingAppend

Answer = TypeVar("Answer")
P = ParamSpec("P")
Row = TypeVar("Row", records.AuditRow, records.AccessRow)


def _answered(outcomes: Sequence[records.Appended | StorageError]) -> PendingAppend:
    """An append that is done; whoever waits for it still has a checkpoint."""
    pending = PendingAppend()
    pending.answer(outcomes, trio.current_time())
    return pending


def _change(
    method: Callable[Concatenate[MemoryStore, P], Answer],
) -> Callable[Concatenate[MemoryStore, P], Coroutine[Any, Any, Answer]]:
    """A method that changes something: handed over before its first checkpoint, and waited for like a disk."""

    @wraps(method)
    async def changed(store: MemoryStore, /, *args: P.args, **kwargs: P.kwargs) -> Answer:
        await trio.lowlevel.checkpoint_if_cancelled()
        try:
            return method(store, *args, **kwargs)
        finally:
            await trio.lowlevel.checkpoint()

    return changed


class MemoryStore(TellsDamage):
    """A `storage.store.Store`; see there for what each method does."""

    def __init__(self, engine: MemoryEngine, node: str = "one", kept: Kept | None = None) -> None:
        """A handle on what `engine` holds.

        Args:
            node: whose handle it is.
            kept: the time that a run before this one has kept, `None`: there was none.
        """
        self.engine = engine
        self._handle = engine.join(node)
        self._time = Timekeeper(engine.clock, kept)
        self._operations = 0
        self.broke = trio.Event()
        self._damage = FoundDamage()
        self._told: Committed | None = None
        self.before_change: Callable[[], None] = lambda: None
        """Called before anything changes; a test makes it raise what a store raises (or a bug)."""

    @property
    def shared(self) -> bool:
        return self.engine.shared

    def tell(self, hears: changes.Hears, settled: Callable[[], Awaitable[None]] | None = None) -> None:
        self._handle.tell(hears)

    def follow(self, diagnosis_id: str) -> Callable[[], None]:
        stream = self.engine.streams.get(diagnosis_id)
        return self._handle.follow(diagnosis_id, stream.past[-1] if stream is not None and stream.past else None)

    def go_away(self) -> None:
        """Have this handle not reach the engine, until `come_back`."""
        self._handle.go_away()

    def come_back(self) -> None:
        """Reach the engine again; what was missed meanwhile is told."""
        self._handle.come_back()

    def die(self) -> None:
        """End as a process does that is killed: nothing is answered, and nothing told."""
        self.engine.leave(self._handle)

    @property
    def kept(self) -> Kept:
        """What the run after this one is told of its time."""
        self._time.moment()
        return self._time.kept

    def damage(self, diagnosis_id: str, *seqs: int, head: int | None = None) -> None:
        """Change what is stored, as a disk that fails: events of these numbers, or the head.

        All is still to be looked at then, as after a run that did not end in order.
        """
        stream = self.engine.streams[diagnosis_id]
        stream.is_suspect = True
        stream.changed |= set(seqs)
        stream.head = stream.head if head is None else head
        self._damage.is_check_pending = True

    def restarted(self, kept: Kept) -> MemoryStore:
        """A store of the next run, with the contents of this one, which must not be used any more."""
        next_one = MemoryStore(self.engine, self._handle.node, kept)
        next_one._damage = FoundDamage(is_check_pending=self._damage.is_check_pending or bool(self._damage.all))
        return next_one

    def moment(self) -> Moment:
        return self._time.moment()

    @property
    def clock_held_since(self) -> float | None:
        self._time.moment()
        return self._time.held_since

    async def look_through(self) -> None:
        for diagnosis_id in list(self.engine.streams) if self.is_check_pending else ():
            await trio.lowlevel.checkpoint()
            if diagnosis_id in self.engine.streams:
                self._judge(diagnosis_id)
        self._damage.is_check_pending = False

    def _judge(self, diagnosis_id: str) -> Damage | None:
        """What is wrong with an outbox, remembered."""
        damage = self._damage.all.get(diagnosis_id) or self.engine.streams[diagnosis_id].judge()
        if damage is not None:
            self._damage.add(diagnosis_id, damage)
        return damage

    def on_commit(self, tell: Committed) -> None:
        self._told = tell

    def append_nowait(
        self, diagnosis_id: str, events: Sequence[records.NewEvent], spans: Sequence[object] = ()
    ) -> PendingAppend:
        checks.check_text(diagnosis_id)
        self._changing()
        damage = self.engine.streams[diagnosis_id].judge() if diagnosis_id in self.engine.streams else None
        if damage is not None and (diagnosis_id in self.damaged or not damage.is_head_trusted):
            self._damage.add(diagnosis_id, damage)
            return _answered([OutboxDamaged(diagnosis_id, damage) for _ in events])
        now = self.moment()
        outcomes = [self._append(diagnosis_id, event, now) for event in events]
        if self._told is not None and spans:
            self._told([spans], self._time.monotonic(), None)
        return _answered(outcomes)

    def _append(self, diagnosis_id: str, event: records.NewEvent, now: Moment) -> records.Appended | StorageError:
        if (refusal := checks.refusal_of(event)) is not None:
            return refusal
        stream = self.engine.streams.get(diagnosis_id)
        if stream is None:
            return NoSuchDiagnosis(diagnosis_id)
        epoch = stream.diagnosis.epoch
        if event.key is not None and (made := stream.keys.get(event.key)) is not None:
            digest, seq, at, expires_at = made
            if expires_at > now.judged:
                same = digest == event.digest
                return (
                    records.Appended(seq, at, epoch, replayed=True)
                    if same
                    else KeyReused("the key belongs to another event")
                )
        if event.key is not None and event.key not in stream.keys and self._keys() >= self.engine.keys_max:
            return KeysExhausted(f"{self.engine.keys_max} idempotency keys are stored already")
        stream.head += 1
        seq = records.Seq(stream.head)
        stored = records.Event(seq, now.wall, event.kind, event.body)
        stream.events.append(stored)
        del stream.events[: -records.OUTBOX_EVENTS_MAX]
        stream.floor = max(stream.floor, stream.head - records.OUTBOX_EVENTS_MAX)
        if event.key is not None:
            stream.keys[event.key] = (event.digest, seq, now.wall, now.reckoned + records.IDEMPOTENCY_KEY_SECONDS)
        self.engine.wrote(self._handle, diagnosis_id, stored)
        return records.Appended(seq, now.wall, epoch, replayed=False)

    async def read_after(
        self, diagnosis_id: str, seq: records.Seq, limit: int = 100, bytes_max: int | None = None
    ) -> records.Slice:
        await self._asked()
        stream = self._stream(diagnosis_id)
        if limit and (damage := self._judge(diagnosis_id)) is not None:
            raise OutboxDamaged(diagnosis_id, damage)
        _, window, events = self.engine.read(self._handle, stream, seq)
        found = [event for event in events if event.seq > seq]
        return records.Slice(window, tuple(within(found[:limit], bytes_max)))

    @_change
    def register(
        self,
        diagnosis_id: str,
        owner: str,
        viewers: Sequence[str],
        act: records.Act | None = None,
    ) -> records.Registered:
        checks.check(diagnosis_id, owner, tuple(viewers))
        self._changing()
        stream = self.engine.streams.get(diagnosis_id)
        if stream is None:
            made = records.Diagnosis(
                diagnosis_id, owner, tuple(viewers), records.Epoch(self.engine.new_epoch()), self.moment().wall
            )
            registered = self._recorded(records.Registered(made, created=True, before=None), act)
            self.engine.streams[diagnosis_id] = Stream(made)
            self.engine.wrote(self._handle, diagnosis_id)
        else:
            new = replace(stream.diagnosis, owner=owner, viewers=tuple(viewers))
            registered = self._recorded(records.Registered(new, created=False, before=stream.diagnosis), act)
            stream.diagnosis = new
        self.engine.told.add(changes.DiagnosisRegistered(self.engine.told.next, registered.diagnosis))
        return registered

    async def get(self, diagnosis_id: str) -> records.Diagnosis:
        return self._stream(diagnosis_id).diagnosis

    def known(self, diagnosis_id: str) -> records.Diagnosis | None:
        stream = self.engine.streams.get(diagnosis_id)
        return None if stream is None else stream.diagnosis

    async def look_up(self, diagnosis_id: str) -> records.Diagnosis:
        await self._asked()
        return self._stream(diagnosis_id).diagnosis

    async def diagnoses(
        self, *, owner: str | None = None, after: str = "", limit: int = 100, bytes_max: int | None = None
    ) -> Sequence[records.Diagnosis]:
        await self._asked()
        return list(within([stream.diagnosis for stream in self._page(owner, after)[:limit]], bytes_max))

    async def outboxes(
        self, *, owner: str | None = None, after: str = "", limit: int = 100
    ) -> Sequence[records.Outbox]:
        await self._asked()
        page = self._page(owner, after)[:limit]
        return [records.Outbox(stream.diagnosis.diagnosis_id, stream.window, _lowest(stream)) for stream in page]

    @_change
    def delete(self, diagnosis_id: str, act: records.Act | None = None) -> records.Diagnosis:
        stream = self._stream(diagnosis_id)
        self._changing()
        deleted = self._recorded(stream.diagnosis, act)
        del self.engine.streams[diagnosis_id]
        self.engine.ended(self._handle, diagnosis_id, stream)
        self._damage.is_repaired(diagnosis_id)
        self.engine.told.add(changes.DiagnosisDeleted(self.engine.told.next, deleted))
        return deleted

    @_change
    def move_cursors(self, moves: Sequence[records.CursorMove]) -> Sequence[records.Seq | None]:
        checks.check_moves(moves)
        self._changing()
        for move in moves:
            self._move_cursor(move)
        return [self._stored(move) for move in moves]

    def _stored(self, move: records.CursorMove) -> records.Seq | None:
        stream = self.engine.streams.get(move.diagnosis_id)
        return None if stream is None or stream.diagnosis.epoch != move.epoch else stream.cursors[move.subscriber].seq

    def _move_cursor(self, move: records.CursorMove) -> None:
        stream = self.engine.streams.get(move.diagnosis_id)
        if stream is None or stream.diagnosis.epoch != move.epoch:
            return
        seq = records.Seq(min(move.seq, stream.head))
        old = stream.cursors.get(move.subscriber)
        at = move.seen_at if move.acknowledged_at is None else move.acknowledged_at
        if old is None or old.epoch != move.epoch:
            seen_at = move.seen_at if old is None else max(old.seen_at, move.seen_at)
            acknowledged_at = None if move.acknowledged_by is None else at
            new = records.Cursor(move.subscriber, move.epoch, seq, seen_at, acknowledged_at, move.acknowledged_by)
        else:
            grown = seq > old.seq
            new = replace(old, seq=max(old.seq, seq), seen_at=max(old.seen_at, move.seen_at))
            if grown:
                new = replace(new, acknowledged_at=at, acknowledged_by=move.acknowledged_by)
        stream.cursors[move.subscriber] = new

    async def cursors(
        self, diagnosis_id: str, *, after: records.SubscriberId | None = None, limit: int | None = None
    ) -> Sequence[records.Cursor]:
        await self._asked()
        found = sorted(self._stream(diagnosis_id).cursors.values(), key=lambda one: one.subscriber.order)
        return [one for one in found if after is None or one.subscriber.order > after.order][:limit]

    async def cursor(self, diagnosis_id: str, subscriber: records.SubscriberId) -> records.Cursor | None:
        await self._asked()
        return self._stream(diagnosis_id).cursors.get(subscriber)

    async def furthest_behind(self, diagnosis_ids: Sequence[str], limit: int) -> Sequence[Sequence[records.Cursor]]:
        await self._asked()
        return [self._furthest_behind(one)[:limit] for one in diagnosis_ids]

    def _furthest_behind(self, diagnosis_id: str) -> list[records.Cursor]:
        stream = self.engine.streams.get(diagnosis_id)
        if stream is None:
            return []
        epoch = stream.diagnosis.epoch
        return sorted(
            stream.cursors.values(), key=lambda one: (one.seq if one.epoch == epoch else 0, one.subscriber.order)
        )

    @_change
    def forget(
        self, diagnosis_id: str, subscribers: Sequence[records.SubscriberId], act: records.Act | None = None
    ) -> int:
        stream = self._stream(diagnosis_id)
        checks.check(tuple(subscribers))
        self._changing()
        found = set(subscribers) & stream.cursors.keys()
        dropped = self._recorded(len(found), act)
        for one in found:
            del stream.cursors[one]
        return dropped

    @_change
    def purge(self, diagnosis_id: str, act: records.Act | None = None) -> records.Purged:
        stream = self._stream(diagnosis_id)
        self._changing()
        if (damage := stream.judge()) is not None and not damage.is_head_trusted:
            raise OutboxDamaged(diagnosis_id, damage)
        before, head = stream.window, records.Seq(stream.head)
        purged = self._recorded(records.Purged(before, after=replace(before, floor=head, purged=head)), act)
        stream.events.clear()
        stream.floor = stream.purged = head
        self.engine.wrote(self._handle, diagnosis_id)
        self._damage.is_repaired(diagnosis_id)
        self.engine.told.add(changes.OutboxPurged(self.engine.told.next, diagnosis_id, purged.after))
        return purged

    @_change
    def drop_damaged(self, diagnosis_id: str, act: records.Act | None = None) -> records.Dropped:
        stream = self._stream(diagnosis_id)
        self._changing()
        if (damage := stream.judge()) is None:
            raise NotDamaged(f"diagnosis {diagnosis_id} is not damaged")
        is_renewed = not damage.is_head_trusted
        epoch = records.Epoch(self.engine.new_epoch()) if is_renewed else stream.diagnosis.epoch
        left = [event for event in stream.events if damage.floor < event.seq <= damage.head]
        count = len(stream.events) - len(left)
        dropped = self._recorded(
            records.Dropped(diagnosis_id, damage.what, count, damage.window(epoch), is_renewed), act
        )
        stream.diagnosis = replace(stream.diagnosis, epoch=epoch)
        stream.events, stream.changed = left, frozenset()
        stream.head, stream.floor, stream.purged = damage.head, damage.floor, damage.purged
        if is_renewed:
            stream.keys = {key: made for key, made in stream.keys.items() if made[1] <= damage.head}
        if is_renewed:
            self.engine.told.add(changes.EpochsRenewed(self.engine.told.next, diagnosis_id))
        self.engine.wrote(self._handle, diagnosis_id)
        self._damage.is_repaired(diagnosis_id)
        return dropped

    @_change
    def revoke(
        self,
        *,
        sub: str | None = None,
        token_id: str | None = None,
        leeway_seconds: float = 0.0,
        act: records.Act | None = None,
    ) -> records.RevocationMade:
        checks.check(sub, token_id)
        self._changing()
        now = self.moment()
        covers_until = now.reckoned + leeway_seconds
        new = records.Revocation(self.engine.revocations_made + 1, sub, token_id, now.wall, covers_until)
        earlier = [one for one in self.engine.revocations.values() if (one.sub, one.token_id) == (sub, token_id)]
        made = self._recorded(records.RevocationMade(new, before=earlier[0] if earlier else None), act)
        self.engine.revocations_made += 1
        for one in earlier:
            del self.engine.revocations[one.number]
        self.engine.revocations[new.number] = new
        self.engine.told.add(changes.TokensRevoked(self.engine.told.next, new))
        return made

    async def revocations(self, *, after: int = 0, limit: int = 100) -> Sequence[records.Revocation]:
        await self._asked()
        return [one for number, one in self.engine.revocations.items() if number > after][:limit]

    @_change
    def lift_revocation(self, number: int, act: records.Act | None = None) -> records.Revocation:
        if number not in self.engine.revocations:
            raise NoSuchRevocation(str(number))
        self._changing()
        lifted = self._recorded(self.engine.revocations[number], act)
        del self.engine.revocations[number]
        self.engine.told.add(changes.RevocationsLifted(self.engine.told.next, (lifted,)))
        return lifted

    @_change
    def expire_revocations(self, seconds: float) -> Sequence[records.Revocation]:
        self._changing()
        until = self.moment().judged - seconds
        expired = [one for one in self.engine.revocations.values() if one.covers_until <= until]
        for one in expired:
            del self.engine.revocations[one.number]
        if expired:
            self.engine.told.add(changes.RevocationsLifted(self.engine.told.next, tuple(expired)))
        return expired

    @_change
    def record(self, row: records.NewAuditRow) -> None:
        checks.check(row)
        self._changing()
        self._record(row)

    async def audit(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        wanted: records.TrailFilter = records.EVERY_ROW,
        bytes_max: int | None = None,
    ) -> Sequence[records.AuditRow]:
        await self._asked()
        rows = [row for row in reversed(self.engine.audit) if before is None or row.number < before]
        found = [row for row in rows if _fits(wanted, row.who, row.what, row.diagnosis_id, row.at)]
        return list(within(found[:limit], bytes_max))

    @_change
    def record_accesses(self, rows: Sequence[records.NewAccessRow]) -> None:
        self._changing()
        for row in rows:
            self.engine.access_rows_made += 1
            number = self.engine.access_rows_made
            self.engine.accesses.append(records.AccessRow(number, row.at, row.what, row.diagnosis_id, row.subscriber))

    async def accesses(
        self, *, before: int | None = None, limit: int = 100, wanted: records.TrailFilter = records.EVERY_ROW
    ) -> Sequence[records.AccessRow]:
        await self._asked()
        rows = [row for row in reversed(self.engine.accesses) if before is None or row.number < before]
        return [row for row in rows if _fits(wanted, row.subscriber.sub, row.what, row.diagnosis_id, row.at)][:limit]

    @_change
    def evict(self, seconds: float, *, after: str = "", diagnoses: int = 64) -> records.Evicted:
        self._changing()
        at = self.moment().judged - seconds
        page = self._page(None, after)[:diagnoses]
        windows = {}
        for stream in page:
            newest = max((event.seq for event in stream.events if event.at < at), default=None)
            if newest is not None and newest not in stream.changed:
                stream.events = [event for event in stream.events if event.seq > newest]
                stream.floor = max(stream.floor, newest)
                windows[stream.diagnosis.diagnosis_id] = stream.window
                self.engine.wrote(self._handle, stream.diagnosis.diagnosis_id)
                self._damage.evicted(stream.diagnosis.diagnosis_id, stream.window.floor)
        if windows:
            self.engine.told.add(changes.EventsEvicted(self.engine.told.next, windows))
        return records.Evicted(windows, page[-1].diagnosis.diagnosis_id if len(page) == diagnoses else None)

    @_change
    def expire(
        self, *, audit_seconds: float | None = None, accesses_seconds: float | None = None, limit: int = 256
    ) -> int:
        self._changing()
        judged, rows = self.moment().judged, len(self.engine.audit) + len(self.engine.accesses)
        expired = [
            (stream, key)
            for stream in self.engine.streams.values()
            for key, (_, _, _, expires_at) in stream.keys.items()
            if expires_at <= judged
        ][:limit]
        for stream, key in expired:
            del stream.keys[key]
        self.engine.audit = _without_old(self.engine.audit, audit_seconds, judged, limit)
        self.engine.accesses = _without_old(self.engine.accesses, accesses_seconds, judged, limit)
        return len(expired) + rows - len(self.engine.audit) - len(self.engine.accesses)

    async def idempotency_keys(self) -> records.IdempotencyKeys:
        await self._asked()
        made = [
            end - records.IDEMPOTENCY_KEY_SECONDS
            for one in self.engine.streams.values()
            for *_, end in one.keys.values()
        ]
        oldest = max(0.0, self.moment().reckoned - min(made)) if made else None
        return records.IdempotencyKeys(len(made), self.engine.keys_max, oldest)

    @_change
    def forget_unseen(
        self, seconds: float, *, spared: Collection[str] = (), after: str = "", diagnoses: int = 64
    ) -> records.ForgottenUnseen:
        self._changing()
        before, page = self.moment().judged - seconds, self._page(None, after)[:diagnoses]
        unseen = [
            (stream, one)
            for stream in page
            if stream.diagnosis.diagnosis_id not in spared
            for one, cursor in stream.cursors.items()
            if cursor.seen_at <= before
        ]
        for stream, one in unseen:
            del stream.cursors[one]
        last = page[-1].diagnosis.diagnosis_id if len(page) == diagnoses else None
        return records.ForgottenUnseen(len(unseen), last)

    @_change
    def erase(self, erasure: records.Erasure, act: records.Act | None = None) -> records.Erased:
        self._changing()
        sub, cursors, viewers, owned = erasure.sub, 0, 0, []
        for diagnosis_id, stream in sorted(self.engine.streams.items()):
            for one in [one for one in stream.cursors if one.sub == sub]:
                del stream.cursors[one]
                cursors += 1
            if sub in stream.diagnosis.viewers:
                left = tuple(viewer for viewer in stream.diagnosis.viewers if viewer != sub)
                stream.diagnosis = replace(stream.diagnosis, viewers=left)
                viewers += 1
            if stream.diagnosis.owner == sub:
                owned.append(diagnosis_id)
        before = [*self.engine.audit, *self.engine.accesses]
        self.engine.audit = [self.engine.rows.without_name(row, erasure) for row in self.engine.audit]
        nobody = records.SubscriberId(erasure.stand_in, None)
        self.engine.accesses = [
            replace(row, subscriber=nobody) if row.subscriber.sub == sub else row for row in self.engine.accesses
        ]
        after = [*self.engine.audit, *self.engine.accesses]
        changed = [old != new for old, new in zip(before, after, strict=True)]
        audit_rows, named = sum(changed[: len(self.engine.audit)]), tuple(owned[: records.OWNED_NAMED_MAX])
        erased = records.Erased(cursors, viewers, audit_rows, sum(changed) - audit_rows, named, len(owned))
        if act is not None:
            self._recorded(erased, act)
            self.engine.told.add(changes.SubjectErased(self.engine.told.next, changes.digest_of(sub), erasure.stand_in))
        return erased

    async def backup(self, path: Path) -> records.Backup:
        raise NotSupported("a store in memory is not copied")

    async def check(self, scratch: Path | None = None) -> Sequence[str]:
        await self._asked()
        return []

    async def barrier(self) -> None:
        await self._asked()

    def patient(self, seconds: float) -> MemoryStore:
        return self

    def statistics(self) -> records.StoreStatistics:
        return records.StoreStatistics(
            0,
            0,
            0,
            self._operations,
            self._operations,
            1,
            diagnoses=len(self.engine.streams),
            away_since=self._handle.away_since,
        )

    async def _asked(self) -> None:
        """To be called before anything is read that is not in memory at every handle."""
        await trio.lowlevel.checkpoint()
        if self._handle.away_since is not None:
            raise Failed("the engine is away")

    def _stream(self, diagnosis_id: str) -> Stream:
        try:
            return self.engine.streams[diagnosis_id]
        except KeyError:
            raise NoSuchDiagnosis(diagnosis_id) from None

    def _keys(self) -> int:
        return sum(len(stream.keys) for stream in self.engine.streams.values())

    def _page(self, owner: str | None, after: str) -> list[Stream]:
        return [
            stream
            for diagnosis_id, stream in sorted(self.engine.streams.items())
            if diagnosis_id > after and owner in (None, stream.diagnosis.owner)
        ]

    def _changing(self) -> None:
        if self._handle.away_since is not None:
            raise Busy("the engine is away")
        self.before_change()
        self._operations += 1

    def _recorded(self, answer: Answer, act: records.Act | None) -> Answer:
        """The answer of an operation, once its audit row is stored. To be called before anything is changed."""
        if act is not None:
            self._record(self.engine.rows.row_of(act, answer))
        return answer

    def _record(self, row: records.NewAuditRow) -> None:
        self.engine.audit_rows_made += 1
        number, at = self.engine.audit_rows_made, self.moment().wall
        self.engine.audit.append(
            records.AuditRow(number, at, row.who, row.what, row.target, row.before, row.after, row.diagnosis_id)
        )


def _lowest(stream: Stream) -> records.Seq | None:
    epoch = stream.diagnosis.epoch
    return min((one.seq if one.epoch == epoch else records.Seq(0) for one in stream.cursors.values()), default=None)


def _without_old(rows: list[Row], seconds: float | None, judged: float, limit: int) -> list[Row]:
    """The rows above the highest that is old enough, and what of those below is over `limit`."""
    if seconds is None:
        return rows
    old = max((index for index, row in enumerate(rows, start=1) if row.at < judged - seconds), default=0)
    return rows[min(old, limit) :]


def _fits(wanted: records.TrailFilter, who: str | None, what: str, diagnosis_id: str | None, at: float) -> bool:
    pairs = ((wanted.who, who), (wanted.what, what), (wanted.diagnosis_id, diagnosis_id))
    if any(given is not None and given != found for given, found in pairs):
        return False
    return (wanted.since is None or at >= wanted.since) and (wanted.until is None or at < wanted.until)
