"""Whether what is stored can be trusted: SQLite's own checks, our checksums, and numbers without holes."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import groupby
from math import inf
from operator import itemgetter
from typing import Final

from storage.damage import Damage, Entry, Numbers, judge, problem

PROBLEMS_MAX: Final = 100
"""Problems named at once. Beyond: left out; one is enough to act."""

DIAGNOSES_PER_STEP: Final = 64
"""Diagnoses looked at in one go at most. Reason: their numbers are read before the first of them is judged."""

NO_NUMBERS: Final[Numbers] = (None, None, None)
"""The problem of a diagnosis whose numbers are missing."""

_RESTORE: Final = "restore a backup: avicenna-live restore FILE"

_REGISTER: Final = "register it again: avicenna-live diagnoses add ID --owner OWNER --viewer VIEWER"

_INSTEAD: Final = {
    "id": _RESTORE,
    "owner": _REGISTER,
    "epoch": _RESTORE,
    "viewers": _REGISTER,
}
"""What helps where a text of a registration is damaged."""

_ENTRY: Final = "slot, seq, at, kind, body, crc"


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


def registry(db: sqlite3.Connection) -> list[str]:
    """The diagnoses whose registration has a text that is no UTF-8. No checksum tells of damage that leaves it one."""
    found: list[str] = []
    with _texts_as_bytes(db):
        rows = db.execute(
            "SELECT public_id, public_id, owner, epoch, NULL FROM diagnosis WHERE deleted_at IS NULL UNION ALL"
            " SELECT public_id, NULL, NULL, NULL, sub FROM viewer JOIN diagnosis USING (dx) WHERE deleted_at IS NULL"
        )
        for public_id, *stored in rows:
            for name, text in zip(("id", "owner", "epoch", "viewers"), stored, strict=True):
                if text is not None and not _is_utf8(text):
                    shown = public_id.decode(errors="backslashreplace")
                    found.append(f"diagnosis {shown}: its {name} cannot be read as text; {_INSTEAD[name]}")
            if len(found) >= PROBLEMS_MAX:
                break
        rows.close()
    return found[:PROBLEMS_MAX]


def all_but_events(db: sqlite3.Connection) -> list[str]:
    """What is wrong with the structure, and with the registry."""
    found = structure(db, quick=False)
    if found:
        found.insert(0, f"the structure of the database is damaged; {_RESTORE}")
    try:
        found += registry(db)
    except sqlite3.DatabaseError as error:
        found.append(str(error))
    return found[:PROBLEMS_MAX]


def _is_utf8(text: bytes) -> bool:
    try:
        text.decode()
    except UnicodeDecodeError:
        return False
    return True


def outbox_of(db: sqlite3.Connection, dx: int) -> tuple[Numbers, list[Entry]]:
    """The numbers and events of a diagnosis as they are stored, unjudged."""
    with _texts_as_bytes(db):
        entries = db.execute(f"SELECT {_ENTRY} FROM entry WHERE dx = ? ORDER BY seq", (dx,)).fetchall()  # noqa: S608 - a constant
    return numbers_of(db, dx), entries


def numbers_of(db: sqlite3.Connection, dx: int) -> Numbers:
    """The numbers of a diagnosis, unjudged."""
    with _texts_as_bytes(db):
        found = db.execute("SELECT last_seq, floor, purged FROM head WHERE dx = ?", (dx,)).fetchone()
    return found or NO_NUMBERS


def entry_at(db: sqlite3.Connection, dx: int, slot: int) -> Entry | None:
    """The event in one place of an outbox, unjudged."""
    with _texts_as_bytes(db):
        found = db.execute(f"SELECT {_ENTRY} FROM entry WHERE dx = ? AND slot = ?", (dx, slot))  # noqa: S608 - a constant
        entry: Entry | None = found.fetchone()
    return entry


@dataclass(frozen=True, slots=True)
class Judged:
    """What a step of a check has found."""

    damaged: dict[str, Damage]
    """By diagnosis id."""
    diagnoses: int
    """Registered diagnoses that were looked at."""
    after: int | None
    """The key to go on after; `None`: that was the last."""


def judge_some(
    db: sqlite3.Connection, after: int, seconds: float = inf, now: Callable[[], float] = lambda: 0.0
) -> Judged:
    """Judge the outboxes of the next diagnoses above key `after`, until this time is over; of one at least.

    Args:
        now: a clock that may be read on the thread of the database.
    """
    ends_at = now() + seconds
    damaged: dict[str, Damage] = {}
    diagnoses, last = 0, None
    with _texts_as_bytes(db):
        page = db.execute(
            "SELECT diagnosis.dx, public_id, deleted_at IS NULL, last_seq, floor, purged"
            " FROM diagnosis LEFT JOIN head ON head.dx = diagnosis.dx"
            " WHERE diagnosis.dx > ? ORDER BY diagnosis.dx LIMIT ?",
            (after, DIAGNOSES_PER_STEP),
        ).fetchall()
        if not page:
            return Judged({}, 0, None)
        rows = db.execute(
            f"SELECT dx, {_ENTRY} FROM entry WHERE dx BETWEEN ? AND ? ORDER BY dx",  # noqa: S608 - a constant
            (page[0][0], page[-1][0]),
        )
        outboxes = groupby(rows, itemgetter(0))
        key, entries = next(outboxes, (None, iter(())))
        for dx, public_id, is_registered, *numbers in page:
            while key is not None and key < dx:  # of no diagnosis: they are never read
                key, entries = next(outboxes, (None, iter(())))
            found = judge(numbers, (row[1:] for row in entries) if key == dx else ()) if is_registered else None
            if found is not None:
                damaged[public_id.decode(errors="backslashreplace")] = found
            diagnoses, last = diagnoses + is_registered, dx
            if now() >= ends_at:
                break
        rows.close()
    return Judged(damaged, diagnoses, last)


def contents(db: sqlite3.Connection, after: int) -> tuple[list[str], int | None]:
    """What is wrong with the events of the next diagnoses above key `after`, and the key to go on after."""
    judged = judge_some(db, after)
    return [problem(*one) for one in judged.damaged.items()], judged.after


@contextmanager
def _texts_as_bytes(db: sqlite3.Connection) -> Iterator[None]:
    """Read texts as bytes meanwhile: over a damaged text sqlite3 raises an error that names no row."""
    before, db.text_factory = db.text_factory, bytes
    try:
        yield
    finally:
        db.text_factory = before
