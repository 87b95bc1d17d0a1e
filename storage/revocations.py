"""The SQL of revoked tokens: functions of a connection, within a transaction of the committer."""

from __future__ import annotations

import sqlite3

from storage.errors import NoSuchRevocation
from storage.records import Revocation, RevocationMade


def revoke(db: sqlite3.Connection, sub: str | None, token_id: str | None, now: float) -> RevocationMade:
    """Revoke a subject's tokens or one token."""
    # Both columns are unique, and what is NULL equals nothing: at most one row.
    row = db.execute(
        "DELETE FROM revocation WHERE sub = ? OR token_id = ? RETURNING number, sub, token_id, at", (sub, token_id)
    ).fetchone()
    made = db.execute("INSERT INTO revocation (sub, token_id, at) VALUES (?, ?, ?)", (sub, token_id, now))
    assert made.lastrowid is not None, "an insert has a row id"
    before = None if row is None else Revocation(*row)
    return RevocationMade(Revocation(made.lastrowid, sub, token_id, now), before)


def revocations(db: sqlite3.Connection, after: int, limit: int) -> list[Revocation]:
    """A page of revocations, by number."""
    rows = db.execute(
        "SELECT number, sub, token_id, at FROM revocation WHERE number > ? ORDER BY number LIMIT ?", (after, limit)
    )
    return [Revocation(*row) for row in rows]


def lift_revocation(db: sqlite3.Connection, number: int) -> Revocation:
    """Drop a revocation; what it was."""
    row = db.execute(
        "DELETE FROM revocation WHERE number = ? RETURNING number, sub, token_id, at", (number,)
    ).fetchone()
    if row is None:
        raise NoSuchRevocation(str(number))
    return Revocation(*row)


def expire_revocations(db: sqlite3.Connection, until: float) -> int:
    """Drop old revocations; how many there were."""
    return db.execute("DELETE FROM revocation WHERE at <= ?", (until,)).rowcount
