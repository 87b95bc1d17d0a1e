"""Copies of an open store, made and checked in steps: a request that needs the database waits for one step at most.

The database thread reads. Work on the copy alone (syncing, checking, hashing) happens on other threads. When it is
cancelled, all of it ends within a step or soon after, and the unfinished file is removed.
"""

from __future__ import annotations

import logging
import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

from storage.disk import files
from storage.disk.unfinished import Unfinished, arriving, passing
from storage.errors import CannotCopy
from storage.records import Backup
from storage.sqlite import copies, integrity
from storage.sqlite.bridge import Database
from storage.sqlite.stepping import SteppedCopy

Answer = TypeVar("Answer")

STEPS_PER_SYNC: Final = 16
"""Steps between two syncs of the copy, 4 MiB. Reason: commits on the same disk wait for what is to be written."""

PAUSE_SECONDS_MIN: Final = 0.001
"""Shortest pause after a step. A longer step is followed by a pause of its own length: half of the time is others'."""

PROGRESS_SECONDS: Final = 5.0
"""How often the log tells how far it is."""

ROOM_BYTES_KEPT: Final = 64 * 1024 * 1024
"""Bytes of the disk that a copy leaves for commits. With fewer, no copy is begun."""

PAUSE_SECONDS_MAX: Final = 0.1
"""Longest pause. Reason: a step may have waited behind a long commit."""

INTERRUPT_SECONDS: Final = 0.05
"""Between two interrupts of a cancelled statement, until it has ended."""

logger = logging.getLogger("avicenna.storage.progress")


class Progress:
    """Says how far something is, not too often."""

    def __init__(self, what: str) -> None:
        self._what = what
        self._due = trio.current_time() + PROGRESS_SECONDS

    def is_at(self, text: str, *values: object) -> None:
        """Log it, if it is time to."""
        if trio.current_time() >= self._due:
            self._due = trio.current_time() + PROGRESS_SECONDS
            logger.info("%s: %s", self._what, text % values)


async def back_up(database: Database, size_bytes: int, target: Path) -> Backup:
    """Make a consistent copy; see `storage.store.Store.backup`.

    Args:
        size_bytes: about how large it will be.
    """
    progress = Progress(f"backup {target.name}")
    with _translated(target), arriving(target) as into:
        try:
            size = await _copy(database, size_bytes, into, progress)
        except sqlite3.Error as error:
            raise CannotCopy(f"the database cannot be read: {error}") from error
        async with _opened(into) as copy:
            problems = await _interruptible(copy, copies.finish)
        await trio.to_thread.run_sync(_size_of_ours, into, size)
        if problems:
            raise CannotCopy(f"the database is damaged ({problems[0]}): run `avicenna-live check`, restore a backup")
        size, digest = await trio.to_thread.run_sync(_settle, into.path)
    return Backup(str(target), size, digest)


async def check_copy(database: Database, size_bytes: int, scratch: Path) -> Sequence[str]:
    """The problems of a database, found in a copy that lies beside `scratch` meanwhile.

    Raises:
        CannotCopy: the copy cannot be made.
    """
    progress = Progress("check")
    with _translated(scratch), passing(scratch) as into:
        try:
            size = await _copy(database, size_bytes, into, progress)
        except sqlite3.Error as error:
            return [str(error)]
        async with _opened(into) as copy:
            found = await _interruptible(copy, copies.look_through)
            after: int | None = 0
            while after is not None and len(found) < integrity.PROBLEMS_MAX:
                progress.is_at("the events of diagnoses up to key %d are checked", after)
                problems, after = await trio.to_thread.run_sync(copies.events_after, copy, after)
                found += problems
        await trio.to_thread.run_sync(_size_of_ours, into, size)
    return found[: integrity.PROBLEMS_MAX]


