"""Updates that must not be lost: written in the service's own transaction, published afterwards, each exactly once.

A service that commits and then broadcasts loses the update if it dies in between; one that broadcasts first tells of
what may never be committed. So the update is a row of the service's own database, stored by the same commit. A `Relay`
publishes the rows, each with the idempotency key that it was stored with, and deletes each once the server has it on
disk. A row that was sent but not deleted is sent again, and the server knows its key: nothing is lost, nothing comes
twice.

The server keeps a key for 24 hours. A row that was first sent 23 hours ago and has had no answer since is set aside,
not sent again. `SqliteOutbox` needs nothing else, `SqlalchemyOutbox` (`avicenna_live.sqlalchemy`) the extra
`sqlalchemy`.
"""

from __future__ import annotations

import json
import logging
import random
import sqlite3
import threading
import time
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Final, Protocol, Self

from avicenna_live.broadcaster import Broadcaster
from avicenna_live.closing import Backoff
from avicenna_live.errors import BroadcastError, NoAnswer, TooLarge, Unauthenticated
from avicenna_live.publishing import PASSING
from avicenna_live.updates import Kind, Update

AVICENNA_OUTBOX: Final = "avicenna_outbox"
"""The name of the table."""

ROWS_AT_ONCE: Final = 500
"""Rows read at once. Reason: each has up to 64 KiB, and all are in memory."""

EXCEPTED_MAX: Final = 500
"""Diagnoses that a query leaves out. Reason: databases bound the parameters of one; the others are left out here."""

POLL_SECONDS: Final = 0.5
KEY_SECONDS: Final = 23 * 3600.0
"""How long a row may be repeated. Reason: the server keeps a key for 24 h, and a request takes a while."""

BACKOFF: Final = Backoff(0.5, 15.0)
"""Waits where the server, the database or one diagnosis is away."""

logger = logging.getLogger("avicenna_live.relay")


@dataclass(frozen=True, slots=True)
class Row:
    """An update that waits."""

    id: int
    """Rows of a later transaction have higher ones."""
    diagnosis_id: str
    kind: Kind
    body: str
    idempotency_key: str
    first_tried_at: float | None
    """Seconds since 1970, `None`: never."""

    @property
    def is_whole(self) -> bool:
        """Whether every column holds what it should: SQLite takes any type in any column."""
        texts = (self.diagnosis_id, self.kind, self.body, self.idempotency_key)
        return all(isinstance(one, str) for one in texts) and isinstance(self.first_tried_at, float | int | None)


class Outbox(Protocol):
    """The table, as a relay sees it. Each function is a transaction of its own, and may be called from any thread."""

    def prepare(self) -> None:
        """Make the table where it is missing."""

    def waiting(self, after: int, limit: int, except_for: Collection[str]) -> Sequence[Row]:
        """The rows above this id that are not set aside and not of these diagnoses, in order of their ids."""

    def tried(self, ids: Collection[int], now: float) -> None:
        """Keep when these rows were first sent; a time that is there already stays."""

    def untried(self, ids: Collection[int], then: float) -> None:
        """Take back what `tried` has just kept: these rows did not reach the server."""

    def published(self, ids: Collection[int]) -> None:
        """Delete these rows."""

    def set_aside(self, row_id: int, error: str) -> None:
        """Keep a row, but send it no more."""


def diagnosis_of(update: Update) -> str:
    """The diagnosis of an update, as the table has it: 42 and "42" are the same one."""
    return str(json.loads(update.body)["diagnosis_id"])


