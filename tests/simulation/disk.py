"""A disk without a thread: SQLite runs in a task of the simulation, fails as it is told to, and can lose power.

The files are real, in a directory of memory, and SQLite and all of the store's own code work on them. What is simulated
is when a call begins and ends, what it raises, and what is left of the files when the process dies within it.
"""

from __future__ import annotations

import sqlite3
from collections import deque
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from typing import Any, Concatenate, Final, Literal, ParamSpec, TypeVar

import trio

from storage.disk.database_files import wal_of
from storage.sqlite.bridge import CACHED_STATEMENTS, Call, Database
from storage.sqlite.wal import FRAME, HEADER
from web.server.settings import DATABASE_FILE

Result = TypeVar("Result")
P = ParamSpec("P")

Fault = Literal["full", "full at commit", "error", "error at commit"]
"""What the next transaction meets. `error`: an I/O error, which breaks a store."""

Moment = Literal["before", "within", "after"]
"""When a process dies, seen from the commit of its next transaction."""

CALL_SECONDS: Final = (0.0002, 0.001, 0.004, 0.03)
"""How long a call takes, as often the one as the other."""

SECTOR_BYTES: Final = 512
"""What a disk writes wholly or not at all."""

FRAME_BYTES: Final = FRAME.size + 4096
"""Of a page in the log."""

_SYNCED: Final = 2
"""`PRAGMA synchronous` from which on each commit is synced."""

Files = tuple[bytes, bytes | None]
"""The database and its log."""

_CODES: Final = {"full": sqlite3.SQLITE_FULL, "error": sqlite3.SQLITE_IOERR_WRITE}


def failure(kind: str) -> sqlite3.OperationalError:
    """What SQLite raises."""
    error = sqlite3.OperationalError(f"simulated: {kind}")
    error.sqlite_errorcode = _CODES[kind.split(maxsplit=1)[0]]
    error.sqlite_errorname = kind
    return error


class Connection(sqlite3.Connection):
    """SQLite's own, which fails when its disk says so."""

    disk: Disk | None = None

    def execute(self, sql: str, parameters: Any = ()) -> sqlite3.Cursor:
        if self.disk is not None and self.disk.fault is not None:
            self.disk.meet(self, sql)
        return super().execute(sql, parameters)


class Disk:
    """Under one process: what its database meets, and what it leaves when the process dies."""

    def __init__(self, directory: Path, lots: Random, *, may_lose: bool) -> None:
        """A disk that works, with the files in `directory`.

        Args:
            may_lose: commits need not be synced (`durability = normal`). A loss of power takes what SQLite was not told
                to sync, whatever it may.
        """
        self.path = directory / DATABASE_FILE
        self.fault: Fault | None = None
        self.met: Callable[[str], object] = lambda what: None
        """Called with what has happened."""
        self.dies: Callable[[], object] = lambda: None
        """Called when the process dies within a transaction."""
        self.is_dead = False
        self.database: sqlite3.Connection | None = None
        """The connection, while there is one."""
        self.broke = False
        """It has met an error that breaks a store."""
        self.has_lost = False
        """Power has failed, and commits that need not be synced are gone."""
        self._troubled_at = -inf
        self._hung_until = -inf
        self._lots = lots
        self._may_lose = may_lose
        self._is_synced = True
        """The last commit was."""
        self._death: tuple[Moment, bool] | None = None
        self._answers = trio.Event()
        self._answers.set()
        self._synced = (b"", b"")

    @property
    def answers(self) -> bool:
        """It does not hang."""
        return self._answers.is_set()

    def hung_since(self, time: float) -> bool:
        """Whether it has hung since then."""
        return not self.answers or self._hung_until >= time

    def had_trouble_since(self, time: float) -> bool:
        """Whether it has hung, or met an error, since then."""
        return self.hung_since(time) or self._troubled_at >= time or self.is_dead

    def hang(self) -> None:
        """Answer nothing until `thaw`."""
        if self.answers and not self.is_dead:
            self._answers = trio.Event()

    def thaw(self) -> None:
        """Answer again."""
        if not self.answers:
            self._hung_until = trio.current_time()
        self._answers.set()

    def forget_plans(self) -> None:
        """Nothing more fails."""
        self.fault = self._death = None
        self.thaw()

    def die_at_commit(self, moment: Moment, *, power_fails: bool) -> None:
        """Have the process die with its next transaction."""
        self._death = (moment, power_fails)

    def die_now(self, *, power_fails: bool) -> None:
        """The process is gone. What is written from now on is not there."""
        if not self.is_dead:
            self._leave(self._files(), power_fails=power_fails)

    def put_into(self, directory: Path) -> None:
        """What is left, as the next process finds it."""
        directory.mkdir(mode=0o700)
        for name, content in zip((self.path.name, wal_of(self.path).name), self.left, strict=True):
            if content is not None:
                (directory / name).write_bytes(content)
                (directory / name).chmod(0o600)

    def meet(self, db: Connection, sql: str) -> None:
        """Raise what this statement meets."""
        fault = self.fault
        if sql == "COMMIT" if fault is not None and fault.endswith("commit") else sql.startswith(("INSERT", "UPDATE")):
            self.fault = None
            assert fault is not None
            self._troubled_at = trio.current_time()
            self.broke = self.broke or fault.startswith("error")
            self.met(f"disk: {fault}")
            raise failure(fault)

    # For the database

    async def answer(self) -> None:
        """Return when the disk has answered."""
        await trio.sleep(self._lots.choice(CALL_SECONDS))
        while not self._answers.is_set() and not self.is_dead:
            await self._answers.wait()

    def carry_out(self, call: Call[Any], function: Callable[[], object], *, is_transaction: bool) -> None:
        """Run a call; it fails if the process has died."""
        if self.is_dead:
            call.run(_gone)
            return
        death = self._death if is_transaction else None
        if death is None:
            call.run(function)
            if is_transaction:
                self._note_synced()
            return
        (moment, power_fails), self._death = death, None
        before = self._files()
        if moment == "before":
            self._leave(before, power_fails=power_fails)
        else:
            call.run(function)
            left = self._files()
            if moment == "within":
                left = self._torn(before, left, SECTOR_BYTES if power_fails else None)
            self._leave(left, power_fails=power_fails)
        self.met(f"death {moment} a commit")
        self.dies()
        call.run(_gone)

    # What is left

    def _files(self) -> Files:
        log = wal_of(self.path)
        return self.path.read_bytes(), log.read_bytes() if log.exists() else None

    def _note_synced(self) -> None:
        assert self.database is not None, "it has carried out a call"
        (level,) = sqlite3.Connection.execute(self.database, "PRAGMA synchronous").fetchone()
        self._is_synced = level >= _SYNCED
        database, log = self._files()
        if self._is_synced or database != self._synced[0]:  # what goes from the log into the database is synced
            self._synced = database, log or b""

    def _torn(self, before: Files, after: Files, unit: int | None) -> Files:
        """A part of what a transaction has written: whole units, or whole writes (`None`)."""
        (database, log), (later, later_log) = before, after
        if database != later or log is None or later_log is None or log[:32] != later_log[:32]:
            return before
        same = next((at for at, (one, other) in enumerate(zip(log, later_log, strict=False)) if one != other), len(log))
        frames = range(HEADER.size, len(later_log) + 1, FRAME_BYTES)
        ends = (
            [*range(0, len(later_log), unit)]
            if unit is not None
            else [end for frame in frames for end in (frame, frame + FRAME.size)]
        )
        possible = [end for end in ends if same <= end < len(later_log)]
        if not possible:
            return before
        cut = self._lots.choice(possible)
        return database, later_log[:cut] + log[cut:]

    def _leave(self, files: Files, *, power_fails: bool) -> None:
        database, log = files
        if power_fails and not self._is_synced and log is not None:
            synced, synced_log = self._synced
            if database == synced and log[:32] == synced_log[:32] and len(log) > len(synced_log):
                cut = self._lots.choice(range(len(synced_log), len(log) + 1, SECTOR_BYTES))
                cut = min(len(log), cut + -cut % SECTOR_BYTES)
                if cut < len(log):
                    self.has_lost = self._may_lose
                    self.met("unsynced commits lost")
                log = log[:cut]
        self.left = database, log
        self.is_dead = True
        self.thaw()


