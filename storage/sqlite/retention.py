"""SQL that deletes: events and rows by age, a person by name, events that are damaged.

Plain functions of a connection, as in `storage.sqlite.diagnoses`. Each does a bounded piece of work.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Collection
from dataclasses import dataclass, replace
from typing import Final

from storage.audit_rows import AuditRows
from storage.damage import Numbers, are_numbers, is_whole, judge
from storage.errors import NotDamaged
from storage.records import (
    ERASED_ROWS_MAX,
    OUTBOX_EVENTS_MAX,
    OWNED_NAMED_MAX,
    Act,
    AuditRow,
    Dropped,
    Epoch,
    Erased,
    Erasure,
    Evicted,
    ForgottenUnseen,
    NewAuditRow,
    Seq,
    Window,
)
from storage.sqlite import idempotency, integrity, trails
from storage.sqlite.lookup import find

WALKED_ROWS_MAX: Final = 4000
"""Rows that one step looks through without an index."""

_AUDIT_TEXTS: Final = ("who", "target", "before", "after")


def evict_before(db: sqlite3.Connection, at: float, after: str, diagnoses: int) -> Evicted:
    """Drop the events of some diagnoses that were committed before `at`."""
    page = db.execute(
        "SELECT dx, public_id, epoch, last_seq, floor, purged FROM diagnosis LEFT JOIN head USING (dx)"
        " WHERE deleted_at IS NULL AND public_id > ? ORDER BY public_id LIMIT ?",
        (after, diagnoses),
    ).fetchall()
    windows = {}
    for dx, public_id, epoch, *numbers in page:
        # Everything up to the highest number of that age goes, so that a clock that was set back keeps nothing longer.
        (newest,) = db.execute(
            "SELECT max(seq) FROM entry WHERE dx = ? AND at < ? AND typeof(at) = 'real' AND typeof(seq) = 'integer'",
            (dx, at),
        ).fetchone()
        if newest is not None and _is_age_certain(db, dx, newest, numbers):
            last_seq, floor, purged = numbers
            db.execute("DELETE FROM entry WHERE dx = ? AND seq <= ?", (dx, newest))
            db.execute("UPDATE head SET floor = ? WHERE dx = ?", (max(floor, newest), dx))
            windows[public_id] = Window(Epoch(epoch), Seq(last_seq), Seq(max(floor, newest)), Seq(purged))
    return Evicted(windows, next=page[-1][1] if len(page) == diagnoses else None)


def _is_age_certain(db: sqlite3.Connection, dx: int, newest: int, numbers: Numbers) -> bool:
    """Whether the event whose age decides is what was stored: a damaged outbox loses nothing by its damage."""
    entry = integrity.entry_at(db, dx, newest % OUTBOX_EVENTS_MAX)
    return (
        are_numbers(numbers) and newest <= numbers[0] and entry is not None and entry[1] == newest and is_whole(entry)
    )


def drop_damaged(db: sqlite3.Connection, diagnosis_id: str, new_epoch: Epoch) -> Dropped:
    """Drop the events of a diagnosis up to the last damaged one; where its head says nothing, begin a new epoch.

    Raises:
        NoSuchDiagnosis: it is not registered.
        NotDamaged: all is what was stored.
    """
    dx, diagnosis = find(db, diagnosis_id)
    numbers, entries = integrity.outbox_of(db, dx)
    damage = judge(numbers, entries, told=_highest_told(db, dx, diagnosis.epoch))
    if damage is None:
        raise NotDamaged(f"diagnosis {diagnosis_id} is not damaged")
    kept = [seq % OUTBOX_EVENTS_MAX for seq in range(damage.floor + 1, damage.head + 1)]
    dropped = db.execute(
        "DELETE FROM entry WHERE dx = ? AND slot NOT IN (SELECT value FROM json_each(?))", (dx, str(kept))
    ).rowcount
    if damage.is_head_trusted:
        db.execute("UPDATE head SET floor = ? WHERE dx = ?", (damage.floor, dx))
        return Dropped(diagnosis_id, damage.what, dropped, damage.window(diagnosis.epoch), is_renewed=False)
    # Not an UPDATE: numbers are never taken back within an epoch, and this is another one.
    db.execute("INSERT OR REPLACE INTO head VALUES (?, ?, ?, 0)", (dx, damage.head, damage.floor))
    db.execute("UPDATE diagnosis SET epoch = ? WHERE dx = ?", (new_epoch, dx))
    idempotency.drop_above(db, dx, damage.head)
    return Dropped(diagnosis_id, damage.what, dropped, damage.window(new_epoch), is_renewed=True)


def _highest_told(db: sqlite3.Connection, dx: int, epoch: Epoch) -> int:
    """The highest number of this epoch that somebody was told, as keys and cursors have it."""
    (keys,) = db.execute("SELECT max(seq) FROM idem WHERE dx = ? AND typeof(seq) = 'integer'", (dx,)).fetchone()
    (cursors,) = db.execute(
        "SELECT max(seq) FROM cursor WHERE dx = ? AND epoch = ? AND typeof(seq) = 'integer'", (dx, epoch)
    ).fetchone()
    return max(keys or 0, cursors or 0)


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
        # Of the rows that are old enough, the latest and not the highest: the index finds it at once. The rows it
        # leaves are found in the next rounds, each of which drops at least one.
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


@dataclass(frozen=True, slots=True)
class ErasureState:
    """How far the erasure of a person is. Finished steps are stored; this only says where to go on."""

    cursors: int = 0
    viewers: int = 0
    access_rows: int = 0
    audit_rows: int = 0
    diagnoses_after: int = 0
    """Deleted diagnoses up to this key have been looked at."""
    audit_after: int = 0
    """Rows of the audit trail up to this number have been looked at."""
    act: int | None = None
    """Number of the act's own row."""
    erased: Erased | None = None
    """The outcome, once nothing is left."""


