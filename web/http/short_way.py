"""The short way of a plain request: in the task of its connection, from its bytes to its handler and back.

The general parser, Hypercorn's protocol, the task of its own and Quart's request are spared; the handler, and all that
happens around it, is the same. Whatever is not plain takes the long way (`web.http.connection`), as all requests do
where the setting `short_way` is off.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import lru_cache
from time import time
from typing import Protocol
from wsgiref.handlers import format_date_time

import trio
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from web.contract.errors import Problem
from web.contract.exchange import Answer, Body
from web.http import answers
from web.http.accepting import Address
from web.http.adoption import Adoption
from web.http.plain import Plain

Serve = Callable[[Body], Awaitable[Answer]]
"""Gives the answer to a request whose body arrives meanwhile."""

Take = Callable[[Adoption], Awaitable[Answer | None]]
"""Has a WebSocket taken; or gives the answer to one that is refused in front of its route."""


class Application(Protocol):
    """What serves plain requests: it finds their routes in its own table."""

    def serving(self, plain: Plain, client: Address | None) -> Serve | None:
        """What serves a request; `None`: it takes the long way."""

    def taking(self, plain: Plain, client: Address | None) -> Take | None:
        """What takes a WebSocket; `None`: it takes the long way."""


@dataclass(slots=True)
class Ways:
    """How many requests took which way since the start."""

    short: int = 0
    long: int = 0


class Peer(Protocol):
    """The connection a body comes from."""

    async def receive(self) -> bytes | None:
        """What came next; empty: the peer has ended, or is gone."""

    def arrived(self) -> bytes | None:
        """What lies in the socket; empty: the peer has ended, or is gone; `None`: nothing yet."""

    def refuse_rest(self) -> None:
        """The peer has ended within a body: tell it so, in place of any other answer."""


class PlainBody:
    """The body of a plain request, and what follows it."""

    def __init__(self, peer: Peer, data: bytes, plain: Plain) -> None:
        """Begin with the bytes that have come: a head, and perhaps more."""
        self.content_length = plain.content_length
        self._peer = peer
        self._data: bytes | bytearray = data
        self._begins = plain.body_begins
        self._ends = plain.body_begins + (plain.content_length or 0)
        self.has_ended = False
        """The peer has, within the body."""

    @property
    def is_whole(self) -> bool:
        """Whether nothing of it is still to come."""
        return len(self._data) >= self._ends

    @property
    def received(self) -> bytes:
        """All that has come, from the first byte of the head on."""
        return bytes(self._data)

    @property
    def rest(self) -> bytes:
        """What has come behind it."""
        return bytes(self._data[self._ends :])

    def gather(self) -> None:
        """Take what has arrived, without waiting for it."""
        while len(self._data) < self._ends and not self.has_ended and (more := self._peer.arrived()) is not None:
            self._keep(more)

    async def receive_body(self, bytes_max: int, seconds_max: float, arrived: Callable[[int], None]) -> bytes:
        """The body, whole. Once. No checkpoint if it is there.

        Args, Raises: as `web.http.one_task.LeanRequest.receive_body`.
        """
        if (self.content_length or 0) > bytes_max:
            raise RequestEntityTooLarge
        arrived(self._count())
        if not self.is_whole:
            with trio.move_on_after(seconds_max):
                await self._receive_rest(arrived)
            counted = self._count()
            self.gather()  # bytes that lie in the socket came in time
            arrived(self._count() - counted)
            if not self.is_whole:
                raise trio.TooSlowError
        return bytes(self._data[self._begins : self._ends])

    async def _receive_rest(self, arrived: Callable[[int], None]) -> None:
        """Cancellation: what came is kept."""
        while not self.is_whole:
            more = b"" if self.has_ended else await self._peer.receive()
            counted = self._count()
            self._keep(more or b"")
            if self.has_ended:
                self._peer.refuse_rest()
                raise ClientDisconnected
            arrived(self._count() - counted)

    def _keep(self, more: bytes) -> None:
        if not isinstance(self._data, bytearray):
            self._data = bytearray(self._data)
        self._data += more
        self.has_ended = not more

    def _count(self) -> int:
        """Bytes of the body that have come."""
        return min(len(self._data), self._ends) - self._begins


def says_close(answer: Answer) -> bool:
    """Whether an answer itself ends the connection."""
    return answer.headers.get("Connection", "").lower() == "close"


def written(answer: Answer, *, is_last: bool) -> tuple[bytes, bytes]:
    """An answer as the long way writes it: its head, and its body.

    Args:
        is_last: the connection ends after it, and the answer says so.
    """
    assert isinstance(answer.body, bytes), "an answer in parts takes the long way"
    lines = "".join([f"{name.lower()}: {value}\r\n" for name, value in answer.headers.items()])
    close = "connection: close\r\n" if is_last and not says_close(answer) else ""
    length = f"content-length: {len(answer.body)}\r\n"
    head = f"HTTP/1.1 {answer.status} \r\n{lines}{length}{close}date: {_date(int(time()))}\r\n\r\n"
    return head.encode(), answer.body


def written_by_the_edge(problem: Problem) -> tuple[bytes, bytes]:
    """The answer in place of a route, as the long way writes it; the connection ends after it."""
    body = answers.body_of(problem)
    lines = b"".join([b"%b: %b\r\n" % header for header in answers.headers_of(problem, len(body))])
    return b"HTTP/1.1 %d \r\n%bdate: %b\r\n\r\n" % (problem.status, lines, _date(int(time())).encode()), body


@lru_cache(maxsize=1)
def _date(second: int) -> str:
    return format_date_time(second)
