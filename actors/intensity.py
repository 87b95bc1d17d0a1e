"""Restart arithmetic: how many crashes are too many, and how long to wait before the next try. Pure."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

BACKOFF_FIRST_SECONDS: Final = 0.1
"""Wait before the second restart in a row; the first is immediate. Doubles from here."""

BACKOFF_MAX_SECONDS: Final = 5.0
"""Longest wait before a restart. Reason: a publisher waits in the mailbox meanwhile."""


class Intensity:
    """Counts crashes (or what else should be rare) within a sliding window.

    Args:
        crashes_max: crashes tolerated within the window; one more exceeds the intensity.
        window_seconds: length of the window.
    """

    __slots__ = ("_crashes", "_crashes_max", "_window_seconds")

    def __init__(self, crashes_max: int, window_seconds: float) -> None:
        self._crashes_max = crashes_max
        self._window_seconds = window_seconds
        self._crashes: list[float] = []

    def crashed(self, now: float) -> bool:
        """Note a crash; True if there were more than tolerated within the window."""
        self._crashes.append(now)
        return self.exceeded(now)

    def exceeded(self, now: float) -> bool:
        """Whether there were more crashes than tolerated within the window that ends now."""
        self._forget_before(now - self._window_seconds)
        return len(self._crashes) > self._crashes_max

    def backoff_seconds(self, jitter: Callable[[], float]) -> float:
        """How long to wait before the next start: 0 after the first crash in the window, then doubling, jittered.

        Args:
            jitter: a number from 0 up to 1; the wait lies between half and the whole of its step.
        """
        repeats = len(self._crashes) - 1
        if repeats <= 0:
            return 0.0
        step = min(BACKOFF_MAX_SECONDS, BACKOFF_FIRST_SECONDS * float(2 ** min(repeats - 1, 16)))
        return step * (0.5 + 0.5 * jitter())

    def reset(self) -> None:
        """Forget all crashes: an operator released the actor, or its cool-off is over."""
        self._crashes.clear()

    def _forget_before(self, moment: float) -> None:
        while self._crashes and self._crashes[0] <= moment:
            del self._crashes[0]
