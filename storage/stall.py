"""For how long the store has kept somebody waiting, and what the log says about it: a line when it begins and one when
it ends.

Time in which this process did not run (SIGSTOP, a machine that is paused) does not count: nobody was kept waiting by
the disk. So time is added up from looks that come at least every `LOOK_SECONDS`.
"""

from __future__ import annotations

import logging
from typing import Final

LOOK_SECONDS: Final = 0.5
"""Time between two looks."""

STEP_SECONDS_MAX: Final = 3 * LOOK_SECONDS
"""The most that counts between two looks. Reason: more is a pause of the process."""

STALLED_SECONDS: Final = 2.0
"""Waiting for so long is a stall: the log says so, and the server is not ready."""

assert STEP_SECONDS_MAX < STALLED_SECONDS, "no pause of the process looks like a stall"

logger = logging.getLogger("avicenna.storage")


class Stall:
    """Measures waiting, in seconds of a time that stands while the process does not run. One per committer."""

    def __init__(self, now: float) -> None:
        """Begin at this time of a monotonic clock, in seconds."""
        self._looked_at = now
        self._ran = 0.0
        """Seconds up to the last look."""
        self._began_at: float | None = None
        """When the logged stall began, in seconds run; `None`: there is none."""

    def ran(self, now: float) -> float:
        """Seconds this process has run."""
        return self._ran + min(max(0.0, now - self._looked_at), STEP_SECONDS_MAX)

    def look(self, now: float, waiting_since: float | None) -> None:
        """Tell the log what has changed; to be called every `LOOK_SECONDS`.

        Args:
            waiting_since: when the oldest that waits began to, in seconds run; `None`: nobody waits.
        """
        self._ran, self._looked_at = self.ran(now), now
        is_stalled = waiting_since is not None and self._ran - waiting_since >= STALLED_SECONDS
        if is_stalled and self._began_at is None:
            self._began_at = waiting_since
            logger.warning("the disk has not answered for %.0f s: who waits for it is told so", STALLED_SECONDS)
        elif not is_stalled and self._began_at is not None:
            logger.warning("the disk answers again, after %.1f s", self._ran - self._began_at)
            self._began_at = None
