"""A request whose head has been judged while its body is still on the way."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from typing import Any

import h11
import pytest
import trio

from tests.server.harness import Server
from web.http.one_task import LeanRequest
from web.http.short_way import PlainBody

AHEAD_BYTES = 5
"""So much of a body comes with the head."""


@dataclass(frozen=True)
class Answered:
    """What a request was answered."""

    status: int
    body: bytes

    @property
    def json(self) -> dict[str, Any]:
        found: dict[str, Any] = json.loads(self.body)
        return found

    @property
    def lines(self) -> list[dict[str, Any]]:
        """The results of a bulk request."""
        return [json.loads(line) for line in self.body.splitlines()]


class Travelling:
    """The rest of a body, and the answer behind it."""

    def __init__(self, stream: trio.abc.Stream, rest: bytes) -> None:
        self._stream = stream
        self._rest = rest

    async def arrive(self) -> Answered:
        """Send the rest, and read the answer."""
        await self._stream.send_all(self._rest)
        reader = h11.Connection(h11.CLIENT)
        reader.send(h11.Request(method="POST", target="/", headers=[("Host", "stand-in")]))
        reader.send(h11.EndOfMessage())
        status, body = 0, b""
        with trio.fail_after(20):
            while not isinstance(event := reader.next_event(), h11.EndOfMessage):
                if event is h11.NEED_DATA:
                    reader.receive_data(bytes(await self._stream.receive_some()))
                elif isinstance(event, h11.Response):
                    status = event.status_code
                elif isinstance(event, h11.Data):
                    body += event.data
        return Answered(status, body)


class Arrivals:
    """Tells when routes ask for bodies: then they have judged the head."""

    def __init__(self) -> None:
        self.count = 0
        self._changed = trio.Event()

    def note(self) -> None:
        self.count += 1
        self._changed.set()
        self._changed = trio.Event()

    async def until(self, count: int) -> None:
        with trio.fail_after(10):
            while self.count < count:
                await self._changed.wait()


@contextmanager
def noted_arrivals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arrivals]:
    """Watch the routes of the servers of this process."""
    arrivals = Arrivals()

    def noted(receive: Callable[..., Awaitable[bytes]]) -> Callable[..., Awaitable[bytes]]:
        async def receive_body(*args: Any) -> bytes:
            arrivals.note()
            return await receive(*args)

        return receive_body

    with monkeypatch.context() as patch:
        for way in (LeanRequest, PlainBody):
            patch.setattr(way, "receive_body", noted(way.receive_body))
        yield arrivals


@asynccontextmanager
async def travelling(
    server: Server, arrivals: Arrivals, method: str, path: str, body: bytes, token: str, **headers: str
) -> AsyncIterator[Travelling]:
    """Send the head and the first bytes of the body, and wait until the route waits for the rest."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    given = {
        "Host": host,
        "Content-Type": "application/json",
        "Content-Length": str(len(body)),
        "Authorization": f"Bearer {token}",
    } | {name.replace("_", "-"): value for name, value in headers.items()}
    head = f"{method} {path} HTTP/1.1\r\n" + "".join(f"{name}: {value}\r\n" for name, value in given.items())
    expected = arrivals.count + 1
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(head.encode() + b"\r\n" + body[:AHEAD_BYTES])
        await arrivals.until(expected)
        yield Travelling(stream, body[AHEAD_BYTES:])
