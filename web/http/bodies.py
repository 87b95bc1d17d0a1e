"""Request bodies and answers of the HTTP routes: limits on the way in, JSON on the way out."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable
from typing import Final

import trio
from quart import Response, request
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.http import parse_etags

from web.contract import wire
from web.contract.errors import Problem
from web.contract.records import KEY, KEY_RULE
from web.http.one_task import current_request

BODY_BYTES_MAX: Final = 64 * 1024
"""Largest body of a single request (PROTOCOL section 7). Beyond: 413, nothing is stored."""

BULK_PATH: Final = "/ws/broadcast"
BULK_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest body of a bulk request (PROTOCOL section 7). Beyond: 413, nothing is stored."""

BODY_SECONDS_MAX: Final = 10
"""Longest time a body may take to arrive."""

TURN_BYTES: Final = 8 * 1024
"""Decoded in one turn, of all broadcasts together. Reason: actors and sockets get theirs in between. Beyond: the next
turn; one body, or one line, is never divided."""

COST_BYTES: Final = 128
"""A body or line counts as so many bytes more than it has: an empty one costs work, too."""

JSON_MEDIA_TYPE: Final = "application/json"
NDJSON_MEDIA_TYPE: Final = "application/x-ndjson"
PROBLEM_MEDIA_TYPE: Final = "application/problem+json"

TAG_CHARACTERS: Final = 32
"""Of a digest, as an `ETag`: 128 bits, which two contents never share."""


async def read_json_body(arrived: Callable[[int], None] = lambda length: None) -> bytes:
    """The body of the current request.

    Args:
        arrived: see `LeanRequest.receive_body`.

    Raises:
        Problem: 413 over 64 KiB, 415 if it is not declared as JSON; or what `arrived` raises.
    """
    require_media_type(JSON_MEDIA_TYPE)
    return await read_body(BODY_BYTES_MAX, arrived)


def require_media_type(media_type: str) -> None:
    """Take only a body that is declared as this, in UTF-8 (RFC 8259 section 8.1).

    Raises:
        Problem: 415.
    """
    if (request.content_encoding or "identity").lower() != "identity":
        raise Problem("unsupported_media_type", "a body must not have a Content-Encoding")
    charset = request.mimetype_params.get("charset", "utf-8").lower()
    if request.mimetype != media_type or charset not in ("utf-8", "utf8"):
        raise Problem("unsupported_media_type", f"Content-Type must be {media_type}, in UTF-8")


async def read_body(bytes_max: int, arrived: Callable[[int], None] = lambda length: None) -> bytes:
    """The body of the current request, whole. Once.

    Args:
        arrived: see `LeanRequest.receive_body`.

    Raises:
        Problem: 413, or 408 if it does not arrive in time; or what `arrived` raises.
    """
    try:
        return await current_request().receive_body(bytes_max, BODY_SECONDS_MAX, arrived)
    except RequestEntityTooLarge:
        raise Problem("too_large", f"the body must be at most {bytes_max} bytes") from None
    except trio.TooSlowError:
        raise Problem("bad_json", f"the body must arrive within {BODY_SECONDS_MAX} s", status_instead=408) from None


async def whole_request() -> None:
    """Wait until the current request, which needs no body, has come whole; what it carries is thrown away.

    Raises:
        Problem: as `read_body`, over 64 KiB.
    """
    await read_body(BODY_BYTES_MAX)


def declared_length() -> int:
    """The `Content-Length` of the current request.

    Raises:
        Problem: 411, it has none.
    """
    if request.content_length is None:
        raise Problem("length_required", "this request needs a Content-Length")
    return request.content_length


def idempotency_key() -> str | None:
    """The Idempotency-Key of the current request.

    Raises:
        Problem: it is not 1-128 printable ASCII characters, or given more than once.
    """
    keys = request.headers.getlist("Idempotency-Key")
    if not keys:
        return None
    if len(keys) > 1 or not KEY.fullmatch(keys[0]):
        raise Problem("invalid_field", f"Idempotency-Key {KEY_RULE}, once")
    return keys[0]


def answer(value: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(wire.encode(value), status, wire.ANSWER_HEADERS, content_type=JSON_MEDIA_TYPE)


def answer_lines(values: Iterable[object]) -> Response:
    """A response of one JSON text a line."""
    body = b"".join(wire.encode(one) + b"\n" for one in values)
    return Response(body, headers=wire.ANSWER_HEADERS, content_type=NDJSON_MEDIA_TYPE)


def problem_response(problem: Problem) -> Response:
    """A problem document (RFC 9457)."""
    body = wire.encode(wire.problem_object(problem))
    headers = wire.ANSWER_HEADERS | problem.headers
    return Response(body, problem.status, headers, content_type=PROBLEM_MEDIA_TYPE)


class StaticContent:
    """Content that stays as it is while the server runs: a cache may keep it and asks each time whether it still holds.

    It is named by a digest of itself, so an equal document of another server or another start is the same.
    """

    def __init__(self, content: bytes, content_type: str) -> None:
        self._content = content
        self._content_type = content_type
        self._tag = hashlib.sha256(content).hexdigest()[:TAG_CHARACTERS]
        self._headers = wire.ANSWER_HEADERS | {"Cache-Control": "no-cache", "ETag": f'"{self._tag}"'}

    def answer(self) -> Response:
        """The answer to the current request: 304 for a client that has this content (RFC 9110 section 13.1.2)."""
        if parse_etags(", ".join(request.headers.getlist("If-None-Match"))).contains_weak(self._tag):
            unchanged = Response(b"", 304, self._headers)
            # They would be those of an empty page, not of the content (RFC 9110 section 15.4.5).
            unchanged.headers.remove("Content-Type")
            unchanged.headers.remove("Content-Length")
            return unchanged
        return Response(self._content, 200, self._headers, content_type=self._content_type)
