"""Whether a write-ahead log is that of the database it lies beside, and as its run has left it.

SQLite takes up any log whose header is valid. So the database file tells which one goes on from it: a `Mark` is written
before everything is copied from the log; `LastRun.over` is for a start that was killed before that.
See docs/decisions/0077 and 0078.
"""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

from storage.disk import database_files
from storage.errors import CannotOpen
from storage.sqlite import texts, wal
from storage.sqlite.runs import Before, LastRun, last_run
from storage.sqlite.schema import damaged_log, foreign_log, identify


def judge(path: Path, boot: str) -> Before:
    """Look at a database and its log before SQLite opens them.

    Raises:
        Damaged: the run did not end in order, and its log is missing, not as the run has left it, or another one.
        ForeignLog: the database is whole without a log, and one of another time or database lies beside it.
        NotOurs, NewerVersion: as `schema.identify`.
        CannotOpen: the log cannot be read.
    """
    last = _last_run(path)
    if last is None:
        return Before()  # empty, or damaged: opening it says so
    found = _found(path, last, boot)
    needs_none = last.clean or last.copied
    if needs_none and (last.state is None or found.end is None or not found.end.frames):
        return Before(last.state, found.end)
    if found.end is None and found.fault is None:
        return Before(last.state)  # a word of ours in its place
    if found.end is None or _goes_on(last, found.end):
        if found.fault is not None:
            kept = None if database_files.wal_of(path).exists() else database_files.kept_log_of(path)
            raise damaged_log(str(path), found.fault, kept)
        return Before(last.state, found.end)
    refusal = foreign_log(str(path)) if needs_none else damaged_log(str(path), "is one of another time or database")
    if not _may_be_begun(found.end) or found.fault is not None:
        raise refusal
    return Before(last.state, found.end, unless_begun_here=refusal)


def belongs(path: Path) -> Before | None:
    """What is known of a log that is to be copied with its database; `None`: it belongs to another database, or there
    is none."""
    last = _last_run(path)
    if last is None:
        return Before()
    end = _found(path, last, "").end
    if end is None or _goes_on(last, end):
        return Before(last.state, end)
    return Before(last.state, end, foreign_log(str(path))) if _may_be_begun(end) else None


def _last_run(path: Path) -> LastRun | None:
    """What the database file says without its log, as of the last checkpoint; `None`: nothing."""
    # Immutable: nothing is locked, nothing written.
    with closing(sqlite3.connect(f"{path.absolute().as_uri()}?mode=ro&immutable=1", uri=True)) as db:
        texts.read_damaged(db)
        try:
            identify(db, str(path))
            return last_run(db)
        except sqlite3.DatabaseError:
            return None


def _found(path: Path, last: LastRun, boot: str) -> wal.Found:
    ended: wal.Ended = "stop" if last.durability == "full" else "unsynced stop"
    if last.was_killed(boot):
        ended = "kill"
    log = database_files.wal_of(path)
    try:
        return wal.look_at(log, ended=ended)
    except FileNotFoundError:
        return wal.Found(fault="is missing")
    except OSError as error:
        raise CannotOpen(f"{log} cannot be read: {error.strerror}") from error


def _goes_on(last: LastRun, end: wal.Mark) -> bool:
    """Whether a log goes on from this file, or the file cannot tell, as it is of an earlier version."""
    return last.state is None or (last.log is not None and last.log.is_followed_by(end))


def _may_be_begun(end: wal.Mark) -> bool:
    """Whether a log may be the one of a start that was killed before it has copied anything: the first of its line."""
    return end.number == 0 and end.frames > 0
