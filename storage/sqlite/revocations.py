"""The SQL of revoked tokens: functions of a connection, within a transaction of the committer."""

from __future__ import annotations

import sqlite3
from typing import Final

from storage.belief import Moment
from storage.errors import NoSuchRevocation
from storage.records import Revocation, RevocationMade

_COLUMNS: Final = "number, sub, token_id, at, covers_until"


def revoke(
    db: sqlite3.Connection, sub: str | None, token_id: str | None, leeway_seconds: float, now: Moment
) -> RevocationMade:
    """Revoke a subject's tokens or one token."""
    # Both columns are unique and NULL equals nothing, so at most one row is found.
    row = db.execute(
        f"DELETE FROM revocation WHERE sub = ? OR token_id = ? RETURNING {_COLUMNS}",  # noqa: S608 - see above
        (sub, token_id),
    ).fetchone()
    # With a clock that is behind, tokens that a right clock issued before this moment would live on.
    covers_until = now.reckoned + leeway_seconds
    made = db.execute(
        "INSERT INTO revocation (sub, token_id, at, covers_until) VALUES (?, ?, ?, ?)",
        (sub, token_id, now.wall, covers_until),
    )
    assert made.lastrowid is not None, "an insert has a row id"
    before = None if row is None else Revocation(*row)
    return RevocationMade(Revocation(made.lastrowid, sub, token_id, now.wall, covers_until), before)


def revocations(db: sqlite3.Connection, after: int, limit: int) -> list[Revocation]:
    """A page of revocations, by number."""
    rows = db.execute(
        f"SELECT {_COLUMNS} FROM revocation WHERE number > ? ORDER BY number LIMIT ?",  # noqa: S608 - see above
        (after, limit),
    )
    return [Revocation(*row) for row in rows]


def lift_revocation(db: sqlite3.Connection, number: int) -> Revocation:
    """Drop a revocation; what it was."""
    row = db.execute(
        f"DELETE FROM revocation WHERE number = ? RETURNING {_COLUMNS}",  # noqa: S608 - see above
        (number,),
    ).fetchone()
    if row is None:
        raise NoSuchRevocation(str(number))
    return Revocation(*row)


def expire_revocations(db: sqlite3.Connection, until: float) -> list[Revocation]:
    """Drop old revocations; what they were."""
    rows = db.execute(
        f"DELETE FROM revocation WHERE covers_until <= ? RETURNING {_COLUMNS}",  # noqa: S608 - see above
        (until,),
    )
    return [Revocation(*row) for row in rows]
