"""A peer that sends bytes, and an edge around an application of the test."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

import trio
import trio.testing
from hypercorn.typing import ASGIFramework

from web.http.line import Patience
from web.http.listening import listen_on_tcp
from web.http.serving import Terms, serve

ANSWER_SECONDS_MAX = 60
"""Longest wait for a server that is served last by a busy machine."""

KEY = b"dGhlIHNhbXBsZSBub25jZQ=="


def request(target: bytes = b"/", method: bytes = b"GET", body: bytes | None = None, **headers: bytes) -> bytes:
    """A proper request; underscores in names of headers are dashes."""
    lines = [b"%b %b HTTP/1.1" % (method, target), b"Host: test"]
    if body is not None:
        lines.append(b"Content-Length: %d" % len(body))
    lines += [b"%b: %b" % (name.replace("_", "-").encode(), value) for name, value in headers.items()]
    return b"\r\n".join((*lines, b"", body or b""))


def upgrade(target: bytes = b"/ws/42", *, without: str = "", **headers: bytes) -> bytes:
    """A WebSocket handshake with these headers in place of, or beside, the proper ones."""
    proper = {
        "Upgrade": b"websocket",
        "Connection": b"Upgrade",
        "Sec_WebSocket_Key": KEY,
        "Sec_WebSocket_Version": b"13",
    }
    kept = {name: value for name, value in (proper | headers).items() if name != without}
    return request(target, **kept)


class Answer:
    """One answer of the server."""

    def __init__(self, head: bytes, body: bytes) -> None:
        first, *lines = head.decode("latin1").split("\r\n")
        self.status = int(first.split(" ")[1])
        self.headers = {name.lower(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
        self.body = body

    @property
    def problem(self) -> dict[str, Any]:
        """The problem document."""
        assert self.headers["content-type"] == "application/problem+json"
        assert self.headers["x-content-type-options"] == "nosniff"
        assert self.headers["cache-control"] == "no-store"
        found: dict[str, Any] = json.loads(self.body)
        assert found["status"] == self.status
        return found


class Peer:
    """One connection to a server."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self._read = b""

    async def send(self, data: bytes) -> None:
        """Send bytes."""
        await self.stream.send_all(data)

    async def answer(self, *, has_body: bool = True) -> Answer:
        """The next answer."""
        with trio.fail_after(ANSWER_SECONDS_MAX):
            while b"\r\n\r\n" not in self._read:
                await self._more()
            head, _, self._read = self._read.partition(b"\r\n\r\n")
            answer = Answer(head, b"")
            length = int(answer.headers.get("content-length", "0")) if has_body else 0
            while len(self._read) < length:
                await self._more()
            answer.body, self._read = self._read[:length], self._read[length:]
        return answer

    async def end(self) -> bytes:
        """What comes until the server closes."""
        with trio.fail_after(ANSWER_SECONDS_MAX):
            try:
                while True:
                    await self._more()
            except EOFError:
                return self._read

    async def _more(self) -> None:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        if not data:
            raise EOFError
        self._read += data

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await trio.aclose_forcefully(self.stream)


async def connect(url: str) -> Peer:
    """A connection to the server at this URL."""
    where = urlsplit(url)
    assert where.hostname is not None
    with trio.fail_after(ANSWER_SECONDS_MAX):
        return Peer(await trio.open_tcp_stream(where.hostname, where.port or 80))


async def ask(url: str, data: bytes) -> tuple[Answer, bytes]:
    """The answer to these bytes, and what comes behind it until the server closes."""
    async with await connect(url) as peer:
        await peer.send(data)
        return await peer.answer(), await peer.end()


class EdgeUnderTest:
    """A running edge."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.stopping = trio.Event()
        self.ended = trio.Event()


@asynccontextmanager
async def running_edge(
    app: ASGIFramework, *, send_buffer_bytes: int | None = None, **terms: Any
) -> AsyncIterator[EdgeUnderTest]:
    """An edge with a short patience on a free port, drained at the end."""
    patience = Patience(idle_seconds=terms.pop("idle_seconds", 10.0), **terms.pop("patience", {}))
    defaults: dict[str, Any] = {
        "connections_max": 1000,
        "drain_seconds_max": 5.0,
        "patience": patience,
    }
    listener = listen_on_tcp("127.0.0.1", 0)
    if send_buffer_bytes is not None:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, send_buffer_bytes)
    edge = EdgeUnderTest(f"http://127.0.0.1:{listener.getsockname()[1]}")
    async with trio.open_nursery() as edge_nursery:

        async def run(task_status: trio.TaskStatus[None]) -> None:
            stop = edge.stopping.wait
            await serve(app, [listener], Terms(**defaults | terms), stop=stop, task_status=task_status)
            edge.ended.set()

        await edge_nursery.start(run)
        await trio.testing.wait_all_tasks_blocked()
        try:
            yield edge
        finally:
            edge.stopping.set()


def open_descriptors() -> int:
    """How many files this process has open."""
    return len(list(Path("/proc/self/fd").iterdir()))


def living_tasks() -> int:
    """How many tasks Trio runs."""
    return trio.lowlevel.current_statistics().tasks_living
