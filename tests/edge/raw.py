"""A WebSocket client that does only what it is told: no Pong, no Close, no read by itself."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Final

import trio

TEXT: Final = 0x1
BINARY: Final = 0x2
CLOSE: Final = 0x8
PING: Final = 0x9
PONG: Final = 0xA

MASK: Final = b"\x37\xfa\x21\x3d"


def client_frame(opcode: int, payload: bytes = b"", *, fin: bool = True, reserved: int = 0) -> bytes:
    """A frame as a client writes it: masked."""
    first = (0x80 if fin else 0) | (reserved << 4) | opcode
    if len(payload) < 126:
        length = bytes((0x80 | len(payload),))
    elif len(payload) < 1 << 16:
        length = bytes((0x80 | 126,)) + len(payload).to_bytes(2, "big")
    else:
        length = bytes((0x80 | 127,)) + len(payload).to_bytes(8, "big")
    return bytes((first,)) + length + MASK + bytes(byte ^ MASK[i % 4] for i, byte in enumerate(payload))


@dataclass(frozen=True)
class Got:
    """One frame of the server."""

    opcode: int
    payload: bytes

    @property
    def code(self) -> int | None:
        """The code of a Close."""
        assert self.opcode == CLOSE, self
        return int.from_bytes(self.payload[:2], "big") if self.payload else None

    @property
    def reason(self) -> str:
        """The reason of a Close."""
        return self.payload[2:].decode()

    @property
    def json(self) -> dict[str, Any]:
        """What a text frame says."""
        assert self.opcode == TEXT, self
        found: dict[str, Any] = json.loads(self.payload)
        return found


class RawClient:
    """The other end of one connection."""

    def __init__(self, stream: trio.abc.Stream, already: bytes = b"") -> None:
        self.stream = stream
        self._bytes = bytearray(already)
        self.ended = False
        """The server has closed the connection, or reset it."""

    async def _more(self) -> None:
        try:
            data = await self.stream.receive_some(65536)
        except trio.BrokenResourceError:
            data = b""
        self._bytes += data
        self.ended = not data

    def _whole_frame(self) -> Got | None:
        have = self._bytes
        if len(have) < 2:
            return None
        assert have[0] & 0xF0 == 0x80, f"a server frame is whole and uses no extension: {bytes(have[:20])!r}"
        assert not have[1] & 0x80, "a server frame is not masked"
        length, at = have[1], 2
        if length == 126:
            length, at = int.from_bytes(have[2:4], "big"), 4
        elif length == 127:
            length, at = int.from_bytes(have[2:10], "big"), 10
        if len(have) < at + length:
            return None
        got = Got(have[0] & 15, bytes(have[at : at + length]))
        del have[: at + length]
        return got

    async def next(self, seconds: float = 30) -> Got | None:
        """The next frame of the server, whatever it is; `None`: the connection is over."""
        with trio.fail_after(seconds):
            while (got := self._whole_frame()) is None:
                if self.ended:
                    assert not self._bytes, f"the server left within a frame: {bytes(self._bytes)!r}"
                    return None
                await self._more()
        return got

    async def rest(self, seconds: float = 30) -> list[Got]:
        """All frames until the connection is over."""
        found = []
        while (got := await self.next(seconds)) is not None:
            found.append(got)
        return found

    async def says(self, *kinds: str) -> list[dict[str, Any]]:
        """The next text frames, which must be of these types."""
        found = []
        for kind in kinds:
            got = await self.next()
            assert got is not None, f"the connection is over, no {kind}"
            assert got.json["type"] == kind, got
            found.append(got.json)
        return found

    async def pinged(self) -> bytes:
        """The payload of the Ping that must come next."""
        got = await self.next()
        assert got is not None
        assert got.opcode == PING, got
        return got.payload

    async def send(self, *frames: bytes) -> None:
        """Write; a server that has left already is no error here."""
        with suppress(trio.BrokenResourceError):
            await self.stream.send_all(b"".join(frames))

    async def say(self, **frame: object) -> None:
        """Send a text frame."""
        await self.send(client_frame(TEXT, json.dumps(frame).encode()))

    async def pong(self, payload: bytes) -> None:
        """Send a Pong."""
        await self.send(client_frame(PONG, payload))

    async def leave(self, code: int = 1000) -> None:
        """Close as RFC 6455 has it, and the TCP connection behind it."""
        await self.send(client_frame(CLOSE, code.to_bytes(2, "big")))
        await self.rest()
        await self.stream.aclose()


def opcodes(frames: Sequence[Got]) -> list[int]:
    """What kinds of frames these are."""
    return [got.opcode for got in frames]


async def upgraded(port: int, path: str, *headers: str) -> RawClient:
    """A client whose WebSocket handshake was answered with 101."""
    stream = await trio.open_tcp_stream("127.0.0.1", port)
    lines = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version: 13",
        *headers,
    ]
    await stream.send_all("\r\n".join([*lines, "", ""]).encode())
    head = b""
    with trio.fail_after(30):
        while b"\r\n\r\n" not in head:
            data = await stream.receive_some(65536)
            assert data, head
            head += data
    head, _, behind = head.partition(b"\r\n\r\n")
    assert head.startswith(b"HTTP/1.1 101 "), head
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=" in head
    return RawClient(stream, behind)
