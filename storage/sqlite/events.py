"""The SQL of events: appended, read, purged. Functions of a connection, as in `storage.sqlite.diagnoses`."""

from __future__ import annotations

import sqlite3
from collections.abc import Sequence
from itertools import islice

from storage.belief import Moment
from storage.damage import Damage, are_numbers, checksum, judge
from storage.errors import KeyReused, KeysExhausted, NoSuchDiagnosis, OutboxDamaged, StorageError
from storage.pages import within
from storage.records import (
    IDEMPOTENCY_KEYS_MAX,
    OUTBOX_EVENTS_MAX,
    Appended,
    Event,
    NewEvent,
    Purged,
    Seq,
    Slice,
)
from storage.sqlite import idempotency, integrity
from storage.sqlite.lookup import find, window_of


def append(
    db: sqlite3.Connection,
    diagnosis_id: str,
    events: Sequence[NewEvent],
    now: Moment,
    keys_max: int = IDEMPOTENCY_KEYS_MAX,
) -> list[Appended | StorageError]:
    """Number and store events of one diagnosis, in order; the outcome of each.

    Args:
        keys_max: keys the database may hold; an event that would bring one more is refused.
    """
    row = db.execute(
        "SELECT diagnosis.dx, epoch, last_seq, floor, purged FROM diagnosis LEFT JOIN head ON head.dx = diagnosis.dx"
        " WHERE public_id = ? AND deleted_at IS NULL",
        (diagnosis_id,),
    ).fetchone()
    if row is None:
        return [NoSuchDiagnosis(diagnosis_id) for _ in events]
    dx, epoch, *numbers = row
    if not are_numbers(numbers):
        return _refused_for_damage(db, dx, diagnosis_id, len(events))
    last_seq, floor, _ = numbers
    outcomes: list[Appended | StorageError] = []
    head, new_keys, room = last_seq, 0, None
    for event in events:
        stored = None if event.key is None else idempotency.find(db, dx, event.key)
        if stored is not None and stored.expires_at > now.judged:
            made = stored.made(event)
            outcomes.append(
                made if isinstance(made, KeyReused) else Appended(Seq(made[0]), made[1], epoch, replayed=True)
            )
            continue
        if event.key is not None and stored is None:
            room = keys_max - idempotency.count(db) if room is None else room
            if new_keys >= room:
                outcomes.append(KeysExhausted(f"{keys_max} idempotency keys are stored already"))
                continue
        if not _store_event(db, dx, head + 1, event, now):
            break
        head += 1
        new_keys += event.key is not None and stored is None
        outcomes.append(Appended(Seq(head), now.wall, epoch, replayed=False))
    idempotency.add(db, new_keys)
    if head > last_seq:
        db.execute(
            "UPDATE head SET last_seq = ?, floor = ? WHERE dx = ?", (head, max(floor, head - OUTBOX_EVENTS_MAX), dx)
        )
    if len(outcomes) < len(events):
        outcomes += _refused_for_damage(db, dx, diagnosis_id, len(events) - len(outcomes))
    return outcomes


def _store_event(db: sqlite3.Connection, dx: int, seq: int, event: NewEvent, now: Moment) -> bool:
    """Store an event with its key; False: nothing was stored, because its slot does not hold a lower number.

    The head is then lower than a number that was given already, and would give it a second time.
    """
    at = now.wall
    crc = checksum(seq, at, event.kind.encode(), event.body)
    is_stored = db.execute(
        "INSERT INTO entry VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET"
        " seq = excluded.seq, at = excluded.at, kind = excluded.kind, body = excluded.body, crc = excluded.crc"
        " WHERE entry.seq < excluded.seq",
        (dx, seq % OUTBOX_EVENTS_MAX, seq, at, event.kind, event.body, crc),
    ).rowcount
    if is_stored and event.key is not None:
        idempotency.store(db, dx, seq, event, now)
    return bool(is_stored)


def _refused_for_damage(
    db: sqlite3.Connection, dx: int, diagnosis_id: str, events: int
) -> list[Appended | StorageError]:
    damage = _damage_of(db, dx)
    return [OutboxDamaged(diagnosis_id, damage) for _ in range(events)]


def read_after(db: sqlite3.Connection, diagnosis_id: str, seq: int, limit: int, bytes_max: int | None) -> Slice:
    """The retained events above `seq`, lowest first; with a `limit` of 0 none is read, and only the numbers are judged.

    Raises:
        NoSuchDiagnosis: it is not registered.
        OutboxDamaged: an event or a number is not what was stored; none of this outbox may be delivered.
    """
    dx, diagnosis = find(db, diagnosis_id)
    if limit:
        numbers, entries = integrity.outbox_of(db, dx)
        damage = judge(numbers, entries)
    else:
        numbers, entries = integrity.numbers_of(db, dx), []
        damage = None if are_numbers(numbers) else _damage_of(db, dx)
    if damage is not None:
        raise OutboxDamaged(diagnosis_id, damage)
    found = (Event(Seq(number), at, kind.decode(), body) for _, number, at, kind, body, _ in entries if number > seq)
    return Slice(window_of(diagnosis.epoch, numbers), tuple(within(islice(found, limit), bytes_max)))


def _damage_of(db: sqlite3.Connection, dx: int) -> Damage:
    """What is wrong with an outbox that is known to be damaged."""
    damage = judge(*integrity.outbox_of(db, dx))
    assert damage is not None, "`judge` sees all that the callers have seen"
    return damage


def purge(db: sqlite3.Connection, diagnosis_id: str) -> Purged:
    """Drop all retained events of a diagnosis.

    Raises:
        NoSuchDiagnosis: it is not registered.
        OutboxDamaged: its head cannot be trusted; the numbers need a new epoch.
    """
    dx, diagnosis = find(db, diagnosis_id)
    damage = judge(*integrity.outbox_of(db, dx))
    if damage is not None and not damage.is_head_trusted:
        raise OutboxDamaged(diagnosis_id, damage)
    before = window_of(diagnosis.epoch, integrity.numbers_of(db, dx))
    db.execute("DELETE FROM entry WHERE dx = ?", (dx,))
    db.execute("UPDATE head SET floor = last_seq, purged = last_seq WHERE dx = ?", (dx,))
    return Purged(before, after=window_of(diagnosis.epoch, integrity.numbers_of(db, dx)))
