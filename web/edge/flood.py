"""Telling a flood of frames from a busy client (PROTOCOL section 3). Pure; the time is an argument."""

from __future__ import annotations

from typing import Final

FLOOD_SECONDS: Final = 5
"""Seconds in a row with too many frames. Reason: a burst is no attack."""

JITTER_FRAMES: Final = 3
"""So many too many within those seconds are forgiven. Reason: what is sent steadily does not arrive steadily."""


class FrameRate:
    """Counts the frames of one client, second by second."""

    __slots__ = ("_began_at", "_excess", "_frames", "_seconds")

    def __init__(self, now: float) -> None:
        self._began_at = now
        self._frames = 0
        self._seconds = 0
        """Seconds in a row with too many."""
        self._excess = 0.0
        """Frames beyond the limit in those seconds."""

    def exceeded(self, now: float, per_second_max: int) -> bool:
        """Count a frame; whether there have been more than `per_second_max` a second for `FLOOD_SECONDS`."""
        elapsed = now - self._began_at
        if elapsed >= 1.0:
            excess = self._frames - per_second_max * elapsed
            self._seconds, self._excess = (self._seconds + 1, self._excess + excess) if excess > 0 else (0, 0.0)
            self._began_at = now
            self._frames = 0
        self._frames += 1
        return self._seconds >= FLOOD_SECONDS and self._excess > JITTER_FRAMES