def erase_some(
    db: sqlite3.Connection, erasure: Erasure, state: ErasureState, rows: AuditRows, act: Act | None, now: float
) -> ErasureState:
    """Go on with an erasure: cursors and viewer entries go, a stand-in takes the name's place where a row must stay.

    The act's own row is stored with the first step, and has the figures so far after each.
    """
    sub, stand_in = erasure.sub, erasure.stand_in
    some = {"sub": sub, "stand_in": stand_in, "limit": ERASED_ROWS_MAX}
    cursors = db.execute(
        "DELETE FROM cursor WHERE (dx, sub, device) IN"
        " (SELECT dx, sub, device FROM cursor WHERE sub = :sub LIMIT :limit)", some
    ).rowcount  # fmt: skip
    viewers = db.execute(
        "DELETE FROM viewer WHERE (dx, place) IN (SELECT dx, place FROM viewer WHERE sub = :sub LIMIT :limit)", some
    ).rowcount
    access_rows = db.execute(
        "UPDATE access SET sub = :stand_in, device = NULL WHERE number IN"
        " (SELECT number FROM access WHERE sub = :sub LIMIT :limit)", some
    ).rowcount  # fmt: skip
    is_last = max(cursors, viewers, access_rows) < ERASED_ROWS_MAX
    diagnoses_after, are_all_named = _walk(db, "diagnosis", "dx", state.diagnoses_after)
    db.execute(
        "UPDATE diagnosis SET owner = ? WHERE dx > ? AND dx <= ? AND owner = ? AND deleted_at IS NOT NULL",
        (stand_in, state.diagnoses_after, diagnoses_after, sub),
    )
    audit_rows, audit_after, is_whole_trail = _erase_from_audit(db, erasure, rows, state.audit_after)
    state = replace(
        state,
        cursors=state.cursors + cursors,
        viewers=state.viewers + viewers,
        access_rows=state.access_rows + access_rows,
        audit_rows=state.audit_rows + audit_rows,
        diagnoses_after=diagnoses_after,
        audit_after=audit_after,
    )
    is_last = is_last and are_all_named and is_whole_trail
    erased = Erased(state.cursors, state.viewers, state.audit_rows, state.access_rows, *_owned(db, sub, is_last))
    if act is not None:
        state = replace(state, act=_told(db, rows.row_of(act, erased), state.act, now))
    return replace(state, erased=erased) if is_last else state


def _walk(db: sqlite3.Connection, table: str, key: str, after: int) -> tuple[int, bool]:
    """The key up to which the next rows of a table are to be looked at, and whether they are the last."""
    count, last = db.execute(
        f"SELECT count(*), max({key}) FROM"  # noqa: S608 - two names
        f" (SELECT {key} FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?)",
        (after, WALKED_ROWS_MAX),
    ).fetchone()
    return (after if last is None else last), count < WALKED_ROWS_MAX


def _erase_from_audit(db: sqlite3.Connection, erasure: Erasure, rows: AuditRows, after: int) -> tuple[int, int, bool]:
    """How many rows were changed, up to which number they have been looked at, and whether that is all."""
    last, is_all = _walk(db, "audit", "number", after)
    names = {f"it{number}": spelling for number, spelling in enumerate(erasure.spellings)}
    is_named = " OR ".join(f"instr({column}, :{name})" for name in names for column in _AUDIT_TEXTS)
    found = db.execute(
        "SELECT number, at, who, what, target, before, after, diagnosis FROM audit"  # noqa: S608 - names of ours
        f" WHERE number > :after AND number <= :last AND ({is_named}) ORDER BY number LIMIT :limit",
        {**names, "after": after, "last": last, "limit": ERASED_ROWS_MAX},
    ).fetchall()
    changed = 0
    for row in (AuditRow(*columns) for columns in found):
        new = rows.without_name(row, erasure)
        if new != row:
            db.execute(
                "UPDATE audit SET who = ?, target = ?, before = ?, after = ? WHERE number = ?",
                (new.who, new.target, new.before, new.after, row.number),
            )
            changed += 1
    if len(found) == ERASED_ROWS_MAX:
        return changed, found[-1][0], False
    return changed, last, is_all


def _owned(db: sqlite3.Connection, sub: str, is_last: bool) -> tuple[tuple[str, ...], int]:
    """The first diagnoses a person owns, and how many there are; only the last step tells."""
    if not is_last:
        return (), 0
    mine = "FROM diagnosis WHERE owner = ? AND deleted_at IS NULL"
    named = db.execute(f"SELECT public_id {mine} ORDER BY public_id LIMIT ?", (sub, OWNED_NAMED_MAX)).fetchall()
    (total,) = db.execute(f"SELECT count(*) {mine}", (sub,)).fetchone()
    return tuple(public_id for (public_id,) in named), total


def _told(db: sqlite3.Connection, row: NewAuditRow, number: int | None, now: float) -> int:
    """Store the row of the act, or bring it up to date; its number."""
    if number is None:
        return trails.record(db, row, now)
    db.execute("UPDATE audit SET before = ?, after = ? WHERE number = ?", (row.before, row.after, number))
    return number
