"""Runs of the server, and what their ends mean for the numbers: the rows of `meta`.

Every run marks the database as in use before it answers anybody, and as closed when it is done. So the next
run knows whether acknowledged numbers may have been lost; then every diagnosis gets a new epoch, and no
(epoch, number) ever names two events. Functions of a connection, within its opening transaction.
"""

from __future__ import annotations

import math
import sqlite3
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import sha256
from typing import Final

from storage.belief import Kept
from storage.errors import CannotOpen
from storage.names import new_id
from storage.records import Durability, NewAuditRow
from storage.sqlite.trails import record
from storage.sqlite.wal import Mark

RENEWED: Final = "epochs.renew"
"""The act of the audit row that a renewal leaves."""

SELF: Final = "avicenna-live"
"""In place of a `sub` where the server itself, or an offline command, has acted."""

CHECK_OWED: Final = "check_owed"
"""This row stands until all outboxes were looked at and found whole."""

PAGES_DOUBTED: Final = "pages_doubted"
"""This row makes the next run check the pages before it answers anybody."""


SEALED: Final = ("boot", "clean", "copied", "durability", "log", "run")
"""The rows by which a log is judged beside the file alone. If power fails while their page is written to the file, that
may hold rows of two times; the log holds it whole."""


@dataclass(frozen=True, slots=True)
class LastRun:
    """How the run before this one ended."""

    clean: bool
    """Everything was stored and closed. Also true for a new database."""
    boot: str
    """The run of the operating system it belonged to, see `storage.disk.files.current_boot`."""
    durability: Durability
    copied: bool
    """This file is a backup, made while its original went on: later changes of the original are not in it."""
    pages_doubted: bool
    """Its store broke: the disk has failed it, or SQLite has met a page that makes no sense."""
    check_owed: bool
    """Not all outboxes were looked at since a run before it that did not end in order."""
    kept: Kept | None
    """The time it has kept; `None`: none."""
    state: str | None
    """A name of what is in the file, as this run has left it; `None`: an earlier version has left it, or a power loss
    within a write to these rows."""
    over: str | None
    """The `state` of the file when this run began: its log was begun over that, unless it goes on with a former one."""
    log: Mark | None
    """All before it was copied into the file, see `Mark.is_followed_by`; `None`: not known, as in a copy."""

    def was_killed(self, boot: str) -> bool:
        """Whether its process ended without the machine, if this is the boot: what it wrote is there, in order."""
        return bool(boot) and self.boot == boot


def last_run(db: sqlite3.Connection) -> LastRun:
    """What the last run has left."""
    rows = _rows(db)
    is_sealed = rows.get("seal") == _seal_of(rows)
    durability: Durability = "full" if rows.get("durability", "full") == "full" else "normal"
    return LastRun(
        clean=rows.get("clean", "1") == "1",
        boot=rows.get("boot", ""),
        durability=durability,
        copied="copied" in rows,
        pages_doubted=PAGES_DOUBTED in rows,
        check_owed=CHECK_OWED in rows,
        kept=_kept(rows),
        state=rows["seal"] if is_sealed else None,
        over=rows.get("over"),
        log=_mark(rows) if is_sealed else None,
    )


def _seal_of(rows: dict[str, str]) -> str:
    return sha256(repr([rows.get(key) for key in SEALED]).encode()).hexdigest()


def _seal(db: sqlite3.Connection) -> None:
    _write(db, seal=_seal_of(_rows(db)))


def _rows(db: sqlite3.Connection) -> dict[str, str]:
    return dict(db.execute("SELECT key, value FROM meta").fetchall())


@dataclass(frozen=True, slots=True)
class Before:
    """What was found of the last run, before SQLite takes up its log."""

    state: str | None = None
    """As `LastRun.state`, of the file alone."""
    log: Mark | None = None
    """What SQLite takes up of the log; `None`: nothing."""
    unless_begun_here: CannotOpen | None = None
    """The refusal, unless it is found in the log that it was begun over this `state`; `None`: it is certain."""


def _kept(rows: dict[str, str]) -> Kept | None:
    try:
        time = float(rows["kept_time"])
    except (KeyError, ValueError):
        return None
    return Kept(time, held=rows.get("clock_held") == "1") if math.isfinite(time) else None


