"""The network between simulated clients and a server: bytes take their time, and a connection fails as it is told.

A server has real sockets, of the kernel this runs on; the client's end of each is here. All of it happens in one
thread, so what the kernel says, and in which order, depends on what both ends did before, and on nothing else.
"""

from __future__ import annotations

import json
import socket
from collections import deque
from collections.abc import Callable, Mapping
from contextlib import suppress
from math import inf
from pathlib import Path
from random import Random
from typing import Any, Final

import trio

from tests.edge.raw import CLOSE, PING, PONG, TEXT, client_frame

DELAYS: Final = (0.0, 0.0, 0.001, 0.02, 0.3)
"""Seconds that bytes travel, as often the one as the other."""


class Link:
    """The client's end of one connection. Bytes keep their order."""

    def __init__(self, address: Path, nursery: trio.Nursery, lots: Random) -> None:
        """Connect.

        Raises:
            OSError: nobody listens.
        """
        self._sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._sock.setblocking(False)
        try:
            self._sock.connect(str(address))
        except OSError:
            self._sock.close()
            raise
        self._lots = lots
        self._unsent: deque[bytes] = deque()
        self._travelling = b""
        """What has left the server, and has not arrived."""
        self._changed = trio.Event()
        self._flows = trio.Event()
        self._flows.set()
        self.all_sent_at = -inf
        """When the last that was to be sent had reached the server."""
        self.is_over = False
        """Nothing more comes."""
        self.over = trio.Event()
        self.hears: Callable[[bytes], object] = lambda data: None
        """Is given what comes."""
        nursery.start_soon(self._read)
        nursery.start_soon(self._write)

    def send(self, data: bytes) -> None:
        """Have some bytes travel to the server."""
        self._unsent.append(data)
        self._changed.set()

    @property
    def has_sent_all(self) -> bool:
        """Nothing is still to be sent."""
        return not self._unsent

    @property
    def flows(self) -> bool:
        """Nothing holds it up."""
        return self._flows.is_set()

    def stop_flow(self) -> None:
        """Let nothing through, either way: a client that reads nothing, or a network that has gone quiet."""
        if not self.is_over and self._flows.is_set():
            self._flows = trio.Event()

    def flow(self) -> None:
        """Let everything through again."""
        self._flows.set()

    def half_close(self) -> None:
        """The client has nothing more to say, and listens."""
        with suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    def cut(self) -> None:
        """The connection is gone, for both ends."""
        if not self.is_over:
            self.is_over = True
            self.over.set()
            if self._sock.fileno() >= 0:
                trio.lowlevel.notify_closing(self._sock)
                self._sock.close()
            self._flows.set()
            self._changed.set()

    def lose_server(self, *, hears_rest: bool) -> None:
        """The server's process is gone; what its kernel had taken from it may still arrive."""
        if hears_rest and not self.is_over and self._flows.is_set():
            self._arrive()
            with suppress(OSError):
                while data := self._sock.recv(1 << 16):
                    self.hears(data)
        self.cut()

    async def _read(self) -> None:
        while True:
            await self._flows.wait()
            if self.is_over:  # Trio remembers whoever waits for a socket that is closed, and refuses the next one
                break
            try:
                await trio.lowlevel.wait_readable(self._sock)
                if not self._flows.is_set():
                    continue
                data = self._sock.recv(1 << 14)
            except (OSError, ValueError, trio.ClosedResourceError):
                break
            if not data:
                break
            self._travelling = data
            await trio.sleep(self._lots.choice(DELAYS))
            await self._flows.wait()
            if not self.is_over:
                self._arrive()
        self.cut()

    def _arrive(self) -> None:
        data, self._travelling = self._travelling, b""
        if data:
            self.hears(data)

    async def _write(self) -> None:
        while not self.is_over:
            if not self._unsent:
                self._changed = trio.Event()
                await self._changed.wait()
                continue
            await trio.sleep(self._lots.choice(DELAYS))
            await self._flows.wait()
            data = self._unsent.popleft()
            try:
                while data:
                    try:
                        data = data[self._sock.send(data) :]
                    except BlockingIOError:
                        await trio.lowlevel.wait_writable(self._sock)
            except (OSError, ValueError, trio.ClosedResourceError):
                return
            if not self._unsent:
                self.all_sent_at = trio.current_time()


