"""Group commit: everything that waits becomes one transaction, and each waiter is woken after COMMIT.

Order
    `submit` puts an operation at the end of one queue. Up to `BATCH_OPERATIONS_MAX` are taken from its front and
    carried out in that order, in one transaction on the database thread. Meanwhile the next operations queue up:
    batches form by themselves, without a timer, and are the larger the slower the disk is. All operations are settled
    in the order in which they were submitted, so waiting for the last one is waiting for all (`settled`).

    A transaction that ends settles its operations and begins the next one at once, in the callback that tells of its
    end. Where nothing waited then, the next one begins a turn of the loop after the first operation, so that
    others can join; or with it, if the last transaction had one operation only.

    A read needs no transaction. It goes to the database thread behind the transaction in hand, and before the
    operations that wait.

Who is told what
    An operation is settled once: with its answer, after COMMIT has returned and nobody else has changed the files
    (`lost`); or with an error that says what is known.

    | what fails | the operation | the others of its batch | the store |
    |---|---|---|---|
    | the operation refuses (`Refused`, `OutboxDamaged`) | that refusal | are committed | goes on |
    | the operation raises, or breaks a rule of a table | `Failed`, not stored | again, one by one | goes on |
    | there is no room, the file is locked | `Busy`, not stored | the same | goes on |
    | COMMIT is refused by a lock | `Failed` | the same | goes on |
    | I/O error, a page that makes no sense, ROLLBACK or `undone` fails | `Failed` | the same | breaks |
    | the files or the log were changed by others | `Failed` | the same | breaks |

    A refusal must come before an operation has changed anything: only a whole transaction is rolled back. A store that
    breaks answers `Failed` to all who wait and to all who come, and `run` raises `StoreBroken`: the process ends.

When the process stops
    Between two transactions the file and its log hold committed work only. Within one, the next start finds the last
    frame of the batch in the log and takes all of it, or takes none of it. Nobody was told of it yet. So the next run
    may have stored operations that nobody heard of, and never lacks one that somebody did: a publisher that repeats its
    key gets the number of the first try.

    A COMMIT that raises has not written its last frame, so what is rolled back then is not stored. `undone`
    takes away what it has left in the log, so that the next start does not take that for damage.

    The time is kept in the database with commits (`keep`), so that the next run can tell a clock that has jumped
    (`storage.belief`). A kill loses a second of it.
"""

from __future__ import annotations

import contextlib
import sqlite3
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Concatenate, Final, ParamSpec, TypeVar, cast

import trio

from storage.belief import Kept, Moment
from storage.clock import Timekeeper
from storage.errors import Busy, Failed, OutboxDamaged, Refused, StorageError, StoreBroken
from storage.histogram import COUNTS, SECONDS, Histogram
from storage.pending import Pending
from storage.records import StoreStatistics
from storage.sqlite.bridge import Call, Database
from storage.sqlite.disk_errors import WHAT_TO_DO, described, had_no_room
from storage.sqlite.disk_log import Outage
from storage.stall import Stall
from storage.store import Committed

QUEUE_OPERATIONS_MAX: Final = 4096
"""Operations that may wait for the next transaction. Beyond: refused at once (`Busy`), certainly not stored. Those of a
batch that one of them has spoiled wait again, beyond this."""

READS_MAX: Final = 4096
"""Reads that may wait for the database, those that nobody waits for any more included. Beyond: refused (`Busy`)."""

BATCH_OPERATIONS_MAX: Final = 512
"""Operations in one transaction. Reason: the first of them waits for the last. Beyond: the next transaction."""

assert BATCH_OPERATIONS_MAX <= QUEUE_OPERATIONS_MAX

KEEP_SECONDS: Final = 1.0
"""The time is kept with a commit at most so often. Reason: it is one page more for the disk."""

KEEP_IDLE_SECONDS: Final = 60.0
"""The time is kept at least so often, with a commit of its own while there is no other."""

Answer = TypeVar("Answer")
P = ParamSpec("P")

Work = Callable[[sqlite3.Connection, Moment], Answer]
"""What an operation does: a function of the connection and the time of its transaction."""

Keep = Callable[[sqlite3.Connection, Kept], None]
"""Keeps the time for the next run, within a transaction."""

_OPERATION_CODES: Final = frozenset(
    {sqlite3.SQLITE_CONSTRAINT, sqlite3.SQLITE_MISMATCH, sqlite3.SQLITE_TOOBIG, sqlite3.SQLITE_ERROR}
)
"""Primary result codes that are one operation's fault, not the disk's."""


