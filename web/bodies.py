"""Request bodies and answers of the HTTP routes: limits on the way in, JSON on the way out."""

from __future__ import annotations

from typing import Final

from quart import Response, request
from werkzeug.exceptions import RequestEntityTooLarge, RequestTimeout

from web import wire
from web.errors import Problem

BODY_BYTES_MAX: Final = 64 * 1024
"""Largest body of a single request (PROTOCOL section 7). Beyond: 413, nothing is stored."""

BODY_SECONDS_MAX: Final = 10
"""Longest time a body may take to arrive."""

JSON_MEDIA_TYPE: Final = "application/json"
PROBLEM_MEDIA_TYPE: Final = "application/problem+json"

KEY_CHARACTERS_MAX: Final = 128


async def read_json_body() -> bytes:
    """The body of the current request.

    Raises:
        Problem: 413 over 64 KiB, 415 if it is not declared as JSON.
    """
    if request.mimetype != JSON_MEDIA_TYPE:
        raise Problem("unsupported_media_type", f"Content-Type must be {JSON_MEDIA_TYPE}")
    try:
        return bytes(await request.body)
    except RequestEntityTooLarge:
        raise too_large() from None
    except RequestTimeout:
        raise Problem("bad_json", f"the body must arrive within {BODY_SECONDS_MAX} s") from None


def too_large() -> Problem:
    """413."""
    return Problem("too_large", f"the body must be at most {BODY_BYTES_MAX} bytes", {"Connection": "close"})


def idempotency_key() -> str | None:
    """The Idempotency-Key of the current request.

    Raises:
        Problem: it is not 1-128 printable ASCII characters.
    """
    key = request.headers.get("Idempotency-Key")
    if key is None:
        return None
    if not 1 <= len(key) <= KEY_CHARACTERS_MAX or not all("\x20" <= character <= "\x7e" for character in key):
        raise Problem("invalid_field", f"Idempotency-Key must be 1-{KEY_CHARACTERS_MAX} printable ASCII characters")
    return key


def answer(value: object, status: int = 200) -> Response:
    """A JSON response."""
    return Response(wire.encode(value), status, content_type=JSON_MEDIA_TYPE)


def problem_response(problem: Problem) -> Response:
    """A problem document (RFC 9457)."""
    response = Response(wire.problem_document(problem), problem.status, content_type=PROBLEM_MEDIA_TYPE)
    response.headers.update(problem.headers)
    return response
