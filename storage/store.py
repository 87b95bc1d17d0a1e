"""The interface every store fulfils: SQLite here, its twin in memory, a replicated engine later.

Everything above this room is written against this Protocol and judged by one contract suite
(`tests/storage/test_contract.py`). Nothing above it may assume that this process is the only writer of a
diagnosis: numbers in answers may skip what another node appended; `read_after` fills the hole.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Protocol

from storage.belief import Moment
from storage.damage import Damage
from storage.errors import StorageError
from storage.records import (
    EVERY_ROW,
    AccessRow,
    Appended,
    Audit,
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


class PendingAppend(Protocol):
    """The handle of an append that has reached the store; outlives whoever asked for it."""

    async def wait(self) -> Sequence[Appended | StorageError]:
        """The outcome of each event, in the order given, once the commit has returned.

        May be awaited by several tasks, and again after it is done.

        Cancellation: stops waiting; the append goes on, and a later `wait` still gets its outcome.
        """


class Store(Protocol):
    """Durable diagnoses, events, cursors and audit rows.

    Every method that changes something returns after its commit, is atomic, and is either still
    carried out or never queued when its caller is cancelled. Each may raise `Busy` (certainly not
    stored), `Failed` (unknown) or `Unstorable`. The audit row that `audit` makes of an answer is stored in the same
    transaction; if it cannot be made or stored, neither is the operation.

    A caller that wants old things dropped gives an age in seconds. The store judges what time it is, and whether the
    clock is believed (`storage.belief`). While it is not believed, nothing is dropped for its age, and no key expires.
    """

    def patient(self, seconds: float) -> Store:
        """The same store with a deadline for its callers. Beyond it: `Failed`, and the operation is carried out all the
        same.

        Not for `backup` and `check`, which take as long as they take, nor for what was queued by `append_nowait`.
        """

    def moment(self) -> Moment:
        """The time now, for each of its uses; never waits."""

    @property
    def clock_held_since(self) -> float | None:
        """Since when the wall clock is not believed, in its own reckoning; `None`: it is."""

    @property
    def damaged(self) -> Mapping[str, Damage]:
        """The diagnoses that were found damaged since opening, by id, and what is wrong with them; never waits.

        None of their events is read, and none is appended (`OutboxDamaged`), until they are repaired: deleted, purged,
        or their damage dropped. Everything else of them works, and so does everything of others.
        """

    @property
    def is_check_pending(self) -> bool:
        """Whether a run did not end in order, and `look_through` has not ended since."""

    def on_damage(self, tell: Callable[[str], None]) -> None:
        """Have this function called with the id of each diagnosis that is found damaged. It must not raise or wait."""

    async def look_through(self) -> None:
        """Judge all outboxes, if that is pending, in steps between which others go on.

        `damaged` has the findings. The next run does it again unless all were whole.

        Cancellation: ends after the step in hand; the next run does it again.
        """

    def append_nowait(self, diagnosis_id: str, events: Sequence[NewEvent]) -> PendingAppend:
        """Queue events of one diagnosis for the next group commit.

        They get consecutive numbers in the order given (a replayed key gets its old one), the cap of
        100 is kept in the same transaction, and nothing is numbered that is not on disk.
        Per-event outcomes: `Appended`, `KeyReused`, `KeysExhausted`, `NoSuchDiagnosis`, `OutboxDamaged`, `Unstorable`,
        `Busy`, `Failed`.

        Raises:
            Busy: the queue is full; nothing was queued.
        """

    async def read_after(self, diagnosis_id: str, seq: Seq, limit: int = 100, bytes_max: int | None = None) -> Slice:
        """The retained events with a higher number than `seq`, at most `limit`, lowest first.

        `bytes_max` of their bodies and one event more, as `storage.pages.within` has it; so for the other lists.

        With a limit of 0 only the numbers of the outbox are judged, else the whole outbox.

        Raises:
            NoSuchDiagnosis: it is not registered.
            OutboxDamaged: what is stored of it is not what was.
        """

    async def register(
        self, diagnosis_id: str, owner: str, viewers: Sequence[str], audit: Audit[Registered] | None = None
    ) -> Registered:
        """Register a diagnosis (new epoch), or replace owner and viewers of a registered one (same epoch)."""

    async def get(self, diagnosis_id: str) -> Diagnosis:
        """The registered diagnosis; answered from memory where it was asked for lately.

        Raises:
            NoSuchDiagnosis: it is not registered.
        """

    def known(self, diagnosis_id: str) -> Diagnosis | None:
        """The registered diagnosis as of the last commit, if it is in memory; never waits. `None`: ask with `get`."""

    async def look_up(self, diagnosis_id: str) -> Diagnosis:
        """As `get`, but always from the database: it takes as long for a diagnosis in memory as for one that does not
        exist."""

    async def diagnoses(
        self, *, owner: str | None = None, after: str = "", limit: int = 100, bytes_max: int | None = None
    ) -> Sequence[Diagnosis]:
        """Registered diagnoses with an id above `after`, by id; only those of `owner` if given.

        `bytes_max`: as for `read_after`.
        """

    async def outboxes(self, *, owner: str | None = None, after: str = "", limit: int = 100) -> Sequence[Outbox]:
        """The same diagnoses, each with its window (empty: its numbers make no sense) and its lowest cursor."""

    async def count_diagnoses(self, *, owner: str | None = None) -> int:
        """How many diagnoses are registered; only those of `owner` if given."""

    async def delete(self, diagnosis_id: str, audit: Audit[Diagnosis] | None = None) -> Diagnosis:
        """Delete a diagnosis with its events, cursors and keys; what it was.

        Registering the id again later starts a new epoch at number 1.

        Raises:
            NoSuchDiagnosis: it is not registered.
        """

    async def move_cursors(self, moves: Sequence[CursorMove]) -> Sequence[Seq | None]:
        """Store cursors (see `CursorMove` for the rules); the cursor now stored for each move.

        `None` where the diagnosis is not registered (any more) or its epoch is not the move's: nothing
        was stored for it. A move above the diagnosis's head is stored as the head.
        """

    async def cursors(
        self, diagnosis_id: str, *, after: SubscriberId | None = None, limit: int | None = None
    ) -> Sequence[Cursor]:
        """The cursors of known subscribers, by `SubscriberId.order`; those after `after`, at most `limit`.

        Raises:
            NoSuchDiagnosis: it is not registered.
        """

    async def forget(
        self, diagnosis_id: str, subscribers: Sequence[SubscriberId], audit: Audit[int] | None = None
    ) -> int:
        """Drop cursors; how many there were."""

    async def purge(self, diagnosis_id: str, audit: Audit[Purged] | None = None) -> Purged:
        """Drop all retained events, keep numbers, keys and cursors (afterwards floor = head = purged).

        Raises:
            NoSuchDiagnosis: it is not registered.
            OutboxDamaged: its head cannot be trusted. Other damage is dropped with the events.
        """

    async def drop_damaged(self, diagnosis_id: str, audit: Audit[Dropped] | None = None) -> Dropped:
        """Drop the events up to the last damaged one; `head`, epoch, cursors and keys stay.

        Where the head cannot be trusted, the whole events that are left are those of a new epoch, and the keys of
        others are dropped.

        Raises:
            NoSuchDiagnosis: it is not registered.
            NotDamaged: there is nothing to be dropped.
        """

    async def revoke(
        self,
        *,
        sub: str | None = None,
        token_id: str | None = None,
        leeway_seconds: float = 0.0,
        audit: Audit[RevocationMade] | None = None,
    ) -> RevocationMade:
        """Revoke a subject's tokens issued until now and `leeway_seconds`, or one token (give exactly one of both).

        "Now" is reckoned: where the wall clock is behind the time that was believed, that time counts. Takes the
        place of an earlier revocation of the same subject or token, which it covers.
        """

    async def revocations(self, *, after: int = 0, limit: int = 100) -> Sequence[Revocation]:
        """Revocations with a higher number than `after`, lowest first."""

    async def lift_revocation(self, number: int, audit: Audit[Revocation] | None = None) -> Revocation:
        """Drop a revocation; what it was.

        Raises:
            NoSuchRevocation: there is none with this number.
        """

    async def expire_revocations(self, seconds: float) -> Sequence[Revocation]:
        """Drop the revocations that have covered no token issued in the last `seconds`; what they were."""

    async def record(self, row: NewAuditRow) -> None:
        """Store an audit row of its own."""

    async def audit(
        self,
        *,
        before: int | None = None,
        limit: int = 100,
        wanted: TrailFilter = EVERY_ROW,
        bytes_max: int | None = None,
    ) -> Sequence[AuditRow]:
        """The wanted audit rows with a lower number than `before`, newest first. `bytes_max`: as for `read_after`."""

    async def record_accesses(self, rows: Sequence[NewAccessRow]) -> None:
        """Store rows of the access trail."""

    async def accesses(
        self, *, before: int | None = None, limit: int = 100, wanted: TrailFilter = EVERY_ROW
    ) -> Sequence[AccessRow]:
        """The wanted rows of the access trail with a lower number than `before`, newest first."""

    async def evict(self, seconds: float, *, after: str = "", diagnoses: int = 64) -> Evicted:
        """Drop the events older than `seconds` of the next diagnoses above `after`, by id; numbers and keys stay.

        An event goes with all of a lower number, so that what is retained has no hole.
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
        """Drop the cursors not seen for `seconds` of the next diagnoses above `after`, by id, but of those `spared`."""

    async def erase(self, erasure: Erasure, audit: Audit[Erased] | None = None) -> Erased:
        """Remove a person from cursors and viewers, and its name from both trails and from deleted diagnoses.

        Diagnoses it owns keep their owner until they are registered with another one, or deleted.

        Done in steps: others go on in between, and a repeat goes on where one stopped. The first step is handed over
        before the first checkpoint. A small erasure has no other step. The audit row is stored with it.

        Cancellation: the steps end after the one in hand.
        """

    async def backup(self, path: Path) -> Backup:
        """A consistent copy at `path` (mode 0600; must not exist), made in steps: others go on in between.

        Opened as a store, the copy begins new epochs. It has its name once it is whole, checked and on disk.

        Raises:
            CannotCopy: it cannot be written, or the store is damaged; the store is as it was.

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

    async def barrier(self) -> None:
        """Wait until every change that was handed over before this call is committed or refused.

        A change is handed over when its method is called, before the first checkpoint; changes are committed in that
        order.
        """

    def statistics(self) -> StoreStatistics:
        """Figures since opening; never waits."""