class Operation(Pending[Answer]):
    """An operation that is queued, and its answer: it will be carried out, whatever becomes of whoever asked."""

    __slots__ = ("after", "instead", "since", "spans", "work")

    def __init__(
        self,
        work: Work[Answer],
        after: Callable[[Answer], None] | None,
        instead: Callable[[StorageError], Answer] | None,
        since: float,
        spans: Sequence[object],
    ) -> None:
        super().__init__()
        self.work = work
        self.after = after
        """Called with the answer of `work` after the commit, before anybody is woken."""
        self.instead = instead
        """What the answer is where there is none, for an error of the whole operation; `None`: the error is raised."""
        self.since = since
        """When it was submitted, in seconds this process has run."""
        self.spans = spans
        """Of the requests whose events it stores; see `Store.on_commit`."""

    def settle(self, outcome: Answer | StorageError, at: float = 0.0) -> None:
        """Take what became of it, at this time on Trio's clock, and wake whoever waits. Called once."""
        if not isinstance(outcome, StorageError):
            if self.after is not None:
                self.after(outcome)
            self.answer(outcome, at)
        elif self.instead is not None:
            self.answer(self.instead(outcome), trio.current_time())
        else:
            self.refuse(outcome)


class Committer:
    """Runs queued operations, many in one transaction, and decides what a failure of the database means."""

    def __init__(
        self,
        database: Database,
        time: Timekeeper,
        lost: Callable[[], str | None] = lambda: None,
        keep: Keep | None = None,
        is_full: Callable[[], bool] = lambda: False,
        undone: Callable[[], str | None] = lambda: None,
    ) -> None:
        """Work on `database`.

        Args:
            time: says what time it is for each transaction.
            keep: keeps that time; `None`: it is not kept.
            lost: what has happened to the files of the database, `None`: they are in place. Asked after every
                commit, before it is acknowledged: a commit into a deleted file must not be.
            is_full: whether nothing more can be written; asked after a failed write, on the database thread.
            undone: undoes in the files what a commit has left there that failed; as `lost`, if it cannot be undone.
        """
        self._database = database
        self._time = time
        self.wal_bytes = 0
        """Size of the write-ahead log at the last look. Reason: asking must not wait for the disk."""
        self.database_bytes = 0
        """Size of the database itself, likewise."""
        self._lost = lost
        self._keep = keep
        self._is_full = is_full
        self._undone = undone
        self._kept_at: float | None = None
        """When the time was kept last (on the monotonic clock); `None`: not yet in this run."""
        self._kept_held = False
        """Whether the clock was held then."""
        self._keeps_by = time.monotonic() + KEEP_IDLE_SECONDS
        """When the time must be kept by a commit of its own."""
        # Not a memory channel: whole batches are taken, and a channel costs a tenth of all appends a second.
        self._queue: deque[Operation[object]] = deque()
        self._spoiled = 0
        """Operations at the front of the queue that get a transaction each: one of them has spoiled their batch."""
        self._was_alone = False
        """Whether the last transaction had one operation."""
        self._is_closed = False
        self._changed = trio.Event()
        """Set when there is something to do for `run`."""
        self._unexpected: Exception | None = None
        """What a transaction raised that nothing is known about, for `run` to raise."""
        self.told: Committed | None = None
        """Is told of transactions that store events of traced requests; `None`: nobody is."""
        self._last: Operation[object] | None = None
        """What was submitted last; operations are settled in the order in which they were submitted."""
        self._broken: StoreBroken | None = None
        self.broke = trio.Event()
        """Set once nothing is taken any more because the disk or the file failed."""
        self._outage = Outage()
        self._stall = Stall(trio.current_time())
        self._in_hand_since: float | None = None
        """When the oldest operation of the transaction under way was submitted; `None`: there is none."""
        self._looking_since: float | None = None
        """When the look at the files under way began; `None`: there is none."""
        self._reads: dict[Call[object], float] = {}
        """Reads that have not ended, in order, and when each was asked for."""
        self._queue_peak = self._operations = self._batch_peak = 0
        self._batches, self._seconds = Histogram(COUNTS), Histogram(SECONDS)

    def submit(
        self,
        work: Work[Answer],
        after: Callable[[Answer], None] | None = None,
        instead: Callable[[StorageError], Answer] | None = None,
        spans: Sequence[object] = (),
    ) -> Pending[Answer]:
        """Queue an operation; a broken store answers `Failed` at once.

        Args:
            after, instead, spans: see `Operation`.

        Raises:
            Busy: the queue is full; nothing was queued.
        """
        operation = Operation(work, after, instead, self._stall.ran(trio.current_time()), spans)
        if self._broken is not None:
            operation.settle(Failed(str(self._broken)))
            return operation
        if self._is_closed:
            raise Busy("the store is closing")
        if len(self._queue) >= QUEUE_OPERATIONS_MAX:
            raise Busy(f"{QUEUE_OPERATIONS_MAX} operations wait for the disk already")
        self._last = cast("Operation[object]", operation)
        self._queue.append(self._last)
        if self._in_hand_since is None:
            if self._was_alone:
                self._begin()
            else:
                self._changed.set()
        return operation

    def settled(self) -> trio.Event:
        """Set once everything submitted so far has its outcome."""
        if self._last is not None:
            return self._last.done
        settled = trio.Event()
        settled.set()
        return settled

    async def read(
        self, function: Callable[Concatenate[sqlite3.Connection, P], Answer], *args: P.args, **kwargs: P.kwargs
    ) -> Answer:
        """Run a function that only reads, after what is in hand, before what waits.

        Raises:
            Refused, OutboxDamaged: what the function raises.
            Busy, Failed: it could not be read; if it can never be, the store has broken.

        Cancellation: stops waiting; a function that has begun runs to its end, one that has not never does.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        if self._broken is not None:
            raise Failed(str(self._broken))
        if len(self._reads) >= READS_MAX:
            raise Busy(f"{READS_MAX} reads wait for the disk already")
        call = self._database.begin(lambda: self._reads.pop(cast("Call[object]", call)), function, *args, **kwargs)
        self._reads[cast("Call[object]", call)] = self._stall.ran(trio.current_time())
        with call.wanted():
            await call.done.wait()
        try:
            return call.result()
        except StoreBroken as broken:
            self.break_down(str(broken))
            raise Failed(str(broken)) from broken
        except sqlite3.Error as error:
            raise self._translate(error) from error

    @property
    def waiting_seconds(self) -> float:
        """For how long the oldest that waits for the disk has waited, while this process ran; 0: nobody waits."""
        since = self._waiting_since()
        return 0.0 if since is None else max(0.0, self._stall.ran(trio.current_time()) - since)

    def look(self) -> None:
        """Tell the log when the disk ceases to answer, and when it answers again; every `stall.LOOK_SECONDS`."""
        self._stall.look(trio.current_time(), self._waiting_since())

    def _waiting_since(self) -> float | None:
        found = [] if self._in_hand_since is None else [self._in_hand_since]
        found += [self._queue[0].since] if self._queue else []
        found += [next(iter(self._reads.values()))] if self._reads else []
        found += [] if self._looking_since is None else [self._looking_since]
        return min(found, default=None)

    @contextlib.contextmanager
    def looking(self) -> Iterator[None]:
        """Around a look at the files. A look that the disk does not answer counts as waiting, so a hung disk is seen
        without any request."""
        self._looking_since = self._stall.ran(trio.current_time())
        try:
            yield
        finally:
            self._looking_since = None

    @property
    def broken(self) -> StoreBroken | None:
        """Why nothing is taken any more."""
        return self._broken

    def break_down(self, reason: str) -> None:
        """Take nothing more, tell `Failed` to all who wait, and end `run` with `StoreBroken`."""
        if self._broken is None:
            self._broken = StoreBroken(reason)
            self.broke.set()
        self.close()

    def close(self) -> None:
        """Take nothing new; `run` returns once everything queued is done."""
        self._is_closed = True
        self._changed.set()

    async def run(self) -> None:
        """Commit until closed and empty.

        Raises:
            StoreBroken: the disk or the file failed; every waiter has been told `Failed`.
            Exception: a fault of ours; every waiter has been told the same.

        Cancellation: never in the middle of a transaction; run it shielded and `close` it instead.
        """
        while self._queue or self._in_hand_since is not None or not self._is_closed:
            if self._queue and self._in_hand_since is None:
                self._begin()
            else:
                self._changed = trio.Event()
                await self._changed.wait()
        if self._unexpected is not None:
            raise self._unexpected
        if self._broken is not None:
            raise self._broken

    def _begin(self) -> None:
        """Have the database thread carry out a batch, in one transaction; in a broken store, refuse it."""
        batch = self._next_batch()
        if self._broken is not None:
            _settle(batch, [Failed(str(self._broken))] * len(batch))
            return
        began = self._time.monotonic()
        works = [one.work for one in batch]
        moment = self._time.moment()
        kept = self._to_keep(began)
        keep = None if kept is None or self._keep is None else _keeping(self._keep, kept)
        self._in_hand_since = batch[0].since
        call: Call[Sequence[object]] = self._database.begin(
            lambda: self._ended(batch, began, kept, call),
            run_transaction,
            works,
            moment,
            self._lost,
            keep,
            self._is_full,
            self._undone,
        )

    def _next_batch(self) -> list[Operation[object]]:
        # Only this method takes from the queue, so the queue is now as long as it ever was since the last time.
        self._queue_peak = max(self._queue_peak, len(self._queue))
        if self._spoiled:
            self._spoiled -= 1
            return [self._queue.popleft()]
        return [self._queue.popleft() for _ in range(min(len(self._queue), BATCH_OPERATIONS_MAX))]

    def _ended(
        self, batch: Sequence[Operation[object]], began: float, kept: Kept | None, call: Call[Sequence[object]]
    ) -> None:
        """A transaction has ended: settle its batch, and begin the next one. Called before any task runs again."""
        self._in_hand_since = None
        self._was_alone = len(batch) == 1
        try:
            outcomes = call.result()
        except Spoiled as spoiled:
            if len(batch) > 1:
                self._queue.extendleft(reversed(batch))
                self._spoiled = len(batch)
            else:
                _settle(batch, [self._translate(spoiled.cause)])
        except TransactionFailed as failed:
            self._tell(batch, began, type(failed.cause).__name__)
            _settle(batch, [self._refused(failed)] * len(batch))
        except StoreBroken as broken:
            self.break_down(str(broken))
            _settle(batch, [Failed(str(broken))] * len(batch))
        except Exception as error:  # noqa: BLE001 - `run` raises it, once all who wait have been told
            self._unexpected = error
            self.break_down(f"a transaction failed unexpectedly: {type(error).__name__}")
            _settle(batch, [Failed(str(self._broken))] * len(batch))
        else:
            now = self._time.monotonic()
            if kept is not None:
                self._kept_at, self._kept_held = began, kept.held
            self._count(len(batch), now - began)
            self._tell(batch, began)
            _settle(batch, outcomes, now)
            self._outage.is_over(now)
        self._go_on()

    def _tell(self, batch: Sequence[Operation[object]], began: float, error: str | None = None) -> None:
        if self.told is not None and (spans := [one.spans for one in batch if one.spans]):
            self.told(spans, began, error)

    def _go_on(self) -> None:
        """Begin the next transaction, unless who was settled just now has submitted something and that has begun."""
        if self._queue and self._in_hand_since is None and self._broken is None:
            self._begin()
        elif self._is_closed:
            self._changed.set()

    def keep_time(self) -> None:
        """Look at the clock, and have its time kept if no commit did so lately. To be called every second or so."""
        if self._keep is None or self._broken is not None:
            return
        self._time.moment()
        now = self._time.monotonic()
        if self._kept_at is not None:
            self._keeps_by = max(self._keeps_by, self._kept_at + KEEP_IDLE_SECONDS)
        if now >= self._keeps_by or self._time.kept.held is not self._kept_held:
            self._keeps_by = now + KEEP_IDLE_SECONDS
            with contextlib.suppress(Busy):
                self.submit(lambda db, now: None)

    def _to_keep(self, now: float) -> Kept | None:
        """The time, if it is to be kept with the next commit."""
        kept = self._time.kept
        is_due = self._kept_at is None or now >= self._kept_at + KEEP_SECONDS or kept.held is not self._kept_held
        return kept if is_due else None

    def _refused(self, failed: TransactionFailed) -> StorageError:
        """What the waiters are told about a transaction that the disk refused. The log is told, too."""
        refusal: StorageError
        if failed.is_full:
            refusal = Busy("the disk is full")
        else:
            refusal = self._translate(failed.cause, in_commit=failed.in_commit)
        if self._broken is None:
            self._outage.goes_on(refusal, self._time.monotonic())
        return refusal

    def _translate(self, error: Exception, *, in_commit: bool = False) -> StorageError:
        """What a waiter is told about a database error; one that says the disk or the file is bad ends everything."""
        code = getattr(error, "sqlite_errorcode", None)
        if code is None:
            return Failed(f"the operation failed unexpectedly: {type(error).__name__}")
        match code & 0xFF:
            case sqlite3.SQLITE_BUSY | sqlite3.SQLITE_LOCKED if not in_commit:
                return Busy("the database is locked by another process")
            case sqlite3.SQLITE_FULL:
                return Busy("the disk is full")
            case sqlite3.SQLITE_BUSY:
                return Failed(f"the commit failed: {error}")
            case primary if primary in _OPERATION_CODES:
                return Failed(f"the operation was refused by the database: {type(error).__name__}")
            case _:
                reason = described(error)
                self.break_down(reason)
                return Failed(reason)

    def _count(self, operations: int, seconds: float) -> None:
        self._operations += operations
        self._batch_peak = max(self._batch_peak, operations)
        self._batches.observe(operations)
        self._seconds.observe(seconds)

    def statistics(self) -> StoreStatistics:
        """Figures since the start."""
        batches = self._batches.distribution()
        return StoreStatistics(
            queue_depth=len(self._queue),
            queue_peak=self._queue_peak,
            queue_limit=QUEUE_OPERATIONS_MAX,
            commits=batches.count,
            operations=self._operations,
            batch_peak=self._batch_peak,
            batch_operations=batches,
            commit_seconds=self._seconds.distribution(),
            wal_bytes=self.wal_bytes,
            database_bytes=self.database_bytes,
            broken=None if self._broken is None else str(self._broken),
            waiting_seconds=self.waiting_seconds,
        )


def _keeping(keep: Keep, kept: Kept) -> Callable[[sqlite3.Connection], None]:
    return lambda db: keep(db, kept)


def _settle(batch: Sequence[Operation[object]], outcomes: Sequence[object], at: float = 0.0) -> None:
    for one, outcome in zip(batch, outcomes, strict=True):
        one.settle(outcome, at)


class Spoiled(Exception):
    """One operation of a batch failed in a way it should not have; nothing of the batch was stored."""

    def __init__(self, cause: Exception) -> None:
        super().__init__(str(cause))
        self.cause = cause


class TransactionFailed(Exception):
    """The transaction itself failed: all of its operations share the outcome."""

    def __init__(self, cause: sqlite3.Error, *, in_commit: bool, is_full: bool) -> None:
        super().__init__(str(cause))
        self.cause = cause
        self.in_commit = in_commit
        self.is_full = is_full
        """There was no room for it: certainly not stored."""


def run_transaction(
    db: sqlite3.Connection,
    works: Sequence[Work[object]],
    now: Moment,
    lost: Callable[[], str | None],
    keep: Callable[[sqlite3.Connection], None] | None = None,
    is_full: Callable[[], bool] = lambda: False,
    undone: Callable[[], str | None] = lambda: None,
) -> list[object]:
    """Carry out operations in one transaction; the outcome of each. Runs on the database thread.

    Raises:
        Spoiled: an operation failed unexpectedly; rolled back.
        TransactionFailed: the disk failed; rolled back, or unknown if in COMMIT.
        StoreBroken: it cannot be rolled back or undone, or the files it was written to are gone.
    """
    outcomes: list[object] = []
    try:
        db.execute("BEGIN IMMEDIATE")
        for work in works:
            try:
                outcomes.append(work(db, now))
            except (Refused, OutboxDamaged) as refusal:
                outcomes.append(refusal)
        if keep is not None:
            keep(db)
    except sqlite3.Error as error:
        _roll_back(db)
        if getattr(error, "sqlite_errorcode", 0) & 0xFF in _OPERATION_CODES:
            raise Spoiled(error) from error
        raise TransactionFailed(error, in_commit=False, is_full=had_no_room(error, is_full)) from error
    except Exception as error:
        _roll_back(db)
        raise Spoiled(error) from error
    try:
        db.execute("COMMIT")
    except sqlite3.Error as error:
        what = undone()
        _roll_back(db)
        if what is not None:
            raise StoreBroken(what) from error
        # The frame that commits a transaction is written last. It was not written, so a rolled back transaction is not
        # stored.
        raise TransactionFailed(error, in_commit=True, is_full=had_no_room(error, is_full)) from error
    if (what := lost()) is not None:
        raise StoreBroken(what)
    return outcomes


def _roll_back(db: sqlite3.Connection) -> None:
    """SQLite has often rolled back already (disk full)."""
    if db.in_transaction:
        try:
            db.execute("ROLLBACK")
        except sqlite3.Error as error:
            raise StoreBroken(f"a transaction cannot be rolled back: {error}; {WHAT_TO_DO}") from error
