"""The SQL of letting go: events and rows by age, a person by name.

Plain functions of a connection, as in `storage.transactions`. Each does a bounded piece of work, except the erasure of
a person, which is done whole or not at all.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection

from storage import idempotency
from storage.records import AuditRow, Epoch, Erased, Erasure, Evicted, ForgottenUnseen, Seq, Window


def evict_before(db: sqlite3.Connection, at: float, after: str, diagnoses: int) -> Evicted:
    """Drop the events of some diagnoses that were committed before `at`."""
    page = db.execute(
        "SELECT dx, public_id, epoch, last_seq, floor, purged FROM diagnosis JOIN head USING (dx)"
        " WHERE deleted_at IS NULL AND public_id > ? ORDER BY public_id LIMIT ?",
        (after, diagnoses),
    ).fetchall()
    windows = {}
    for dx, public_id, epoch, last_seq, floor, purged in page:
        # The highest number of that age goes, and with it all below: a clock that was set back keeps nothing longer.
        (newest,) = db.execute("SELECT max(seq) FROM entry WHERE dx = ? AND at < ?", (dx, at)).fetchone()
        if newest is not None:
            db.execute("DELETE FROM entry WHERE dx = ? AND seq <= ?", (dx, newest))
            db.execute("UPDATE head SET floor = ? WHERE dx = ?", (max(floor, newest), dx))
            windows[public_id] = Window(Epoch(epoch), Seq(last_seq), Seq(max(floor, newest)), Seq(purged))
    return Evicted(windows, next=page[-1][1] if len(page) == diagnoses else None)


def expire(db: sqlite3.Connection, ages: tuple[float | None, float | None], limit: int, judged: float) -> int:
    """Drop expired keys, and rows of both trails (audit, access) of given ages; how many, at most `limit` of each."""
    dropped = idempotency.expire(db, limit, judged)
    for table, seconds in zip(("audit", "access"), ages, strict=True):
        if seconds is not None:
            dropped += _expire_rows(db, table, judged - seconds, limit)
    return dropped


def _expire_rows(db: sqlite3.Connection, table: str, before: float, limit: int) -> int:
    """Drop rows that were stored before a time, each with all of a lower number; at most `limit`, lowest first.

    A row below an old one is as old: if it does not say so, the clock was ahead when it was stored.
    """
    dropped = 0
    while dropped < limit:
        # Of the rows that are old enough the latest, not the highest: it is found in the index at once. What it leaves
        # is found in the next rounds, each of which drops one row at least.
        found = db.execute(
            f"SELECT number FROM {table} WHERE at < ? ORDER BY at DESC, number DESC LIMIT 1",  # noqa: S608 - two names
            (before,),
        ).fetchone()
        if found is None:
            break
        dropped += db.execute(
            f"DELETE FROM {table} WHERE number IN"  # noqa: S608 - two names
            f" (SELECT number FROM {table} WHERE number <= ? ORDER BY number LIMIT ?)",
            (*found, limit - dropped),
        ).rowcount
    return dropped


def forget_unseen(
    db: sqlite3.Connection, before: float, spared: Collection[str], after: str, diagnoses: int
) -> ForgottenUnseen:
    """Drop the cursors of some diagnoses that were seen last at `before` or earlier, but of those `spared`."""
    page = db.execute(
        "SELECT dx, public_id FROM diagnosis WHERE deleted_at IS NULL AND public_id > ? ORDER BY public_id LIMIT ?",
        (after, diagnoses),
    ).fetchall()
    cursors = sum(
        db.execute("DELETE FROM cursor WHERE dx = ? AND seen_at <= ?", (dx, before)).rowcount
        for dx, public_id in page
        if public_id not in spared
    )
    return ForgottenUnseen(cursors, next=page[-1][1] if len(page) == diagnoses else None)


# Erasure


def erase(db: sqlite3.Connection, erasure: Erasure) -> Erased:
    """Remove a person: cursors and viewer entries go, a stand-in takes the place of the name where a row must stay."""
    sub, stand_in = erasure.sub, erasure.stand_in
    cursors = db.execute("DELETE FROM cursor WHERE sub = ?", (sub,)).rowcount
    viewers = db.execute("DELETE FROM viewer WHERE sub = ?", (sub,)).rowcount
    access_rows = db.execute("UPDATE access SET sub = ?, device = NULL WHERE sub = ?", (stand_in, sub)).rowcount
    db.execute("UPDATE diagnosis SET owner = ? WHERE owner = ? AND deleted_at IS NOT NULL", (stand_in, sub))
    audit_rows = _erase_from_audit(db, erasure)
    owned = db.execute(
        "SELECT public_id FROM diagnosis WHERE owner = ? AND deleted_at IS NULL ORDER BY public_id", (sub,)
    ).fetchall()
    return Erased(cursors, viewers, audit_rows, access_rows, tuple(public_id for (public_id,) in owned))


def _erase_from_audit(db: sqlite3.Connection, erasure: Erasure) -> int:
    changed = 0
    for spelling in erasure.spellings:
        rows = db.execute(
            "SELECT number, at, who, what, target, before, after, diagnosis FROM audit"
            " WHERE instr(who, :it) OR instr(target, :it) OR instr(before, :it) OR instr(after, :it)",
            {"it": spelling},
        ).fetchall()
        for row in (AuditRow(*found) for found in rows):
            new = erasure.rewrite(row)
            if new != row:
                db.execute(
                    "UPDATE audit SET who = ?, target = ?, before = ?, after = ? WHERE number = ?",
                    (new.who, new.target, new.before, new.after, row.number),
                )
                changed += 1
    return changed
