"""Copies of a database: a backup of one that is in use, and putting a backup in the place of one that is not."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Final

from storage import files, history, integrity
from storage.errors import CannotCopy, NotADatabase, NotOurs
from storage.schema import damaged, identify

_SOURCE_CODES: Final = frozenset({sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB})
"""Primary result codes that are the fault of what is copied, not of the place it is copied to."""


def make(db: sqlite3.Connection, target: str) -> None:
    """Write a consistent copy over the empty file `target`. Runs on the database thread.

    Raises:
        CannotCopy: it cannot be written.
        sqlite3.DatabaseError: the database itself is damaged.
    """
    try:
        db.execute("VACUUM INTO ?", (target,))
        with closing(sqlite3.connect(target, isolation_level=None)) as copy:
            history.mark_as_copy(copy)
    except sqlite3.Error as error:
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _SOURCE_CODES:
            raise
        raise CannotCopy(f"cannot write {target}: {error}") from error


def restore(path: Path, backup: Path) -> Path | None:
    """Put a backup in the place of a database no server uses; where the former one is now (None: there was none).

    Nothing is changed unless the backup is whole. Whoever opens the restored one begins new epochs.

    Raises:
        InUse: a server uses the database.
        Damaged, NotOurs, NewerVersion: the backup cannot be used.
        CannotCopy: it cannot be read, or there is no room.
    """
    with files.locked(path):
        arriving = path.with_name(f"{path.name}.restoring")
        log, arriving_log = files.wal_of(backup), files.wal_of(arriving)
        for leftover in (arriving, arriving_log):
            leftover.unlink(missing_ok=True)
        try:
            files.copy_private(backup, arriving)
            if log.exists():
                files.copy_private(log, arriving_log)
            _check(arriving, backup)
            files.settle_copy(arriving)
            aside = files.set_aside(path, "replaced")
            arriving.rename(path)
            files.sync_directory(path.parent)
        finally:
            for leftover in (arriving, arriving_log):
                leftover.unlink(missing_ok=True)
        return aside


def _check(arriving: Path, backup: Path) -> None:
    with closing(sqlite3.connect(arriving, isolation_level=None)) as copy:
        try:
            identify(copy, str(backup))
            if copy.execute("PRAGMA user_version").fetchone() == (0,):
                raise NotOurs(f"{backup} is not a backup of avicenna-live")
            if problems := integrity.everything(copy, quick=False):
                raise damaged(str(backup), problems)
            history.mark_as_copy(copy)
        except sqlite3.DatabaseError as error:
            raise NotADatabase(f"{backup} is not a usable backup: {error}") from error
