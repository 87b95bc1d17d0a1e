"""The SQLite store: `storage.store.Store` on one file, one connection, one writer.

`open_store` owns everything it needs: the lock file, the connection and its thread, the committer's task.
"""

from __future__ import annotations

import contextlib
import copy
import logging
import sqlite3
from collections import OrderedDict
from collections.abc import AsyncIterator, Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import replace
from functools import partial
from math import inf
from pathlib import Path
from typing import Concatenate, Final, Literal, ParamSpec, TypeVar

import trio

from storage import changes, checks, records
from storage.audit_rows import BARE_ROWS, AuditRows
from storage.belief import Moment
from storage.clock import Clock, Timekeeper
from storage.damage import FoundDamage, TellsDamage
from storage.disk import database_files, files
from storage.disk.unfinished import temporary_name
from storage.errors import (
    CannotCopy,
    CannotOpen,
    Damaged,
    Failed,
    NoSuchDiagnosis,
    NotADatabase,
    OutboxDamaged,
    StorageError,
    StoreBroken,
    Unstorable,
)
from storage.sqlite import (
    copying,
    cursors,
    diagnoses,
    events,
    idempotency,
    integrity,
    lookup,
    own_log,
    retention,
    revocations,
    trails,
    wal,
)
from storage.sqlite.bridge import Database, open_database
from storage.sqlite.committer import Committer, Work
from storage.sqlite.live_log import LiveLog
from storage.sqlite.runs import doubt_pages, end_run, keep_time, settle_check
from storage.sqlite.schema import Opened, Opening, prepare
from storage.stall import LOOK_SECONDS
from storage.store import PendingAppend

Answer = TypeVar("Answer")
P = ParamSpec("P")

DIAGNOSES_CACHED_MAX: Final = 10_000
"""Registered diagnoses kept in memory, the ones asked for last. Reason: every request asks for one."""

ERASURE_PAUSE_SECONDS: Final = 0.01
"""Between two steps of an erasure. Reason: most commits meanwhile then contain no step."""

LOOK_THROUGH_SECONDS: Final = 0.003
"""Longest step of the check of all outboxes, but for the outbox it is at. Reason: a commit waits for it."""

LOOK_THROUGH_PAUSE: Final = 4
"""Pause after such a step, in lengths of the step: the check takes a fifth of the time. Reason: nobody waits for its
result."""

WATCH_SECONDS: Final = 1.0
"""How often the files are looked at while nothing is committed; every commit looks by itself."""

LAST_LOOK_SECONDS: Final = 0.1
"""A wait that has lasted too long ends this much later. Reason: this process may have been paused."""

LEAVE_SECONDS_MAX: Final = 1.0
"""Longest time a store that has broken waits for whoever uses it to leave. Beyond: cancelled."""

DamagePolicy = Literal["refuse", "set_aside"]

logger = logging.getLogger("avicenna.storage")


@asynccontextmanager
async def open_store(
    path: Path,
    *,
    clock: Clock,
    new_epoch: Callable[[], str],
    durability: records.Durability = "full",
    on_damage: DamagePolicy = "refuse",
    boot: str | None = None,
    keys_max: int = records.IDEMPOTENCY_KEYS_MAX,
    rows: AuditRows = BARE_ROWS,
) -> AsyncIterator[SqliteStore]:
    """Open (or make) a database and serve it; everything queued is stored before it closes.

    Args:
        path: the database; its directory is made if need be, `path.lock` and `path-wal` lie beside it.
        clock: wall time for stored rows.
        new_epoch: a short text that never repeats, for each new numbering history.
        durability: `full`: a commit survives power loss; `normal`: it survives the end of the process.
        on_damage: `set_aside`: a damaged database is renamed and an empty one begun, instead of refusing to open.
        boot: names this run of the operating system; `None`: ask it.
        rows: makes the audit rows of acts.
        keys_max: idempotency keys it may hold, of all diagnoses. Beyond: an event that would bring one is refused.

    Raises:
        CannotOpen: see its kinds.
        StoreBroken: the disk or the file failed while serving.
    """
    this_boot = files.current_boot() if boot is None else boot

    def open_it(at: Path) -> AbstractAsyncContextManager[tuple[Database, Timekeeper, LiveLog, FoundDamage]]:
        return _open_connection(at, clock, new_epoch, durability, this_boot)

    with database_files.locked(path):
        async with AsyncExitStack() as stack:
            try:
                database, time, live_log, found = await stack.enter_async_context(open_it(path))
            except (Damaged, NotADatabase) as damage:
                if on_damage == "refuse":
                    raise
                with _empty_beside(path) as arriving:
                    async with open_it(arriving):
                        pass
                    aside = _put_in_place_of(path, arriving)
                logger.error("%s; it is now %s, and an empty one is begun", damage, aside)
                database, time, live_log, found = await stack.enter_async_context(open_it(path))
            presence = database_files.Presence(path)
            log = database_files.wal_of(path)

            def size_bytes() -> int:
                return files.size_of(path) + files.size_of(log)

            def lost() -> str | None:
                return presence.lost_at_a_glance() or live_log.after_commit()

            committer = Committer(database, time, lost, keep_time, partial(files.is_full, path), live_log.undo)
            with _unwrapped(StoreBroken):
                async with trio.open_nursery() as committer_nursery:
                    left = trio.Event()
                    committer_nursery.start_soon(_run_shielded, committer, left)
                    try:
                        async with trio.open_nursery() as watch_nursery:
                            watch_nursery.start_soon(_watch_files, committer, presence, log)
                            watch_nursery.start_soon(_watch_time, committer)
                            registered = 0
                            with contextlib.suppress(StorageError):  # of a broken store nobody asks
                                registered = await committer.read(diagnoses.count)
                            yield SqliteStore(
                                committer, database, time, new_epoch, size_bytes, keys_max, registered, found, rows
                            )
                            watch_nursery.cancel_scope.cancel()
                    finally:
                        left.set()
                        committer.close()


