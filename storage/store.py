"""What a store does: the contract of SQLite, of its twin in memory, and of a replicated engine later.

A store has six trades, each with a Protocol of its own: `DiagnosisStore`, `EventStore`, `CursorStore`,
`RevocationStore`, `TrailStore` and `StoreUpkeep`. `Store` is all of them on one database. A part that needs one trade
asks for that one. Everything above this room is written against these Protocols, and one suite judges every engine by
them (`tests/storage/test_contract.py`). What follows holds for every method.

Changes. A method that changes something hands the change over when it is called, before its first checkpoint. Changes
are committed in the order in which they were handed over, each whole or not at all, and a method returns after the
commit of its change. If an `act` is given, an audit row is made of it and of the answer (`storage.audit_rows`), and
is stored in the same transaction: if the row cannot be made or stored, the change is not made either.

Reads. A read sees every change that this store answered before the read was asked for.

Errors. Any method that waits may raise `Busy` (certainly not done: a queue or the disk is full) or `Failed` (the
outcome of a change is unknown; a read is not answered). One that takes a text or a number may raise `Unstorable`, and
then nothing is done. What else a method raises stands with it; it changes nothing then. After the disk or the file has
failed, everything is `Failed`.

Cancellation. A change whose caller is cancelled is either carried out, or was never handed over. A read is given up.

Time. A caller that wants old things dropped gives an age in seconds. The store judges what time it is, and whether the
clock is believed (`storage.belief`). While it is not believed, nothing is dropped for its age, and no key expires.

Changes that concern others (`storage.changes`) are told to whoever listens, after their commit and before their answer.

Other writers. Nothing above this room may assume that this process is the only writer of a diagnosis: numbers in
answers may skip what another node has appended, and `read_after` fills the hole. Where a store is `shared`, a read sees
at once what was written by this store, and what others wrote a little later. It never goes back: what this store has
read, written or been told of a log is in whatever it reads of it afterwards.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import trio

from storage.belief import Moment
from storage.changes import Hears
from storage.damage import Damage
from storage.errors import StorageError
from storage.pending import Pending
from storage.records import (
    EVERY_ROW,
    AccessRow,
    Act,
    Appended,
    AuditRow,
    Backup,
    Cursor,
    CursorMove,
    Diagnosis,
    Dropped,
    Erased,
    Erasure,
    Evicted,
    ForgottenUnseen,
    IdempotencyKeys,
    NewAccessRow,
    NewAuditRow,
    NewEvent,
    Outbox,
    Purged,
    Registered,
    Revocation,
    RevocationMade,
    Seq,
    Slice,
    StoreStatistics,
    SubscriberId,
    TrailFilter,
)

PendingAppend = Pending[Sequence[Appended | StorageError]]
"""An append that was handed over: the outcome of each event, in the order given, once the commit has returned."""

Committed = Callable[[Sequence[Sequence[object]], float, str | None], None]
"""Hears of a transaction that has ended, with events of traced requests in it: of the spans that were given with each
append, when it began (on the monotonic clock), and the kind of error that has ended it, if one has."""


class StoreTime(Protocol):
    """What time it is for a store."""

    def moment(self) -> Moment:
        """The time now, for each of its uses; never waits."""

    @property
    def clock_held_since(self) -> float | None:
        """Since when the wall clock is not believed, in its own reckoning; `None`: it is."""


class DiagnosisStore(Protocol):
    """Which diagnoses are registered, and for whom."""

    async def register(
        self, diagnosis_id: str, owner: str, viewers: Sequence[str], act: Act | None = None
    ) -> Registered:
        """Register a diagnosis with a new epoch, or replace owner and viewers of a registered one, which keeps its own.

        Args:
            viewers: the `sub`s who may follow besides the owner, in an order that is kept; no repeats.
        """

    async def get(self, diagnosis_id: str) -> Diagnosis:
        """The registered diagnosis; from memory where it was asked for lately.

        Raises:
            NoSuchDiagnosis: it is not registered.
        """

    def known(self, diagnosis_id: str) -> Diagnosis | None:
        """As `get`, but never waits. `None`: it is not in memory, or not registered; `get` tells which."""

    async def look_up(self, diagnosis_id: str) -> Diagnosis:
        """As `get`, but always from the database: it takes as long for one in memory as for one that does not exist.

        Raises:
            NoSuchDiagnosis: it is not registered.
        """

    async def diagnoses(
        self, *, owner: str | None = None, after: str = "", limit: int = 100, bytes_max: int | None = None
    ) -> Sequence[Diagnosis]:
        """A page of the registered diagnoses, by id.

        Args:
            owner: only this one's; `None`: everybody's.
            after: only ids above this one.
            limit, bytes_max: as for `EventStore.read_after`.
        """

    async def outboxes(self, *, owner: str | None = None, after: str = "", limit: int = 100) -> Sequence[Outbox]:
        """The same diagnoses, each with its window (empty if its numbers make no sense) and its lowest cursor."""

    async def delete(self, diagnosis_id: str, act: Act | None = None) -> Diagnosis:
        """Delete a diagnosis with its events, cursors and keys; what it was.

        Registering the id again later starts a new epoch at number 1.

        Raises:
            NoSuchDiagnosis: it is not registered.
        """


class EventStore(Protocol):
    """The events of each diagnosis: appended, read, followed, purged."""

    def follow(self, diagnosis_id: str) -> Callable[[], None]:
        """Have `Hears.grew` called for what others write to this log, until the function returned is called.

        What was written before is found by a read that is asked for afterwards. Where the store is not `shared`,
        nothing is called.
        """

    def on_commit(self, tell: Committed) -> None:
        """Have this function, and no earlier one, called after each transaction with spans in it.

        It must not raise or wait.
        """

    def append_nowait(
        self, diagnosis_id: str, events: Sequence[NewEvent], spans: Sequence[object] = ()
    ) -> PendingAppend:
        """Queue events of one diagnosis for the next group commit.

        They get consecutive numbers in the order given; a key that is known gets its old number. The oldest above
        100 go in the same transaction. A number is given only to what is on disk.

        Args:
            spans: of the requests that these events came with, for `on_commit`.

        Returns:
            The outcome of each event: `Appended`, or what was refused: `KeyReused`, `KeysExhausted`,
            `NoSuchDiagnosis`, `OutboxDamaged`, `Unstorable`, `Busy`, `Failed`. It raises none of them.

        Raises:
            Busy: the queue is full; nothing was queued.
            Unstorable: the id is a text that no row can hold; nothing was queued.
        """

    async def read_after(self, diagnosis_id: str, seq: Seq, limit: int = 100, bytes_max: int | None = None) -> Slice:
        """The retained events with a higher number than `seq`, lowest first, without a hole, and their window.

        Where others write, what is read may be old, but not so old that `seq` had not been given, if it was.

        Args:
            limit: the most events. With 0 only the numbers of the outbox are judged, else all of it is.
            bytes_max: the list ends where its bodies take so many bytes, and one event more (`storage.pages.within`);
                `None`: it ends at `limit`.

        Raises:
            NoSuchDiagnosis: it is not registered.
            OutboxDamaged: what is read is not what was stored. None of it is returned.
        """

    async def purge(self, diagnosis_id: str, act: Act | None = None) -> Purged:
        """Drop all retained events; numbers, keys and cursors stay. Afterwards `floor`, `head` and `purged` are equal.

        Raises:
            NoSuchDiagnosis: it is not registered.
            OutboxDamaged: its head cannot be trusted. Other damage is dropped with the events.
        """


class CursorStore(StoreTime, Protocol):
    """How far each subscriber of a diagnosis has acknowledged."""

    async def move_cursors(self, moves: Sequence[CursorMove]) -> Sequence[Seq | None]:
        """Store cursors, in one transaction, by the rules of `CursorMove`.

        Returns:
            For each move the cursor stored after all of them, at most the head of the diagnosis. `None`: nothing was
            stored, because the diagnosis is not registered or has another epoch.
        """

    async def cursors(
        self, diagnosis_id: str, *, after: SubscriberId | None = None, limit: int | None = None
    ) -> Sequence[Cursor]:
        """The cursors of known subscribers, by `SubscriberId.order`.

        Args:
            after: only those of subscribers after this one; `None`: from the first.
            limit: the most cursors; `None`: all.

        Raises:
            NoSuchDiagnosis: it is not registered.
        """

    async def cursor(self, diagnosis_id: str, subscriber: SubscriberId) -> Cursor | None:
        """The cursor of one subscriber; `None`: it is not known.

        Raises:
            NoSuchDiagnosis: it is not registered.
        """

    async def furthest_behind(self, diagnosis_ids: Sequence[str], limit: int) -> Sequence[Sequence[Cursor]]:
        """Of each of these diagnoses the cursors of the known subscribers that are furthest behind, lowest first.

        A cursor of another epoch than the diagnosis counts as 0. Of a diagnosis that is not registered there are none.

        Args:
            limit: the most cursors of one diagnosis.
        """

    async def forget(self, diagnosis_id: str, subscribers: Sequence[SubscriberId], act: Act | None = None) -> int:
        """Drop the cursors of some subscribers; how many there were.

        Raises:
            NoSuchDiagnosis: it is not registered.
        """


class RevocationStore(Protocol):
    """Which tokens are refused before their time."""

    async def revoke(
        self,
        *,
        sub: str | None = None,
        token_id: str | None = None,
        leeway_seconds: float = 0.0,
        act: Act | None = None,
    ) -> RevocationMade:
        """Revoke a subject's tokens issued until now and `leeway_seconds`, or one token (give exactly one of both).

        "Now" is reckoned: where the wall clock is behind the time that was believed, that time counts. Takes the
        place of an earlier revocation of the same subject or token, which it covers.
        """

    async def revocations(self, *, after: int = 0, limit: int = 100) -> Sequence[Revocation]:
        """Revocations with a higher number than `after`, lowest first."""

    async def lift_revocation(self, number: int, act: Act | None = None) -> Revocation:
        """Drop a revocation; what it was.

        Raises:
            NoSuchRevocation: there is none with this number.
        """

    async def expire_revocations(self, seconds: float) -> Sequence[Revocation]:
        """Drop the revocations that have covered no token issued in the last `seconds`; what they were."""


class TrailStore(Protocol):
    """The audit trail (who did what) and the access trail (who followed what)."""

    async def record(self, row: NewAuditRow) -> None:
        """Store an audit row of an act that changes nothing else here. It gets the time of its commit."""

    async def audit(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        wanted: TrailFilter = EVERY_ROW,
        bytes_max: int | None = None,
    ) -> Sequence[AuditRow]:
        """The wanted audit rows, newest first.

        Args:
            before: only rows with a lower number; `None`: from the newest.
            limit, bytes_max: as for `EventStore.read_after`.
        """

    async def record_accesses(self, rows: Sequence[NewAccessRow]) -> None:
        """Store rows of the access trail, in one transaction, in the order given."""

    async def accesses(
        self, *, before: int | None = None, limit: int = 100, wanted: TrailFilter = EVERY_ROW
    ) -> Sequence[AccessRow]:
        """The wanted rows of the access trail, newest first. `before`, `limit`: as for `audit`."""


class StoreUpkeep(StoreTime, Protocol):
    """What keeps a store whole and small: damage, age, erasure, copies, and figures about it."""

    @property
    def damaged(self) -> Mapping[str, Damage]:
        """The diagnoses that were found damaged since opening, by id, and what is wrong with them; never waits.

        None of their events is read, and none is appended (`OutboxDamaged`), until they are repaired: deleted, purged,
        or their damage dropped. Everything else of them works, and so does everything of others.
        """

    @property
    def broke(self) -> trio.Event:
        """Set once the store has failed for good: leave, within a second."""

    @property
    def is_check_pending(self) -> bool:
        """Whether a run did not end in order, and `look_through` has not ended since."""

    def on_damage(self, tell: Callable[[str], None]) -> None:
        """Have this function, and no earlier one, called with the id of each diagnosis that is found damaged.

        It must not raise or wait.
        """

    async def look_through(self) -> None:
        """Judge all outboxes, if that is pending, in steps between which others go on.

        `damaged` has the findings. The next run does it again unless all were whole.

        Cancellation: ends after the step in hand; the next run does it again.
        """

    async def drop_damaged(self, diagnosis_id: str, act: Act | None = None) -> Dropped:
        """Drop the events up to the last damaged one; `head`, epoch, cursors and keys stay.

        If the head cannot be trusted, the newest whole events stay as those of a new epoch, and the keys of higher
        numbers are dropped.

        Raises:
            NoSuchDiagnosis: it is not registered.
            NotDamaged: there is nothing to be dropped.
        """

    async def evict(self, seconds: float, *, after: str = "", diagnoses: int = 64) -> Evicted:
        """Drop the events older than `seconds` of the next diagnoses above `after`, by id; numbers and keys stay.

        An event goes with all of a lower number, so that what is retained has no hole. A damaged outbox loses nothing
        by an age that may be damaged.
        """

    async def expire(
        self, *, audit_seconds: float | None = None, accesses_seconds: float | None = None, limit: int = 256
    ) -> int:
        """Drop expired keys, and rows of both trails older than given; how many, at most `limit` of each kind.

        A row goes with all of a lower number, as an event does. `None`: rows of this trail stay.
        """

    async def idempotency_keys(self) -> IdempotencyKeys:
        """How many keys are stored, of all diagnoses; found without counting them."""

    async def forget_unseen(
        self, seconds: float, *, spared: Collection[str] = (), after: str = "", diagnoses: int = 64
    ) -> ForgottenUnseen:
        """Drop cursors that were not seen for `seconds`, of the next diagnoses above `after`, by id.

        Args:
            spared: ids of diagnoses that keep theirs.
        """

    async def erase(self, erasure: Erasure, act: Act | None = None) -> Erased:
        """Remove a person from cursors and viewers, and its name from both trails and from deleted diagnoses.

        Diagnoses it owns keep their owner until they are registered with another one, or deleted.

        It is done in steps, each a change of its own: other changes come between them. The first step is handed over
        before the first checkpoint, and the audit row is stored with it. A small erasure has no other step.

        Cancellation: the steps end after the one in hand, as they do with an error. Asked again, it goes on from there.
        """

    async def backup(self, path: Path) -> Backup:
        """A consistent copy at `path` (mode 0600; must not exist), made in steps between which others go on.

        Opened as a store, the copy begins new epochs. It has its name once it is whole, checked and on disk.

        Raises:
            CannotCopy: it cannot be written, or the store is damaged; the store is as it was.
            NotSupported: this engine is copied by other means.

        Cancellation: the copy ends after the step in hand, and nothing of it is left.
        """

    async def check(self, scratch: Path | None = None) -> Sequence[str]:
        """The problems an integrity check finds, in words, the first 100; empty: none.

        Args:
            scratch: a copy lies beside this path meanwhile and is checked instead of the store, so that others go on.
                `None`: the store itself is checked, as nobody else uses it.

        Raises:
            CannotCopy: the copy cannot be made.

        Cancellation: as `backup`.
        """

    def statistics(self) -> StoreStatistics:
        """Figures since opening; never waits."""


class Store(DiagnosisStore, EventStore, CursorStore, RevocationStore, TrailStore, StoreUpkeep, Protocol):
    """All trades of one database, and what spans them."""

    @property
    def shared(self) -> bool:
        """Others write, too: what was read may be old by the time it is used."""

    def tell(self, hears: Hears, settled: Callable[[], Awaitable[None]] | None = None) -> None:
        """Tell `hears` of every change from now on, and of logs that are followed.

        To be called once, before anything is asked.

        Args:
            settled: waits until all is done that follows from changes told so far. Where others write, whoever asks for
                a change is answered once it is settled at all others.
        """

    def patient(self, seconds: float) -> Store:
        """The same store with a deadline for its callers. Beyond it: `Failed`, and a change is still carried out.

        `backup`, `check` and the outcome of `append_nowait` take as long as they take all the same.
        """

    async def barrier(self) -> None:
        """Wait until every change that was handed over before this call is committed or refused."""
