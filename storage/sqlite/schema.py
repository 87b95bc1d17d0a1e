"""The database: what its tables hold, how it is opened, and how an older one is brought up to date.

Format
    A file of SQLite in WAL mode with `application_id` 0x41564C31. `user_version` counts the steps of `MIGRATIONS` that
    made its tables.

    diagnosis   One row for each registration, under the key `dx`. A deleted one stays as a tombstone (`deleted_at`):
                its id can be registered again, with another key. `epoch` names its numbering history.
    viewer      Who may follow it besides its owner, in the order given (`place`).
    head        Its numbers: `last_seq` (the head), `floor` and `purged`, as in `storage.records.Window`.
    entry       Its events. `slot` is `seq` modulo 100, and (`dx`, `slot`) the primary key, so the table
                itself is the ring: event 101 takes the row of event 1. `crc` is over number, time, kind and body
                (`storage.damage.checksum`), because SQLite has none.
    cursor      How far each known subscriber has acknowledged, and in which epoch. No name is an empty text.
    idem        The idempotency keys of events, until `expires_at`; they outlive their events.
    revocation  Of a subject's tokens up to `covers_until`, or of one token.
    audit       Who did what, in the order of `number`. A row stays as it is until it is too old, but for the name of an
                erased person.
    access      Who began or ceased to follow what, and when.
    meta        What runs tell each other (`storage.sqlite.runs`), and how many keys there are
                (`storage.sqlite.idempotency`).

Invariants
    1. `0 <= purged <= floor <= last_seq <= floor + 100`, and `entry` holds exactly the numbers above `floor` up to
       `last_seq`. A CHECK keeps the first, the transactions in `storage.sqlite.events` keep the second.
    2. Numbers live in `head`, apart from everything that is trimmed. Triggers refuse to lower `last_seq` or `floor`
       and to delete a row, deleted diagnoses included. Only the repair of a damaged outbox replaces a row, with a new
       epoch in the same transaction.
    3. So no (`epoch`, `seq`) ever names two events, and no number is given before its event is in the transaction.
    4. `meta` counts the rows of `idem` in the transactions that change them.
    5. SQLite does not notice a flipped byte, and a damaged row need not keep these rules: numbers and events are judged
       whenever they are read (`storage.damage`).

When a process or a machine stops
    A transaction is in the log whole or not at all. With `synchronous = FULL` it is on disk when COMMIT returns, so an
    answered event survives a loss of power. With durability `normal` it survives a kill; after a loss of power the
    last ones may be missing, their numbers would be given again, and the next run begins new epochs instead (3).

    The first transaction of a run sets `clean` to 0 and the last one sets it to 1, both synced. A run that finds 0
    knows that the one before it did not end in order. It has the pages checked unless only the process was killed
    (`_check_pages`), and leaves word that all outboxes are to be judged (`check_owed`).

    The newest commits may be in the log alone, and SQLite takes up any log with a valid header. So the log is judged
    before SQLite sees it (`storage.sqlite.own_log`), by what this file does right after the opening transaction: it
    writes into the database which log goes on from there (`runs.keep_log`), and copies everything into it.
    `cache_spill` is off from then on, so that a page is in the log only as part of a commit: any other page looks like
    damage to `storage.sqlite.wal`.

    All migrations, the mark of the run and new epochs are one transaction: an opening that is killed has done nothing.
"""

from __future__ import annotations

import shlex
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from storage.belief import Kept
from storage.disk.database_files import wal_of
from storage.errors import CannotOpen, Damaged, ForeignLog, InUse, NewerVersion, NotADatabase, NotOurs
from storage.records import OUTBOX_EVENTS_MAX, Durability
from storage.sqlite import idempotency, integrity, runs, texts
from storage.sqlite.wal import Mark, drop_rest, mark_in

APPLICATION_ID: Final = 0x41564C31
"""Marks a file as ours ("AVL1"), in its header."""

WAL_AUTOCHECKPOINT_PAGES: Final = 4000
"""Reason: checkpoints lie in the commit path; at the default of 1000 pages they dominate its tail."""

WAL_BYTES_KEPT: Final = 16 * 1024 * 1024
CACHE_KIB: Final = 16_000

