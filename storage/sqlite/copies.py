"""Copies of a database that nobody uses: finishing one, and putting one in the place of the database. Nothing waits."""

from __future__ import annotations

import contextlib
import logging
import os
import sqlite3
import tempfile
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Final

from storage.disk import database_files, files
from storage.disk.unfinished import temporary_name
from storage.errors import CannotOpen, NotADatabase, NotOurs
from storage.records import Rehearsal
from storage.sqlite import integrity, own_log, runs, texts
from storage.sqlite.runs import Before
from storage.sqlite.schema import damaged, identify, recognise

REPLACED: Final = "replaced"
"""Label of a database in whose place a backup was put."""

logger = logging.getLogger("avicenna.storage")


def finish(copy: sqlite3.Connection) -> list[str]:
    """Make the copy of a database one file that begins new epochs wherever it is opened; what is wrong with it."""
    try:
        set_up(copy)
        runs.mark_as_copy(copy)
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return integrity.structure(copy, quick=True)


def connect(path: Path) -> sqlite3.Connection:
    """A connection to a copy; threads may use it one after another."""
    copy = sqlite3.connect(path, isolation_level=None, check_same_thread=False)
    texts.read_damaged(copy)
    return copy


def set_up(copy: sqlite3.Connection) -> None:
    """Switch a copy to work without a write-ahead log. Nobody else uses the copy, and it is synced as a file."""
    for pragma in ("locking_mode = EXCLUSIVE", "journal_mode = DELETE", "synchronous = OFF"):
        copy.execute(f"PRAGMA {pragma}")


def look_through(copy: sqlite3.Connection) -> list[str]:
    """What is wrong with the structure of a copy."""
    try:
        set_up(copy)
    except sqlite3.DatabaseError as error:
        return [str(error)]
    return integrity.all_but_events(copy)


def events_after(copy: sqlite3.Connection, after: int) -> tuple[list[str], int | None]:
    """As `integrity.contents`; a copy that cannot be read any further has one problem more."""
    try:
        return integrity.contents(copy, after)
    except sqlite3.DatabaseError as error:
        return [str(error)], None


def restore(path: Path, backup: Path) -> Path | None:
    """Put a backup in the place of a database no server uses; where the former one is now (None: there was none).

    Nothing is changed unless the structure of the backup is whole; damaged diagnoses come with it, and the log names
    them. Whoever opens the restored one begins new epochs.

    Raises:
        InUse: a server uses the database.
        Damaged, NotOurs, NewerVersion: the backup cannot be used.
        CannotCopy: it cannot be read, or there is no room.
    """
    with database_files.locked(path), _arrived(path.with_name(f"{path.name}.restoring"), backup) as arrived:
        return database_files.replace_database(path, arrived, REPLACED)


def try_restore(path: Path, backup: Path) -> Rehearsal:
    """What `restore` would do. A server may use the database meanwhile, and nothing is changed.

    Raises:
        Damaged, NotOurs, NewerVersion, CannotCopy: as `restore`.
    """
    with contextlib.ExitStack() as stack:
        beside = path
        if not path.parent.is_dir():
            beside = Path(stack.enter_context(tempfile.TemporaryDirectory())) / path.name
        # Of this process: a restoration may be under way at the same time.
        stack.enter_context(_arrived(beside.with_name(f"{path.name}.trying-{os.getpid()}"), backup))
    aside = database_files.aside_of(path, REPLACED)
    return Rehearsal(None if aside is None else str(aside), database_files.is_locked(path))


@contextmanager
def _arrived(target: Path, backup: Path) -> Iterator[Path]:
    """A copy of a backup that is found to be usable, on disk, beside `target`; removed if it is still there."""
    arriving = temporary_name(target)
    log, arriving_log = database_files.wal_of(backup), database_files.wal_of(arriving)
    database_files.remove_database(arriving)
    try:
        files.copy_private(backup, arriving)
        before = own_log.belongs(backup) if log.exists() else None
        if before is not None:
            files.copy_private(log, arriving_log)
            _drop_foreign_log(arriving, before)
        _check(arriving, backup)
        files.settle_copy(arriving)
        yield arriving
    finally:
        database_files.remove_database(arriving)


def _drop_foreign_log(arriving: Path, before: Before) -> None:
    """Remove the log of a copy if it turns out, once SQLite has taken it up, to be another one's."""
    with closing(connect(arriving)) as copy:
        copy.execute("PRAGMA locking_mode = EXCLUSIVE")
        try:
            recognise(copy, before)
            return
        except CannotOpen:
            copy.interrupt()  # so that it is not copied into the database by the closing
    database_files.wal_of(arriving).unlink()


def _check(arriving: Path, backup: Path) -> None:
    with closing(connect(arriving)) as copy:
        try:
            identify(copy, str(backup))
            if copy.execute("PRAGMA user_version").fetchone() == (0,):
                raise NotOurs(f"{backup} is not a backup of avicenna-live")
            if problems := integrity.structure(copy, quick=False):
                raise damaged(str(backup), problems)
            for problem in integrity.registry(copy):
                logger.warning("%s: %s", backup, problem)
            after: int | None = 0
            while after is not None:
                problems, after = integrity.contents(copy, after)
                for problem in problems:
                    logger.warning("%s: %s", backup, problem)
            runs.mark_as_copy(copy)
        except sqlite3.DatabaseError as error:
            raise NotADatabase(f"{backup} is not a usable backup: {error}") from error