@contextmanager
def _empty_beside(path: Path) -> Iterator[Path]:
    """Where another database can be made that is to take the place of this one; what is left there is removed."""
    arriving = temporary_name(path.with_name(f"{path.name}.beginning"))
    database_files.remove_database(arriving)
    try:
        yield arriving
    finally:
        database_files.remove_database(arriving)


def _put_in_place_of(path: Path, arriving: Path) -> Path | None:
    # The new database is whole when it gets its name: a kill meanwhile leaves one of the two, never a missing database.
    try:
        return database_files.replace_database(path, arriving, "damaged")
    except (CannotCopy, OSError) as error:
        raise CannotOpen(f"{path} cannot be set aside: {error}") from error


@asynccontextmanager
async def _open_connection(
    path: Path, clock: Clock, new_epoch: Callable[[], str], durability: records.Durability, boot: str
) -> AsyncIterator[tuple[Database, Timekeeper, LiveLog, FoundDamage]]:
    """The connection, with everything prepared, the time as the last run has kept it, the log, and what is damaged.

    The end of the run is marked in the database unless the store has broken.

    Raises:
        StoreBroken: the log was cut, which is seen at the end.
    """
    log = database_files.wal_of(path)
    if files.is_directory(path):
        raise CannotOpen(f"{path} is a directory, not a database; move it away, or name another directory with --data")
    if files.is_dangling(path):
        raise CannotOpen(f"{path} is a link to a file that is missing; put it back, or remove the link")
    log_bytes = files.size_of(log)
    if log_bytes and not files.size_of(path):
        raise Damaged(f"{path} is missing, but its log {log} is there; put it back, or move the log away")
    try:
        with contextlib.suppress(FileExistsError):
            files.make_private(path)
    except OSError as error:
        raise CannotOpen(f"{path} cannot be made: {error.strerror}") from error
    if not files.is_writable(path):
        # SQLite would fail to lock it, and call that an I/O error.
        raise CannotOpen(f"{path} is read-only; the server must be able to write it")
    presence = database_files.Presence(path)
    before = own_log.judge(path, boot)
    is_clean = is_broken = was_lost = False
    try:
        async with open_database(path) as database:
            opening = Opening(str(path), durability, boot, new_epoch, clock.wall(), before)
            try:
                opened = await database.run(prepare, opening)
            except CannotOpen:
                await _keep_log(database)
                raise
            _report(path, opened)
            time = Timekeeper(clock, opened.kept)
            presence = database_files.Presence(path)
            live_log = await _live_log(database, log)
            try:
                yield database, time, live_log, FoundDamage(is_check_pending=opened.check_owed)
            except StoreBroken:
                is_broken = True
                raise
            finally:
                was_lost = presence.lost() is not None
                is_clean = not is_broken and await _end_run(database, time, live_log)
                if is_broken and not was_lost:
                    await _doubt_pages(database, live_log)
                await _leave(database, live_log)
    finally:
        # SQLite removes the log when it closes, its contents being in the database by then. To the next run a
        # missing log after an unclean end means that somebody took it away: leave word of it instead.
        if presence.has_log and not is_clean and not (is_broken and was_lost):
            with contextlib.suppress(OSError):
                files.put_in_place(log, wal.CLOSED)


