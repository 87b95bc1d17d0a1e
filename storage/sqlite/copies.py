"""Copies of a database that nobody uses: finishing one, and putting one in the place of the database. Nothing waits."""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from pathlib import Path

from storage.disk import database_files, files
from storage.disk.unfinished import temporary_name
from storage.errors import CannotOpen, NotADatabase, NotOurs
from storage.sqlite import integrity, own_log, runs, texts
from storage.sqlite.runs import Before
from storage.sqlite.schema import damaged, identify, recognise

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
    with database_files.locked(path):
        arriving = temporary_name(path.with_name(f"{path.name}.restoring"))
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
            aside = database_files.replace_database(path, arriving, "replaced")
        finally:
            database_files.remove_database(arriving)
        return aside


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