async def _copy(database: Database, size_bytes: int, into: Unfinished, progress: Progress) -> int:
    """Fill an empty file with a consistent copy; its size in bytes.

    Raises:
        sqlite3.Error: something is wrong with the database.
        CannotCopy: something is wrong with the copy.
    """
    room, wanted = files.room_beside(into.path), size_bytes + ROOM_BYTES_KEPT
    if room < wanted:
        raise CannotCopy(f"{into.path.parent} has room for {room} bytes, and a copy needs {wanted}")
    copy = SteppedCopy(str(into.path))
    steps = size = 0

    def step(db: sqlite3.Connection) -> tuple[bool, int]:
        _size_of_ours(into, size)
        return copy.step(db), _size_of_ours(into, size)

    try:
        while True:
            began = trio.current_time()
            try:
                is_unfinished, size = await database.run(step)
            except sqlite3.Error as error:
                if _is_of_the_source(error):
                    raise
                raise CannotCopy(f"cannot write {into.path}: {error}") from error
            if not is_unfinished:
                return size
            steps += 1
            progress.is_at("%d of %d pages are copied", copy.pages - copy.pages_left, copy.pages)
            if steps % STEPS_PER_SYNC == 0:
                await trio.to_thread.run_sync(os.fdatasync, into.descriptor)
            await pause_after(began)
    finally:
        with trio.CancelScope(shield=True):
            await database.run(copy.close)


async def pause_after(began: float, steps: float = 1) -> None:
    """Leave others their share of the time: pause as long as so many steps take as the one that began at this time."""
    await trio.sleep(min(PAUSE_SECONDS_MAX, max(PAUSE_SECONDS_MIN, steps * (trio.current_time() - began))))


def _size_of_ours(into: Unfinished, least: int) -> int:
    """The size of a copy that has been written up to `least` bytes.

    Raises:
        CannotCopy: somebody has removed, replaced or cut it meanwhile: what is wrong with it is not the database's.
    """
    try:
        status = into.path.stat()
        if os.path.samestat(status, os.fstat(into.descriptor)) and status.st_size >= least:
            return status.st_size
    except FileNotFoundError:
        pass
    raise CannotCopy(f"{into.path} was removed, replaced or cut while it was written")


def _is_of_the_source(error: sqlite3.Error) -> bool:
    """Whether the copied database is at fault, not the place of the copy."""
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB) or code == sqlite3.SQLITE_IOERR_READ


@contextmanager
def _translated(target: Path) -> Iterator[None]:
    """Make the directory of a copy; what goes wrong with its files is a `CannotCopy`."""
    try:
        files.make_directory(target.parent)
        yield
    except OSError as error:
        raise CannotCopy(f"cannot make {target}: {error.strerror}") from error


@asynccontextmanager
async def _opened(into: Unfinished) -> AsyncIterator[sqlite3.Connection]:
    """A connection to a copy for any thread, one after another."""
    try:
        copy = await trio.to_thread.run_sync(copies.connect, into.path)
    except sqlite3.Error as error:
        raise CannotCopy(f"cannot open {into.path}: {error}") from error
    try:
        yield copy
    finally:
        with trio.CancelScope(shield=True):
            await trio.to_thread.run_sync(copy.close)


async def _interruptible(copy: sqlite3.Connection, look: Callable[[sqlite3.Connection], Answer]) -> Answer:
    """Run a function that takes a copy's database errors for problems; cancelled, its statement is interrupted."""
    ended = trio.Event()

    async def interrupt() -> None:
        try:
            await trio.sleep_forever()
        finally:
            # The thread may be just before its statement, which would not notice.
            with trio.CancelScope(shield=True):
                while not ended.is_set():
                    copy.interrupt()
                    with trio.move_on_after(INTERRUPT_SECONDS):
                        await ended.wait()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(interrupt)
        try:
            answer = await trio.to_thread.run_sync(look, copy)
        finally:
            ended.set()
        nursery.cancel_scope.cancel()
    await trio.lowlevel.checkpoint_if_cancelled()
    return answer


def _settle(path: Path) -> tuple[int, str]:
    return files.settle_copy(path, go_on=trio.from_thread.check_cancelled)