_VERSION_1: Final = f"""
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
CREATE TABLE diagnosis (
    dx INTEGER PRIMARY KEY AUTOINCREMENT,
    public_id TEXT NOT NULL,
    owner TEXT NOT NULL,
    epoch TEXT NOT NULL,
    created_at REAL NOT NULL,
    deleted_at REAL
) STRICT;
CREATE UNIQUE INDEX diagnosis_by_id ON diagnosis (public_id) WHERE deleted_at IS NULL;
CREATE INDEX diagnosis_by_owner ON diagnosis (owner, public_id) WHERE deleted_at IS NULL;
CREATE TABLE viewer (
    dx INTEGER NOT NULL REFERENCES diagnosis (dx),
    place INTEGER NOT NULL,
    sub TEXT NOT NULL,
    PRIMARY KEY (dx, place)
) STRICT, WITHOUT ROWID;
CREATE INDEX viewer_by_sub ON viewer (sub);
CREATE TABLE head (
    dx INTEGER PRIMARY KEY REFERENCES diagnosis (dx),
    last_seq INTEGER NOT NULL DEFAULT 0,
    floor INTEGER NOT NULL DEFAULT 0,
    purged INTEGER NOT NULL DEFAULT 0,
    CHECK (0 <= purged AND purged <= floor AND floor <= last_seq AND last_seq - floor <= {OUTBOX_EVENTS_MAX})
) STRICT;
CREATE TRIGGER head_never_goes_back BEFORE UPDATE ON head
WHEN new.last_seq < old.last_seq OR new.floor < old.floor
BEGIN SELECT RAISE(ABORT, 'a number would be taken back'); END;
CREATE TRIGGER head_is_never_deleted BEFORE DELETE ON head
BEGIN SELECT RAISE(ABORT, 'the numbers of a diagnosis are kept'); END;
CREATE TABLE entry (
    dx INTEGER NOT NULL REFERENCES diagnosis (dx),
    slot INTEGER NOT NULL,
    seq INTEGER NOT NULL CHECK (seq > 0),
    at REAL NOT NULL,
    kind TEXT NOT NULL,
    body BLOB NOT NULL,
    crc INTEGER NOT NULL,
    PRIMARY KEY (dx, slot),
    CHECK (slot = seq % {OUTBOX_EVENTS_MAX})
) STRICT, WITHOUT ROWID;
CREATE TABLE cursor (
    dx INTEGER NOT NULL REFERENCES diagnosis (dx),
    sub TEXT NOT NULL,
    device TEXT NOT NULL,
    epoch TEXT NOT NULL,
    seq INTEGER NOT NULL,
    seen_at REAL NOT NULL,
    acknowledged_at REAL,
    PRIMARY KEY (dx, sub, device)
) STRICT, WITHOUT ROWID;
CREATE INDEX cursor_by_sub ON cursor (sub);
CREATE TABLE idem (
    dx INTEGER NOT NULL REFERENCES diagnosis (dx),
    key TEXT NOT NULL,
    digest BLOB NOT NULL,
    seq INTEGER NOT NULL,
    at REAL NOT NULL,
    expires_at REAL NOT NULL,
    PRIMARY KEY (dx, key)
) STRICT, WITHOUT ROWID;
CREATE INDEX idem_by_expiry ON idem (expires_at);
CREATE TABLE revocation (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    sub TEXT UNIQUE,
    token_id TEXT UNIQUE,
    at REAL NOT NULL,
    CHECK ((sub IS NULL) <> (token_id IS NULL))
) STRICT;
CREATE TABLE audit (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    who TEXT NOT NULL,
    what TEXT NOT NULL,
    target TEXT NOT NULL,
    before TEXT,
    after TEXT
) STRICT;
CREATE TABLE access (
    number INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    what TEXT NOT NULL,
    diagnosis TEXT NOT NULL,
    sub TEXT,
    device TEXT
) STRICT;
CREATE INDEX access_by_sub ON access (sub);
"""

_VERSION_2: Final = """
ALTER TABLE revocation ADD COLUMN covers_until REAL NOT NULL DEFAULT 0;
UPDATE revocation SET covers_until = at + 10;
ALTER TABLE cursor ADD COLUMN acknowledged_by TEXT CHECK (acknowledged_by IN ('transport', 'app'));
ALTER TABLE audit ADD COLUMN diagnosis TEXT;
UPDATE audit SET diagnosis = target WHERE what IN (
    'diagnosis.register', 'diagnosis.delete', 'actor.restart', 'actor.stop', 'outbox.purge', 'subscriber.disconnect'
);
CREATE INDEX audit_by_who ON audit (who);
CREATE INDEX audit_by_what ON audit (what);
CREATE INDEX audit_by_diagnosis ON audit (diagnosis) WHERE diagnosis IS NOT NULL;
CREATE INDEX audit_by_time ON audit (at);
CREATE INDEX access_by_what ON access (what);
CREATE INDEX access_by_diagnosis ON access (diagnosis);
CREATE INDEX access_by_time ON access (at);
"""

MIGRATIONS: Final = (_VERSION_1, _VERSION_2)
"""Step n brings a database of version n to version n + 1. A step is never edited once released."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How the database is to be opened, and what is known of it before that."""

    path: str
    durability: Durability
    boot: str
    """See `storage.disk.files.current_boot`."""
    new_epoch: Callable[[], str]
    now: float
    before: runs.Before = field(default_factory=runs.Before)


