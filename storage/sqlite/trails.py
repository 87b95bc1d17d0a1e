"""The SQL of both trails: what people and services did (audit), and who followed what (access).

As `storage.sqlite.diagnoses`: functions of a connection, within a transaction of the committer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence

from storage.pages import within
from storage.records import AccessRow, AuditRow, NewAccessRow, NewAuditRow, SubscriberId, TrailFilter


def record(db: sqlite3.Connection, row: NewAuditRow, now: float) -> int:
    """Store an audit row; its number."""
    number = db.execute(
        "INSERT INTO audit (at, who, what, target, before, after, diagnosis) VALUES (?, ?, ?, ?, ?, ?, ?)",
        (now, row.who, row.what, row.target, row.before, row.after, row.diagnosis_id),
    ).lastrowid
    assert number is not None
    return number


def audit(
    db: sqlite3.Connection, before: int | None, limit: int, wanted: TrailFilter, bytes_max: int | None = None
) -> list[AuditRow]:
    """Audit rows, newest first."""
    where, values = _where(wanted, before, who="who")
    rows = db.execute(
        "SELECT number, at, who, what, target, before, after, diagnosis FROM audit"  # noqa: S608 - see `_where`
        f" WHERE {where} ORDER BY number DESC LIMIT ?",
        (*values, limit),
    )
    return list(within((AuditRow(*row) for row in rows), bytes_max))


def _where(wanted: TrailFilter, before: int | None, *, who: str) -> tuple[str, list[str | float | int]]:
    """The condition that picks rows of a trail, and its values; `who` is the column of people."""
    # Few kinds of acts share all rows. SQLite knows that only after ANALYZE: a plus keeps it from that index where a
    # person or a diagnosis leaves fewer rows (of two million, a quarter of a second).
    has_narrower = wanted.who is not None or wanted.diagnosis_id is not None
    conditions = (
        ("number < ?", before),
        (f"{who} = ?", wanted.who),
        ("+what = ?" if has_narrower else "what = ?", wanted.what),
        ("diagnosis = ?", wanted.diagnosis_id),
        ("at >= ?", wanted.since),
        ("at < ?", wanted.until),
    )
    given = [(condition, value) for condition, value in conditions if value is not None]
    return " AND ".join(["TRUE", *(condition for condition, _ in given)]), [value for _, value in given]


def record_accesses(db: sqlite3.Connection, rows: Sequence[NewAccessRow]) -> None:
    """Store rows of the access trail."""
    db.executemany(
        "INSERT INTO access (at, what, diagnosis, sub, device) VALUES (?, ?, ?, ?, ?)",
        [(row.at, row.what, row.diagnosis_id, row.subscriber.sub, row.subscriber.device) for row in rows],
    )


def accesses(db: sqlite3.Connection, before: int | None, limit: int, wanted: TrailFilter) -> list[AccessRow]:
    """Rows of the access trail, newest first."""
    where, values = _where(wanted, before, who="sub")
    rows = db.execute(
        f"SELECT number, at, what, diagnosis, sub, device FROM access WHERE {where} ORDER BY number DESC LIMIT ?",  # noqa: S608 - see `_where`
        (*values, limit),
    )
    return [
        AccessRow(number, at, what, diagnosis_id, SubscriberId(sub, device))
        for number, at, what, diagnosis_id, sub, device in rows
    ]
