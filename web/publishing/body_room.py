"""Room for the bodies of requests in hand: a bound for all of them, and a share of it for each user. No I/O.

Room is taken as bytes arrive, not as they are announced, and nobody waits for it: a body for which there is no more is
refused, and what it held is free again.
"""

from __future__ import annotations

from typing import Final, Self

from web.contract.errors import RETRY_AFTER_SECONDS, Problem, retry_after

SHARES: Final = 4
"""One user may hold this fraction of the room (1/n). Reason: others get the rest."""


class Room:
    """What the body of one request holds; given back at the end of a `with` block."""

    __slots__ = ("_allowance", "_sub", "held")

    def __init__(self, allowance: Allowance, sub: str | None) -> None:
        self._allowance = allowance
        self._sub = sub
        self.held = 0
        """Bytes."""

    def take(self, length: int) -> None:
        """Hold room for so many bytes more.

        Raises:
            Problem: 429, there is none; nothing more was taken.
        """
        self._allowance.take(self._sub, length)
        self.held += length

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._allowance.give_back(self._sub, self.held)


class Allowance:
    """Room for the bodies of one kind of request."""

    def __init__(self, bytes_max: int) -> None:
        self._bytes_max = bytes_max
        self._share = bytes_max // SHARES
        self._held = 0
        self._held_by: dict[str | None, int] = {}

    @property
    def held(self) -> int:
        """Bytes that are taken."""
        return self._held

    def room_of(self, sub: str | None) -> Room:
        """Room for one body of a user."""
        return Room(self, sub)

    def take(self, sub: str | None, length: int) -> None:
        """Take room in the name of a user; for `Room` alone."""
        if self._held + length > self._bytes_max:
            raise _no_room("the bodies of all requests in hand are too large")
        held = self._held_by.get(sub, 0) + length
        if held > self._share:
            raise _no_room("the bodies of this user's requests in hand are too large")
        self._held += length
        self._held_by[sub] = held

    def give_back(self, sub: str | None, length: int) -> None:
        """Give back room that was taken in the name of a user; for `Room` alone."""
        self._held -= length
        if held := self._held_by.pop(sub, 0) - length:
            self._held_by[sub] = held


def _no_room(why: str) -> Problem:
    # The rest of the body would stand before the next request.
    headers = retry_after(RETRY_AFTER_SECONDS) | {"Connection": "close"}
    return Problem("rate_limited", f"{why}; nothing was stored", headers)
