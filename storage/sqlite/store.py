"""The SQLite store: `storage.store.Store` on one file, one connection, one writer.

What it needs is opened and closed by `storage.sqlite.opening`: the lock file, the connection and its thread, the
committer's task.
"""

from __future__ import annotations

import copy
import logging
import sqlite3
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Concatenate, Final, ParamSpec, TypeVar

import trio

from storage import changes, checks, records
from storage.audit_rows import AuditRows
from storage.belief import Moment
from storage.clock import Timekeeper
from storage.damage import FoundDamage, TellsDamage
from storage.errors import Failed, NoSuchDiagnosis, OutboxDamaged, StorageError, Unstorable
from storage.known import KnownDiagnoses
from storage.sqlite import (
    copying,
    cursors,
    diagnoses,
    events,
    idempotency,
    integrity,
    lookup,
    retention,
    revocations,
    trails,
)
from storage.sqlite.bridge import Database
from storage.sqlite.committer import Committer, Work
from storage.sqlite.runs import settle_check
from storage.store import Committed, PendingAppend

Answer = TypeVar("Answer")
P = ParamSpec("P")

ERASURE_PAUSE_SECONDS: Final = 0.01
"""Between two steps of an erasure. Reason: most commits meanwhile then contain no step."""

LOOK_THROUGH_SECONDS: Final = 0.003
"""Longest step of the check of all outboxes, but for the outbox it is at. Reason: a commit waits for it."""

LOOK_THROUGH_PAUSE: Final = 4
"""Pause after such a step, in lengths of the step: the check takes a fifth of the time. Reason: nobody waits for its
result."""

LAST_LOOK_SECONDS: Final = 0.1
"""A wait that has lasted too long ends this much later. Reason: this process may have been paused."""

logger = logging.getLogger("avicenna.storage")


async def _in_time(seconds: float, wait: Callable[[], Awaitable[Answer]]) -> Answer:
    """Wait so long at most for the disk.

    Args:
        seconds: infinite: as long as it takes.
        wait: may be called twice.

    Raises:
        Failed: it takes longer; what was begun goes on.
    """
    if seconds == inf:  # actors wait so, with every cursor and event: a scope without a deadline would be theirs to pay
        return await wait()
    # Wait once more: results that came while this process was paused arrive at the moment it runs again.
    for patience in (seconds, LAST_LOOK_SECONDS):
        with trio.move_on_after(patience):
            return await wait()
    raise Failed(f"the disk has not answered for {seconds:g} s")


def recording(work: Work[Answer], row_of: Callable[[Answer], records.NewAuditRow]) -> Work[Answer]:
    """An operation that leaves an audit row made of its answer.

    A row that cannot be made or stored is no refusal: it spoils the operation, which is rolled back with it.
    """

    def recorded(db: sqlite3.Connection, now: Moment) -> Answer:
        answer = work(db, now)
        trails.record(db, row_of(answer), now.wall)
        return answer

    return recorded


class _Count:
    """How many diagnoses are registered."""

    def __init__(self, value: int) -> None:
        self.value = value


def _nothing() -> None:
    """Undoes a `follow` that did nothing."""


