"""The SQL of diagnoses, their events and cursors: functions of a connection, run within a transaction of the committer.

Each does one operation of `storage.store.Store` and returns its answer. Expected refusals are raised
(`Refused`); the committer turns them into the answer of that operation alone.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterable, Sequence
from itertools import islice

from storage import idempotency, integrity
from storage.belief import Moment
from storage.damage import Damage, Numbers, are_numbers, checksum, judge
from storage.errors import KeyReused, KeysExhausted, NoSuchDiagnosis, OutboxDamaged, StorageError
from storage.pages import within
from storage.records import (
    IDEMPOTENCY_KEYS_MAX,
    OUTBOX_EVENTS_MAX,
    Appended,
    Cursor,
    CursorMove,
    Diagnosis,
    Epoch,
    Event,
    NewEvent,
    Outbox,
    Purged,
    Registered,
    Seq,
    Slice,
    SubscriberId,
    Window,
)

# Diagnoses


def find(db: sqlite3.Connection, diagnosis_id: str) -> tuple[int, Diagnosis]:
    """The internal key of a registered diagnosis, and the diagnosis.

    Raises:
        NoSuchDiagnosis: it is not registered.
    """
    row = _registration(db, diagnosis_id)
    if row is None:
        raise NoSuchDiagnosis(diagnosis_id)
    dx, owner, epoch, created_at = row
    return dx, Diagnosis(diagnosis_id, owner, _viewers(db, dx), Epoch(epoch), created_at)


def look_up(db: sqlite3.Connection, diagnosis_id: str, known: Diagnosis | None) -> Diagnosis | None:
    """A registered diagnosis; `None`: it is not registered. One statement for either, if it is known already.

    Args:
        known: what it was when it was last read or changed; returned if it is the same registration.
    """
    row = _registration(db, diagnosis_id)
    if row is None:
        return None
    dx, owner, epoch, created_at = row
    if known is not None and (known.owner, known.epoch) == (owner, epoch):
        return known
    return Diagnosis(diagnosis_id, owner, _viewers(db, dx), Epoch(epoch), created_at)


def _registration(db: sqlite3.Connection, diagnosis_id: str) -> tuple[int, str, str, float] | None:
    row: tuple[int, str, str, float] | None = db.execute(
        "SELECT dx, owner, epoch, created_at FROM diagnosis WHERE public_id = ? AND deleted_at IS NULL", (diagnosis_id,)
    ).fetchone()
    return row


def _viewers(db: sqlite3.Connection, dx: int) -> tuple[str, ...]:
    return tuple(sub for (sub,) in db.execute("SELECT sub FROM viewer WHERE dx = ? ORDER BY place", (dx,)))


def register(
    db: sqlite3.Connection,
    diagnosis_id: str,
    owner: str,
    viewers: Sequence[str],
    new_epoch: Epoch,
    now: float,
) -> Registered:
    """Register a diagnosis, or replace owner and viewers of a registered one."""
    try:
        dx, before = find(db, diagnosis_id)
    except NoSuchDiagnosis:
        before = None
        made = db.execute(
            "INSERT INTO diagnosis (public_id, owner, epoch, created_at) VALUES (?, ?, ?, ?)",
            (diagnosis_id, owner, new_epoch, now),
        )
        assert made.lastrowid is not None, "an insert has a row id"
        dx = made.lastrowid
        db.execute("INSERT INTO head (dx) VALUES (?)", (dx,))
    else:
        db.execute("UPDATE diagnosis SET owner = ? WHERE dx = ?", (owner, dx))
        db.execute("DELETE FROM viewer WHERE dx = ?", (dx,))
    db.executemany("INSERT INTO viewer VALUES (?, ?, ?)", [(dx, place, sub) for place, sub in enumerate(viewers)])
    after = find(db, diagnosis_id)[1]
    return Registered(after, created=before is None, before=before)


def delete(db: sqlite3.Connection, diagnosis_id: str, now: float) -> Diagnosis:
    """Delete a diagnosis: a tombstone and its numbers stay, everything else goes."""
    dx, diagnosis = find(db, diagnosis_id)
    db.execute("UPDATE diagnosis SET deleted_at = ? WHERE dx = ?", (now, dx))
    for table in ("viewer", "entry", "cursor"):
        db.execute(f"DELETE FROM {table} WHERE dx = ?", (dx,))  # noqa: S608 - the names stand above
    idempotency.drop_of(db, dx)
    return diagnosis


def diagnoses(
    db: sqlite3.Connection, owner: str | None, after: str, limit: int, bytes_max: int | None
) -> list[Diagnosis]:
    """A page of registered diagnoses, by id."""
    where, values = _registered(owner)
    rows = db.execute(
        "SELECT dx, public_id, owner, epoch, created_at FROM diagnosis"  # noqa: S608 - see there
        f" WHERE {where} AND public_id > ? ORDER BY public_id LIMIT ?",
        (*values, after, limit),
    )
    found = (
        Diagnosis(public_id, found_owner, _viewers(db, dx), Epoch(epoch), created_at)
        for dx, public_id, found_owner, epoch, created_at in rows
    )
    return list(within(found, bytes_max))


def count_diagnoses(db: sqlite3.Connection, owner: str | None) -> int:
    """How many diagnoses are registered."""
    where, values = _registered(owner)
    (count,) = db.execute(f"SELECT count(*) FROM diagnosis WHERE {where}", values).fetchone()  # noqa: S608 - see there
    return int(count)


def outboxes(db: sqlite3.Connection, owner: str | None, after: str, limit: int) -> list[Outbox]:
    """The same diagnoses, with windows (empty where the numbers make no sense) and lowest cursors."""
    where, values = _registered(owner)
    rows = db.execute(
        "SELECT public_id, diagnosis.epoch, last_seq, floor, purged,"  # noqa: S608 - see there
        " (SELECT min(iif(cursor.epoch = diagnosis.epoch, seq, 0)) FROM cursor WHERE cursor.dx = diagnosis.dx)"
        f" FROM diagnosis LEFT JOIN head USING (dx) WHERE {where} AND public_id > ? ORDER BY public_id LIMIT ?",
        (*values, after, limit),
    )
    return [
        Outbox(public_id, _window(epoch, (last_seq, floor, purged)), None if lowest is None else Seq(lowest))
        for public_id, epoch, last_seq, floor, purged, lowest in rows
    ]


def _registered(owner: str | None) -> tuple[str, tuple[str, ...]]:
    """The condition of registered diagnoses, and its values; only those of `owner` if given, by their index."""
    condition = "deleted_at IS NULL"
    return (condition, ()) if owner is None else (f"{condition} AND owner = ?", (owner,))


# Events


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
        if not _store(db, dx, head + 1, event, now):
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


def _store(db: sqlite3.Connection, dx: int, seq: int, event: NewEvent, now: Moment) -> bool:
    """Store an event with its key; False: nothing was stored, as its place holds no lower number.

    A head that has gone back would have numbers given again.
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
    """The retained events above `seq`; with a limit of 0 none is read.

    Raises:
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
    return Slice(_window(diagnosis.epoch, numbers), tuple(within(islice(found, limit), bytes_max)))


def _window(epoch: Epoch, numbers: Numbers) -> Window:
    """What a diagnosis retains; nothing if its numbers make no sense."""
    last_seq, floor, purged = numbers if are_numbers(numbers) else (0, 0, 0)
    return Window(epoch, Seq(last_seq), Seq(floor), Seq(purged))


def _damage_of(db: sqlite3.Connection, dx: int) -> Damage:
    """What is wrong with an outbox whose numbers show that it is damaged."""
    damage = judge(*integrity.outbox_of(db, dx))
    assert damage is not None, "whoever looks at all of it sees no less"
    return damage


def purge(db: sqlite3.Connection, diagnosis_id: str) -> Purged:
    """Drop all retained events of a diagnosis.

    Raises:
        OutboxDamaged: its head cannot be trusted; the numbers need a new epoch.
    """
    dx, diagnosis = find(db, diagnosis_id)
    damage = judge(*integrity.outbox_of(db, dx))
    if damage is not None and not damage.is_head_trusted:
        raise OutboxDamaged(diagnosis_id, damage)
    before = _window(diagnosis.epoch, integrity.numbers_of(db, dx))
    db.execute("DELETE FROM entry WHERE dx = ?", (dx,))
    db.execute("UPDATE head SET floor = last_seq, purged = last_seq WHERE dx = ?", (dx,))
    return Purged(before, after=_window(diagnosis.epoch, integrity.numbers_of(db, dx)))


# Cursors


def move_cursors(db: sqlite3.Connection, moves: Iterable[CursorMove]) -> list[Seq | None]:
    """Store cursors; the cursor now stored for each move."""
    heads: dict[tuple[str, Epoch], tuple[int, int] | None] = {}
    stored: list[Seq | None] = []
    for move in moves:
        where = (move.diagnosis_id, move.epoch)
        if where not in heads:  # the same for all who follow a diagnosis
            heads[where] = db.execute(
                "SELECT dx, last_seq FROM diagnosis JOIN head USING (dx)"
                " WHERE public_id = ? AND deleted_at IS NULL AND epoch = ? AND typeof(last_seq) = 'integer'",
                where,
            ).fetchone()
        found = heads[where]
        stored.append(None if found is None else _move_cursor(db, move, *found))
    return stored


def _move_cursor(db: sqlite3.Connection, move: CursorMove, dx: int, head: int) -> Seq:
    (stored,) = db.execute(
        "INSERT INTO cursor VALUES (:dx, :sub, :device, :epoch, :seq, :seen_at, iif(:by IS NULL, NULL, :at), :by)"
        " ON CONFLICT DO UPDATE SET"
        " acknowledged_at = CASE WHEN cursor.epoch <> excluded.epoch THEN excluded.acknowledged_at"
        "   WHEN excluded.seq > cursor.seq THEN :at ELSE cursor.acknowledged_at END,"
        " acknowledged_by = CASE WHEN cursor.epoch <> excluded.epoch THEN excluded.acknowledged_by"
        "   WHEN excluded.seq > cursor.seq THEN excluded.acknowledged_by ELSE cursor.acknowledged_by END,"
        " seq = iif(cursor.epoch = excluded.epoch, max(cursor.seq, excluded.seq), excluded.seq),"
        " epoch = excluded.epoch,"
        " seen_at = max(cursor.seen_at, excluded.seen_at)"
        " RETURNING seq",
        {
            "dx": dx,
            "sub": move.subscriber.sub or "",
            "device": move.subscriber.device or "",
            "epoch": move.epoch,
            "seq": min(move.seq, head),
            "seen_at": move.seen_at,
            "at": move.seen_at if move.acknowledged_at is None else move.acknowledged_at,
            "by": move.acknowledged_by,
        },
    ).fetchone()
    return Seq(stored)


def cursors(db: sqlite3.Connection, diagnosis_id: str, after: SubscriberId | None, limit: int | None) -> list[Cursor]:
    """Cursors of a diagnosis, by subscriber."""
    dx, _ = find(db, diagnosis_id)
    condition, values = ("", ()) if after is None else (" AND (sub, device) > (?, ?)", after.order)
    return [
        Cursor(SubscriberId(sub or None, device or None), Epoch(epoch), Seq(seq), *rest)
        for sub, device, epoch, seq, *rest in db.execute(
            "SELECT sub, device, epoch, seq, seen_at, acknowledged_at, acknowledged_by FROM cursor"  # noqa: S608 - a constant
            f" WHERE dx = ?{condition} ORDER BY sub, device LIMIT ?",
            (dx, *values, -1 if limit is None else limit),
        )
    ]


def forget(db: sqlite3.Connection, diagnosis_id: str, subscribers: Sequence[SubscriberId]) -> int:
    """Drop cursors; how many there were."""
    dx, _ = find(db, diagnosis_id)
    dropped = 0
    for one in subscribers:
        dropped += db.execute(
            "DELETE FROM cursor WHERE dx = ? AND sub = ? AND device = ?", (dx, one.sub or "", one.device or "")
        ).rowcount
    return dropped
