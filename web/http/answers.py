"""What the edge itself answers, before or instead of a route: a problem document (RFC 9457), and then the end."""

from __future__ import annotations

import logging
from typing import Final

from hypercorn.protocol.events import Body, EndBody, Event, Response

from web.contract import wire
from web.contract.errors import Problem, retry_after

HEAD_BYTES_MAX: Final = 16 * 1024
"""Largest request head. Beyond: 431."""

HEADER_LINES_MAX: Final = 100
"""Header lines of a request, and of the trailer of its body. Beyond: 431. Reason: each costs as much as a kilobyte."""

PARAMETERS_MAX: Final = 64
"""Parameters of a query, empty ones included. Beyond: 414."""

_PROBLEM_MEDIA_TYPE: Final = b"application/problem+json"

_FULL_RETRY_SECONDS: Final = 5
"""How long a client is told to wait if all connections of the server are taken."""

logger = logging.getLogger("avicenna.access")


def malformed(detail: str = "the request is malformed", status: int = 400) -> Problem:
    """A request that is not HTTP/1.1 as this server takes it."""
    return Problem("bad_json", detail, status_instead=status)


def head_too_large() -> Problem:
    """431."""
    detail = f"the head of a request must be at most {HEAD_BYTES_MAX} bytes and {HEADER_LINES_MAX} header lines"
    return Problem("too_large", detail, status_instead=431)


def too_many_parameters() -> Problem:
    """414."""
    detail = f"the query of a request must have at most {PARAMETERS_MAX} parameters"
    return Problem("too_large", detail, status_instead=414)


def head_too_slow(seconds: float) -> Problem:
    """408."""
    return malformed(f"the head of a request must arrive within {seconds:g} s", 408)


def wrong_http_version() -> Problem:
    """505."""
    return malformed("this server speaks HTTP/1.1", 505)


def unknown_transfer_coding() -> Problem:
    """501 (RFC 9112 section 6.1)."""
    return malformed("Transfer-Encoding must be chunked, once: this server knows no other", 501)


def wrong_websocket_version() -> Problem:
    """426, with the version that would do (RFC 6455 section 4.4)."""
    headers = {"Sec-WebSocket-Version": "13", "Upgrade": "websocket"}
    return Problem("bad_json", "Sec-WebSocket-Version must be 13", headers, status_instead=426)


def websocket_wanted() -> Problem:
    """426 for a request that should be a handshake (RFC 9110 section 15.5.22)."""
    headers = {"Upgrade": "websocket", "Connection": "Upgrade"}
    return Problem("bad_json", "this path is a WebSocket", headers, status_instead=426)


def server_full() -> Problem:
    """503: the server, not its client, has too much."""
    headers = retry_after(_FULL_RETRY_SECONDS)
    return Problem("rate_limited", "the server has as many connections as it may have", headers, status_instead=503)


def address_full() -> Problem:
    """503: as for a full server; its other clients are served."""
    headers = retry_after(_FULL_RETRY_SECONDS)
    detail = "this address has as many connections as one address may have"
    return Problem("rate_limited", detail, headers, status_instead=503)


def not_served_here() -> Problem:
    """404: another listener of this server may have it."""
    return Problem("not_found", "there is nothing at this path")


def problem_of_status(status: int) -> Problem:
    """What Hypercorn or h11 would answer with a bare status."""
    match status:
        case 431:
            return head_too_large()
        case 403:
            return Problem("forbidden", "this is refused")
        case 404:
            return Problem("not_found", "there is nothing at this path")
        case 501:
            return unknown_transfer_coding()
        case _ if status >= 500:
            return Problem("internal_error", "the request failed unexpectedly")
        case _:
            return malformed(status=status)


def say(problem: Problem) -> None:
    """Have the log say that a request was answered in place of a route, without a word of what was sent."""
    logger.info("answered by the edge: %d, %s%.0s", problem.status, problem.detail, problem.code)


def events_of(problem: Problem, stream_id: int, *, has_body: bool = True) -> list[Event]:
    """The answer, as Hypercorn's protocol takes it.

    Args:
        has_body: false for the answer to a HEAD request.
    """
    body = body_of(problem)
    headers = headers_of(problem, len(body))
    content: list[Event] = [Body(stream_id=stream_id, data=body)] if has_body else []
    return [
        Response(stream_id=stream_id, headers=headers, status_code=problem.status),
        *content,
        EndBody(stream_id=stream_id),
    ]


def bytes_of(problem: Problem) -> bytes:
    """The answer to a connection whose request is not even read."""
    body = body_of(problem)
    lines = [b"%b: %b\r\n" % header for header in headers_of(problem, len(body))]
    return b"HTTP/1.1 %d \r\n%b\r\n%b" % (problem.status, b"".join(lines), body)


def body_of(problem: Problem) -> bytes:
    """The document that says what is wrong."""
    return wire.encode(wire.problem_object(problem))


def headers_of(problem: Problem, length: int) -> list[tuple[bytes, bytes]]:
    """The headers of an answer after which the connection ends."""
    return [
        (b"content-type", _PROBLEM_MEDIA_TYPE),
        (b"content-length", b"%d" % length),
        (b"connection", b"close"),
        *((name.lower().encode(), value.encode()) for name, value in (wire.ANSWER_HEADERS | problem.headers).items()),
    ]
