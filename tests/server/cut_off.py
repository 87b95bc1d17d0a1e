"""WebSockets of clients whose connection may be cut off at any moment, also within the handshake."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from urllib.parse import urlencode

import trio
from trio_websocket import WebSocketConnection, wrap_client_stream


class Stream(trio.abc.Stream):
    """A stream that says when it has ended: trio-websocket waits forever for a handshake that is cut off."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self._stream = stream
        self.ended = trio.CancelScope()
        """Cancelled then."""

    async def send_all(self, data: bytes | bytearray | memoryview) -> None:
        try:
            await self._stream.send_all(data)
        except trio.BrokenResourceError:
            self.ended.cancel()
            raise

    async def wait_send_all_might_not_block(self) -> None:
        await self._stream.wait_send_all_might_not_block()

    async def receive_some(self, max_bytes: int | None = None) -> bytes | bytearray:
        data: bytes | bytearray = b""
        try:
            data = await self._stream.receive_some(max_bytes)
        finally:
            if not data:
                self.ended.cancel()
        return data

    async def aclose(self) -> None:
        await self._stream.aclose()


@asynccontextmanager
async def connected(
    url: str, diagnosis_id: object, parameters: Mapping[str, object], headers: Mapping[str, str]
) -> AsyncIterator[WebSocketConnection]:
    """A WebSocket at this server; `ConnectionResetError`: it was cut off before it was one."""
    host, port = url.removeprefix("http://").split(":")
    resource = f"/ws/{diagnosis_id}?{urlencode(parameters)}"
    async with await trio.open_tcp_stream(host, int(port)) as tcp, trio.open_nursery() as nursery:
        stream = Stream(tcp)
        with stream.ended:
            connection = await wrap_client_stream(
                nursery,
                stream,  # type: ignore[arg-type]
                host,
                resource,
                extra_headers=[(name.encode(), value.encode()) for name, value in headers.items()],
            )
        if stream.ended.cancelled_caught:
            nursery.cancel_scope.cancel()
            raise ConnectionResetError
        async with connection:
            yield connection
