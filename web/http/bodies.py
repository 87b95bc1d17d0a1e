"""Request bodies: their limits and how they are read; and content that stays as it is."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from typing import Final

import trio
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge
from werkzeug.http import parse_etags, parse_options_header

from web.contract import wire
from web.contract.errors import Problem
from web.contract.exchange import Answer, Request
from web.contract.operations import JSON
from web.contract.records import KEY, KEY_RULE

BODY_BYTES_MAX: Final = 64 * 1024
"""Largest body of a single request (PROTOCOL section 7). Beyond: 413, nothing is stored."""

BULK_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest body of a bulk request (PROTOCOL section 7). Beyond: 413, nothing is stored."""

BODY_SECONDS_MAX: Final = 10
"""Longest time a body may take to arrive."""

TURN_BYTES: Final = 8 * 1024
"""Decoded in one turn, of all broadcasts together. Reason: actors and sockets get theirs in between. Beyond: the next
turn; one body, or one line, is never divided."""

COST_BYTES: Final = 128
"""A body or line counts as so many bytes more than it has: an empty one costs work, too."""

TAG_CHARACTERS: Final = 32
"""Of a digest, as an `ETag`: 128 bits, which two contents never share."""


async def read_json_body(asked: Request, arrived: Callable[[int], None] = lambda length: None) -> bytes:
    """The JSON body of a request.

    Args:
        arrived: see `LeanRequest.receive_body`.

    Raises:
        Problem: 413 over 64 KiB, 415 if it is not declared as JSON; or what `arrived` raises.
    """
    require_media_type(asked, JSON)
    return await read_body(asked, BODY_BYTES_MAX, arrived)


def require_media_type(asked: Request, media_type: str) -> None:
    """Take only a body that is declared as this, in UTF-8 (RFC 8259 section 8.1).

    Raises:
        Problem: 415.
    """
    if (asked.headers.get("Content-Encoding") or "identity").lower() != "identity":
        raise Problem("unsupported_media_type", "a body must not have a Content-Encoding")
    given = asked.headers.get("Content-Type", "")
    if given == media_type:
        return
    declared, options = parse_options_header(given)
    charset = options.get("charset", "utf-8").lower()
    if declared.lower() != media_type or charset not in ("utf-8", "utf8"):
        raise Problem("unsupported_media_type", f"Content-Type must be {media_type}, in UTF-8")


async def read_body(asked: Request, bytes_max: int, arrived: Callable[[int], None] = lambda length: None) -> bytes:
    """The body of a request, whole. Once.

    Args:
        arrived: see `LeanRequest.receive_body`.

    Raises:
        Problem: 413, or 408 if it does not arrive in time; or what `arrived` raises.
    """
    assert asked.body is not None, "a handshake has no body"
    try:
        return await asked.body.receive_body(bytes_max, BODY_SECONDS_MAX, arrived)
    except RequestEntityTooLarge:
        raise Problem("too_large", f"the body must be at most {bytes_max} bytes") from None
    except ClientDisconnected:
        raise Problem("bad_json", "the request ended within its body") from None
    except trio.TooSlowError:
        raise Problem("bad_json", f"the body must arrive within {BODY_SECONDS_MAX} s", status_instead=408) from None


async def whole_request(asked: Request) -> None:
    """Wait until a request, which needs no body, has come whole; what it carries is thrown away.

    Raises:
        Problem: as `read_body`, over 64 KiB.
    """
    await read_body(asked, BODY_BYTES_MAX)


def declared_length(asked: Request) -> int:
    """The `Content-Length` of a request.

    Raises:
        Problem: 411, it has none.
    """
    if asked.body is None or asked.body.content_length is None:
        raise Problem("length_required", "this request needs a Content-Length")
    return asked.body.content_length


def idempotency_key(asked: Request) -> str | None:
    """The Idempotency-Key of a request.

    Raises:
        Problem: it is not 1-128 printable ASCII characters, or given more than once.
    """
    keys = asked.headers.getlist("Idempotency-Key")
    if not keys:
        return None
    if len(keys) > 1 or not KEY.fullmatch(keys[0]):
        raise Problem("invalid_field", f"Idempotency-Key {KEY_RULE}, once")
    return keys[0]


class StaticContent:
    """Content that stays as it is while the server runs: a cache may keep it and asks each time whether it still holds.

    It is named by a digest of itself, so an equal document of another server or another start is the same.
    """

    def __init__(self, content: bytes, content_type: str) -> None:
        self._content = content
        self._content_type = content_type
        self._tag = hashlib.sha256(content).hexdigest()[:TAG_CHARACTERS]
        self._headers = wire.ANSWER_HEADERS | {"Cache-Control": "no-cache", "ETag": f'"{self._tag}"'}

    def answer(self, asked: Request) -> Answer:
        """The answer to a request: 304 for a client that has this content (RFC 9110 section 13.1.2)."""
        if parse_etags(", ".join(asked.headers.getlist("If-None-Match"))).contains_weak(self._tag):
            # Without a type: it would be that of an empty page, not of the content (RFC 9110 section 15.4.5).
            return Answer(304, dict(self._headers))
        return Answer(200, {**self._headers, "Content-Type": self._content_type}, self._content)