def _report(path: Path, opened: Opened) -> None:
    if not opened.clean:
        pages = "its pages were checked, and are whole" if opened.pages_checked else "its process was killed"
        size = files.size_of(path) + files.size_of(database_files.wal_of(path))
        logger.warning(
            "%s (%d bytes) was not closed in order: %s; its events are still to be checked", path, size, pages
        )
    if opened.renewed is not None:
        logger.warning("every diagnosis begins a new epoch: %s", opened.renewed)


async def _live_log(database: Database, log: Path) -> LiveLog:
    try:
        return await database.run(LiveLog, log, partial(files.is_full, log))
    except OSError as error:
        raise CannotOpen(f"{log} cannot be opened: {error.strerror}") from error


async def _end_run(database: Database, time: Timekeeper, live_log: LiveLog) -> bool:
    """Mark the end; if that fails, the next run finds an unclean one, and checks."""
    time.moment()
    kept = time.kept
    with trio.CancelScope(shield=True):
        try:
            await database.run(lambda db: end_run(db, kept, live_log.mark))
        except sqlite3.Error as error:
            await database.run(lambda _: live_log.undo())
            logger.warning("the database could not be closed in order: %s", error)
            return False
    return True


async def _doubt_pages(database: Database, live_log: LiveLog) -> None:
    """Have the next run look at the pages first, if that can still be written, and the log is as it should be."""

    def doubt(db: sqlite3.Connection) -> None:
        if live_log.look() is not None:
            return
        try:
            doubt_pages(db)
        except sqlite3.Error:
            live_log.undo()

    with trio.CancelScope(shield=True):
        await database.run(doubt)


async def _leave(database: Database, live_log: LiveLog) -> None:
    """Look at the log for the last time: SQLite copies it into the database when it closes.

    Raises:
        StoreBroken: it was cut; nothing is copied, and it stays.
    """
    with trio.CancelScope(shield=True):
        fault = await database.run(lambda _: live_log.look())
        live_log.close()
        if fault is not None:
            await _keep_log(database)
            raise StoreBroken(fault)


async def _keep_log(database: Database) -> None:
    """Have SQLite not copy the log into the database when it closes, so that both stay as they are."""
    with trio.CancelScope(shield=True):
        # No statement begins before the connection closes, so this interrupts the copying.
        await database.run(sqlite3.Connection.interrupt)


async def _run_shielded(committer: Committer, left: trio.Event) -> None:
    """Finish what is queued even while the server is being cancelled: the queue is bounded, and closed at the end.

    The users of a store that has broken have been told so, and have a moment to tell others.
    """
    with trio.CancelScope(shield=True):
        try:
            await committer.run()
        except StoreBroken:
            with trio.move_on_after(LEAVE_SECONDS_MAX):
                await left.wait()
            raise


async def _watch_files(committer: Committer, presence: database_files.Presence, log: Path) -> None:
    """Break the store down when its files are gone, or cannot be looked at."""

    def look() -> tuple[str | None, int]:
        try:
            return presence.lost(), files.size_of(log)
        except OSError as error:
            return presence.lost() or f"{log} cannot be looked at: {error.strerror}", 0

    while True:
        # On another thread: where the disk hangs, so may a look at it.
        with committer.looking():
            what, committer.wal_bytes = await trio.to_thread.run_sync(look, abandon_on_cancel=True)
        if what is not None:
            committer.break_down(what)
            return
        await trio.sleep(WATCH_SECONDS)


async def _watch_time(committer: Committer) -> None:
    """Look at the clock, and for how long the disk has kept somebody waiting."""
    while True:
        committer.keep_time()
        committer.look()
        await trio.sleep(LOOK_SECONDS)


async def _in_time(seconds: float, wait: Callable[[], Awaitable[Answer]]) -> Answer:
    """Wait so long at most for the disk.

    Args:
        wait: may be called twice.

    Raises:
        Failed: it takes longer; what was begun goes on.
    """
    # Wait once more: results that came while this process was paused arrive at the moment it runs again.
    for patience in (seconds, LAST_LOOK_SECONDS):
        with trio.move_on_after(patience):
            return await wait()
    raise Failed(f"the disk has not answered for {seconds:g} s")


@contextmanager
def _unwrapped(kind: type[StorageError]) -> Iterator[None]:
    """Let an error of this kind out of the exception groups of nurseries, for whoever opened the store."""
    try:
        yield
    except BaseExceptionGroup as group:
        found = group
        while isinstance(found, BaseExceptionGroup):
            matching = found.subgroup(kind)
            if matching is None:
                raise
            found = matching.exceptions[0]  # type: ignore[assignment]
        raise found from group


def _recording(work: Work[Answer], row_of: Callable[[Answer], records.NewAuditRow]) -> Work[Answer]:
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


