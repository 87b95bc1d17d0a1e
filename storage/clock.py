"""The time, as something that is passed in: the whole system can later run under a simulated clock."""

from __future__ import annotations

import logging
import time
from typing import Final, Protocol

import trio

from storage.belief import EVEN_SECONDS, Belief, Kept, Moment

_EVEN_MINUTES: Final = EVEN_SECONDS / 60

logger = logging.getLogger("avicenna.storage")


class Clock(Protocol):
    """Both times the system needs."""

    def wall(self) -> float:
        """Seconds since the Unix epoch; may jump; for people, tokens and stored rows."""

    def monotonic(self) -> float:
        """Seconds on a clock that never goes back; for deadlines; `trio.current_time()` under Trio."""


class SystemClock:
    """The machine's wall clock, and Trio's clock for deadlines: a test clock then rules waits and decisions alike."""

    def wall(self) -> float:
        return time.time()

    monotonic = staticmethod(trio.current_time)


class Timekeeper:
    """Reads the clock for a store, and tells the log when it ceases to be believed and when it is again."""

    def __init__(self, clock: Clock, kept: Kept | None = None) -> None:
        """Take the first reading; `kept` is what the last run of this store has kept, `None`: nothing."""
        self._clock = clock
        wall = clock.wall()
        self._belief = Belief(kept, wall, clock.monotonic())
        self._is_held = self._belief.held_since is not None
        if kept is not None and self._is_held:
            self._tell(wall - kept.time, "the time that the last run has kept")

    def moment(self) -> Moment:
        """The time now."""
        wall, monotonic = self._clock.wall(), self._clock.monotonic()
        moment = self._belief.look(wall, monotonic)
        is_held = self._belief.held_since is not None
        if is_held is not self._is_held:
            self._is_held = is_held
            if is_held:
                self._tell(wall - self._belief.kept(monotonic).time, "where it should be")
            else:
                logger.warning("the wall clock has run evenly for %.0f minutes: it is believed again", _EVEN_MINUTES)
        return moment

    def monotonic(self) -> float:
        """As `Clock.monotonic`."""
        return self._clock.monotonic()

    @property
    def held_since(self) -> float | None:
        """Since when the wall clock is not believed, `None`: it is; as of the last reading."""
        return self._belief.held_since

    @property
    def kept(self) -> Kept:
        """What the next run is to be told."""
        return self._belief.kept(self._clock.monotonic())

    def _tell(self, seconds: float, of_what: str) -> None:
        logger.warning(
            "the wall clock is %.0f s %s %s: nothing expires or is dropped until it has run evenly for %.0f minutes",
            abs(seconds),
            "ahead of" if seconds > 0 else "behind",
            of_what,
            _EVEN_MINUTES,
        )