class SqliteStore(TellsDamage):
    """A `storage.store.Store`; see there for what each method does."""

    shared = False

    def __init__(
        self,
        committer: Committer,
        database: Database,
        time: Timekeeper,
        new_epoch: Callable[[], str],
        size_bytes: Callable[[], int],
        keys_max: int,
        registered: int,
        damage: FoundDamage,
        rows: AuditRows,
    ) -> None:
        """A store in which `registered` diagnoses are.

        Args:
            damage: of none so far; says whether all are still to be looked at.
        """
        self._committer = committer
        self._keys_max = keys_max
        self._fullness = idempotency.Fullness()
        self._database = database
        self._size_bytes = size_bytes
        """Bytes of the database and of its log."""
        self._copying = trio.Lock()
        """Held while a copy is made. Reason: each copy takes as much of the disk as the database."""
        self._time = time
        self._new_epoch = new_epoch
        self._damage = damage
        self._told = changes.Told()
        self._rows = rows
        self._patience_seconds = inf
        """How long callers wait."""
        self._known = KnownDiagnoses()
        self._registered_ids = _Count(registered)

    def patient(self, seconds: float) -> SqliteStore:
        other = copy.copy(self)  # what is remembered is the same for both
        other._patience_seconds = seconds
        return other

    def tell(self, hears: changes.Hears, settled: Callable[[], Awaitable[None]] | None = None) -> None:
        self._told.begin(hears.changed)

    def moment(self) -> Moment:
        return self._time.moment()

    @property
    def broke(self) -> trio.Event:
        """Set once the disk or the file has failed: leave, within `opening.LEAVE_SECONDS_MAX`."""
        return self._committer.broke

    @property
    def clock_held_since(self) -> float | None:
        self._time.moment()
        return self._time.held_since

    def on_commit(self, tell: Committed) -> None:
        self._committer.told = tell

    def append_nowait(
        self, diagnosis_id: str, events: Sequence[records.NewEvent], spans: Sequence[object] = ()
    ) -> PendingAppend:
        checks.check_text(diagnosis_id)
        refusals = checks.refusals_of(events)
        if refusals:
            events = [event for event, refusal in zip(events, refusals, strict=True) if refusal is None]
        given = tuple(events)

        def all_failed(error: StorageError) -> Sequence[records.Appended | StorageError]:
            return checks.with_refusals([error] * len(given), refusals)

        return self._committer.submit(self._appending(diagnosis_id, given, refusals), self._appended, all_failed, spans)

    def _appending(
        self, diagnosis_id: str, given: Sequence[records.NewEvent], refusals: Sequence[Unstorable | None]
    ) -> Work[Sequence[records.Appended | StorageError]]:
        """What the committer does to append events that can be stored; its answer has the others' refusals, too."""
        keys_max = self._keys_max

        def append(db: sqlite3.Connection, now: Moment) -> Sequence[records.Appended | StorageError]:
            outcomes: Sequence[records.Appended | StorageError]
            if (damage := self._damage.all.get(diagnosis_id)) is not None:
                outcomes = [OutboxDamaged(diagnosis_id, damage) for _ in given]
            else:
                outcomes = events.append(db, diagnosis_id, given, now, keys_max)
            return checks.with_refusals(outcomes, refusals)

        return append

    def _appended(self, outcomes: Sequence[records.Appended | StorageError]) -> None:
        self._fullness.look_at(outcomes, self._time.monotonic())
        for outcome in outcomes:
            if isinstance(outcome, OutboxDamaged):
                self._damage.add(outcome.diagnosis_id, outcome.damage)
                break

    def follow(self, diagnosis_id: str) -> Callable[[], None]:
        return _nothing

    async def read_after(
        self, diagnosis_id: str, seq: records.Seq, limit: int = 100, bytes_max: int | None = None
    ) -> records.Slice:
        if (damage := self._damage.all.get(diagnosis_id)) is not None:
            await trio.lowlevel.checkpoint()
            raise OutboxDamaged(diagnosis_id, damage)
        repairs = self._damage.repairs
        try:
            return await self._read(events.read_after, diagnosis_id, seq, limit, bytes_max)
        except OutboxDamaged as found:
            if repairs == self._damage.repairs:
                self._damage.add(diagnosis_id, found.damage)
            raise

    async def register(
        self,
        diagnosis_id: str,
        owner: str,
        viewers: Sequence[str],
        act: records.Act | None = None,
    ) -> records.Registered:
        given, epoch = tuple(viewers), records.Epoch(self._new_epoch())
        checks.check(diagnosis_id, owner, given)
        return await self._change(
            lambda db, now: diagnoses.register(db, diagnosis_id, owner, given, epoch, now.wall),
            act,
            self._registered,
        )

    def known(self, diagnosis_id: str) -> records.Diagnosis | None:
        return self._known.get(diagnosis_id)

    async def get(self, diagnosis_id: str) -> records.Diagnosis:
        return self.known(diagnosis_id) or await self.look_up(diagnosis_id)

    async def look_up(self, diagnosis_id: str) -> records.Diagnosis:
        checks.check_text(diagnosis_id)
        known = self._known.get(diagnosis_id)
        with self._known.looking_up(diagnosis_id) as look:
            found = await self._read(lookup.look_up, diagnosis_id, known)
            if found is None:
                raise NoSuchDiagnosis(diagnosis_id)
            if look.is_current and found is not known:
                self._known.remember(found)
            return found

    async def diagnoses(
        self, *, owner: str | None = None, after: str = "", limit: int = 100, bytes_max: int | None = None
    ) -> Sequence[records.Diagnosis]:
        return await self._read(diagnoses.diagnoses, owner, after, limit, bytes_max)

    async def outboxes(
        self, *, owner: str | None = None, after: str = "", limit: int = 100
    ) -> Sequence[records.Outbox]:
        return await self._read(diagnoses.outboxes, owner, after, limit)

    async def delete(self, diagnosis_id: str, act: records.Act | None = None) -> records.Diagnosis:
        checks.check(diagnosis_id)
        return await self._change(
            lambda db, now: diagnoses.delete(db, diagnosis_id, now.wall),
            act,
            self._deleted,
        )

    async def move_cursors(self, moves: Sequence[records.CursorMove]) -> Sequence[records.Seq | None]:
        given = tuple(moves)
        checks.check_moves(given)
        return await self._change(lambda db, now: cursors.move_cursors(db, given))

    async def cursors(
        self, diagnosis_id: str, *, after: records.SubscriberId | None = None, limit: int | None = None
    ) -> Sequence[records.Cursor]:
        return await self._read(cursors.cursors, diagnosis_id, after, limit)

    async def cursor(self, diagnosis_id: str, subscriber: records.SubscriberId) -> records.Cursor | None:
        return await self._read(cursors.cursor, diagnosis_id, subscriber)

    async def furthest_behind(self, diagnosis_ids: Sequence[str], limit: int) -> Sequence[Sequence[records.Cursor]]:
        return await self._read(cursors.furthest_behind, tuple(diagnosis_ids), limit)

    async def forget(
        self, diagnosis_id: str, subscribers: Sequence[records.SubscriberId], act: records.Act | None = None
    ) -> int:
        given = tuple(subscribers)
        checks.check(diagnosis_id, given)
        return await self._change(lambda db, now: cursors.forget(db, diagnosis_id, given), act)

    async def purge(self, diagnosis_id: str, act: records.Act | None = None) -> records.Purged:
        checks.check(diagnosis_id)
        return await self._change(
            lambda db, now: events.purge(db, diagnosis_id),
            act,
            partial(self._purged, diagnosis_id),
        )

    async def drop_damaged(self, diagnosis_id: str, act: records.Act | None = None) -> records.Dropped:
        checks.check(diagnosis_id)
        epoch = records.Epoch(self._new_epoch())
        return await self._change(lambda db, now: retention.drop_damaged(db, diagnosis_id, epoch), act, self._repaired)

    async def look_through(self) -> None:
        if not self.is_check_pending:
            return
        progress = copying.Progress("check of all outboxes")
        diagnoses, damaged, after = 0, 0, 0
        while True:
            began, repairs = trio.current_time(), self._damage.repairs
            judged = await self._read(integrity.judge_some, after, LOOK_THROUGH_SECONDS, self._database.now)
            if repairs == self._damage.repairs:  # otherwise the damage may have been repaired since it was read
                for found in judged.damaged.items():
                    self._damage.add(*found)
                diagnoses, damaged = diagnoses + judged.diagnoses, damaged + len(judged.damaged)
                if judged.after is None:
                    break
                after = judged.after
                progress.is_at("%d diagnoses are checked", diagnoses)
            await copying.pause_after(began, LOOK_THROUGH_PAUSE)
        if not damaged:
            await self._change(lambda db, now: settle_check(db))
        self._damage.is_check_pending = False
        if damaged:
            logger.error("the events of %d diagnoses were checked: damaged: %d", diagnoses, damaged)
        else:
            logger.info("the events of %d diagnoses were checked: all are whole", diagnoses)

    async def revoke(
        self,
        *,
        sub: str | None = None,
        token_id: str | None = None,
        leeway_seconds: float = 0.0,
        act: records.Act | None = None,
    ) -> records.RevocationMade:
        checks.check(sub, token_id)
        return await self._change(
            lambda db, now: revocations.revoke(db, sub, token_id, leeway_seconds, now), act, self._revoked
        )

    async def revocations(self, *, after: int = 0, limit: int = 100) -> Sequence[records.Revocation]:
        return await self._read(revocations.revocations, after, limit)

    async def lift_revocation(self, number: int, act: records.Act | None = None) -> records.Revocation:
        checks.check(number)
        return await self._change(
            lambda db, now: revocations.lift_revocation(db, number), act, lambda lifted: self._lifted([lifted])
        )

    async def expire_revocations(self, seconds: float) -> Sequence[records.Revocation]:
        return await self._change(
            lambda db, now: revocations.expire_revocations(db, now.judged - seconds), after=self._lifted
        )

    async def record(self, row: records.NewAuditRow) -> None:
        checks.check(row)
        await self._change(lambda db, now: trails.record(db, row, now.wall))

    async def audit(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        wanted: records.TrailFilter = records.EVERY_ROW,
        bytes_max: int | None = None,
    ) -> Sequence[records.AuditRow]:
        return await self._read(trails.audit, before, limit, wanted, bytes_max)

    async def record_accesses(self, rows: Sequence[records.NewAccessRow]) -> None:
        given = tuple(rows)
        await self._change(lambda db, now: trails.record_accesses(db, given))

    async def accesses(
        self, *, before: int | None = None, limit: int = 100, wanted: records.TrailFilter = records.EVERY_ROW
    ) -> Sequence[records.AccessRow]:
        return await self._read(trails.accesses, before, limit, wanted)

    async def evict(self, seconds: float, *, after: str = "", diagnoses: int = 64) -> records.Evicted:
        return await self._change(
            lambda db, now: retention.evict_before(db, now.judged - seconds, after, diagnoses), after=self._evicted
        )

    async def expire(
        self, *, audit_seconds: float | None = None, accesses_seconds: float | None = None, limit: int = 256
    ) -> int:
        ages = (audit_seconds, accesses_seconds)
        return await self._change(lambda db, now: retention.expire(db, ages, limit, now.judged))

    async def idempotency_keys(self) -> records.IdempotencyKeys:
        return await self._read(idempotency.look, self._keys_max, self.moment().reckoned)

    async def keys_of(self, diagnosis_id: str, after: str, limit: int) -> Sequence[records.StoredKey]:
        """Idempotency keys of a diagnosis in their order, those behind `after`; for whoever moves them elsewhere."""
        found = await self._read(idempotency.of_diagnosis, diagnosis_id, after, limit)
        return [records.StoredKey(key, one.digest, one.seq, one.at, one.expires_at) for key, one in found]

    async def forget_unseen(
        self, seconds: float, *, spared: Collection[str] = (), after: str = "", diagnoses: int = 64
    ) -> records.ForgottenUnseen:
        return await self._change(
            lambda db, now: retention.forget_unseen(db, now.judged - seconds, spared, after, diagnoses)
        )

    async def erase(self, erasure: records.Erasure, act: records.Act | None = None) -> records.Erased:
        state = await self._erase_some(erasure, retention.ErasureState(), act)
        while state.erased is None:
            await trio.sleep(ERASURE_PAUSE_SECONDS)
            state = await self._erase_some(erasure, state, act)
        return state.erased

    async def _erase_some(
        self, erasure: records.Erasure, state: retention.ErasureState, act: records.Act | None
    ) -> retention.ErasureState:
        rows = self._rows

        def erased(state: retention.ErasureState) -> None:
            self._known.have_all_changed()
            if state.erased is not None and act is not None:
                digest = changes.digest_of(erasure.sub)
                self._told.add(changes.SubjectErased(self._told.next, digest, erasure.stand_in))

        return await self._change(
            lambda db, now: retention.erase_some(db, erasure, state, rows, act, now.wall), after=erased
        )

    async def backup(self, path: Path) -> records.Backup:
        self._check_usable()
        async with self._copying:
            return await copying.back_up(self._database, self._size_bytes(), path)

    async def check(self, scratch: Path | None = None) -> Sequence[str]:
        self._check_usable()
        if scratch is not None:
            async with self._copying:
                return await copying.check_copy(self._database, self._size_bytes(), scratch)
        progress = copying.Progress("check")
        found = await self._committer.read(integrity.all_but_events)
        after: int | None = 0
        while after is not None and len(found) < integrity.PROBLEMS_MAX:
            progress.is_at("the events of diagnoses up to key %d are checked", after)
            problems, after = await self._committer.read(integrity.contents, after)
            found += problems
        return found[: integrity.PROBLEMS_MAX]

    async def barrier(self) -> None:
        await _in_time(self._patience_seconds, self._committer.settled().wait)

    def statistics(self) -> records.StoreStatistics:
        return replace(self._committer.statistics(), diagnoses=self._registered_ids.value)

    def _check_usable(self) -> None:
        if self._committer.broken is not None:
            raise Failed(str(self._committer.broken))

    async def _read(
        self, function: Callable[Concatenate[sqlite3.Connection, P], Answer], *args: P.args, **kwargs: P.kwargs
    ) -> Answer:
        checks.check(args)
        return await _in_time(self._patience_seconds, partial(self._committer.read, function, *args, **kwargs))

    async def _change(
        self,
        work: Work[Answer],
        act: records.Act | None = None,
        after: Callable[[Answer], None] | None = None,
    ) -> Answer:
        await trio.lowlevel.checkpoint_if_cancelled()
        if act is not None:
            work = recording(work, partial(self._rows.row_of, act))
        pending = self._committer.submit(work, after)
        return await _in_time(self._patience_seconds, pending.wait)

    def _evicted(self, evicted: records.Evicted) -> None:
        for diagnosis_id, window in evicted.windows.items():
            self._damage.evicted(diagnosis_id, window.floor)
        if evicted.windows:
            self._told.add(changes.EventsEvicted(self._told.next, evicted.windows))

    def _purged(self, diagnosis_id: str, purged: records.Purged) -> None:
        self._damage.is_repaired(diagnosis_id)
        self._told.add(changes.OutboxPurged(self._told.next, diagnosis_id, purged.after))

    def _revoked(self, made: records.RevocationMade) -> None:
        self._told.add(changes.TokensRevoked(self._told.next, made.revocation))

    def _lifted(self, lifted: Sequence[records.Revocation]) -> None:
        if lifted:
            self._told.add(changes.RevocationsLifted(self._told.next, tuple(lifted)))

    def _repaired(self, dropped: records.Dropped) -> None:
        self._damage.is_repaired(dropped.diagnosis_id)
        self._known.has_changed(dropped.diagnosis_id)
        if dropped.is_renewed:
            self._told.add(changes.EpochsRenewed(self._told.next, dropped.diagnosis_id))

    def _registered(self, registered: records.Registered) -> None:
        self._registered_ids.value += registered.created
        if registered.created:
            self._damage.is_repaired(registered.diagnosis.diagnosis_id)
        self._known.has_changed(registered.diagnosis.diagnosis_id)
        self._known.remember(registered.diagnosis)
        self._told.add(changes.DiagnosisRegistered(self._told.next, registered.diagnosis))

    def _deleted(self, deleted: records.Diagnosis) -> None:
        self._registered_ids.value -= 1
        self._damage.is_repaired(deleted.diagnosis_id)
        self._known.has_changed(deleted.diagnosis_id)
        self._told.add(changes.DiagnosisDeleted(self._told.next, deleted))
