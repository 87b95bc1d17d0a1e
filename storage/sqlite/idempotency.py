"""The SQL of idempotency keys: functions of a connection, within a transaction, as in `storage.sqlite.diagnoses`.

How many keys the database holds is a row of `meta`, moved in the same transaction as the keys themselves: a commit
that fails takes it back with them, and nobody has to count millions of rows at a start.
"""

from __future__ import annotations

import logging
import sqlite3
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from storage.belief import Moment
from storage.errors import KeyReused, KeysExhausted, StorageError
from storage.records import IDEMPOTENCY_KEY_SECONDS, Appended, IdempotencyKeys, NewEvent

COUNT: Final = "idempotency_keys"
"""The row of `meta` that holds how many keys there are."""


SILENT_SECONDS: Final = 60.0
"""Between two lines of the log about keys that found no room."""

logger = logging.getLogger("avicenna.storage")


@dataclass(frozen=True, slots=True)
class Stored:
    """A key that is in the database, and the event it made."""

    digest: bytes
    seq: int
    at: float
    expires_at: float

    def made(self, event: NewEvent) -> tuple[int, float] | KeyReused:
        """Number and time of the event this key made, if it is this one."""
        if self.digest != event.digest:
            return KeyReused("the key belongs to another event")
        return self.seq, self.at


def begin_run(db: sqlite3.Connection) -> None:
    """Count the keys of a database that does not hold their number yet."""
    if db.execute("SELECT 1 FROM meta WHERE key = ?", (COUNT,)).fetchone() is None:
        db.execute("INSERT INTO meta SELECT ?, count(*) FROM idem", (COUNT,))


def find(db: sqlite3.Connection, dx: int, key: str) -> Stored | None:
    """A key of a diagnosis, expired or not; `None`: it is not stored."""
    row = db.execute("SELECT digest, seq, at, expires_at FROM idem WHERE dx = ? AND key = ?", (dx, key)).fetchone()
    return None if row is None else Stored(*row)


def of_diagnosis(db: sqlite3.Connection, diagnosis_id: str, after: str, limit: int) -> list[tuple[str, Stored]]:
    """Keys of a registered diagnosis in their order, expired or not."""
    rows = db.execute(
        "SELECT key, digest, seq, at, expires_at FROM idem JOIN diagnosis USING (dx)"
        " WHERE public_id = ? AND deleted_at IS NULL AND key > ? ORDER BY key LIMIT ?",
        (diagnosis_id, after, limit),
    )
    return [(key, Stored(*row)) for key, *row in rows]


def store(db: sqlite3.Connection, dx: int, seq: int, event: NewEvent, now: Moment) -> None:
    """Store the key of an event, in place of one that has expired if need be. A new one is to be counted (`add`)."""
    db.execute(
        "INSERT OR REPLACE INTO idem VALUES (?, ?, ?, ?, ?, ?)",
        (dx, event.key, event.digest, seq, now.wall, now.reckoned + IDEMPOTENCY_KEY_SECONDS),
    )


def expire(db: sqlite3.Connection, limit: int, judged: float) -> int:
    """Drop keys that have expired, at most `limit`; how many."""
    dropped = db.execute(
        "DELETE FROM idem WHERE (dx, key) IN (SELECT dx, key FROM idem WHERE expires_at <= ? LIMIT ?)", (judged, limit)
    ).rowcount
    add(db, -dropped)
    return dropped


def drop_of(db: sqlite3.Connection, dx: int) -> None:
    """Drop the keys of a diagnosis."""
    add(db, -db.execute("DELETE FROM idem WHERE dx = ?", (dx,)).rowcount)


def drop_above(db: sqlite3.Connection, dx: int, seq: int) -> None:
    """Drop the keys of those events of a diagnosis that have a higher number."""
    add(db, -db.execute("DELETE FROM idem WHERE dx = ? AND seq > ?", (dx, seq)).rowcount)


def count(db: sqlite3.Connection) -> int:
    """How many keys are stored, of all diagnoses."""
    (number,) = db.execute("SELECT value FROM meta WHERE key = ?", (COUNT,)).fetchone()
    return int(number)


def add(db: sqlite3.Connection, keys: int) -> None:
    """Add so many keys to the number that is kept."""
    if keys:
        db.execute("UPDATE meta SET value = value + ? WHERE key = ?", (keys, COUNT))


def look(db: sqlite3.Connection, keys_max: int, reckoned: float) -> IdempotencyKeys:
    """How many there are, and how old the oldest is."""
    (first,) = db.execute("SELECT min(expires_at) FROM idem").fetchone()
    oldest = None if first is None else max(0.0, reckoned - (first - IDEMPOTENCY_KEY_SECONDS))
    return IdempotencyKeys(count(db), keys_max, oldest)


class Fullness:
    """Tells the log that keys find no room, at most once in `SILENT_SECONDS`. One per store."""

    def __init__(self) -> None:
        self._told_at: float | None = None

    def look_at(self, outcomes: Sequence[Appended | StorageError], now: float) -> None:
        """Look at what became of some events at this time (of a monotonic clock)."""
        full = next((one for one in outcomes if isinstance(one, KeysExhausted)), None)
        if full is not None and (self._told_at is None or now >= self._told_at + SILENT_SECONDS):
            self._told_at = now
            logger.warning("events with new keys are refused: %s (setting idempotency_keys_max)", full)
