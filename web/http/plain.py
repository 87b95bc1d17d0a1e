"""Recognising plain requests: whole heads in a form that leaves no doubt what is asked. Pure; knows bytes only.

What this file accepts is a subset of what the general parser (h11, behind `web.http.http1`) accepts, and both read it
alike. It refuses nothing: what is not plain goes to the general parser, byte for byte. The rules are positive:

* one line `METHOD PATH HTTP/1.1`, the path of plain segments, the query without anything that needs judging;
* printable ASCII between line ends that are all CRLF, up to 32 header lines;
* header names that are tokens, each given once, none that changes how a message is framed or answered;
* one `Host` that is a host, no `Connection` but keep-alive;
* no body, or one of JSON in UTF-8 with its length in digits, of at most 64 KiB, behind POST or PUT;
* or the handshake of a WebSocket (RFC 6455 section 4.1), with nothing behind it.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from web.http.answers import HEAD_BYTES_MAX, PARAMETERS_MAX
from web.http.handshake import BadHandshake, key_of
from web.http.targets import is_authority

HEADER_LINES_MAX: Final = 32
"""Header lines of a plain request. Beyond: the general parser."""

BODY_BYTES_MAX: Final = 64 * 1024
"""Body of a plain request. Beyond: the general parser, which reads on while the answer is made."""

NAMES_MAX: Final = 256
"""Spellings of header names whose judgement is remembered. Reason: clients use few."""

PATH_CHARACTERS_MAX: Final = 200
"""Path of a plain request. Beyond: the general parser. Reason: what finds routes remembers some paths."""

_HEAD_END: Final = b"\r\n\r\n"

_PRINTABLE_AND_LINE_ENDS: Final = bytes(range(0x20, 0x7F)) + b"\r\n"

_REQUEST_LINE: Final = re.compile(
    r"(GET|POST|PUT|DELETE) ((?:/[A-Za-z0-9_-]+)+)(?:\?([A-Za-z0-9._~=&%+:,@-]*))? HTTP/1\.1"
)

_TOKEN: Final = re.compile(r"[-!#$%&'*+.^_`|~0-9a-zA-Z]+")

_NEVER: Final = frozenset(
    {
        "content-encoding",
        "expect",
        "http2-settings",
        "keep-alive",
        "proxy-connection",
        "te",
        "trailer",
        "transfer-encoding",
    }
)
"""Fields that change how a message is framed or read."""

_JSON_TYPES: Final = frozenset(
    {"application/json", "application/json; charset=utf-8", "application/json;charset=utf-8"}
)

_HANDSHAKE_HEADERS: Final = ("sec-websocket-key", "sec-websocket-version")

_WITH_BODY: Final = frozenset({"POST", "PUT"})


@dataclass(slots=True)
class Plain:
    """The head of a plain request."""

    method: str
    path: str
    """It needs no decoding."""
    query: str
    headers: dict[str, str]
    """Each name once, in lower case."""
    content_length: int | None
    """Bytes of the body; `None`: the request does not say, and has none."""
    body_begins: int
    """Where, in what was recognised."""
    key: bytes | None = None
    """`Sec-WebSocket-Key`; `None`: it is no handshake."""


def recognised(data: bytes) -> Plain | None:
    """The plain request that these bytes begin with; `None`: its head is not whole, or not plain."""
    end = data.find(_HEAD_END, 0, HEAD_BYTES_MAX)
    head = data[:end]
    if end < 0 or head.translate(None, _PRINTABLE_AND_LINE_ENDS):
        return None
    lines = head.decode("ascii").split("\r\n")
    found = _REQUEST_LINE.fullmatch(lines[0])
    ends = len(lines) - 1
    if found is None or ends > HEADER_LINES_MAX or head.count(b"\r") != ends or head.count(b"\n") != ends:
        return None
    headers = _headers_of(lines)
    method, path, query = found.groups(default="")
    if (
        headers is None
        or len(path) > PATH_CHARACTERS_MAX
        or not is_authority(headers.get("host", "").encode())
        or query.count("&") >= PARAMETERS_MAX
    ):
        return None
    plain = Plain(method, path, query, headers, None, end + len(_HEAD_END))
    is_plain = _has_handshake(plain, len(data)) if "upgrade" in headers else _has_plain_body(plain)
    return plain if is_plain else None


def _headers_of(lines: list[str]) -> dict[str, str] | None:
    """The header lines behind the first line; `None`: one of them is not plain."""
    headers: dict[str, str] = {}
    for line in lines[1:]:
        given, colon, value = line.partition(":")
        name = _name_of(given)
        if name is None or not colon or name in headers:
            return None
        headers[name] = value.strip(" ")
    return headers


@lru_cache(maxsize=NAMES_MAX)
def _name_of(given: str) -> str | None:
    """The lower case of a name; `None`: it is no token, or none that a plain request has."""
    name = given.lower()
    return None if name in _NEVER or _TOKEN.fullmatch(given) is None else name


def _has_plain_body(plain: Plain) -> bool:
    """Whether a request that opens no WebSocket is plain; notes its length."""
    headers = plain.headers
    if "origin" in headers or headers.get("connection", "keep-alive").lower() != "keep-alive":
        return False
    length = headers.get("content-length")
    if length is None:
        return True
    if not length.isdigit() or len(length) > len(str(BODY_BYTES_MAX)) or int(length) > BODY_BYTES_MAX:
        return False
    plain.content_length = int(length)
    return plain.content_length == 0 or (
        plain.method in _WITH_BODY and headers.get("content-type", "").lower() in _JSON_TYPES
    )


def _has_handshake(plain: Plain, length: int) -> bool:
    """Whether a request is the handshake of a WebSocket, and nothing follows it; notes its key."""
    headers = plain.headers
    if plain.method != "GET" or plain.body_begins != length or "content-length" in headers:
        return False
    if headers["upgrade"].lower() != "websocket":
        return False
    if headers.get("connection", "").lower() not in ("upgrade", "keep-alive, upgrade"):
        return False
    headers.pop("sec-websocket-extensions", None)  # never negotiated
    looked_at = [(name.encode(), headers[name].encode()) for name in _HANDSHAKE_HEADERS if name in headers]
    try:
        plain.key = key_of(b"1.1", looked_at)
    except BadHandshake:
        return False
    return True