class SqliteOutbox:
    """The table in a database of the standard library's sqlite3, in any journal mode.

    A relay writes, too: give the service's connections a `timeout` (sqlite3 has 5 s), and let a transaction that reads
    before it writes begin with `BEGIN IMMEDIATE`.
    """

    def __init__(self, path: str | Path, *, timeout_seconds: float = 30.0) -> None:
        """Use the database at `path`.

        Args:
            path: of a file; what is in memory belongs to one connection.
            timeout_seconds: longest wait while the service writes.

        Raises:
            ValueError: `path` is no file's.
        """
        if str(path) in ("", ":memory:"):
            raise ValueError("path must name a file: what is in memory, no other connection sees")
        self._path = Path(path).absolute()  # the same file wherever the process goes
        self._timeout = timeout_seconds

    @staticmethod
    def add(connection: sqlite3.Connection, update: Update) -> None:
        """Store an update in the open transaction of the service's connection. The table is there: see `prepare`.

        Raises:
            ValueError: no transaction is open, and sqlite3 opens none by itself in this mode.
            sqlite3.Error: of the database; the service rolls back, or tries again.
        """
        # Python 3.12 has the attribute: -1 says that isolation_level decides, as ever before.
        autocommit = getattr(connection, "autocommit", -1)
        begins = connection.isolation_level is not None if autocommit == -1 else not autocommit
        if not begins and not connection.in_transaction:
            raise ValueError("no transaction is open: BEGIN one, and store in it what the update tells of")
        connection.execute(
            f"INSERT INTO {AVICENNA_OUTBOX} (diagnosis_id, kind, body, idempotency_key) VALUES (?, ?, ?, ?)",  # noqa: S608 - a constant
            (diagnosis_of(update), update.kind, update.body, update.idempotency_key),
        )

    def prepare(self) -> None:
        """Make the table where it is missing."""
        with closing(self._connect()) as db, db:
            # AUTOINCREMENT: the id of a deleted row never comes again, so a second relay deletes no other row.
            db.execute(
                f"CREATE TABLE IF NOT EXISTS {AVICENNA_OUTBOX} (id INTEGER PRIMARY KEY AUTOINCREMENT,"
                " diagnosis_id TEXT NOT NULL, kind TEXT NOT NULL, body TEXT NOT NULL, idempotency_key TEXT NOT NULL,"
                " first_tried_at REAL, error TEXT)"
            )

    def waiting(self, after: int, limit: int, except_for: Collection[str]) -> Sequence[Row]:
        """See `Outbox`."""
        marks = ", ".join("?" * len(except_for))
        with closing(self._connect()) as db:
            rows = db.execute(
                f"SELECT id, diagnosis_id, kind, body, idempotency_key, first_tried_at FROM {AVICENNA_OUTBOX}"  # noqa: S608 - constants
                f" WHERE id > ? AND error IS NULL AND diagnosis_id NOT IN ({marks}) ORDER BY id LIMIT ?",
                (after, *except_for, limit),
            ).fetchall()
        return [Row(*row) for row in rows]

    def tried(self, ids: Collection[int], now: float) -> None:
        """See `Outbox`."""
        self._change(
            "UPDATE {} SET first_tried_at = ? WHERE id = ? AND first_tried_at IS NULL", [(now, one) for one in ids]
        )

    def untried(self, ids: Collection[int], then: float) -> None:
        """See `Outbox`."""
        self._change(
            "UPDATE {} SET first_tried_at = NULL WHERE id = ? AND first_tried_at = ?", [(one, then) for one in ids]
        )

    def published(self, ids: Collection[int]) -> None:
        """See `Outbox`."""
        self._change("DELETE FROM {} WHERE id = ?", [(one,) for one in ids])

    def set_aside(self, row_id: int, error: str) -> None:
        """See `Outbox`."""
        self._change("UPDATE {} SET error = ? WHERE id = ?", [(error, row_id)])

    def _change(self, statement: str, rows: Sequence[tuple[object, ...]]) -> None:
        with closing(self._connect()) as db, db:
            db.executemany(statement.format(AVICENNA_OUTBOX), rows)

    def _connect(self) -> sqlite3.Connection:
        return sqlite3.connect(self._path, timeout=self._timeout)


@dataclass(slots=True)
class _Round:
    """What became of the rows that were looked at."""

    published: int = 0
    stuck: dict[str, BroadcastError] = field(default_factory=dict)
    """Diagnoses whose rows wait, and why."""
    away: BroadcastError | None = None
    """Why no row of any diagnosis is taken now."""


