"""The SQL of the registered diagnoses: made, changed, deleted, listed.

Functions of a connection, run within a transaction of the committer (`storage.sqlite.committer`). Each does one
operation of `storage.store.Store` and returns its answer. It raises an expected refusal (`Refused`), which the
committer turns into the answer of that operation alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from storage.errors import NoSuchDiagnosis
from storage.pages import within
from storage.records import Diagnosis, Epoch, Outbox, Registered, Seq
from storage.sqlite import idempotency
from storage.sqlite.lookup import find, viewers_of, window_of


def register(
    db: sqlite3.Connection,
    diagnosis_id: str,
    owner: str,
    viewers: Sequence[str],
    new_epoch: Epoch,
    now: float,
) -> Registered:
    """Register a diagnosis with `new_epoch`, or replace owner and viewers of a registered one, which keeps its own."""
    try:
        dx, before = find(db, diagnosis_id)
    except NoSuchDiagnosis:
        before = None
        made = db.execute(
            "INSERT INTO diagnosis (public_id, owner, epoch, created_at) VALUES (?, ?, ?, ?)",
            (diagnosis_id, owner, new_epoch, now),
        )
        assert made.lastrowid is not None, "an insert has a row id"
        dx = made.lastrowid
        db.execute("INSERT INTO head (dx) VALUES (?)", (dx,))
    else:
        db.execute("UPDATE diagnosis SET owner = ? WHERE dx = ?", (owner, dx))
        db.execute("DELETE FROM viewer WHERE dx = ?", (dx,))
    db.executemany("INSERT INTO viewer VALUES (?, ?, ?)", [(dx, place, sub) for place, sub in enumerate(viewers)])
    after = find(db, diagnosis_id)[1]
    return Registered(after, created=before is None, before=before)


def delete(db: sqlite3.Connection, diagnosis_id: str, now: float) -> Diagnosis:
    """Delete a diagnosis: a tombstone and its numbers stay, everything else goes."""
    dx, diagnosis = find(db, diagnosis_id)
    db.execute("UPDATE diagnosis SET deleted_at = ? WHERE dx = ?", (now, dx))
    for table in ("viewer", "entry", "cursor"):
        db.execute(f"DELETE FROM {table} WHERE dx = ?", (dx,))  # noqa: S608 - the names stand above
    idempotency.drop_of(db, dx)
    return diagnosis


def diagnoses(
    db: sqlite3.Connection, owner: str | None, after: str, limit: int, bytes_max: int | None
) -> list[Diagnosis]:
    """A page of registered diagnoses, by id."""
    where, values = _where_registered(owner)
    rows = db.execute(
        "SELECT dx, public_id, owner, epoch, created_at FROM diagnosis"  # noqa: S608 - see there
        f" WHERE {where} AND public_id > ? ORDER BY public_id LIMIT ?",
        (*values, after, limit),
    )
    found = (
        Diagnosis(public_id, found_owner, viewers_of(db, dx), Epoch(epoch), created_at)
        for dx, public_id, found_owner, epoch, created_at in rows
    )
    return list(within(found, bytes_max))


def count(db: sqlite3.Connection) -> int:
    """How many diagnoses are registered."""
    (number,) = db.execute("SELECT count(*) FROM diagnosis WHERE deleted_at IS NULL").fetchone()
    return int(number)


def outboxes(db: sqlite3.Connection, owner: str | None, after: str, limit: int) -> list[Outbox]:
    """A page of the same diagnoses, each with its window (see `window_of`) and the lowest cursor of its subscribers."""
    where, values = _where_registered(owner)
    rows = db.execute(
        "SELECT public_id, diagnosis.epoch, last_seq, floor, purged,"  # noqa: S608 - see there
        " (SELECT min(iif(cursor.epoch = diagnosis.epoch, seq, 0)) FROM cursor WHERE cursor.dx = diagnosis.dx)"
        f" FROM diagnosis LEFT JOIN head USING (dx) WHERE {where} AND public_id > ? ORDER BY public_id LIMIT ?",
        (*values, after, limit),
    )
    return [
        Outbox(public_id, window_of(epoch, (last_seq, floor, purged)), None if lowest is None else Seq(lowest))
        for public_id, epoch, last_seq, floor, purged, lowest in rows
    ]


def _where_registered(owner: str | None) -> tuple[str, tuple[str, ...]]:
    """The SQL condition of registered diagnoses, and its values; only those of `owner` if given. Each has an index."""
    condition = "deleted_at IS NULL"
    return (condition, ()) if owner is None else (f"{condition} AND owner = ?", (owner,))
