"""A clock whose wall time stands still during a conversation: what two servers write at the same time is the same."""

from __future__ import annotations

from typing import Final

import trio

BEGIN: Final = 1_790_000_000.0
"""Its first wall time, in seconds since the Unix epoch."""


class StandingClock:
    """The clocks of one server. What a test lets go by, goes by on all of them."""

    def __init__(self, now: float) -> None:
        """Begin at this time of Trio's clock."""
        self._began = self._now = now
        self._ahead = 0.0

    def wall(self) -> float:
        """Seconds since the Unix epoch."""
        return BEGIN + self._ahead + self._now - self._began

    def monotonic(self) -> float:
        """Seconds on a clock that runs as Trio's, as waits do that the server measures by both."""
        return trio.current_time() + self._ahead

    def told(self) -> float:
        """Seconds on a clock that goes on where a test says so alone: what rates are measured by."""
        return self._ahead

    def stand_at(self, now: float) -> None:
        """Have the wall clock stand at this time of Trio's clock from now on."""
        self._now = now

    def advance(self, seconds: float) -> None:
        """Let time go by."""
        self._ahead += seconds
