"""The SQLite store: `storage.store.Store` on one file, one connection, one writer.

`open_store` owns everything it needs: the lock file, the connection and its thread, the committer's task.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import OrderedDict
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from pathlib import Path
from typing import Final, TypeVar

import trio

from storage import transactions
from storage.bridge import Database, open_database
from storage.clock import Clock
from storage.committer import Committer, Pending, Work
from storage.errors import CannotOpen, InUse, Refused, StorageError, StoreBroken
from storage.records import (
    Appended,
    AuditRow,
    Backup,
    Cursor,
    CursorMove,
    Diagnosis,
    Epoch,
    NewAuditRow,
    NewEvent,
    Outbox,
    Registered,
    Seq,
    Slice,
    StoreStatistics,
    SubscriberId,
    Window,
)
from storage.schema import Durability, prepare

Answer = TypeVar("Answer")

DIAGNOSES_CACHED_MAX: Final = 10_000
"""Registered diagnoses kept in memory, the ones asked for last. Reason: every request asks for one."""


@asynccontextmanager
async def open_store(
    path: Path, *, clock: Clock, new_epoch: Callable[[], str], durability: Durability = "full"
) -> AsyncIterator[SqliteStore]:
    """Open (or make) a database and serve it; everything queued is stored before it closes.

    Args:
        path: the database; its directory is made if need be, `path.lock` and `path-wal` lie beside it.
        clock: wall time for stored rows.
        new_epoch: a short text that never repeats, for each new numbering history.
        durability: `full`: a commit survives power loss; `normal`: it survives the end of the process.

    Raises:
        CannotOpen: see its kinds.
        StoreBroken: the disk or the file failed while serving.
    """
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    with _locked(path):
        _make_private(path)
        async with open_database(path) as database:
            await database.run(prepare, str(path), durability)
            committer = Committer(database, clock, partial(_size, Path(f"{path}-wal")))
            store = SqliteStore(committer, database, new_epoch)
            with _unwrapped(StoreBroken):
                async with trio.open_nursery() as committer_nursery:
                    committer_nursery.start_soon(_run_shielded, committer)
                    try:
                        yield store
                    finally:
                        committer.close()


async def _run_shielded(committer: Committer) -> None:
    """Finish what is queued even while the server is being cancelled: the queue is bounded, and closed at the end."""
    with trio.CancelScope(shield=True):
        await committer.run()


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold `path.lock` for this process.

    A file of its own: closing any descriptor of the database would drop SQLite's own locks.
    """
    descriptor = os.open(f"{path}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InUse(f"{path} is in use by another server; stop it, or name another directory with --data") from None
        yield
    finally:
        os.close(descriptor)


def _make_private(path: Path) -> None:
    """Make the file before SQLite does, so that nobody else can ever read it; SQLite gives -wal the same mode."""
    try:
        with contextlib.suppress(FileExistsError):
            os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600))
    except OSError as error:
        raise CannotOpen(f"{path} cannot be made: {error.strerror}") from error


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


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


class PendingAppend:
    """The handle of a queued append (`storage.store.PendingAppend`)."""

    __slots__ = ("_count", "_pending")

    def __init__(self, pending: Pending[list[Appended | Refused]], count: int) -> None:
        self._pending = pending
        self._count = count

    async def wait(self) -> Sequence[Appended | StorageError]:
        """The outcome of each event, after the commit."""
        try:
            return await self._pending.wait()
        except StorageError as error:
            return [error] * self._count