class Answer:
    """The answer to one request, as far as it has come."""

    def __init__(self) -> None:
        self.data = b""
        self.status: int | None = None
        """Once the answer is whole."""
        self.body = b""

    def hear(self, data: bytes) -> None:
        """Take what came."""
        self.data += data
        head, end, rest = self.data.partition(b"\r\n\r\n")
        if not end:
            return
        lines = head.split(b"\r\n")
        headers = dict(line.lower().split(b": ", 1) for line in lines[1:])
        if b"content-length" in headers:
            length = int(headers[b"content-length"])
            if len(rest) < length:
                return
            self.body = rest[:length]
        elif headers.get(b"transfer-encoding") == b"chunked":
            body = _dechunked(rest)
            if body is None:
                return
            self.body = body
        self.status = int(lines[0].split()[1])

    def json(self) -> Any:
        """What its body says."""
        return json.loads(self.body)


def _dechunked(data: bytes) -> bytes | None:
    found = b""
    while True:
        size, end, data = data.partition(b"\r\n")
        if not end:
            return None
        length = int(size, 16)
        if len(data) < length + 2:
            return None
        if not length:
            return found
        found, data = found + data[:length], data[length + 2 :]


def request(method: str, target: str, token: str, body: bytes | None, headers: Mapping[str, str]) -> bytes:
    """A request, as plain clients send it."""
    lines = [f"{method} {target} HTTP/1.1", "Host: sim", f"Authorization: Bearer {token}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    if body is not None:
        lines.append(f"Content-Length: {len(body)}")
    return "\r\n".join((*lines, "", "")).encode() + (body or b"")


HANDSHAKE: Final = {
    "Upgrade": "websocket",
    "Connection": "Upgrade",
    "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
    "Sec-WebSocket-Version": "13",
}


class Frames:
    """Takes a WebSocket's answer and frames apart."""

    def __init__(self) -> None:
        self._data = bytearray()
        self.status: int | None = None

    def hear(self, data: bytes) -> list[tuple[int, bytes]]:
        """The whole frames that these bytes complete: opcode and payload."""
        self._data += data
        if self.status is None:
            head, end, rest = bytes(self._data).partition(b"\r\n\r\n")
            if not end:
                return []
            self.status = int(head.split()[1])
            self._data = bytearray(rest)
        found = []
        have = self._data
        while self.status == 101 and len(have) >= 2:
            length, at = have[1], 2
            if length == 126:
                length, at = int.from_bytes(have[2:4], "big"), 4
            elif length == 127:
                length, at = int.from_bytes(have[2:10], "big"), 10
            if len(have) < at + length:
                break
            found.append((have[0] & 15, bytes(have[at : at + length])))
            del have[: at + length]
        return found


class Messages:
    """Takes the answer to a request for an event stream apart."""

    def __init__(self) -> None:
        self._data = b""
        self._text = b""
        self._is_chunked = False
        self._length = 0
        self.status: int | None = None
        self.problem: dict[str, Any] | None = None
        """What is said in place of a stream, once it has come."""

    def hear(self, data: bytes) -> list[tuple[bytes, bytes]]:
        """The whole messages that these bytes complete: id and data."""
        self._data += data
        if self.status is None:
            head, end, rest = self._data.partition(b"\r\n\r\n")
            if not end:
                return []
            self.status, self._data = int(head.split()[1]), rest
            headers = dict(line.lower().split(b": ", 1) for line in head.split(b"\r\n")[1:])
            self._is_chunked = headers.get(b"transfer-encoding") == b"chunked"
            self._length = int(headers.get(b"content-length", b"0"))
        if not self._is_chunked:
            if self.status != 200 and len(self._data) >= self._length:
                self.problem = json.loads(self._data)
            return []
        while True:
            size, end, rest = self._data.partition(b"\r\n")
            if not end or len(rest) < int(size, 16) + 2:
                break
            self._text += rest[: int(size, 16)]
            self._data = rest[int(size, 16) + 2 :]
        found = []
        while b"\n\n" in self._text:
            message, _, self._text = self._text.partition(b"\n\n")
            fields = dict(line.split(b": ", 1) for line in message.split(b"\n") if b": " in line)
            if b"data" in fields:
                found.append((fields.get(b"id", b""), fields[b"data"]))
        return found


def text(frame: object) -> bytes:
    """A client's message."""
    return client_frame(TEXT, json.dumps(frame).encode())


def pong(payload: bytes) -> bytes:
    """The answer to a Ping."""
    return client_frame(PONG, payload)


def close(payload: bytes) -> bytes:
    """A client's Close."""
    return client_frame(CLOSE, payload)


__all__ = [
    "CLOSE",
    "HANDSHAKE",
    "PING",
    "TEXT",
    "Answer",
    "Frames",
    "Link",
    "Messages",
    "close",
    "pong",
    "request",
    "text",
]
