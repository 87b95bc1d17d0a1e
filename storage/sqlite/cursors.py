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
    rows: list[tuple[object, ...]] = []
    names: list[tuple[int, str, str] | None] = []
    for move in moves:
        where = (move.diagnosis_id, move.epoch)
        if where not in heads:  # the same for all who follow a diagnosis
            heads[where] = db.execute(
                "SELECT dx, last_seq FROM diagnosis JOIN head USING (dx)"
                " WHERE public_id = ? AND deleted_at IS NULL AND epoch = ? AND typeof(last_seq) = 'integer'",
                where,
            ).fetchone()
        found = heads[where]
        if found is None:
            names.append(None)
            continue
        dx, head = found
        name = (dx, *move.subscriber.order)
        names.append(name)
        at = move.seen_at if move.acknowledged_at is None else move.acknowledged_at
        rows.append((*name, move.epoch, min(move.seq, head), move.seen_at, at, move.acknowledged_by))
    # Not RETURNING: it makes a table for each row, which costs twice as much as storing the row and reading it again.
    db.executemany(_MOVE, rows)
    return [None if name is None else Seq(db.execute(_STORED, name).fetchone()[0]) for name in names]


_MOVE: Final = (
    "INSERT INTO cursor VALUES (?1, ?2, ?3, ?4, ?5, ?6, iif(?8 IS NULL, NULL, ?7), ?8)"
    " ON CONFLICT DO UPDATE SET"
    " acknowledged_at = CASE WHEN cursor.epoch <> excluded.epoch THEN excluded.acknowledged_at"
    "   WHEN excluded.seq > cursor.seq THEN ?7 ELSE cursor.acknowledged_at END,"
    " acknowledged_by = CASE WHEN cursor.epoch <> excluded.epoch THEN excluded.acknowledged_by"
    "   WHEN excluded.seq > cursor.seq THEN excluded.acknowledged_by ELSE cursor.acknowledged_by END,"
    " seq = iif(cursor.epoch = excluded.epoch, max(cursor.seq, excluded.seq), excluded.seq),"
    " epoch = excluded.epoch,"
    " seen_at = max(cursor.seen_at, excluded.seen_at)"
)

_STORED: Final = "SELECT seq FROM cursor WHERE dx = ? AND sub = ? AND device = ?"


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


def furthest_behind(db: sqlite3.Connection, diagnosis_ids: Sequence[str], limit: int) -> list[list[Cursor]]:
    """The lowest cursors of each of some diagnoses, lowest first; of one that is not registered: none."""
    return [[_cursor(*row) for row in db.execute(_FURTHEST_BEHIND, (one, limit))] for one in diagnosis_ids]


_FURTHEST_BEHIND: Final = (
    "SELECT sub, device, cursor.epoch, seq, seen_at, acknowledged_at, acknowledged_by"
    " FROM diagnosis JOIN cursor USING (dx) WHERE public_id = ? AND deleted_at IS NULL"
    " ORDER BY iif(cursor.epoch = diagnosis.epoch, seq, 0), sub, device LIMIT ?"
)


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