@dataclass(frozen=True, slots=True)
class Opened:
    """What was found."""

    clean: bool
    """The last run ended in order."""
    pages_checked: bool
    """SQLite's own check was made, and has found nothing."""
    check_owed: bool
    """Not all outboxes were looked at since a run that did not end in order."""
    renewed: str | None
    """Why every diagnosis has a new epoch; `None`: none has."""
    kept: Kept | None
    """The time the last run has kept; `None`: none."""


def prepare(connection: sqlite3.Connection, opening: Opening) -> Opened:
    """Take the database for this process, check that it is ours and whole, and bring it up to date.

    Runs on the database thread, once, before anything else.

    Raises:
        CannotOpen: see its kinds; nothing was changed.
    """
    try:
        return _set_up(connection, opening)
    except sqlite3.DatabaseError as error:
        raise _explain(error, opening.path) from error


def _set_up(connection: sqlite3.Connection, opening: Opening) -> Opened:
    texts.read_damaged(connection)
    # Exclusive before WAL: the wal-index then lives in memory, and nobody else can attach.
    connection.execute("PRAGMA locking_mode = EXCLUSIVE")
    recognise(connection, opening.before)
    if opening.before.log is not None:
        _drop_rest(opening, opening.before.log)
    (mode,) = connection.execute("PRAGMA journal_mode = WAL").fetchone()
    if mode != "wal":
        raise CannotOpen(f"{opening.path}: the file system does not support SQLite's write-ahead log (got {mode})")
    for pragma in (
        "synchronous = FULL",
        "foreign_keys = ON",
        "trusted_schema = OFF",
        "cell_size_check = ON",
        "secure_delete = ON",
        "mmap_size = 0",
        "temp_store = MEMORY",
        f"cache_size = -{CACHE_KIB}",
        f"wal_autocheckpoint = {WAL_AUTOCHECKPOINT_PAGES}",
        f"journal_size_limit = {WAL_BYTES_KEPT}",
    ):
        connection.execute(f"PRAGMA {pragma}")
    connection.execute("BEGIN IMMEDIATE")
    try:
        opened = _begin(connection, opening)
        connection.execute("COMMIT")
    except BaseException:
        if connection.in_transaction:
            connection.execute("ROLLBACK")
        raise
    # Pages that leave memory before a commit would lie in the log, and look like damage after a kill (`sqlite.wal`).
    connection.execute("PRAGMA cache_spill = OFF")
    # Only what is in the database itself tells the next run that a log must lie beside it, and which.
    runs.keep_log(connection, _mark(opening))
    connection.execute("PRAGMA wal_checkpoint")
    # Whatever the durability of this run: that it runs, and with which, was synced above.
    connection.execute(f"PRAGMA synchronous = {opening.durability.upper()}")
    return opened


def recognise(connection: sqlite3.Connection, before: runs.Before) -> None:
    """See that a log that could not be told by its header was begun over this database, once SQLite has taken it up.

    Raises:
        CannotOpen: it was not. Nothing is changed yet, unless the connection copies it when it closes.
    """
    if before.unless_begun_here is None:
        return
    try:
        over = runs.last_run(connection).over
    except sqlite3.DatabaseError:  # pages of another database, or of another time
        over = None
    if over != before.state:
        raise before.unless_begun_here


def _drop_rest(opening: Opening, end: Mark) -> None:
    log = wal_of(Path(opening.path))
    try:
        drop_rest(log, end)
    except OSError as error:
        raise CannotOpen(f"{log} cannot be cut: {error.strerror}") from error


def _mark(opening: Opening) -> Mark:
    log = wal_of(Path(opening.path))
    try:
        return mark_in(log, opening.before.log)
    except OSError as error:
        raise CannotOpen(f"{log} cannot be read: {error.strerror}") from error


def _begin(connection: sqlite3.Connection, opening: Opening) -> Opened:
    """Everything a run does before it answers, in one transaction."""
    identify(connection, opening.path)
    pages_checked = bool(_version(connection)) and _check_pages(connection, opening)
    _migrate(connection)
    last = runs.last_run(connection)
    idempotency.begin_run(connection)
    renewed = runs.begin_run(
        connection,
        boot=opening.boot,
        durability=opening.durability,
        new_epoch=opening.new_epoch,
        now=opening.now,
        over=opening.before.state,
    )
    return Opened(last.clean or last.copied, pages_checked, last.check_owed or not last.clean, renewed, last.kept)


