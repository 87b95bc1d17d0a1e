"""What a client sends, from bytes to messages: wsproto's decoders, a limit, and close codes. Pure.

One `Inbound` serves every connection in turn: a connection keeps one only while a message is incomplete.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Final, NamedTuple

from wsproto.frame_protocol import Frame, FrameDecoder, MessageDecoder, Opcode, ParseFailed

from web.contract.errors import CloseCode
from web.websocket.frames import CONTROL_BYTES_MAX

_PONG: Final = 0x8A

_WHOLE_TEXT: Final = 0x81

_LENGTH_16: Final = 126
"""In place of a length: two bytes with the length follow; 127: eight bytes."""

_SHORT_HEADER_BYTES: Final = 6
"""Opcode, length, mask."""

_SENDABLE_CODES: Final = frozenset({1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 1012, 1013, 1014})
"""Protocol codes an endpoint may send (RFC 6455 section 7.4.1 and the IANA registry); 3000-4999 are free."""


class Violation(Exception):
    """The client broke the protocol: the connection fails with this code (RFC 6455 section 7.1.7)."""

    def __init__(self, code: CloseCode) -> None:
        super().__init__(code.name)
        self.code = code


@dataclass(frozen=True, slots=True)
class Message:
    """A whole message: `str` from text frames, `bytes` from binary ones."""

    data: str | bytes


@dataclass(frozen=True, slots=True)
class Fragment:
    """A part of a message has come, more will follow."""

    length: int
    """Bytes of the frame it came in."""


@dataclass(frozen=True, slots=True)
class Control:
    """A Ping or a Pong."""

    is_ping: bool
    payload: bytes


@dataclass(frozen=True, slots=True)
class Close:
    """The client's Close; `None`: without a code."""

    code: int | None


Received = Message | Fragment | Control | Close


class Inbound:
    """Decodes the frames of one client."""

    __slots__ = ("_bytes", "_decoder", "_frame_bytes", "_messages", "_parts")

    def __init__(self) -> None:
        self._decoder = FrameDecoder(client=False)
        self._messages = MessageDecoder()
        self._parts: list[str | bytes] = []
        self._bytes = 0
        """Of the message that has begun."""
        self._frame_bytes = 0
        """Of the frame that has begun."""

    @property
    def is_idle(self) -> bool:
        """Whether nothing of a frame or message is kept: it may serve another connection."""
        decoder = self._decoder
        return not len(decoder.buffer) and decoder.header is None and self._messages.opcode is None

    @property
    def missing_bytes(self) -> int:
        """How much of the frame that has begun is still to come."""
        decoder = self._decoder
        if decoder.header is None:
            return 0
        return max(0, decoder.header.payload_len - decoder.payload_consumed - len(decoder.buffer))

    def receive(self, data: bytes, message_bytes_max: int) -> Iterator[Received]:
        """What has become complete with `data`.

        Raises:
            Violation: the connection must fail; this object must not be used again.
        """
        self._decoder.receive_bytes(data)
        try:
            while (frame := self._decoder.process_buffer()) is not None:
                if frame.opcode is Opcode.CLOSE:
                    yield Close(_close_code(bytes(frame.payload)))  # type: ignore[arg-type]  # undecoded: bytes
                elif frame.opcode.iscontrol():
                    yield Control(frame.opcode is Opcode.PING, bytes(frame.payload))  # type: ignore[arg-type]
                else:
                    self._bytes += len(frame.payload)
                    self._frame_bytes += len(frame.payload)
                    if self._bytes > message_bytes_max:
                        raise Violation(CloseCode.TOO_BIG)
                    yield from self._take(frame)
                    if frame.frame_finished:
                        self._frame_bytes = 0
        except ParseFailed as failure:
            raise Violation(CloseCode(int(failure.code))) from None

    def _take(self, frame: Frame) -> Iterator[Received]:
        is_whole_frame = frame.frame_finished
        decoded = self._messages.process_frame(frame)
        if decoded.payload:
            self._parts.append(decoded.payload)  # type: ignore[arg-type]  # no Close comes here
        if decoded.message_finished:
            empty: str | bytes = "" if decoded.opcode is Opcode.TEXT else b""
            message = Message(empty.join(self._parts))  # type: ignore[arg-type]  # all parts are of one kind
            self._parts, self._bytes = [], 0
            yield message
        elif is_whole_frame:
            yield Fragment(self._frame_bytes)


def sole_pong(data: bytes) -> bytes | None:
    """The payload, if `data` is one short Pong and nothing else; `None`: it must be decoded.

    Followers send hardly anything else, and this takes a tenth of the time that decoding takes.
    """
    length = len(data) - _SHORT_HEADER_BYTES
    if data[0] != _PONG or not 0 <= length <= CONTROL_BYTES_MAX or data[1] != 0x80 | length:
        return None
    mask = (data[2:6] * (length // 4 + 1))[:length]
    return (int.from_bytes(data[6:], "big") ^ int.from_bytes(mask, "big")).to_bytes(length, "big")


class Head(NamedTuple):
    """How a frame begins."""

    length: int
    """Of the whole frame, with its header."""
    payload_at: int
    """Where its payload begins."""
    is_plain: bool
    """It is a whole text message below 64 KiB, as nearly all are; anything else must be decoded."""


def head_of(data: bytes, at: int) -> Head | None:
    """The head of the frame that begins at `at`; `None`: it has not come whole yet.

    Of a frame that breaks a rule it is only said that it is not plain: decoding says why.
    """
    have = len(data) - at
    if have < 2:
        return None
    short = data[at + 1] & 0x7F
    payload_at = at + _SHORT_HEADER_BYTES + (0 if short < _LENGTH_16 else 2 if short == _LENGTH_16 else 8)
    if len(data) < payload_at:
        return None
    length = short if short < _LENGTH_16 else int.from_bytes(data[at + 2 : payload_at - 4], "big")
    is_well_put = short < _LENGTH_16 or (short == _LENGTH_16 and length >= _LENGTH_16)
    is_plain = data[at] == _WHOLE_TEXT and data[at + 1] >= 0x80 and is_well_put
    return Head(payload_at - at + length, payload_at, is_plain)


def unmasked(data: bytes, head: Head, end: int) -> bytes:
    """The payload of a frame of a client that ends at `end` (RFC 6455 section 5.3)."""
    at, length = head.payload_at, end - head.payload_at
    mask = (data[at - 4 : at] * (length // 4 + 1))[:length]
    return (int.from_bytes(data[at:end], "big") ^ int.from_bytes(mask, "big")).to_bytes(length, "big")


def _close_code(payload: bytes) -> int | None:
    if not payload:
        return None
    code = int.from_bytes(payload[:2], "big")
    if len(payload) == 1 or not (code in _SENDABLE_CODES or 3000 <= code <= 4999):
        raise Violation(CloseCode.PROTOCOL_ERROR)
    try:
        payload[2:].decode()
    except UnicodeDecodeError:
        raise Violation(CloseCode.INVALID_TEXT) from None
    return code
