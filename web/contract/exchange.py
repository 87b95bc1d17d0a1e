"""What a handler is given and what it gives back: a request and an answer, whichever door they pass. Pure.

A door (the Quart-Trio application) makes the request record, and turns the answer record into bytes. A handler
between them is a plain function: it knows no framework, and a test calls it with a record.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Final, Protocol

from web.contract import wire
from web.contract.errors import Problem
from web.contract.operations import JSON, NDJSON, Operation
from web.contract.principals import ANONYMOUS, Principal

PROBLEM: Final = "application/problem+json"


class Headers(Mapping[str, str]):
    """The header fields of a request, names in any case; a name stands for its first value."""

    @abstractmethod
    def getlist(self, name: str) -> list[str]:
        """All values of this name, in order."""


class Query(Mapping[str, str]):
    """The parameters of a URL; a name stands for its first value."""

    @abstractmethod
    def lists(self) -> Iterable[tuple[str, list[str]]]:
        """Every name with all its values."""


class Body(Protocol):
    """The body of a request, which arrives while somebody reads it."""

    @property
    def content_length(self) -> int | None:
        """Bytes it will have; `None`: it does not say."""

    async def receive_body(self, bytes_max: int, seconds_max: float, arrived: Callable[[int], None]) -> bytes:
        """See `web.http.one_task.LeanRequest`."""


@dataclass(slots=True, eq=False)
class Request:
    """One request, or the handshake of one WebSocket."""

    method: str
    path: str
    """Decoded."""
    raw_path: bytes
    """As it came, without the query."""
    query: Query
    headers: Headers
    peer: str
    """The address at the other end of the socket; `unix`: it is no internet socket."""
    parameters: Mapping[str, str]
    """What stands in the path where its route has a name."""
    route: str | None
    """The path of its route, as the log shows it; `None`: no route was found."""
    operation: Operation | None
    """Its entry in the table of operations; `None`: it has none."""
    body: Body | None = None
    """`None`: a handshake has none."""
    at_end: Callable[[Callable[[], None]], object] | None = None
    """Has something undone when the request is over, however it ends; `None`: a handshake is over in its handler."""
    id: str = ""
    """Ties its lines in the log to each other."""
    trace: str | None = None
    """Its `traceparent`, as it came; `None`: it has none, or several."""
    who: Principal = ANONYMOUS
    """Who sent it, once that is known."""
    published_to: str | None = None
    """The diagnosis that its body names, once that is known."""
    names_headers_once: bool = False
    """It is known that none of its header fields was given twice."""
    is_among_operators: bool = False
    """Whether it came to the listener that only operators reach."""

    @property
    def is_handshake(self) -> bool:
        """Whether it asks for a WebSocket."""
        return self.body is None


@dataclass(slots=True, eq=False)
class Answer:
    """What a request is answered with."""

    status: int
    headers: dict[str, str]
    body: bytes | AsyncIterator[bytes] = b""
    """Whole, or a stream of parts. An event stream ends when its client leaves; any other is made to its end."""


Handler = Callable[[Request], Awaitable[Answer]]
"""Carries out one operation.

Raises:
    Problem: what it is answered instead.
    ActorError, StorageError: see `web.contract.errors.problem_of`.
"""

Handlers = Mapping[str, Handler]
"""By the names of operations."""


def answer(value: object, status: int = 200) -> Answer:
    """A JSON answer."""
    return Answer(status, {**wire.ANSWER_HEADERS, "Content-Type": JSON}, wire.encode(value))


def answer_lines(lines: AsyncIterator[bytes]) -> Answer:
    """An answer of one JSON text a line.

    Args:
        lines: whole lines, in parts.
    """
    return Answer(200, {**wire.ANSWER_HEADERS, "Content-Type": NDJSON}, lines)


def problem_answer(problem: Problem) -> Answer:
    """A problem document (RFC 9457)."""
    headers = {**wire.ANSWER_HEADERS, **problem.headers, "Content-Type": PROBLEM}
    return Answer(problem.status, headers, wire.encode(wire.problem_object(problem)))