def _gone() -> None:
    raise failure("error")


class InlineDatabase(Database):
    """A `Database` whose calls run in one task, one after another, as the thread of the other one runs them."""

    now = staticmethod(lambda: 0.0)

    def __init__(self, path: Path, disk: Disk) -> None:
        self._db = sqlite3.connect(
            path,
            timeout=0,
            isolation_level=None,
            cached_statements=CACHED_STATEMENTS,
            check_same_thread=False,  # a copy is made on a thread that works only while this one waits for it
            factory=Connection,
        )
        self._db.disk = disk
        disk.database = self._db
        self._disk = disk
        self._calls: deque[tuple[Call[Any], Callable[[], object], bool]] = deque()
        self._changed = trio.Event()

    async def run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        await trio.lowlevel.checkpoint_if_cancelled()
        call = self.begin(lambda: None, function, *args, **kwargs)
        with trio.CancelScope(shield=True):
            await call.done.wait()
        return call.result()

    def begin(
        self,
        ended: Callable[[], object],
        function: Callable[Concatenate[sqlite3.Connection, P], Result],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Call[Result]:
        call: Call[Result] = Call(ended)
        is_transaction = getattr(function, "__name__", "") == "run_transaction"
        self._calls.append((call, partial(function, self._db, *args, **kwargs), is_transaction))
        self._changed.set()
        return call

    async def work(self) -> None:
        """Carry calls out until cancelled."""
        while True:
            while not self._calls:
                self._changed = trio.Event()
                await self._changed.wait()
            await self._disk.answer()
            call, function, is_transaction = self._calls.popleft()
            self._disk.carry_out(call, function, is_transaction=is_transaction)
            call.arrive(None)

    def close(self) -> None:
        """Close the connection."""
        self._disk.database = None
        self._db.close()


@asynccontextmanager
async def connect(path: Path, disk: Disk) -> AsyncIterator[Database]:
    """As `storage.sqlite.bridge.open_database`, without a thread."""
    database = InlineDatabase(path, disk)
    working = trio.CancelScope(shield=True)  # it works for whoever is cancelled, as the thread does

    async def work() -> None:
        with working:
            await database.work()

    async with trio.open_nursery() as disk_nursery:
        disk_nursery.start_soon(work)
        try:
            yield database
        finally:
            working.cancel()
            database.close()
