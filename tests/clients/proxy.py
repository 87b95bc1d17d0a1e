"""A network that fails: it stands between one client and the server, and does to what they send as it is told."""

from __future__ import annotations

import contextlib
import socket
import struct
from collections.abc import Awaitable, Callable
from typing import Final

import trio

CHUNK_BYTES: Final = 64 * 1024

BUFFER_BYTES: Final = 64 * 1024
"""Of each socket, each way. Reason: the server soon feels a client that does not read."""

DELAY_SECONDS: Final = 0.3

HEAD_BYTES_MAX: Final = 64 * 1024

FULL: Final = b"HTTP/1.1 503 Service Unavailable\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"

RESET: Final = struct.pack("ii", 1, 0)
"""SO_LINGER, on, with no time: the socket is closed with RST."""


class FaultProxy:
    """Listens on a port of its own. Each method is one fault of the table, whose name has spaces there."""

    def __init__(self, nursery: trio.Nursery, server_port: Callable[[], int]) -> None:
        """Accept and forward in `nursery`, until it is cancelled.

        Args:
            server_port: where the server listens now, or did.
        """
        self._server_port = server_port
        self._nursery = nursery
        self._links: set[Link] = set()
        self._newcomer: Callable[[trio.SocketStream], Awaitable[None]] = self._forward
        self._delay_seconds = 0.0
        self._socket = _bound(0)
        self._port: int = self._socket.getsockname()[1]
        self._accepting: trio.CancelScope | None = None
        self.url = f"http://127.0.0.1:{self._port}"
        self.through()

    def through(self) -> None:
        """From now on everything passes; what was lost stays lost."""
        self._newcomer, self._delay_seconds = self._forward, 0.0
        for link in self._links:
            link.delay_seconds = 0.0
        if self._accepting is None:
            self._socket.listen()
            self._accepting = trio.CancelScope()
            self._nursery.start_soon(self._accept, self._accepting)

    def cut(self) -> None:
        """Reset every connection, on both sides."""
        for link in self._links:
            link.reset()

    def refuse(self) -> None:
        """Refuse new connections, as a machine does on which nobody listens."""
        if self._accepting is not None:
            self._accepting.cancel()
            self._accepting = None
            self._socket.close()
            self._socket = _bound(self._port)

    def answer_503(self) -> None:
        """Answer new connections as a server does that is full."""
        self._newcomer = _answer_503

    def accept_and_say_nothing(self) -> None:
        """Accept new connections, and let nothing through."""
        self._newcomer = _say_nothing

    def delay(self) -> None:
        """Deliver everything later, each way."""
        self._delay_seconds = DELAY_SECONDS
        for link in self._links:
            link.delay_seconds = DELAY_SECONDS

    def black_hole(self) -> None:
        """Lose everything on the connections there are, each way, even their end."""
        for link in self._links:
            link.loses_from_client = link.loses_from_server = True

    def lose_what_the_client_sends(self) -> None:
        """Lose everything on the connections there are, on its way to the server."""
        for link in self._links:
            link.loses_from_client = True

    def end_towards_client(self) -> None:
        """Half close: the client hears that the server has ended; the server hears nothing."""
        for link in self._links:
            link.shut(link.client)

    def end_towards_server(self) -> None:
        """Half close: the server hears that the client has ended; the client hears nothing."""
        for link in self._links:
            link.shut(link.server)

    def close(self) -> None:
        """Stop listening; what is left of the connections ends with the nursery."""
        if self._accepting is not None:
            self._accepting.cancel()
        self._socket.close()

    async def _accept(self, accepting: trio.CancelScope) -> None:
        listener = trio.SocketListener(self._socket)
        # A connection that arrives in the turn of `refuse` has woken this task: it finds the socket closed.
        with accepting, contextlib.suppress(trio.ClosedResourceError):
            while True:
                self._nursery.start_soon(self._serve, await listener.accept())

    async def _serve(self, client: trio.SocketStream) -> None:
        async with client:
            with contextlib.suppress(trio.BrokenResourceError):
                await self._newcomer(client)

    async def _forward(self, client: trio.SocketStream) -> None:
        try:
            server = await trio.open_tcp_stream("127.0.0.1", self._server_port())
        except OSError:
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            return
        async with server:
            link = Link(client, server, self._delay_seconds)
            self._links.add(link)
            await link.run()
            self._links.remove(link)  # before a side is closed: faults are done to open ones


class Link:
    """One connection of the client, and the one to the server that belongs to it."""

    def __init__(self, client: trio.SocketStream, server: trio.SocketStream, delay_seconds: float) -> None:
        self.client = client
        self.server = server
        self.delay_seconds = delay_seconds
        self.loses_from_client = False
        self.loses_from_server = False
        self._shut: set[trio.SocketStream] = set()
        """Sides that were told that there will be no more."""
        self._scope = trio.CancelScope()

    async def run(self) -> None:
        """Forward until both sides have ended, or one has failed."""
        with self._scope:
            async with trio.open_nursery() as pumps_nursery:
                pumps_nursery.start_soon(self._pump, self.client, self.server, lambda: self.loses_from_client)
                pumps_nursery.start_soon(self._pump, self.server, self.client, lambda: self.loses_from_server)

    def reset(self) -> None:
        """End both sides with RST."""
        for stream in (self.client, self.server):
            stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
        self._scope.cancel()

    def shut(self, sink: trio.SocketStream) -> None:
        """Send the end of the stream to one side, and nothing after it."""
        self._shut.add(sink)
        sink.socket.shutdown(socket.SHUT_WR)

    async def _pump(self, source: trio.SocketStream, sink: trio.SocketStream, loses: Callable[[], bool]) -> None:
        try:
            while (chunk := await source.receive_some(CHUNK_BYTES)) or loses():
                await trio.sleep(self.delay_seconds)
                if loses() and not chunk:
                    await trio.sleep_forever()
                if not loses() and sink not in self._shut:
                    await sink.send_all(chunk)
            if sink not in self._shut:
                await sink.send_eof()
        except (trio.BrokenResourceError, trio.ClosedResourceError):
            if loses():
                await trio.sleep_forever()
            self.reset()


async def _answer_503(client: trio.SocketStream) -> None:
    head = b""
    while b"\r\n\r\n" not in head and len(head) < HEAD_BYTES_MAX:
        chunk = bytes(await client.receive_some())
        if not chunk:
            return
        head += chunk
    await client.send_all(FULL)


async def _say_nothing(client: trio.SocketStream) -> None:
    await trio.sleep_forever()


def _bound(port: int) -> trio.socket.SocketType:
    """A socket that has the port, and does not listen yet."""
    bound = socket.socket()
    bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    for buffer in (socket.SO_RCVBUF, socket.SO_SNDBUF):
        bound.setsockopt(socket.SOL_SOCKET, buffer, BUFFER_BYTES)
    bound.bind(("127.0.0.1", port))
    return trio.socket.from_stdlib_socket(bound)
