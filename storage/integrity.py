"""Whether what is stored can be trusted: SQLite's own checks, our checksums, and numbers without holes.

SQLite has no page checksums, and its integrity check passes a flipped byte of a body: only ours sees it.
"""

from __future__ import annotations

import sqlite3
from typing import Final

from storage.transactions import is_whole

PROBLEMS_MAX: Final = 100
"""Problems named at once. Beyond: left out; one is enough to act."""

DIAGNOSES_PER_STEP: Final = 200
"""Diagnoses looked at in one go while others wait for the database thread: some 20 ms."""


def structure(db: sqlite3.Connection, *, quick: bool) -> list[str]:
    """What is wrong with pages, indexes and references. `quick` leaves out comparing indexes with tables."""
    found: list[str] = []
    try:
        pragma = f"{'quick' if quick else 'integrity'}_check({PROBLEMS_MAX})"
        found += [str(text) for (text,) in db.execute(f"PRAGMA {pragma}") if text != "ok"]
        found += [f"table {table}: a row refers to nothing" for table, *_ in db.execute("PRAGMA foreign_key_check")]
    except sqlite3.DatabaseError as error:
        found.append(str(error))
    return found[:PROBLEMS_MAX]


def contents(db: sqlite3.Connection, after: int, limit: int = DIAGNOSES_PER_STEP) -> tuple[list[str], int | None]:
    """What is wrong with the events of the `limit` diagnoses above key `after`, and the key to go on after."""
    keys = [
        dx
        for (dx,) in db.execute("SELECT dx FROM diagnosis WHERE dx > ? ORDER BY dx LIMIT ?", (after, limit)).fetchall()
    ]
    if not keys:
        return [], None
    found: list[str] = []
    span = (keys[0], keys[-1])
    for diagnosis_id, *entry in db.execute(
        "SELECT public_id, seq, at, kind, body, crc FROM entry JOIN diagnosis USING (dx) WHERE dx BETWEEN ? AND ?", span
    ):
        if not is_whole(*entry):
            found.append(f"diagnosis {diagnosis_id}: event {entry[0]} fails its checksum")
    found += [
        f"diagnosis {diagnosis_id}: its events are not {floor + 1} to {head} without a hole"
        for diagnosis_id, floor, head in db.execute(
            "SELECT public_id, floor, last_seq FROM diagnosis LEFT JOIN head USING (dx)"
            " LEFT JOIN (SELECT dx, count(*) AS n, min(seq) AS low, max(seq) AS high"
            "   FROM entry WHERE dx BETWEEN ?1 AND ?2 GROUP BY dx) USING (dx)"
            " WHERE dx BETWEEN ?1 AND ?2 AND deleted_at IS NULL"
            " AND (last_seq IS NULL OR coalesce(n, 0) <> last_seq - floor OR low <> floor + 1 OR high <> last_seq)",
            span,
        )
    ]
    return found, keys[-1]


def everything(db: sqlite3.Connection, *, quick: bool) -> list[str]:
    """All problems of a database nobody waits for."""
    found = structure(db, quick=quick)
    after: int | None = 0
    while not found and after is not None:
        found, after = contents(db, after)
    return found[:PROBLEMS_MAX]
