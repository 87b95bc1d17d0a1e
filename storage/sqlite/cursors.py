"""The SQL of cursors: moved, listed, dropped. Functions of a connection, as in `storage.sqlite.diagnoses`."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from typing import Any, Final

from storage.records import Cursor, CursorMove, Epoch, Seq, SubscriberId
from storage.sqlite.lookup import find

_COLUMNS: Final = "sub, device, epoch, seq, seen_at, acknowledged_at, acknowledged_by"


def move_cursors(db: sqlite3.Connection, moves: Iterable[CursorMove]) -> list[Seq | None]:
    """Store cursors; the cursor now stored for each move, `None` where there is no such diagnosis and epoch."""
    heads: dict[tuple[str, Epoch], tuple[int, int] | None] = {}
    stored: list[Seq | None] = []
    for move in moves:
        where = (move.diagnosis_id, move.epoch)
        if where not in heads:  # the same for all who follow a diagnosis
            heads[where] = db.execute(
                "SELECT dx, last_seq FROM diagnosis JOIN head USING (dx)"
                " WHERE public_id = ? AND deleted_at IS NULL AND epoch = ? AND typeof(last_seq) = 'integer'",
                where,
            ).fetchone()
        found = heads[where]
        stored.append(None if found is None else _move_cursor(db, move, *found))
    return stored


def _move_cursor(db: sqlite3.Connection, move: CursorMove, dx: int, head: int) -> Seq:
    (stored,) = db.execute(
        "INSERT INTO cursor VALUES (:dx, :sub, :device, :epoch, :seq, :seen_at, iif(:by IS NULL, NULL, :at), :by)"
        " ON CONFLICT DO UPDATE SET"
        " acknowledged_at = CASE WHEN cursor.epoch <> excluded.epoch THEN excluded.acknowledged_at"
        "   WHEN excluded.seq > cursor.seq THEN :at ELSE cursor.acknowledged_at END,"
        " acknowledged_by = CASE WHEN cursor.epoch <> excluded.epoch THEN excluded.acknowledged_by"
        "   WHEN excluded.seq > cursor.seq THEN excluded.acknowledged_by ELSE cursor.acknowledged_by END,"
        " seq = iif(cursor.epoch = excluded.epoch, max(cursor.seq, excluded.seq), excluded.seq),"
        " epoch = excluded.epoch,"
        " seen_at = max(cursor.seen_at, excluded.seen_at)"
        " RETURNING seq",
        {
            "dx": dx,
            "sub": move.subscriber.sub or "",
            "device": move.subscriber.device or "",
            "epoch": move.epoch,
            "seq": min(move.seq, head),
            "seen_at": move.seen_at,
            "at": move.seen_at if move.acknowledged_at is None else move.acknowledged_at,
            "by": move.acknowledged_by,
        },
    ).fetchone()
    return Seq(stored)


def cursor(db: sqlite3.Connection, diagnosis_id: str, subscriber: SubscriberId) -> Cursor | None:
    """The cursor of one subscriber."""
    dx, _ = find(db, diagnosis_id)
    row = db.execute(
        f"SELECT {_COLUMNS} FROM cursor WHERE dx = ? AND sub = ? AND device = ?",  # noqa: S608 - a constant
        (dx, *subscriber.order),
    ).fetchone()
    return None if row is None else _cursor(*row)


def cursors(db: sqlite3.Connection, diagnosis_id: str, after: SubscriberId | None, limit: int | None) -> list[Cursor]:
    """Cursors of a diagnosis, by subscriber."""
    dx, _ = find(db, diagnosis_id)
    condition, values = ("", ()) if after is None else (" AND (sub, device) > (?, ?)", after.order)
    return [
        _cursor(*row)
        for row in db.execute(
            f"SELECT {_COLUMNS} FROM cursor WHERE dx = ?{condition} ORDER BY sub, device LIMIT ?",  # noqa: S608 - constants
            (dx, *values, -1 if limit is None else limit),
        )
    ]


def _cursor(sub: str, device: str, epoch: Epoch, seq: Seq, *rest: Any) -> Cursor:
    return Cursor(SubscriberId(sub or None, device or None), epoch, seq, *rest)


def forget(db: sqlite3.Connection, diagnosis_id: str, subscribers: Sequence[SubscriberId]) -> int:
    """Drop cursors; how many there were."""
    dx, _ = find(db, diagnosis_id)
    dropped = 0
    for one in subscribers:
        dropped += db.execute(
            "DELETE FROM cursor WHERE dx = ? AND sub = ? AND device = ?", (dx, one.sub or "", one.device or "")
        ).rowcount
    return dropped