class SqliteStore:
    """A `storage.store.Store`; see there for what each method does."""

    def __init__(self, committer: Committer, database: Database, new_epoch: Callable[[], str]) -> None:
        self._committer = committer
        self._database = database
        self._new_epoch = new_epoch
        self._cache: OrderedDict[str, Diagnosis] = OrderedDict()
        self._cache_version = 0

    def append_nowait(self, diagnosis_id: str, events: Sequence[NewEvent]) -> PendingAppend:
        given = tuple(events)
        pending = self._committer.submit(lambda db, now: transactions.append(db, diagnosis_id, given, now))
        return PendingAppend(pending, len(given))

    async def read_after(self, diagnosis_id: str, seq: Seq, limit: int = 100) -> Slice:
        return await self._database.run(transactions.read_after, diagnosis_id, seq, limit)

    async def register(
        self, diagnosis_id: str, owner: str, viewers: Sequence[str], audit: NewAuditRow | None = None
    ) -> Registered:
        given, epoch = tuple(viewers), Epoch(self._new_epoch())
        return await self._change(
            lambda db, now: transactions.register(db, diagnosis_id, owner, given, epoch, audit, now),
            lambda registered: self._remember(registered.diagnosis),
        )

    async def get(self, diagnosis_id: str) -> Diagnosis:
        cached = self._cache.get(diagnosis_id)
        if cached is not None:
            self._cache.move_to_end(diagnosis_id)
            return cached
        version = self._cache_version
        _, found = await self._database.run(transactions.find, diagnosis_id)
        if version == self._cache_version:
            self._remember(found)
        return found

    async def diagnoses(self, *, owner: str | None = None, after: str = "", limit: int = 100) -> Sequence[Diagnosis]:
        return await self._database.run(transactions.diagnoses, owner, after, limit)

    async def outboxes(self, *, owner: str | None = None, after: str = "", limit: int = 100) -> Sequence[Outbox]:
        return await self._database.run(transactions.outboxes, owner, after, limit)

    async def count_diagnoses(self, *, owner: str | None = None) -> int:
        return await self._database.run(transactions.count_diagnoses, owner)

    async def delete(self, diagnosis_id: str, audit: NewAuditRow | None = None) -> Diagnosis:
        return await self._change(
            lambda db, now: transactions.delete(db, diagnosis_id, audit, now),
            lambda deleted: self._forget_cached(diagnosis_id),
        )

    async def move_cursors(self, moves: Sequence[CursorMove]) -> Sequence[Seq | None]:
        given = tuple(moves)
        return await self._change(lambda db, now: transactions.move_cursors(db, given))

    async def cursors(self, diagnosis_id: str) -> Sequence[Cursor]:
        return await self._database.run(transactions.cursors, diagnosis_id)

    async def forget(
        self, diagnosis_id: str, subscribers: Sequence[SubscriberId], audit: NewAuditRow | None = None
    ) -> int:
        given = tuple(subscribers)
        return await self._change(lambda db, now: transactions.forget(db, diagnosis_id, given, audit, now))

    async def purge(self, diagnosis_id: str, audit: NewAuditRow | None = None) -> Window:
        return await self._change(lambda db, now: transactions.purge(db, diagnosis_id, audit, now))

    async def record(self, row: NewAuditRow) -> None:
        await self._change(lambda db, now: transactions.record(db, row, now))

    async def audit(self, *, before: int | None = None, limit: int = 100) -> Sequence[AuditRow]:
        return await self._database.run(transactions.audit, before, limit)

    async def backup(self, path: Path) -> Backup:
        raise NotImplementedError

    async def check(self) -> Sequence[str]:
        raise NotImplementedError

    def statistics(self) -> StoreStatistics:
        return self._committer.statistics()

    async def _change(self, work: Work[Answer], after: Callable[[Answer], None] | None = None) -> Answer:
        await trio.lowlevel.checkpoint_if_cancelled()
        return await self._committer.submit(work, after).wait()

    def _remember(self, diagnosis: Diagnosis) -> None:
        self._cache_version += 1
        self._cache[diagnosis.diagnosis_id] = diagnosis
        self._cache.move_to_end(diagnosis.diagnosis_id)
        if len(self._cache) > DIAGNOSES_CACHED_MAX:
            self._cache.popitem(last=False)

    def _forget_cached(self, diagnosis_id: str) -> None:
        self._cache_version += 1
        self._cache.pop(diagnosis_id, None)
