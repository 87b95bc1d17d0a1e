"""Opens the SQLite store: the lock, the files, the connection, the committer's task, and how all of it ends.

Whoever opens a store leaves it before anything here closes. `storage.sqlite.store` is what is opened.
"""

from __future__ import annotations

import contextlib
import logging
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import AbstractAsyncContextManager, AsyncExitStack, asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, Literal

import trio

from storage import records
from storage.aside import Aside, on_a_thread
from storage.audit_rows import BARE_ROWS, AuditRows
from storage.clock import Clock, Timekeeper
from storage.damage import FoundDamage
from storage.disk import database_files, files
from storage.disk.unfinished import temporary_name
from storage.errors import CannotCopy, CannotOpen, Damaged, NotADatabase, StorageError, StoreBroken
from storage.sqlite import diagnoses, own_log, wal
from storage.sqlite.bridge import Database, open_database
from storage.sqlite.committer import Committer
from storage.sqlite.live_log import LiveLog
from storage.sqlite.runs import doubt_pages, end_run, keep_time
from storage.sqlite.schema import Opened, Opening, prepare
from storage.sqlite.store import SqliteStore
from storage.stall import LOOK_SECONDS

WATCH_SECONDS: Final = 1.0
"""How often the files are looked at while nothing is committed; every commit looks by itself."""

LEAVE_SECONDS_MAX: Final = 1.0
"""Longest time a store that has broken waits for whoever uses it to leave. Beyond: cancelled."""

DamagePolicy = Literal["refuse", "set_aside"]

Connect = Callable[[Path], AbstractAsyncContextManager[Database]]
"""Connects to the database at a path."""

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
    connect: Connect = open_database,
    aside: Aside = on_a_thread,
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
        connect: connects to a database; a simulation has no thread.
        aside: carries out what may wait for the disk and must keep nobody waiting.

    Raises:
        CannotOpen: see its kinds.
        StoreBroken: the disk or the file failed while serving.
    """
    this_boot = files.current_boot() if boot is None else boot

    def open_it(at: Path) -> AbstractAsyncContextManager[tuple[Database, Timekeeper, LiveLog, FoundDamage]]:
        return _open_connection(at, clock, new_epoch, durability, this_boot, connect)

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
                    kept = _put_in_place_of(path, arriving)
                logger.error("%s; it is now %s, and an empty one is begun", damage, kept)
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
                            watch_nursery.start_soon(_watch_files, committer, presence, path, log, aside)
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
    path: Path, clock: Clock, new_epoch: Callable[[], str], durability: records.Durability, boot: str, connect: Connect
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
        async with connect(path) as database:
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


async def _watch_files(
    committer: Committer, presence: database_files.Presence, path: Path, log: Path, aside: Aside
) -> None:
    """Break the store down when its files are gone, or cannot be looked at."""

    def look() -> tuple[str | None, int, int]:
        try:
            return presence.lost(), files.size_of(path), files.size_of(log)
        except OSError as error:
            return presence.lost() or f"{log} cannot be looked at: {error.strerror}", 0, 0

    while True:
        # On another thread: where the disk hangs, so may a look at it.
        with committer.looking():
            looked = await aside(look)
        what, committer.database_bytes, committer.wal_bytes = looked
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
