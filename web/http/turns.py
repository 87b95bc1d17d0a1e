"""Turns for expensive work: so much of it in one turn of the event loop, and everybody else is served in between.

The owners of the work take turns, too, by cost: an owner whose work has cost much waits until the work of the other
waiting owners has cost as much.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Hashable
from math import inf
from typing import Final

import trio

LONG_SECONDS: Final = 0.002
"""Work of one turn beyond this is followed by a pause as long. Reason: a publish takes several turns of everybody."""


class _Waiting:
    """One that waits for its turn."""

    __slots__ = ("came", "cost")

    def __init__(self, cost: int) -> None:
        self.cost = cost
        self.came = trio.Event()


class _Owner:
    """What waits of one user, or of one address."""

    __slots__ = ("credit", "waiting")

    def __init__(self) -> None:
        self.waiting: deque[_Waiting] = deque()
        self.credit = 0
        """What its work may still cost before it is another's turn; below zero: so much it has cost too much."""


class Work:
    """A stretch of work, measured."""

    __slots__ = ("_began_at", "_turns")

    def __init__(self, turns: Turns) -> None:
        self._turns = turns

    def __enter__(self) -> None:
        self._began_at = trio.current_time()

    def __exit__(self, *_: object) -> None:
        self._turns.worked(self._began_at)


class Turns:
    """The turns of one kind of work."""

    def __init__(self, cost_max: int, share: int | None = None) -> None:
        """No work yet.

        Args:
            cost_max: of the work in one turn; one piece may cost more, and is not divided.
            share: what the work of one of those that wait may cost until it is another's turn; `None`: `cost_max`.
        """
        self._cost_max = cost_max
        self._share = cost_max if share is None else share
        self._owners: dict[Hashable, _Owner] = {}
        """The owners whose work waits, the next one first."""
        self._left = cost_max
        """What this turn has room for; `cost_max`: nothing was begun in it."""
        self._worked_seconds = 0.0
        """In this turn."""
        self._worked_until = -inf
        self._wanted = trio.Event()

    async def take(self, whose: Hashable, cost: int) -> None:
        """Return when it is the turn of a piece of work, which lasts until its next checkpoint.

        No checkpoint if this turn has room and nobody waits.

        Cancellation: gives the turn up.
        """
        if self._left > 0 and not self._owners:
            if self._left == self._cost_max:
                self._wanted.set()
            self._left -= cost
            return
        one = _Waiting(cost)
        self._owners.setdefault(whose, _Owner()).waiting.append(one)
        self._wanted.set()
        try:
            await one.came.wait()
        except trio.Cancelled:
            self._give_up(whose, one)
            raise

    def at_work(self) -> Work:
        """Measures, as a `with` block, work that has no checkpoint."""
        return Work(self)

    def worked(self, began_at: float) -> None:
        """Count work of this turn that ends now; for `Work` alone."""
        self._worked_until = trio.current_time()
        self._worked_seconds += self._worked_until - began_at

    async def run(self) -> None:
        """Begin a turn whenever the event loop has had one, and give turns to whoever waits; until cancelled."""
        while True:
            await self._wanted.wait()  # a turn of the loop, also if it is set
            if self._owners:
                # Work that got its turn is woken in one turn of the loop and done in the next.
                await trio.lowlevel.checkpoint()
            if self._worked_seconds > LONG_SECONDS:
                await trio.sleep_until(max(trio.current_time(), self._worked_until + self._worked_seconds))
            self._begin_turn()
            if self._left == self._cost_max:
                self._wanted = trio.Event()

    def _begin_turn(self) -> None:
        self._left, self._worked_seconds = self._cost_max, 0.0
        while self._owners and self._left > 0:
            whose = next(iter(self._owners))
            owner = self._owners.pop(whose)
            owner.credit = min(owner.credit, 0) + self._share
            while owner.waiting and owner.credit > 0 and self._left > 0:
                one = owner.waiting.popleft()
                owner.credit -= one.cost
                self._left -= one.cost
                one.came.set()
            if owner.waiting:
                self._owners[whose] = owner

    def _give_up(self, whose: Hashable, one: _Waiting) -> None:
        owner = self._owners.get(whose)
        if owner is not None and one in owner.waiting:
            owner.waiting.remove(one)
            if not owner.waiting:
                del self._owners[whose]
