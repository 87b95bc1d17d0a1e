"""Which diagnosis an id means, and what it retains: what every other file of SQL here asks first.

Functions of a connection. Outside this room a diagnosis is its public id; in the tables it is `dx`, the key of one
registration: an id that is deleted and registered again gets another.
"""

from __future__ import annotations

import sqlite3

from storage.damage import Numbers, are_numbers
from storage.errors import NoSuchDiagnosis
from storage.records import Diagnosis, Epoch, Seq, Window


def find(db: sqlite3.Connection, diagnosis_id: str) -> tuple[int, Diagnosis]:
    """The key (`dx`) of a registered diagnosis, and the diagnosis.

    Raises:
        NoSuchDiagnosis: it is not registered.
    """
    row = _registration(db, diagnosis_id)
    if row is None:
        raise NoSuchDiagnosis(diagnosis_id)
    dx, owner, epoch, created_at = row
    return dx, Diagnosis(diagnosis_id, owner, viewers_of(db, dx), Epoch(epoch), created_at)


def look_up(db: sqlite3.Connection, diagnosis_id: str, known: Diagnosis | None) -> Diagnosis | None:
    """A registered diagnosis; `None`: it is not registered. Either takes one statement if `known` still holds.

    Args:
        known: what it was when it was last read or changed; returned if it is the same registration.
    """
    row = _registration(db, diagnosis_id)
    if row is None:
        return None
    dx, owner, epoch, created_at = row
    if known is not None and (known.owner, known.epoch) == (owner, epoch):
        return known
    return Diagnosis(diagnosis_id, owner, viewers_of(db, dx), Epoch(epoch), created_at)


def _registration(db: sqlite3.Connection, diagnosis_id: str) -> tuple[int, str, str, float] | None:
    row: tuple[int, str, str, float] | None = db.execute(
        "SELECT dx, owner, epoch, created_at FROM diagnosis WHERE public_id = ? AND deleted_at IS NULL", (diagnosis_id,)
    ).fetchone()
    return row


def viewers_of(db: sqlite3.Connection, dx: int) -> tuple[str, ...]:
    """The `sub`s that may follow a diagnosis besides its owner, in the order in which they were given."""
    return tuple(sub for (sub,) in db.execute("SELECT sub FROM viewer WHERE dx = ? ORDER BY place", (dx,)))


def window_of(epoch: Epoch, numbers: Numbers) -> Window:
    """What a diagnosis retains, by its stored numbers; nothing if they make no sense."""
    last_seq, floor, purged = numbers if are_numbers(numbers) else (0, 0, 0)
    return Window(epoch, Seq(last_seq), Seq(floor), Seq(purged))
