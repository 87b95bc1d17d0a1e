"""The client on Trio and trio-websocket."""

from __future__ import annotations

import ssl
from collections.abc import Awaitable, Callable
from contextlib import AbstractAsyncContextManager, suppress
from typing import Final, Self, TypeVar
from urllib.parse import urlsplit

import trio
from trio_websocket import ConnectionClosed, ConnectionRejected, WebSocketConnection, wrap_client_stream
from wsproto.utilities import LocalProtocolError

from avicenna_live.closing import NOTHING_HEARD
from avicenna_live.core import Request
from avicenna_live.errors import Closed, Refused, Unreachable
from avicenna_live.shell import CLOSE_SECONDS_MAX, MESSAGE_BYTES_MAX, OPEN_SECONDS_MAX, Conversation

T = TypeVar("T")

RECEIVE_BYTES_MAX: Final = 64 * 1024
"""Most bytes of one read. Beyond: the next one."""

Stream = trio.SocketStream | trio.SSLStream[trio.SocketStream]


class TrioTask:
    """A function that runs in the background."""

    def __init__(self) -> None:
        # What cancels the app's own code must not cut a Close short: `TrioShell.stop` ends the task.
        self.scope = trio.CancelScope(shield=True)
        self.ended = trio.Event()

    def cancel(self) -> None:
        """End it at its next wait."""
        self.scope.cancel()


