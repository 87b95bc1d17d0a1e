"""The log lines about a disk that takes nothing: one line when that begins, one when it is over.

While a disk is nearly full small changes are stored and large ones refused, in turns: two lines would come for each of
them. So a new outage is not told within `SILENT_SECONDS` of the one before, unless it lasts.
"""

from __future__ import annotations

import logging
from typing import Final

from storage.errors import StorageError

SILENT_SECONDS: Final = 10.0
"""The least time between two lines that begin an outage."""

logger = logging.getLogger("avicenna.storage")


class Outage:
    """Logs the times in which the disk refuses commits. One per committer."""

    def __init__(self) -> None:
        self._told_at: float | None = None
        """When the last one was told."""
        self._is_told = False
        """It was told that it began, and it is not over."""

    def goes_on(self, why: StorageError, now: float) -> None:
        """A transaction was refused at this time (of a monotonic clock)."""
        if self._is_told or (self._told_at is not None and now < self._told_at + SILENT_SECONDS):
            return
        self._told_at, self._is_told = now, True
        logger.warning("nothing is stored until further notice: %s", why)

    def is_over(self, now: float) -> None:
        """A transaction was committed at this time."""
        if self._is_told and self._told_at is not None:
            self._is_told = False
            logger.warning("what comes is stored again, after %.1f s", now - self._told_at)