def _check_pages(connection: sqlite3.Connection, opening: Opening) -> bool:
    """Have SQLite check all pages if they may be torn; whether it did.

    Not after a mere kill: the operating system has everything that the process wrote, page for page.

    Raises:
        Damaged: it has found something.
    """
    last = runs.last_run(connection)
    is_due = last.pages_doubted or not (last.clean or last.copied or last.was_killed(opening.boot))
    if is_due and (problems := integrity.structure(connection, quick=True)):
        raise damaged(opening.path, problems)
    return is_due


def _version(connection: sqlite3.Connection) -> int:
    (version,) = connection.execute("PRAGMA user_version").fetchone()
    return int(version)


def damaged(path: str, problems: Sequence[str]) -> Damaged:
    """What an operator is told about a database that fails its check."""
    more = f" and {len(problems) - 1} more" if len(problems) > 1 else ""
    return Damaged(f"{path} is damaged ({problems[0]}{more}); restore a backup: {_restore_command(path)}")


def damaged_log(path: str, fault: str, kept: Path | None = None) -> Damaged:
    """What an operator is told about a database whose write-ahead log is not as its last run left it.

    Args:
        kept: where its log may be, if a `restore` was interrupted; `None`: nothing is known of that.
    """
    back = "Put it back as it was"
    if kept is not None:
        back = f"If a restore was interrupted, put it back: {shlex.join(('mv', str(kept), f'{path}-wal'))}"
    return Damaged(
        f"{path} was not closed in order, and its log {path}-wal {fault}: the newest events were in it. "
        f"{back}; or go on without them: {_restore_command(path, path)}"
    )


def foreign_log(path: str) -> ForeignLog:
    """What an operator is told about a log beside a database that needs none."""
    log = f"{path}-wal"
    move = shlex.join(("mv", log, f"{log}.aside"))
    return ForeignLog(
        f"{path} is whole without a log, and {log} is one of another time or database. If this is the database to go "
        f"on with, move the log away: {move}; else put the one back to which the log belongs"
    )


def _restore_command(path: str, backup: str = "FILE") -> str:
    return f"avicenna-live restore {backup} --data {Path(path).parent}"


def identify(connection: sqlite3.Connection, path: str) -> None:
    """Check that a database is ours, or empty.

    Raises:
        NotOurs, NewerVersion: it is not one we can use.
    """
    (application_id,) = connection.execute("PRAGMA application_id").fetchone()
    version = _version(connection)
    try:
        (tables,) = connection.execute("SELECT count(*) FROM sqlite_schema").fetchone()
    except UnicodeDecodeError as error:  # SQLite's words quote what is damaged in the schema
        unreadable = sqlite3.DatabaseError("malformed database schema")
        unreadable.sqlite_errorcode = sqlite3.SQLITE_CORRUPT
        raise unreadable from error
    if application_id != APPLICATION_ID and (application_id or tables):
        raise NotOurs(f"{path} is not a database of avicenna-live; name another directory with --data")
    if version > len(MIGRATIONS):
        raise NewerVersion(
            f"{path} has schema version {version}, known here are up to {len(MIGRATIONS)}: run a newer avicenna-live"
        )


def _migrate(connection: sqlite3.Connection) -> None:
    """Apply the missing steps; all of them or none, `PRAGMA user_version` is part of the transaction."""
    version = _version(connection)
    for number, step in enumerate(MIGRATIONS[version:], start=version + 1):
        for statement in _statements(step):
            connection.execute(statement)
        connection.execute(f"PRAGMA user_version = {number}")
    connection.execute(f"PRAGMA application_id = {APPLICATION_ID}")


def _statements(script: str) -> list[str]:
    """The statements of a script; `executescript` would commit the open transaction first."""
    found: list[str] = []
    pending = ""
    for line in script.splitlines(keepends=True):
        pending += line
        if sqlite3.complete_statement(pending):
            found.append(pending)
            pending = ""
    return found


def _explain(error: sqlite3.DatabaseError, path: str) -> CannotOpen:
    """What an operator can do about a database that does not open."""
    match getattr(error, "sqlite_errorcode", 0) & 0xFF:
        case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED:
            return InUse(f"{path} is in use by another process")
        case sqlite3.SQLITE_NOTADB:
            return NotADatabase(
                f"{path} is not a database, or its header is overwritten; "
                f"name another directory with --data, or restore a backup: {_restore_command(path)}"
            )
        case sqlite3.SQLITE_CORRUPT:
            return damaged(path, [str(error)])
        case sqlite3.SQLITE_READONLY:
            return CannotOpen(f"{path} is read-only; the server must be able to write it")
        case sqlite3.SQLITE_FULL:
            return CannotOpen(f"{path} cannot be opened: the disk is full")
        case _:
            return CannotOpen(f"{path} cannot be opened: {error}")
