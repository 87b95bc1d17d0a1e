"""WebSocket frames as a server writes them (RFC 6455 section 5): unmasked, so the same bytes for everybody. Pure."""

from __future__ import annotations

import struct
from base64 import b64encode
from hashlib import sha1
from typing import Final

CONTROL_BYTES_MAX: Final = 125
"""Largest payload of a control frame (RFC 6455 section 5.5)."""

REASON_BYTES_MAX: Final = CONTROL_BYTES_MAX - 2
"""Longest reason of a Close (RFC 6455 section 5.5.1)."""

_HEADER_16: Final = struct.Struct("!BBH").pack
_HEADER_64: Final = struct.Struct("!BBQ").pack

_HANDSHAKE_GUID: Final = b"258EAFA5-E914-47DA-95CA-C5AB0DC85B11"


def text_frame(payload: bytes) -> bytes:
    """A whole text message in one frame."""
    return _header(0x81, len(payload)) + payload


def binary_frame(payload: bytes) -> bytes:
    """A whole binary message in one frame."""
    return _header(0x82, len(payload)) + payload


def ping(payload: bytes) -> bytes:
    """A Ping; the client's Pong carries the same payload."""
    return _header(0x89, len(payload)) + payload


def pong(payload: bytes) -> bytes:
    """The answer to a Ping."""
    return _header(0x8A, len(payload)) + payload


def close(code: int | None, reason: str = "") -> bytes:
    """A Close; `None`: without a code, as the answer to one without."""
    payload = b"" if code is None else code.to_bytes(2, "big") + reason.encode()[:REASON_BYTES_MAX]
    return _header(0x88, len(payload)) + payload


def _header(first: int, length: int) -> bytes:
    if length <= CONTROL_BYTES_MAX:
        return bytes((first, length))
    if length < 1 << 16:
        return _HEADER_16(first, 126, length)
    return _HEADER_64(first, 127, length)


def switching_protocols(key: bytes, subprotocol: str | None) -> bytes:
    """The head that answers an upgrade (RFC 6455 section 4.2.2). No extension is ever negotiated."""
    digest = sha1(key + _HANDSHAKE_GUID, usedforsecurity=False).digest()
    head = (
        b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "
        + b64encode(digest)
    )
    if subprotocol is not None:
        head += b"\r\nSec-WebSocket-Protocol: " + subprotocol.encode("ascii")
    return head + b"\r\n\r\n"
