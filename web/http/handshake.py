"""Whether a request opens a WebSocket as RFC 6455 section 4.2.1 has it. Pure."""

from __future__ import annotations

import binascii
from base64 import b64decode
from typing import Final

VERSION: Final = b"13"
KEY_BYTES: Final = 16

_HANDSHAKE_HEADERS: Final = frozenset(
    {
        b"connection",
        b"upgrade",
        b"sec-websocket-extensions",
        b"sec-websocket-key",
        b"sec-websocket-protocol",
        b"sec-websocket-version",
    }
)

Headers = list[tuple[bytes, bytes]]
"""Names in lower case, as h11 gives them."""


class BadHandshake(Exception):
    """A WebSocket that cannot be opened; the text says why."""


class WrongVersion(BadHandshake):
    """The client speaks another version of the protocol."""


def is_upgrade(method: bytes, headers: Headers) -> bool:
    """Whether a request wants to become a WebSocket."""
    return (
        method == b"GET"
        and b"websocket" in _tokens(headers, b"upgrade")
        and b"upgrade" in _tokens(headers, b"connection")
    )


def key_of(http_version: bytes, headers: Headers) -> bytes:
    """The `Sec-WebSocket-Key` of a proper handshake.

    Raises:
        WrongVersion: of the WebSocket protocol.
        BadHandshake: it is malformed.
    """
    if http_version != b"1.1":
        raise BadHandshake("a WebSocket needs HTTP/1.1")
    if not all(value.isascii() for name, value in headers if name in _HANDSHAKE_HEADERS):
        raise BadHandshake("the headers of a WebSocket handshake must be ASCII")
    if any(name == b"transfer-encoding" or (name == b"content-length" and value != b"0") for name, value in headers):
        raise BadHandshake("a WebSocket handshake has no body")
    if _values(headers, b"sec-websocket-version") != [VERSION]:
        raise WrongVersion
    keys = _values(headers, b"sec-websocket-key")
    if len(keys) != 1 or not is_key(keys[0]):
        raise BadHandshake(f"Sec-WebSocket-Key must be {KEY_BYTES} bytes in base64")
    return keys[0]


def is_key(value: bytes) -> bool:
    """Whether a value is one of `Sec-WebSocket-Key`."""
    try:
        return len(b64decode(value, validate=True)) == KEY_BYTES
    except binascii.Error:
        return False


def _values(headers: Headers, wanted: bytes) -> list[bytes]:
    return [value.strip() for name, value in headers if name == wanted]


def _tokens(headers: Headers, wanted: bytes) -> set[bytes]:
    return {token.strip().lower() for value in _values(headers, wanted) for token in value.split(b",")}
