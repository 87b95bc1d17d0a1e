"""The SQL of letting go: events and rows by age, a person by name.

Plain functions of a connection, as in `storage.transactions`. Each does a bounded piece of work, except the erasure of
a person, which is done whole or not at all.
"""

from __future__ import annotations

import sqlite3

from storage.records import AuditRow, Epoch, Erased, Erasure, Evicted, Seq, Window


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


def expire(
    db: sqlite3.Connection, audit_before: float | None, accesses_before: float | None, limit: int, now: float
) -> int:
    """Drop expired keys and rows of both trails, at most `limit` of each kind; how many."""
    dropped = db.execute(
        "DELETE FROM idem WHERE (dx, key) IN (SELECT dx, key FROM idem WHERE expires_at <= ? LIMIT ?)", (now, limit)
    ).rowcount
    for table, before in (("audit", audit_before), ("access", accesses_before)):
        if before is not None:
            # Rows are numbered as time goes on: the lowest numbers are the oldest, no other row need be looked at.
            dropped += db.execute(
                f"DELETE FROM {table} WHERE at < ?"  # noqa: S608 - the names stand above
                f" AND number IN (SELECT number FROM {table} ORDER BY number LIMIT ?)",
                (before, limit),
            ).rowcount
    return dropped


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
