"""Moves everything that another store holds into an installation in which nothing was ever done.

Epochs, numbers, keys, cursors, revocations, trails: all stay as they are, so that clients go on where they were. The
number of the last act is written last. Where it is missing, a transfer was cut off: what it has left is dropped, and it
begins anew.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Final, Protocol

import msgspec

from storage.damage import checksum
from storage.errors import CannotCopy
from storage.jetstream import acts
from storage.jetstream.acts import ActSaid, Revoked
from storage.jetstream.appending import BATCH_BYTES_MAX, KeyRecord
from storage.jetstream.cursors import said_of
from storage.jetstream.engine import Engine
from storage.jetstream.entries import HEADER, PURGED, TRIMMED, Entry, text_of
from storage.jetstream.layout import KEY_TTL_SECONDS, digest, installation
from storage.jetstream.trails import AccessSaid
from storage.nats.errors import NatsError
from storage.nats.jetstream import BATCH_MESSAGES_MAX, TTL
from storage.nats.wire import Outgoing
from storage.records import (
    IDEMPOTENCY_KEY_SECONDS,
    AccessRow,
    AuditRow,
    Diagnosis,
    Revocation,
    Seq,
    Slice,
    StoredKey,
)
from storage.store import Store

PAGE: Final = 1000
"""Read from the other store at once."""

NOBODY: Final = "transfer"
"""Stands in entries in the place of the process that has appended them."""


class Source(Store, Protocol):
    """A store that also gives out its idempotency keys."""

    async def keys_of(self, diagnosis_id: str, after: str, limit: int) -> Sequence[StoredKey]:
        """Keys of a diagnosis in their order, those behind `after`."""


@dataclass(slots=True)
class Transferred:
    """How much there was."""

    diagnoses: int = 0
    events: int = 0
    keys: int = 0
    cursors: int = 0
    revocations: int = 0
    audit_rows: int = 0
    access_rows: int = 0


class Transfer:
    """One transfer."""

    def __init__(self, source: Source, engine: Engine) -> None:
        """From `source`, which nobody else uses, through an engine that has been loaded."""
        self._source = source
        self._engine = engine
        self._moved = Transferred()
        self._waiting: list[Outgoing] = []
        self._bytes = 0

    async def run(self) -> Transferred:
        """Move everything; how much there was.

        Raises:
            CannotCopy: something is there already, or cannot be written; the message says what to do.
            StorageError: the source cannot be read.
        """
        engine, layout = self._engine, self._engine.layout
        if engine.known.applied:
            raise CannotCopy(f"{layout.name} is not empty: choose another nats_name, or delete its streams")
        for stream, subject in (
            (layout.main, f"{layout.name}.>"),
            (layout.cursors, f"{layout.name}c.>"),
            (layout.accesses, f"{layout.name}t.>"),
        ):
            await self._written(partial(engine.jetstream.purge, stream, subject))
        await self._put(Outgoing(layout.version, installation("")))
        async for diagnosis in self._diagnoses():
            await self._move(diagnosis)
        revocations = await self._move_revocations()
        last_row = await self._move_audit_trail()
        await self._flush()
        async for diagnosis in self._diagnoses():
            await self._move_cursors(diagnosis)
        await self._flush()
        await self._move_access_trail()
        await self._flush()
        # Whoever has begun to serve meanwhile reads everything anew when it hears of this act.
        last = max(last_row, max((one.number for one in revocations), default=0)) + 1
        for number in range(last_row + 1, last):
            await self._put(self._act(number, None))
        await self._flush()
        is_whole = ActSaid(engine.new_id(), engine.time.moment().wall, is_stripped=True)
        await self._put(Outgoing(layout.act(last), acts.encoded(is_whole)))
        await self._put(Outgoing(layout.number, str(last).encode()))
        await self._flush()
        return self._moved

    async def _diagnoses(self) -> AsyncIterator[Diagnosis]:
        after = ""
        while page := await self._source.diagnoses(after=after, limit=PAGE):
            for one in page:
                yield one
            after = page[-1].diagnosis_id

    async def _move(self, diagnosis: Diagnosis) -> None:
        layout, moved, diagnosis_id = self._engine.layout, self._moved, diagnosis.diagnosis_id
        moved.diagnoses += 1
        await self._put(Outgoing(layout.registration(diagnosis_id), acts.encoded(acts.registered(diagnosis))))
        for entry in entries_of(diagnosis, await self._source.read_after(diagnosis_id, Seq(0))):
            moved.events += entry.is_event
            await self._put(Outgoing(layout.log(diagnosis_id), entry.body, {HEADER: text_of(entry)}))
        now, after = self._engine.time.moment().wall, ""
        while page := await self._source.keys_of(diagnosis_id, after, PAGE):
            for one in page:
                left = one.expires_at + KEY_TTL_SECONDS - IDEMPOTENCY_KEY_SECONDS - now
                if left > 1:
                    moved.keys += 1
                    record = KeyRecord(one.digest, one.seq, one.at, one.expires_at, diagnosis.epoch)
                    headers = {TTL: f"{int(left)}s"}
                    await self._put(Outgoing(layout.key(diagnosis_id, one.key), msgspec.json.encode(record), headers))
            after = page[-1].key

    async def _move_revocations(self) -> Sequence[Revocation]:
        found: list[Revocation] = []
        while page := await self._source.revocations(after=found[-1].number if found else 0, limit=PAGE):
            found += page
        for one in found:
            subject = self._engine.layout.revocation(one.sub, one.token_id)
            await self._put(Outgoing(subject, acts.encoded(Revoked(one))))
        self._moved.revocations = len(found)
        return found

    async def _move_audit_trail(self) -> int:
        """Move the rows under their numbers, and an act without a row for each number between; the highest one."""
        rows: list[AuditRow] = []
        while page := await self._source.audit(before=rows[-1].number if rows else None, limit=PAGE):
            rows += page
        number = 0
        for row in reversed(rows):
            for missing in range(number + 1, row.number) if number else ():
                await self._put(self._act(missing, None))
            await self._put(self._act(row.number, row))
            number = row.number
        self._moved.audit_rows = len(rows)
        return number

    def _act(self, number: int, row: AuditRow | None) -> Outgoing:
        engine = self._engine
        said = None
        if row is not None:
            said = acts.Row(row.at, row.who, row.what, row.target, row.before, row.after, row.diagnosis_id)
        at = engine.time.moment().wall if row is None else row.at
        return Outgoing(engine.layout.act(number), acts.encoded(ActSaid(engine.new_id(), at, said)))

    async def _move_cursors(self, diagnosis: Diagnosis) -> None:
        layout, after = self._engine.layout, None
        while page := await self._source.cursors(diagnosis.diagnosis_id, after=after, limit=PAGE):
            for one in page:
                self._moved.cursors += 1
                subject = layout.cursor(diagnosis.diagnosis_id, one.subscriber)
                await self._put(Outgoing(subject, msgspec.json.encode(said_of(one))))
            after = page[-1].subscriber

    async def _move_access_trail(self) -> None:
        rows: list[AccessRow] = []
        while page := await self._source.accesses(before=rows[-1].number if rows else None, limit=PAGE):
            rows += page
        layout, named = self._engine.layout, set[str]()
        for row in reversed(rows):
            who = row.subscriber
            if (subject := layout.who(who)) not in named:
                named.add(subject)
                await self._put(Outgoing(subject, msgspec.json.encode([who.sub, who.device])))
            said = AccessSaid(row.at, row.what, row.diagnosis_id, digest(who.sub), digest(who.sub, who.device))
            await self._put(Outgoing(layout.row, msgspec.json.encode(said)))
        self._moved.access_rows = len(rows)

    # Writing

    async def _put(self, message: Outgoing) -> None:
        """Have a message stored, together with those that come next."""
        self._waiting.append(message)
        self._bytes += len(message.data)
        if len(self._waiting) >= BATCH_MESSAGES_MAX or self._bytes >= BATCH_BYTES_MAX:
            await self._flush()

    async def _flush(self) -> None:
        messages, self._waiting, self._bytes = self._waiting, [], 0
        if messages:
            await self._written(partial(self._engine.jetstream.store, messages))

    async def _written(self, write: Callable[[], Awaitable[object]]) -> None:
        try:
            await write()
        except NatsError as error:
            raise CannotCopy(f"the engine does not take what is moved: {error}; run the transfer again") from error

    # Looking whether it has arrived

    async def differences(self, target: Store) -> Sequence[str]:
        """What is not in another store as it is in the source, in words."""
        source, found = self._source, list[str]()
        async for diagnosis in self._diagnoses():
            name = diagnosis.diagnosis_id
            pairs: list[tuple[str, object, object]] = [
                ("registration", diagnosis, await target.get(name)),
                ("events", await source.read_after(name, Seq(0)), await target.read_after(name, Seq(0))),
                ("cursors", await source.cursors(name), await target.cursors(name)),
            ]
            found += [f"the {what} of diagnosis {name}" for what, one, other in pairs if one != other]
        if (await target.idempotency_keys()).count != self._moved.keys:
            found.append("the idempotency keys")
        here = [await target.revocations(after=0, limit=self._moved.revocations + 1)]
        if here[0] != await source.revocations(after=0, limit=self._moved.revocations + 1):
            found.append("the revocations")
        if not await self._is_same_trail(source.audit, target.audit):
            found.append("the audit trail")
        if not await self._is_same_trail(source.accesses, target.accesses):
            found.append("the access trail")
        return found

    async def _is_same_trail(
        self,
        one: Callable[..., Awaitable[Sequence[AuditRow | AccessRow]]],
        other: Callable[..., Awaitable[Sequence[AuditRow | AccessRow]]],
    ) -> bool:
        before: tuple[int | None, int | None] = None, None
        while True:
            pages = await one(before=before[0], limit=PAGE), await other(before=before[1], limit=PAGE)
            here, there = ([_without_place(row) for row in page] for page in pages)
            if here != there:
                return False
            if not here:
                return True
            before = pages[0][-1].number, pages[1][-1].number


def _without_place(row: AuditRow | AccessRow) -> AuditRow | AccessRow:
    """A row of the access trail has the number of its place, which is another one in each store."""
    return replace(row, number=0) if isinstance(row, AccessRow) else row


def entries_of(diagnosis: Diagnosis, found: Slice) -> Sequence[Entry]:
    """The log of a diagnosis, as entries that say what the other store says."""
    window = found.window
    if not window.head:
        return ()
    if not found.events:
        kind = PURGED if window.purged == window.head else TRIMMED
        return [
            Entry(0, window.head, diagnosis.created_at, kind, diagnosis.epoch, window.head, window.purged, 0, NOBODY)
        ]
    return [
        Entry(
            0,
            one.seq,
            one.at,
            one.kind,
            diagnosis.epoch,
            window.floor,
            window.purged,
            checksum(one.seq, one.at, one.kind.encode(), one.body),
            NOBODY,
            one.body,
        )
        for one in found.events
    ]
