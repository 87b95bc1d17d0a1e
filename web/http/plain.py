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
from typing import Final

from web.http.answers import HEAD_BYTES_MAX, PARAMETERS_MAX
from web.http.handshake import VERSION, is_key
from web.http.targets import is_authority

HEADER_LINES_MAX: Final = 32
"""Header lines of a plain request. Beyond: the general parser."""

BODY_BYTES_MAX: Final = 64 * 1024
"""Body of a plain request. Beyond: the general parser, which reads on while the answer is made."""

_LENGTH_DIGITS_MAX: Final = len(str(BODY_BYTES_MAX))

PATH_CHARACTERS_MAX: Final = 200
"""Path of a plain request. Beyond: the general parser. Reason: what finds routes remembers some paths."""

_HEAD: Final = re.compile(
    rb"(GET|POST|PUT|DELETE) ((?:/[A-Za-z0-9_-]+)+)(?:\?([A-Za-z0-9._~=&%%+:,@-]*))? HTTP/1\.1"
    rb"((?:\r\n[-!#$%%&'*+.^_`|~0-9a-zA-Z]+:[ -~]*){0,%d})\r\n\r\n" % HEADER_LINES_MAX
)
"""A head: its first line and its header lines. Reason for one pattern: it costs half of looking at them one by one."""

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
    found = _HEAD.match(data, 0, HEAD_BYTES_MAX)
    if found is None:
        return None
    headers = _headers_of(found[4].decode("ascii"))
    path, query = found[2].decode("ascii"), found[3].decode("ascii") if found[3] else ""
    if (
        headers is None
        or len(path) > PATH_CHARACTERS_MAX
        or not is_authority(headers.get("host", "").encode())
        or query.count("&") >= PARAMETERS_MAX
    ):
        return None
    plain = Plain(found[1].decode("ascii"), path, query, headers, None, found.end())
    is_plain = _has_handshake(plain, len(data)) if "upgrade" in headers else _has_plain_body(plain)
    return plain if is_plain else None


def _headers_of(text: str) -> dict[str, str] | None:
    """Header lines, each behind a line end; `None`: one of them is not plain."""
    headers: dict[str, str] = {}
    lines = text.split("\r\n")
    for line in lines[1:]:
        name, _, value = line.partition(":")
        headers[name.lower()] = value.strip(" ")
    return headers if len(headers) == len(lines) - 1 and _NEVER.isdisjoint(headers) else None


def _has_plain_body(plain: Plain) -> bool:
    """Whether a request that opens no WebSocket is plain; notes its length."""
    headers = plain.headers
    if "origin" in headers or headers.get("connection", "keep-alive").lower() != "keep-alive":
        return False
    length = headers.get("content-length")
    if length is None:
        return True
    if not length.isdigit() or len(length) > _LENGTH_DIGITS_MAX or (count := int(length)) > BODY_BYTES_MAX:
        return False
    plain.content_length = count
    return count == 0 or (plain.method in _WITH_BODY and headers.get("content-type", "").lower() in _JSON_TYPES)


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
    key = headers.get("sec-websocket-key", "").encode()
    if headers.get("sec-websocket-version") != VERSION.decode() or not is_key(key):
        return False
    plain.key = key
    return True
