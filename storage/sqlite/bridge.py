"""The bridge: one unmodified aiosqlite connection, driven from Trio. The only file that knows asyncio.

aiosqlite runs every call on a thread of its own and hands the result back through an asyncio future. It
asks its event loop for three things only: make a future, call back from the thread, and be awaited.
`_Loop` offers these on Trio's token, and `_drive` steps the coroutine and waits its futures out.
See docs/decisions/0002.
"""

from __future__ import annotations

import asyncio
import contextlib
import sqlite3
import sys
from collections.abc import AsyncIterator, Callable, Coroutine, Iterator
from contextlib import asynccontextmanager
from contextvars import Context
from functools import partial
from pathlib import Path
from time import perf_counter
from typing import Any, Concatenate, Generic, ParamSpec, TypeVar, TypeVarTuple, Unpack, cast

import aiosqlite
import trio

Result = TypeVar("Result")
P = ParamSpec("P")
Args = TypeVarTuple("Args")

CACHED_STATEMENTS = 64
"""Prepared statements that sqlite3 keeps: enough for all of ours."""


class _Loop(asyncio.AbstractEventLoop):
    """As much of an event loop as aiosqlite asks for."""

    def __init__(self, token: trio.lowlevel.TrioToken) -> None:
        self._token = token
        self._handle = asyncio.Handle(lambda: None, (), self)
        """One shared handle: aiosqlite never cancels it, and a new one per call costs a thread switch."""

    def get_debug(self) -> bool:
        return False

    def is_running(self) -> bool:
        return True

    def is_closed(self) -> bool:
        return False

    def create_future(self) -> asyncio.Future[Any]:
        return asyncio.Future(loop=self)

    def call_soon(
        self, callback: Callable[[Unpack[Args]], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        """Futures announce their result through this, on Trio's thread only: at once is soon enough."""
        callback(*args)
        return self._handle

    def call_soon_threadsafe(
        self, callback: Callable[[Unpack[Args]], object], *args: *Args, context: Context | None = None
    ) -> asyncio.Handle:
        """The database thread hands a result back."""
        # If Trio's run is over nobody is left to tell; raising would end the thread with its connection open.
        with contextlib.suppress(trio.RunFinishedError):
            self._token.run_sync_soon(callback, *args)
        return self._handle

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        raise RuntimeError(context.get("message", "asyncio failed"))


def _step(loop: _Loop, work: Coroutine[Any, Any, object]) -> asyncio.Future[Any]:
    """Run an asyncio coroutine up to the next future it waits for.

    Raises:
        StopIteration: it has ended, with this value.
    """
    before = asyncio._get_running_loop()
    asyncio._set_running_loop(loop)
    try:
        future = work.send(None)
    finally:
        asyncio._set_running_loop(before)
    if not isinstance(future, asyncio.Future) or future.get_loop() is not loop:
        raise RuntimeError("aiosqlite awaited something that is not a future of its loop")
    future._asyncio_future_blocking = False
    return future


async def _wait(future: asyncio.Future[Any]) -> None:
    """Wait until a future is done, whatever is cancelled meanwhile."""
    task = trio.lowlevel.current_task()
    future.add_done_callback(lambda _: trio.lowlevel.reschedule(task))
    await trio.lowlevel.wait_task_rescheduled(lambda _: trio.lowlevel.Abort.FAILED)


async def _drive(loop: _Loop, work: Coroutine[Any, Any, Result]) -> Result:
    """Run an asyncio coroutine to its end, whatever is cancelled meanwhile."""
    while True:
        try:
            future = _step(loop, work)
        except StopIteration as end:
            result: Result = end.value
            return result
        if not future.done():
            await _wait(future)


def _nobody_is_told() -> None:
    """In place of `ended` once that has been called."""


class Call(Generic[Result]):
    """A function on its way through the database thread. Its caller may stop waiting for it."""

    __slots__ = ("_error", "_is_abandoned", "_result", "done", "ended")

    def __init__(self, ended: Callable[[], object]) -> None:
        self.done = trio.Event()
        """Set once it has run."""
        self.ended = ended
        """Called once, right before `done` is set, also if nobody waits any more. Must not raise."""
        self._result: Result | None = None
        self._error: BaseException | None = None
        self._is_abandoned = False

    @contextlib.contextmanager
    def wanted(self) -> Iterator[None]:
        """Around the wait for it. When the wait ends, a function that has not begun never begins."""
        try:
            yield
        finally:
            self._is_abandoned = True

    def result(self) -> Result:
        """What it returned, once it is done.

        Raises: what it raised.
        """
        if self._error is not None:
            raise self._error
        return cast(Result, self._result)

    def run(self, function: Callable[[], Result]) -> None:
        """Run it, on the database thread. Raises nothing: asyncio complains of errors that nobody looks at."""
        if not self._is_abandoned:
            try:
                self._result = function()
            except BaseException as error:  # noqa: BLE001 - raised again for whoever waits
                self._error = error

    def arrive(self, _: object) -> None:
        """It has run; on Trio's thread."""
        # Break a reference cycle: `ended` may hold this call, and the result would stay in memory until a collection.
        ended, self.ended = self.ended, _nobody_is_told
        ended()
        self.done.set()


class Database:
    """One SQLite connection, used by one thread, a whole function at a time."""

    now: Callable[[], float] = staticmethod(perf_counter)
    """Tells a function on that thread how long it has worked."""

    def __init__(self, loop: _Loop, connection: aiosqlite.Connection) -> None:
        self._loop = loop
        self._connection = connection

    async def run(
        self, function: Callable[Concatenate[sqlite3.Connection, P], Result], *args: P.args, **kwargs: P.kwargs
    ) -> Result:
        """Run `function(connection, ...)` on the database thread, after everything queued before it.

        Raises: what `function` raises.

        Cancellation: before it is queued nothing happens; once queued it runs, and its result is waited for,
        so that the answer to "did it commit?" is never thrown away.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        connection = self._connection
        work: Coroutine[Any, Any, Result] = connection._execute(  # type: ignore[no-untyped-call]
            function, connection._conn, *args, **kwargs
        )
        return await _drive(self._loop, work)

    def begin(
        self,
        ended: Callable[[], object],
        function: Callable[Concatenate[sqlite3.Connection, P], Result],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Call[Result]:
        """Queue `function(connection, ...)` for the database thread, behind everything queued before it.

        Args:
            ended: called when it has run; see `Call.ended`.
        """
        call: Call[Result] = Call(ended)
        connection = self._connection
        work: Coroutine[Any, Any, None] = connection._execute(  # type: ignore[no-untyped-call]
            call.run, partial(function, connection._conn, *args, **kwargs)
        )
        _step(self._loop, work).add_done_callback(call.arrive)
        work.close()  # its only step left is to return what its future has
        return call


@asynccontextmanager
async def open_database(path: Path) -> AsyncIterator[Database]:
    """Connect to a SQLite database without implicit transactions; close it at the end, whatever happens."""
    assert "trio_asyncio" not in sys.modules, "trio_asyncio replaces asyncio's loop and breaks this bridge"
    loop = _Loop(trio.lowlevel.current_trio_token())  # type: ignore[abstract]  # aiosqlite never asks for the rest
    connection = aiosqlite.connect(
        path,
        timeout=0,
        isolation_level=None,
        cached_statements=CACHED_STATEMENTS,
        # A copy in steps is made on another thread, while the database thread waits for it (`storage.sqlite.stepping`).
        check_same_thread=False,
    )
    # Ending the process without closing loses nothing that was promised, and the process must not hang on this thread.
    connection._thread.daemon = True

    async def connect() -> aiosqlite.Connection:
        return await connection

    # Shielded: a cancelled connect would leave its SQLite handle open. It does not wait on anything but the disk.
    with trio.CancelScope(shield=True):
        await _drive(loop, connect())
    try:
        yield Database(loop, connection)
    finally:
        with trio.CancelScope(shield=True):
            await _drive(loop, connection.close())
