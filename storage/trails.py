"""The SQL of both trails: what people and services did (audit), and who followed what (access).

As `storage.transactions`: functions of a connection, within a transaction of the committer.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from typing import TypeVar

from storage.committer import Work
from storage.records import AccessRow, Audit, AuditRow, NewAccessRow, NewAuditRow, SubscriberId

Answer = TypeVar("Answer")


def record(db: sqlite3.Connection, row: NewAuditRow, now: float) -> None:
    """Store an audit row."""
    db.execute(
        "INSERT INTO audit (at, who, what, target, before, after) VALUES (?, ?, ?, ?, ?, ?)",
        (now, row.who, row.what, row.target, row.before, row.after),
    )


def recording(work: Work[Answer], audit: Audit[Answer]) -> Work[Answer]:
    """An operation that leaves an audit row made of its answer.

    A row that cannot be made or stored is no refusal: it spoils the operation, which is rolled back with it.
    """

    def recorded(db: sqlite3.Connection, now: float) -> Answer:
        answer = work(db, now)
        record(db, audit(answer), now)
        return answer

    return recorded


def audit(db: sqlite3.Connection, before: int | None, limit: int) -> list[AuditRow]:
    """Audit rows, newest first."""
    rows = db.execute(
        "SELECT number, at, who, what, target, before, after FROM audit"
        " WHERE ? IS NULL OR number < ? ORDER BY number DESC LIMIT ?",
        (before, before, limit),
    )
    return [AuditRow(*row) for row in rows]


def record_accesses(db: sqlite3.Connection, rows: Sequence[NewAccessRow]) -> None:
    """Store rows of the access trail."""
    db.executemany(
        "INSERT INTO access (at, what, diagnosis, sub, device) VALUES (?, ?, ?, ?, ?)",
        [(row.at, row.what, row.diagnosis_id, row.subscriber.sub, row.subscriber.device) for row in rows],
    )


def accesses(db: sqlite3.Connection, before: int | None, limit: int) -> list[AccessRow]:
    """Rows of the access trail, newest first."""
    rows = db.execute(
        "SELECT number, at, what, diagnosis, sub, device FROM access"
        " WHERE ? IS NULL OR number < ? ORDER BY number DESC LIMIT ?",
        (before, before, limit),
    )
    return [
        AccessRow(number, at, what, diagnosis_id, SubscriberId(sub, device))
        for number, at, what, diagnosis_id, sub, device in rows
    ]
