"""A keep-alive HTTP connection and a WebSocket that can be cut at any byte.

httpx and trio_websocket leave warnings behind when their peer is killed.
"""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import h11
import trio
from wsproto import ConnectionType, WSConnection
from wsproto.events import AcceptConnection, Event, Request, TextMessage
from wsproto.utilities import RemoteProtocolError

READ_BYTES: Final = 64 * 1024
ANSWER_SECONDS_MAX: Final = 60


class Cut(Exception):
    """The server went away before it had answered."""


class Connection:
    """Sends a request and waits for its answer, one at a time."""

    def __init__(self, stream: trio.SocketStream, headers: Mapping[str, str]) -> None:
        """Talk over `stream`, with these headers in every request."""
        self._stream = stream
        self._headers = {"Host": "localhost", **headers}
        self._http = h11.Connection(h11.CLIENT)

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of the answer.

        Raises:
            Cut: the server went away.
        """
        content = b"" if body is None else json.dumps(body).encode()
        fields = self._headers | headers | {"Content-Length": str(len(content))}
        if body is not None:
            fields["Content-Type"] = "application/json"
        request = h11.Request(method=method, target=path, headers=list(fields.items()))
        sent = (self._http.send(request), self._http.send(h11.Data(content)), self._http.send(h11.EndOfMessage()))
        try:
            with trio.fail_after(ANSWER_SECONDS_MAX):
                await self._stream.send_all(b"".join(piece for piece in sent if piece))
                return await self._answer()
        except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            raise Cut from error

    async def _answer(self) -> tuple[int, Any]:
        status, content = 0, b""
        while True:
            match self._http.next_event():
                case h11.NEED_DATA:
                    self._http.receive_data(await self._stream.receive_some(READ_BYTES))
                case h11.Response(status_code=status):
                    pass
                case h11.Data(data=data):
                    content += data
                case h11.EndOfMessage():
                    if self._http.our_state is h11.DONE:  # else the server closes: this was the last answer
                        self._http.start_next_cycle()
                    return status, json.loads(content)
                case _:
                    raise Cut


class Follower:
    """A WebSocket."""

    def __init__(self, stream: trio.SocketStream) -> None:
        """Talk over `stream`."""
        self._stream = stream
        self._link = WSConnection(ConnectionType.CLIENT)
        self._received = self._link.events()

    async def upgrade(self, path: str, headers: Mapping[str, str]) -> None:
        """Ask for the WebSocket.

        Raises:
            Cut: the server went away, or refuses.
        """
        named = [(name.encode(), value.encode()) for name, value in headers.items()]
        await self._send(Request(host="localhost", target=path, extra_headers=named))
        if not isinstance(await self._next(), AcceptConnection):
            raise Cut

    async def send(self, text: str) -> None:
        """Send a text.

        Raises:
            Cut: the server went away.
        """
        await self._send(TextMessage(data=text))

    async def until(self, kind: str) -> None:
        """Wait for a frame of this type.

        Raises:
            Cut: the server went away.
        """
        while True:
            match await self._next():
                case TextMessage(data=text, message_finished=True):
                    if json.loads(text)["type"] == kind:
                        return
                case _:
                    raise Cut

    async def _send(self, event: Event) -> None:
        try:
            await self._stream.send_all(self._link.send(event))
        except trio.BrokenResourceError as error:
            raise Cut from error

    async def _next(self) -> Event:
        try:
            with trio.fail_after(ANSWER_SECONDS_MAX):
                while (event := next(self._received, None)) is None:
                    data = await self._stream.receive_some(READ_BYTES)
                    if not data:
                        raise Cut
                    self._link.receive_data(data)
                    self._received = self._link.events()
                return event
        except (trio.BrokenResourceError, RemoteProtocolError) as error:
            raise Cut from error


@asynccontextmanager
async def following(port: int, path: str, headers: Mapping[str, str]) -> AsyncIterator[Follower]:
    """A WebSocket to a server of this machine.

    Raises:
        Cut: nobody listens, or the server refuses.
    """
    async with _stream(port) as stream:
        follower = Follower(stream)
        await follower.upgrade(path, headers)
        yield follower


@asynccontextmanager
async def connected(port: int, headers: Mapping[str, str]) -> AsyncIterator[Connection]:
    """A connection to a server of this machine.

    Raises:
        Cut: nobody listens.
    """
    async with _stream(port) as stream:
        yield Connection(stream, headers)


@asynccontextmanager
async def _stream(port: int) -> AsyncIterator[trio.SocketStream]:
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError as error:
        raise Cut from error
    try:
        yield stream
    finally:
        await trio.aclose_forcefully(stream)