class TrioShell:
    """Trio and trio-websocket."""

    def __init__(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._manager: AbstractAsyncContextManager[trio.Nursery] = trio.open_nursery()
        self._nursery: trio.Nursery

    async def __aenter__(self) -> Self:
        self._nursery = await self._manager.__aenter__()
        return self

    async def __aexit__(self, *_: object) -> None:
        # No task is left to wait for. The nursery is not told what the app raised: it would wrap it in a group.
        await self._manager.__aexit__(None, None, None)

    def event(self) -> trio.Event:
        return trio.Event()

    async def checkpoint(self) -> None:
        await trio.lowlevel.checkpoint()

    def now(self) -> float:
        return trio.current_time()

    async def sleep(self, seconds: float) -> None:
        await trio.sleep(seconds)

    async def within(self, seconds: float, call: Callable[[], Awaitable[T]]) -> T:
        try:
            with trio.fail_after(seconds):
                return await call()
        except trio.TooSlowError:
            raise TimeoutError from None

    async def race(self, *calls: Callable[[], Awaitable[None]]) -> None:
        failures: list[Exception] = []

        async def run(call: Callable[[], Awaitable[None]]) -> None:
            try:
                await call()
            except Exception as error:  # noqa: BLE001 - raised below, outside of the group a nursery makes
                failures.append(error)
            nursery.cancel_scope.cancel()

        async with trio.open_nursery() as nursery:
            for call in calls:
                nursery.start_soon(run, call)
        if failures:
            raise failures[0]

    async def converse(self, url: str, request: Request, conversation: Conversation) -> None:
        deadline = trio.current_time() + OPEN_SECONDS_MAX
        try:
            with trio.fail_at(deadline):
                stream = await _open_stream(url)
        except trio.TooSlowError:
            raise Unreachable(f"no connection within {OPEN_SECONDS_MAX:.0f} s") from None
        except (OSError, trio.BrokenResourceError) as error:
            raise Unreachable(str(_innermost(error))) from None
        try:
            refused = await self._upgrade(stream, deadline, url, request, conversation)
        finally:
            # trio-websocket leaves the socket open after a Close that the server began.
            await trio.aclose_forcefully(stream)
        if refused is not None:
            raise refused

    async def _upgrade(
        self,
        stream: Stream,
        deadline: float,
        url: str,
        request: Request,
        conversation: Conversation,
    ) -> Refused | Unreachable | None:
        refused: Refused | Unreachable | None = None
        try:
            async with trio.open_nursery() as socket_nursery:
                watched = Watched(stream)
                with trio.CancelScope(deadline=deadline) as watched.opening:
                    connection = await wrap_client_stream(
                        socket_nursery,
                        watched,  # type: ignore[arg-type] # it takes any stream
                        urlsplit(url).netloc,
                        request.target,
                        extra_headers=[(name.encode(), value.encode()) for name, value in request.headers.items()],
                        max_message_size=MESSAGE_BYTES_MAX,
                        receive_buffer_size=RECEIVE_BYTES_MAX,
                    )
                if watched.opening.cancelled_caught:
                    ended = "the connection ended" if watched.ended else f"no answer within {OPEN_SECONDS_MAX:.0f} s"
                    refused = Unreachable(f"{ended} before an answer to the upgrade")
                else:
                    code = await conversation(TrioSocket(connection))
                    if code is not None:
                        with trio.move_on_after(CLOSE_SECONDS_MAX):
                            await connection.aclose(code)
                socket_nursery.cancel_scope.cancel()
        except* ConnectionRejected as group:
            rejected = _innermost(group)
            assert isinstance(rejected, ConnectionRejected)
            headers = dict(rejected.headers)
            refused = Refused(rejected.status_code, headers.get(b"retry-after", b"").decode("latin-1") or None)
        except* LocalProtocolError:
            # trio-websocket answers a Ping that it reads while it closes, and may not.
            pass
        return refused

    def start(self, call: Callable[[], Awaitable[None]]) -> TrioTask:
        task = TrioTask()
        self._nursery.start_soon(_run, task, call)
        return task

    async def stop(self, *tasks: TrioTask) -> None:
        with trio.CancelScope(shield=True):
            with trio.move_on_after(CLOSE_SECONDS_MAX):
                for task in tasks:
                    await task.ended.wait()
            for task in tasks:
                task.cancel()
                await task.ended.wait()

    def call_soon(self, call: Callable[[], object]) -> None:
        with suppress(trio.RunFinishedError):
            self._token.run_sync_soon(call)


async def _run(task: TrioTask, call: Callable[[], Awaitable[None]]) -> None:
    try:
        with task.scope:
            await call()
    finally:
        task.ended.set()


class TrioSocket:
    """One open WebSocket."""

    def __init__(self, connection: WebSocketConnection) -> None:
        self._connection = connection

    async def receive(self) -> str | bytes:
        try:
            return await self._connection.get_message()
        except ConnectionClosed as closed:
            raise _closed(closed) from None

    async def send(self, message: str) -> None:
        try:
            await self._connection.send_message(message)
        except ConnectionClosed as closed:
            raise _closed(closed) from None


def _closed(closed: ConnectionClosed) -> Closed:
    if closed.reason is None:
        return Closed(NOTHING_HEARD, "")
    return Closed(int(closed.reason.code), closed.reason.reason or "")


class Watched(trio.abc.Stream):
    """The stream to a server. If it ends before the upgrade is answered, `opening` ends: trio-websocket waits on."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self.opening = trio.CancelScope()
        self.ended = False

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            self._end()
            raise

    async def receive_some(self, max_bytes: int | None = None) -> bytes:
        try:
            received = bytes(await self._stream.receive_some(max_bytes))
        except trio.BrokenResourceError:
            self._end()
            raise
        if not received:
            self._end()
        return received

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def aclose(self) -> None:
        # trio-websocket closes the stream when the answer is none of HTTP.
        self._end()
        await self._stream.aclose()

    def _end(self) -> None:
        self.ended = True
        self.opening.cancel()


async def _open_stream(url: str) -> Stream:
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "http":
        return await trio.open_tcp_stream(host, parts.port or 80)
    context = ssl.create_default_context()
    stream = await trio.open_ssl_over_tcp_stream(host, parts.port or 443, https_compatible=True, ssl_context=context)
    try:
        await stream.do_handshake()
    except BaseException:
        await trio.aclose_forcefully(stream)
        raise
    return stream


def _innermost(error: BaseException) -> BaseException:
    """What really happened: Trio wraps the failures of all addresses it tried, and those of TLS."""
    while True:
        if isinstance(error, BaseExceptionGroup):
            error = error.exceptions[0]
        elif error.__cause__ is not None:
            error = error.__cause__
        else:
            return error
