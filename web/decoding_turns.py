"""Whoever has a body to decode takes turns: so many bytes in one, and everybody else is served in between.

Users take turns, too, by bytes: who has decoded much waits until the others that wait have decoded as much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from math import inf
from typing import Final

import trio

TURN_BYTES: Final = 8 * 1024
"""Decoded in one turn, of all requests together. Reason: actors and sockets get theirs in between. Beyond: the next
turn; one body, or one line, is never divided."""

COST_BYTES: Final = 128
"""A body or line counts as so many bytes more than it has: an empty one costs work, too."""

LONG_SECONDS: Final = 0.002
"""Work of one turn beyond this is followed by a pause as long. Reason: a publish takes several turns of everybody."""


class _Waiting:
    """One that waits for its turn."""

    __slots__ = ("came", "cost")

    def __init__(self, cost: int) -> None:
        self.cost = cost
        self.came = trio.Event()


class _User:
    """Those of one user that wait."""

    __slots__ = ("credit", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Waiting] = deque()
        self.credit = 0
        """Bytes it may decode before another user's turn; below zero: it has decoded so many too many."""


class DecodingTurns:
    """The turns of one server."""

    def __init__(self) -> None:
        self._users: dict[str | None, _User] = {}
        """Who waits; the next one first."""
        self._left = TURN_BYTES
        """Bytes that this turn has room for."""
        self._worked_seconds = 0.0
        """In this turn."""
        self._worked_until = -inf
        self._wanted = trio.Event()

    async def take(self, sub: str | None, length: int) -> None:
        """Return when it is the turn of so many bytes of a user, which lasts until its next checkpoint.

        No checkpoint if this turn has room and nobody waits.

        Cancellation: gives the turn up.
        """
        cost = length + COST_BYTES
        if self._left > 0 and not self._users:
            self._left -= cost
            return
        one = _Waiting(cost)
        self._users.setdefault(sub, _User()).waiting.append(one)
        self._wanted.set()
        try:
            await one.came.wait()
        except trio.Cancelled:
            self._give_up(sub, one)
            raise

    @contextmanager
    def at_work(self) -> Iterator[None]:
        """Around what costs time, without a checkpoint."""
        began = trio.current_time()
        try:
            yield
        finally:
            self._worked_until = trio.current_time()
            self._worked_seconds += self._worked_until - began

    async def run(self) -> None:
        """Give turns to whoever waits; until cancelled."""
        while True:
            await self._wanted.wait()
            while self._users:
                # Those whose turn it was are woken in one turn of the loop, and have worked in the next.
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                pause = self._worked_seconds if self._worked_seconds > LONG_SECONDS else 0.0
                await trio.sleep_until(max(trio.current_time(), self._worked_until + pause))
                self._begin_turn()
            self._wanted = trio.Event()

    def _begin_turn(self) -> None:
        self._left, self._worked_seconds = TURN_BYTES, 0.0
        while self._users and self._left > 0:
            sub = next(iter(self._users))
            user = self._users.pop(sub)
            user.credit = min(user.credit, 0) + TURN_BYTES
            while user.waiting and user.credit > 0 and self._left > 0:
                one = user.waiting.popleft()
                user.credit -= one.cost
                self._left -= one.cost
                one.came.set()
            if user.waiting:
                self._users[sub] = user

    def _give_up(self, sub: str | None, one: _Waiting) -> None:
        user = self._users.get(sub)
        if user is not None and one in user.waiting:
            user.waiting.remove(one)
            if not user.waiting:
                del self._users[sub]