class _Looks:
    """Look-ups of one diagnosis since its last change."""

    count = 0
    """Those under way."""


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
        self._cache: OrderedDict[str, records.Diagnosis] = OrderedDict()
        self._registered_ids = _Count(registered)
        self._looks: dict[str, _Looks] = {}
        """Look-ups under way, by diagnosis id: a result that was read before a change is not remembered after it."""

    def patient(self, seconds: float) -> SqliteStore:
        other = copy.copy(self)  # what is remembered is the same for both
        other._patience_seconds = seconds
        return other

    def tell(self, hears: changes.Hears) -> None:
        self._told.begin(hears.changed)

    def moment(self) -> Moment:
        return self._time.moment()

    @property
    def broke(self) -> trio.Event:
        """Set once the disk or the file has failed: leave, within `LEAVE_SECONDS_MAX`."""
        return self._committer.broke

    @property
    def clock_held_since(self) -> float | None:
        self._time.moment()
        return self._time.held_since

    def append_nowait(self, diagnosis_id: str, events: Sequence[records.NewEvent]) -> PendingAppend:
        checks.check_text(diagnosis_id)
        refusals = checks.refusals_of(events)
        if refusals:
            events = [event for event, refusal in zip(events, refusals, strict=True) if refusal is None]
        given = tuple(events)

        def all_failed(error: StorageError) -> Sequence[records.Appended | StorageError]:
            return checks.with_refusals([error] * len(given), refusals)

        return self._committer.submit(self._appending(diagnosis_id, given, refusals), self._appended, all_failed)

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
        cached = self._cache.get(diagnosis_id)
        if cached is not None:
            self._cache.move_to_end(diagnosis_id)
        return cached

    async def get(self, diagnosis_id: str) -> records.Diagnosis:
        return self.known(diagnosis_id) or await self.look_up(diagnosis_id)

    async def look_up(self, diagnosis_id: str) -> records.Diagnosis:
        checks.check_text(diagnosis_id)
        known = self._cache.get(diagnosis_id)
        looks = self._looks.setdefault(diagnosis_id, _Looks())
        looks.count += 1
        try:
            found = await self._read(lookup.look_up, diagnosis_id, known)
        finally:
            looks.count -= 1
            is_unchanged = self._looks.get(diagnosis_id) is looks
            if is_unchanged and not looks.count:
                del self._looks[diagnosis_id]
        if found is None:
            raise NoSuchDiagnosis(diagnosis_id)
        if is_unchanged and found is not known:
            self._remember(found)
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
        checks.check(given)
        return await self._change(lambda db, now: cursors.move_cursors(db, given))

    async def cursors(
        self, diagnosis_id: str, *, after: records.SubscriberId | None = None, limit: int | None = None
    ) -> Sequence[records.Cursor]:
        return await self._read(cursors.cursors, diagnosis_id, after, limit)

    async def cursor(self, diagnosis_id: str, subscriber: records.SubscriberId) -> records.Cursor | None:
        return await self._read(cursors.cursor, diagnosis_id, subscriber)

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
            judged = await self._read(integrity.judge_some, after, LOOK_THROUGH_SECONDS)
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
        level, verdict = (logging.ERROR, f"damaged: {damaged}") if damaged else (logging.INFO, "all are whole")
        logger.log(level, "the events of %d diagnoses were checked: %s", diagnoses, verdict)

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
            self._forget_all_cached()
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
            work = _recording(work, partial(self._rows.row_of, act))
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
        self._looks.pop(dropped.diagnosis_id, None)
        self._cache.pop(dropped.diagnosis_id, None)

    def _registered(self, registered: records.Registered) -> None:
        self._registered_ids.value += registered.created
        if registered.created:
            self._damage.is_repaired(registered.diagnosis.diagnosis_id)
        self._looks.pop(registered.diagnosis.diagnosis_id, None)
        self._remember(registered.diagnosis)
        self._told.add(changes.DiagnosisRegistered(self._told.next, registered.diagnosis))

    def _remember(self, diagnosis: records.Diagnosis) -> None:
        self._cache[diagnosis.diagnosis_id] = diagnosis
        self._cache.move_to_end(diagnosis.diagnosis_id)
        if len(self._cache) > DIAGNOSES_CACHED_MAX:
            self._cache.popitem(last=False)

    def _forget_all_cached(self) -> None:
        self._looks.clear()
        self._cache.clear()

    def _deleted(self, deleted: records.Diagnosis) -> None:
        self._registered_ids.value -= 1
        self._damage.is_repaired(deleted.diagnosis_id)
        self._looks.pop(deleted.diagnosis_id, None)
        self._cache.pop(deleted.diagnosis_id, None)
        self._told.add(changes.DiagnosisDeleted(self._told.next, deleted))
