"""The client on asyncio and websockets."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from typing import Final, Self, TypeVar

from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus

from avicenna_live.closing import NOTHING_HEARD
from avicenna_live.core import Request
from avicenna_live.errors import Closed, Refused, Unreachable
from avicenna_live.shell import CLOSE_SECONDS_MAX, MESSAGE_BYTES_MAX, OPEN_SECONDS_MAX, Conversation

T = TypeVar("T")

MESSAGES_READ_AHEAD_MAX: Final = 4
"""Messages that the library keeps. Beyond: it stops reading."""

LOGGER: Final = logging.getLogger("avicenna_live.websockets")
# In its debug messages the library writes headers and frames, and with them the token.
LOGGER.setLevel(logging.INFO)


class AsyncioShell:
    """asyncio and websockets."""

    def __init__(self) -> None:
        self._loop = asyncio.get_running_loop()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        pass

    def event(self) -> asyncio.Event:
        return asyncio.Event()

    async def checkpoint(self) -> None:
        await asyncio.sleep(0)

    def now(self) -> float:
        return self._loop.time()

    async def sleep(self, seconds: float) -> None:
        await asyncio.sleep(seconds)

    async def within(self, seconds: float, call: Callable[[], Awaitable[T]]) -> T:
        async with asyncio.timeout(seconds):
            return await call()

    async def race(self, *calls: Callable[[], Awaitable[None]]) -> None:
        tasks = [asyncio.ensure_future(call()) for call in calls]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        finally:
            await _cancelled(tasks)
        failures = [error for task in tasks if not task.cancelled() and (error := task.exception()) is not None]
        if failures:
            raise failures[0]

    async def converse(self, url: str, request: Request, conversation: Conversation) -> None:
        try:
            connection = await Connect(
                url.replace("http", "ws", 1) + request.target,
                additional_headers=request.headers,
                compression=None,
                proxy=None,
                open_timeout=OPEN_SECONDS_MAX,
                close_timeout=CLOSE_SECONDS_MAX,
                ping_interval=None,
                max_size=MESSAGE_BYTES_MAX,
                max_queue=MESSAGES_READ_AHEAD_MAX,
                logger=LOGGER,
            )
        except InvalidStatus as refused:
            response = refused.response
            raise Refused(response.status_code, response.headers.get("Retry-After")) from None
        except TimeoutError:
            raise Unreachable(f"no connection within {OPEN_SECONDS_MAX:.0f} s") from None
        except (OSError, InvalidHandshake) as error:
            raise Unreachable(str(error) or type(error).__name__) from None
        try:
            code = await conversation(AsyncioSocket(connection))
            if code is not None:
                with suppress(TimeoutError):
                    async with asyncio.timeout(CLOSE_SECONDS_MAX):
                        await connection.close(code)
        finally:
            connection.transport.abort()

    def start(self, call: Callable[[], Awaitable[None]]) -> asyncio.Future[None]:
        return asyncio.ensure_future(call())

    async def stop(self, *tasks: asyncio.Future[None]) -> None:
        deadline = self._loop.time() + CLOSE_SECONDS_MAX
        interrupted: asyncio.CancelledError | None = None
        while (seconds := deadline - self._loop.time()) > 0 and not all(task.done() for task in tasks):
            try:
                await asyncio.wait(tasks, timeout=seconds)
            except asyncio.CancelledError as error:
                interrupted = error
        await _cancelled(tasks)
        if interrupted is not None:
            raise interrupted

    def call_soon(self, call: Callable[[], object]) -> None:
        with suppress(RuntimeError):  # the loop is closed
            self._loop.call_soon_threadsafe(call)


async def _cancelled(tasks: Iterable[asyncio.Future[None]]) -> None:
    """Cancel tasks and wait until they have ended. Cancellation: waits until then."""
    interrupted: asyncio.CancelledError | None = None
    pending = [task for task in tasks if not task.done()]
    for task in pending:
        task.cancel()
    while not all(task.done() for task in pending):
        try:
            await asyncio.wait(pending)
        except asyncio.CancelledError as error:
            interrupted = error
    if interrupted is not None:
        raise interrupted


class Connect(connect):
    """websockets' `connect` without redirects: what answers must be the server that was named."""

    def process_redirect(self, exc: Exception) -> Exception | str:
        return exc


class AsyncioSocket:
    """One open WebSocket."""

    def __init__(self, connection: ClientConnection) -> None:
        self._connection = connection

    async def receive(self) -> str | bytes:
        try:
            return await self._connection.recv()
        except ConnectionClosed as closed:
            raise _closed(closed) from None

    async def send(self, message: str) -> None:
        try:
            await self._connection.send(message)
        except ConnectionClosed as closed:
            raise _closed(closed) from None


def _closed(closed: ConnectionClosed) -> Closed:
    if closed.rcvd is None:
        return Closed(NOTHING_HEARD, "")
    return Closed(closed.rcvd.code, closed.rcvd.reason)