def _mark(rows: dict[str, str]) -> Mark | None:
    try:
        return Mark.read(rows["log"])
    except (KeyError, ValueError, TypeError):  # damaged before it was sealed
        return None


def begin_run(
    db: sqlite3.Connection,
    *,
    boot: str,
    durability: Durability,
    new_epoch: Callable[[], str],
    now: float,
    over: str | None = None,
) -> str | None:
    """Mark the database as in use; why all epochs were renewed, `None` if they were not.

    The transaction must be synced to disk whatever the durability of this run: a later power loss is judged by it.
    """
    last = last_run(db)
    why = _why_renew(last, boot)
    if why is not None:
        for (dx,) in db.execute("SELECT dx FROM diagnosis WHERE deleted_at IS NULL").fetchall():
            db.execute("UPDATE diagnosis SET epoch = ? WHERE dx = ?", (new_epoch(), dx))
        record(db, NewAuditRow(SELF, RENEWED, "", after=why), now)
    db.execute("DELETE FROM meta WHERE key IN ('copied', ?)", (PAGES_DOUBTED,))
    _write(db, clean="0", boot=boot, durability=durability, run=new_id(), over=over or "")
    _seal(db)
    if not last.clean:
        _write(db, **{CHECK_OWED: "1"})
    # SQLite leaves out a write that changes nothing; this one always changes something, so the commit always syncs.
    db.execute("INSERT INTO meta VALUES ('runs', '1') ON CONFLICT DO UPDATE SET value = value + 1")
    return why


def _why_renew(last: LastRun, boot: str) -> str | None:
    if last.copied:
        return "the database was restored from a backup"
    if not last.clean and last.durability != "full" and not last.was_killed(boot):
        return "the machine stopped under a server with durability = normal"
    return None


def keep_time(db: sqlite3.Connection, kept: Kept) -> None:
    """Tell the next run what time this one believes."""
    _write(db, kept_time=repr(kept.time), clock_held="1" if kept.held else "0")


def keep_log(db: sqlite3.Connection, mark: Mark) -> None:
    """Have the database file tell, once everything so far is copied into it, which log goes on from there."""
    db.execute("BEGIN IMMEDIATE")
    try:
        _keep_log(db, mark)
        db.execute("COMMIT")
    except sqlite3.Error:
        if db.in_transaction:
            db.execute("ROLLBACK")
        raise


def _keep_log(db: sqlite3.Connection, mark: Mark) -> None:
    former = last_run(db).log
    if former is None or (former.line, former.number) != (mark.line, mark.number) or former.frames < mark.frames:
        _write(db, log=str(mark))
        _seal(db)


def end_run(db: sqlite3.Connection, kept: Kept | None = None, log: Mark | None = None) -> None:
    """Mark the database as closed in order, at the time and the place in its log given; synced, with all before it."""
    db.execute("PRAGMA synchronous = FULL")
    db.execute("BEGIN IMMEDIATE")
    if log is not None:
        _keep_log(db, log)
    _write(db, clean="1")
    _seal(db)
    if kept is not None:
        keep_time(db, kept)
    db.execute("COMMIT")


def settle_check(db: sqlite3.Connection) -> None:
    """All outboxes were looked at and are whole: no run has to do it again."""
    db.execute("DELETE FROM meta WHERE key = ?", (CHECK_OWED,))


def doubt_pages(db: sqlite3.Connection) -> None:
    """Have the next run look at the pages before it answers anybody; as much as a store that broke still can."""
    db.execute("BEGIN IMMEDIATE")
    _write(db, **{PAGES_DOUBTED: "1"})
    db.execute("COMMIT")


def mark_as_copy(db: sqlite3.Connection) -> None:
    """Mark a backup, so that whoever opens it as a store begins new epochs and looks at it, however it got there."""
    # A name of its own: a log that was begun over one copy does not go on from another. No log goes on from it yet.
    _write(db, copied=new_id(), **{CHECK_OWED: "1"})
    db.execute("DELETE FROM meta WHERE key = 'log'")
    _seal(db)


def _write(db: sqlite3.Connection, **values: str) -> None:
    db.executemany("INSERT OR REPLACE INTO meta VALUES (?, ?)", values.items())
