"""What a client says on its connections, step by step, and what it hears: bytes, and how each connection ends.

A conversation is a tuple of steps. Bytes are sent as one packet: the server has read a packet, and has nothing more to
do at once, before the next one is sent. Behind the last step every connection that is still open is asked for the
server's health, ended on the client's side, and read to its end. So no wait stands for "the server will say nothing
more": what it does with that question shows whether the connection stays open.
"""

from __future__ import annotations

import contextlib
import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Final

import trio

from tests.differential.clock import StandingClock

PROBE: Final = b"GET /healthz HTTP/1.1\r\nHost: probe.test\r\n\r\n"

SECONDS_MAX: Final = 20.0
"""For a connection to end, and for what a step waits for. Beyond: this is what was heard."""


@dataclass(frozen=True)
class Until:
    """Wait until these bytes have come so often, or the connection has ended."""

    words: bytes
    times: int = 1


@dataclass(frozen=True)
class End:
    """Send no more; the other direction stays open."""


@dataclass(frozen=True)
class Closed:
    """Wait until the server has ended the connection by itself."""


@dataclass(frozen=True)
class Leave:
    """Close the connection at once, without reading the rest."""


@dataclass(frozen=True)
class Connect:
    """Go on over another connection; the earlier ones stay."""


@dataclass(frozen=True)
class Wait:
    """Let so many seconds of the server's clock go by."""

    seconds: float


Step = bytes | Until | End | Closed | Leave | Connect | Wait
Steps = tuple[Step, ...]

END: Final = End()
CLOSED: Final = Closed()
LEAVE: Final = Leave()
CONNECT: Final = Connect()
ANSWER: Final = Until(b"HTTP/1.1 ")
LIVE: Final = Until(b'"type":"live"')


@dataclass
class Heard:
    """What came over one connection."""

    received: bytearray = field(default_factory=bytearray)
    end: str = "none"
    """`closed` (FIN), `reset`, `left` by the client, or `none` within the time there is."""

    def shown(self) -> tuple[str, str]:
        """What came, comparable, and how it ended."""
        return comparable(bytes(self.received)), self.end


_HEAD: Final = re.compile(rb"HTTP/1\.[01] ([0-9]{3})[^\r\n]*\r\n((?:[^\r\n]+\r\n)*)\r\n")
_STATUS: Final = re.compile(
    rb'(content-length: )[0-9]+(\r\n(?:[^\r\n]+\r\n)*\r\n)(\{[^\n]*?"uptime_seconds":[0-9.]+)', re.IGNORECASE
)
_SECONDS: Final = re.compile(rb'(_seconds":)[0-9.]+')


_WAYS: Final = re.compile(rb'"requests":\{"short":([0-9]+),"long":([0-9]+)\}')


def _shown_status(status: re.Match[bytes]) -> bytes:
    """A status without what it says about time; of the ways it keeps the sum."""
    shown = _SECONDS.sub(rb"\1...", status[3])
    shown = _WAYS.sub(lambda ways: b'"requests":%d' % (int(ways[1]) + int(ways[2])), shown)
    return b"".join((status[1], b"...", status[2], shown))


def comparable(received: bytes) -> str:
    """Answers with the lines of each head in order, without what is another each time: `Date`, and the id."""

    def head(found: re.Match[bytes]) -> bytes:
        fields = []
        for line in found[2].splitlines():
            name, _, value = line.partition(b":")
            name = name.lower()
            if name != b"date":
                fields.append(name + b": " + (b"..." if name == b"x-request-id" else value.strip()))
        return b"\n".join((b"\n<" + found[1] + b">", *sorted(fields), b"", b""))

    return _HEAD.sub(head, _STATUS.sub(_shown_status, received)).decode("latin-1")


class _Wire:
    """One connection, read as long as it lasts."""

    def __init__(self, stream: trio.SocketStream) -> None:
        self.stream = stream
        self.heard = Heard()
        self.is_over = False
        self.is_ended_here = False
        self._news = trio.lowlevel.ParkingLot()

    async def read(self) -> None:
        """Keep what comes, until the end."""
        while not self.is_over:
            try:
                data = await self.stream.receive_some(65536)
            except trio.BrokenResourceError:
                self._over("reset")
            except trio.ClosedResourceError:
                self._over("left")
            else:
                if data:
                    self.heard.received += data
                else:
                    self._over("closed")
            self._news.unpark_all()

    def _over(self, how: str) -> None:
        self.heard.end, self.is_over = how, True

    async def send(self, data: bytes) -> None:
        """Send, if the server still takes it."""
        if not (self.is_over or self.is_ended_here):
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError):
                await self.stream.send_all(data)

    async def until(self, words: bytes, times: int) -> None:
        """Return when these bytes have come so often, or nothing more can come."""
        with trio.move_on_after(SECONDS_MAX):
            while self.heard.received.count(words) < times and not self.is_over:
                await self._news.park()

    async def end(self) -> None:
        """Send no more."""
        if not (self.is_over or self.is_ended_here):
            self.is_ended_here = True
            with contextlib.suppress(trio.BrokenResourceError, trio.ClosedResourceError, OSError):
                await self.stream.send_eof()

    async def over(self) -> None:
        """Return when the server has ended the connection."""
        with trio.move_on_after(SECONDS_MAX):
            while not self.is_over:
                await self._news.park()


async def hold(
    port: int, steps: Sequence[Step], clock: StandingClock, settled: Callable[[], Awaitable[None]]
) -> list[Heard]:
    """Hold a conversation with the server at this port of this machine; what each connection heard.

    Args:
        settled: returns when the server has nothing more to do at once.
    """
    wires: list[_Wire] = []

    async with trio.open_nursery() as readers:

        async def connect() -> _Wire:
            wire = _Wire(await trio.open_tcp_stream("127.0.0.1", port))
            wires.append(wire)
            readers.start_soon(wire.read)
            return wire

        try:
            wire = await connect()
            for step in steps:
                match step:
                    case bytes():
                        await wire.send(step)
                        await settled()
                    case Until():
                        await wire.until(step.words, step.times)
                    case End():
                        await wire.end()
                        await settled()
                    case Closed():
                        await wire.over()
                    case Leave():
                        await trio.aclose_forcefully(wire.stream)
                        await settled()
                    case Connect():
                        wire = await connect()
                    case Wait():
                        clock.advance(step.seconds)
            for wire in wires:
                if b"text/event-stream" not in wire.heard.received:  # it has no end that the question could wait for
                    await wire.send(PROBE)
                    await settled()
                await wire.end()
                await wire.over()
        finally:
            for wire in wires:
                await trio.aclose_forcefully(wire.stream)
            readers.cancel_scope.cancel()
    return [wire.heard for wire in wires]
