"""The database without a server: what `check`, `backup`, `restore` and `new-database` do when none is running.

Beside the composition root, this is the only file that opens a store.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from contextlib import AbstractAsyncContextManager
from pathlib import Path
from typing import Final

import trio

from storage.clock import SystemClock
from storage.disk import files
from storage.errors import CannotOpen, Damaged, StorageError
from storage.names import new_id
from storage.records import Act, Backup, Dropped, Rehearsal
from storage.sqlite import copies
from storage.sqlite.opening import open_store
from storage.sqlite.runs import SELF
from storage.store import StoreUpkeep
from web.operating.audit_rows import AUDIT_ROWS

_DROPPING: Final = Act(SELF, "outbox.drop_damaged")
"""The act names nobody: opening the database file takes no token."""

logger = logging.getLogger("avicenna.storage.progress")


def show_progress() -> None:
    """Have long work report its progress on stderr, a line every few seconds."""
    if not logger.handlers:
        logger.setLevel(logging.INFO)
        logger.addHandler(logging.StreamHandler())


def check(database: Path) -> Sequence[str]:
    """The problems of a database; empty: none. Raises `CannotOpen` (`InUse`: ask the server) but for damage."""

    async def run() -> Sequence[str]:
        async with _opened(database) as store:
            return await store.check()

    try:
        return trio.run(run)
    except Damaged as damage:
        return [str(damage)]


def backup(database: Path, target: Path) -> Backup:
    """Copy a database. Raises `CannotOpen` (`InUse`: ask the server) or `CannotCopy`."""

    async def run() -> Backup:
        async with _opened(database) as store:
            return await store.backup(target)

    return trio.run(run)


def drop_damaged(database: Path, diagnosis_ids: Sequence[str]) -> Sequence[Dropped | StorageError]:
    """Drop what is damaged of some diagnoses; of each what was done, or why nothing was.

    Raises `CannotOpen` (`InUse`: a server runs) or `StoreBroken`.
    """

    async def run() -> Sequence[Dropped | StorageError]:
        async with _opened(database) as store:
            return await drop_each(store, diagnosis_ids)

    return trio.run(run)


async def drop_each(store: StoreUpkeep, diagnosis_ids: Sequence[str]) -> Sequence[Dropped | StorageError]:
    """Drop what is damaged of some diagnoses of a store; of each what was done, or why nothing was."""
    outcomes: list[Dropped | StorageError] = []
    for diagnosis_id in diagnosis_ids:
        try:
            outcomes.append(await store.drop_damaged(diagnosis_id, _DROPPING))
        except StorageError as refusal:
            outcomes.append(refusal)
    return outcomes


def create(database: Path) -> None:
    """Make an empty database. Raises `CannotOpen`, also if there is one."""
    if files.size_of(database):
        raise CannotOpen(f"{database} is there already")

    async def run() -> None:
        async with _opened(database):
            pass

    trio.run(run)


def restore(database: Path, source: Path) -> Path | None:
    """Put a backup in the place of the database, with new epochs; where the former one is now.

    Raises `CannotOpen` or `CannotCopy`; nothing was changed then.
    """
    aside = copies.restore(database, source)

    async def begin_new_epochs() -> None:
        async with _opened(database):
            pass

    trio.run(begin_new_epochs)
    return aside


def try_restore(database: Path, source: Path) -> Rehearsal:
    """What `restore` would do; nothing is changed. Raises as `restore`, but not for a server that runs."""
    return copies.try_restore(database, source)


def _opened(database: Path) -> AbstractAsyncContextManager[StoreUpkeep]:
    return open_store(database, clock=SystemClock(), new_epoch=new_id, rows=AUDIT_ROWS)