@dataclass(frozen=True, slots=True)
class _Rest:
    """A diagnosis is left alone for a while."""

    failures: int
    ends_at: float
    """Monotonic."""


class Relay:
    """Publishes the rows of an outbox, for each diagnosis in the order of their ids.

    ```python
    with Relay(SqliteOutbox("service.db"), broadcaster) as relay:
        ...
        relay.wake()  # after a commit; without it a row waits for half a second at most
    ```

    A row that the server refuses for good is set aside: its column `error` says why, and the rows behind it go on. Set
    `error` and `first_tried_at` to NULL to have it sent again. A row that fails in passing holds back those of its
    diagnosis alone.

    Several relays on one outbox, as in a service of several processes, make no second event: they send the same keys.
    A thread does not survive `os.fork`: begin behind it.
    """

    def __init__(
        self,
        outbox: Outbox,
        broadcaster: Broadcaster,
        *,
        poll_seconds: float = POLL_SECONDS,
        now: Callable[[], float] = time.time,
    ) -> None:
        """Prepare; nothing is opened before it runs, so a process may fork in between.

        Args:
            broadcaster: sends, and stays the caller's to close; its `patience_seconds` is not used.
            poll_seconds: how often the relay looks for rows.
            now: the wall clock, seconds since 1970.

        Raises:
            ValueError: `poll_seconds` is not above 0.
        """
        if not poll_seconds > 0:
            raise ValueError(f"poll_seconds must be above 0, not {poll_seconds}")
        self._outbox = outbox
        self._broadcaster = broadcaster
        self._poll_seconds = poll_seconds
        self._now = now
        self._awake = threading.Event()
        self._stopping = threading.Event()
        self._thread: threading.Thread | None = None
        self._is_prepared = False

    def wake(self) -> None:
        """Look for rows now. Any thread may call it; it waits for nothing."""
        self._awake.set()

    def run_once(self) -> int:
        """Try every row that waits, once; how many were published. Raises what the database raises."""
        return self._round((), lambda: False).published

    def run(self) -> None:
        """Publish what comes, until `stop`."""
        rests: dict[str, _Rest] = {}
        failures = 0
        while not self._stopping.is_set():
            self._awake.clear()
            resting = {one: rest for one, rest in rests.items() if rest.ends_at > time.monotonic()}
            try:
                found = self._round(resting, self._stopping.is_set)
            except Exception:  # the service's database or its token may be away for a while
                logger.exception("no row could be relayed; they wait")
                is_away = True
            else:
                is_away = found.away is not None
                if is_away and not failures:
                    logger.warning("the server takes no update now, rows wait: %s", found.away)
                rests = resting | {one: _after(rests.get(one), why) for one, why in found.stuck.items()}
            if is_away:
                # Whoever wakes the relay knows of a row, not of the server: that ends no wait of this kind.
                self._stopping.wait(_wait_seconds(failures))
                failures += 1
            else:
                failures = 0
                self._awake.wait(self._poll_seconds)

    def stop(self) -> None:
        """End `run` after what it is doing."""
        self._stopping.set()
        self._awake.set()

    def __enter__(self) -> Self:
        """Make the table where it is missing, and run in a thread.

        Raises `RuntimeError` if it runs already, and what the database raises.
        """
        if self._thread is not None and self._thread.is_alive():
            raise RuntimeError("this relay runs already")
        self._prepare()
        self._stopping.clear()
        self._thread = threading.Thread(target=self.run, name="avicenna-live-relay", daemon=True)
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Stop, and wait until what is being sent is answered. What is left waits in the table."""
        self.stop()
        if self._thread is not None:
            self._thread.join()

    def _prepare(self) -> None:
        if not self._is_prepared:
            self._outbox.prepare()
            self._is_prepared = True

    def _round(self, resting: Collection[str], is_over: Callable[[], bool]) -> _Round:
        """Try the rows of all other diagnoses, once."""
        self._prepare()
        found = _Round()
        left_out = set(resting)
        after = 0
        while True:
            rows = self._outbox.waiting(after, ROWS_AT_ONCE, sorted(left_out)[:EXCEPTED_MAX])
            if not rows:
                return found
            after = rows[-1].id
            for wave in _waves(self._timely(rows)):
                if sent := [row for row in wave if row.diagnosis_id not in left_out]:
                    self._send(sent, found)
                    left_out |= found.stuck.keys()
                if found.away is not None or is_over():
                    return found

    def _send(self, rows: Sequence[Row], found: _Round) -> None:
        """Send one row of each diagnosis."""
        then = self._now()
        self._outbox.tried([row.id for row in rows], then)
        updates = [Update(row.kind, row.body, row.idempotency_key) for row in rows]
        # One try: while a batch repeats one line, no other diagnosis has a turn.
        outcomes = self._broadcaster.batch(updates, patience_seconds=0)
        done: list[int] = []
        unsent: list[int] = []
        for row, outcome in zip(rows, outcomes, strict=True):
            if not isinstance(outcome, BroadcastError):
                done.append(row.id)
                continue
            if _is_certainly_not_stored(outcome):
                unsent.append(row.id)
            if _is_of_the_request(outcome):
                found.away = outcome
            elif outcome.status in PASSING or isinstance(outcome, Unauthenticated):
                found.stuck[row.diagnosis_id] = outcome
            else:
                self._set_aside(row, str(outcome))
        if done:
            self._outbox.published(done)
            found.published += len(done)
        if unsent:
            self._outbox.untried(unsent, then)

    def _timely(self, rows: Sequence[Row]) -> Iterator[Row]:
        """Those that can be sent, and that the server still knows the keys of."""
        oldest = self._now() - KEY_SECONDS
        for row in rows:
            if not row.is_whole:
                self._set_aside(row, "no row as `add` stores it")
            elif row.first_tried_at is not None and row.first_tried_at < oldest:
                self._set_aside(row, "first sent 23 h ago, and no answer since: it is not known whether it was stored")
            else:
                yield row

    def _set_aside(self, row: Row, error: str) -> None:
        self._outbox.set_aside(row.id, error)
        logger.error("row %d of %s is set aside: %s", row.id, AVICENNA_OUTBOX, error)


def _wait_seconds(failures: int) -> float:
    return BACKOFF.seconds(failures, random.random())  # noqa: S311 - jitter


def _after(rest: _Rest | None, error: BroadcastError) -> _Rest:
    """The rest of a diagnosis that has failed in passing, after the one before."""
    if rest is None:
        logger.warning("the updates of a diagnosis wait: %s", error)
    failures = 0 if rest is None else rest.failures + 1
    return _Rest(failures, time.monotonic() + _wait_seconds(failures))


def _is_of_the_request(error: BroadcastError) -> bool:
    """Whether it says nothing of a row: nobody answered, no server of ours did, or it took no line of the request."""
    is_refusal = error.request_id is not None and not isinstance(error, TooLarge)  # a row alone can be too large
    return isinstance(error, NoAnswer) or not error.code or is_refusal


def _is_certainly_not_stored(error: BroadcastError) -> bool:
    """Whether the time of the key has not begun (PROTOCOL section 7)."""
    if isinstance(error, NoAnswer):
        return not error.was_sent
    is_refused = bool(error.code) and 400 <= error.status < 500
    return is_refused or error.detail.startswith("certainly not stored")


def _waves(rows: Iterable[Row]) -> Sequence[list[Row]]:
    """The first row of each diagnosis, then the second of each, and so on: none overtakes another of its diagnosis."""
    waves: list[list[Row]] = []
    turns: dict[str, int] = {}
    for row in rows:
        turn = turns.get(row.diagnosis_id, 0)
        turns[row.diagnosis_id] = turn + 1
        if turn == len(waves):
            waves.append([])
        waves[turn].append(row)
    return waves
