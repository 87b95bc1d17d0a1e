"""The time, as something that is passed in: the whole system can later run under a simulated clock."""

from __future__ import annotations

import time
from typing import Protocol

import trio


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

    def monotonic(self) -> float:
        return trio.current_time()
