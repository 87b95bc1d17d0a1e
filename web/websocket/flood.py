"""How much a client may send (PROTOCOL section 4): token buckets. Pure; the time is an argument.

A client that has used up its allowance is not read from until some of it is back, so TCP slows it down. A client that
goes on all the same for `FLOOD_SECONDS` floods.
"""

from __future__ import annotations

from enum import Enum, auto
from typing import Final

FRAMES_BURST_MAX: Final = 100
"""Frames a client may send at once. Reason: a page that wakes up says a lot. Beyond: it is not read for a while."""

REPEATS_PER_SECOND_MAX: Final = 100
"""Acknowledgements and Pongs that confirm nothing new and are free, each second. Reason: those that confirm something
come only as often as events do, these might never end. Beyond: they take from the allowance of frames."""

REFILL: Final = 1.05
"""Allowances come back a little faster than they may be used. Reason: frames that are sent steadily do not arrive
steadily, and a client that was late once must catch up."""

FLOOD_SECONDS: Final = 5.0
"""How long a client may use up its allowance again and again. Beyond: it floods."""


class Cost(Enum):
    """What a frame of a client costs."""

    NOTHING = auto()
    """It confirms something new: that comes only as often as events do."""
    REPEAT = auto()
    """It confirms what is confirmed already."""
    FRAME = auto()


class Allowance:
    """What one client may send. Made with its first frame that costs something."""

    __slots__ = ("_at", "_emptied", "_flooding_since", "_frames", "_per_second", "_repeats", "is_empty")

    def __init__(self, per_second: int, now: float) -> None:
        """A full one.

        Args:
            per_second: frames a client may send steadily.
        """
        self._per_second = per_second
        self._frames = float(FRAMES_BURST_MAX)
        """Below zero: as much was read at once beyond what was left."""
        self._repeats = float(REPEATS_PER_SECOND_MAX)
        self._at = now
        self.is_empty = False
        """The client is not to be read from."""
        self._emptied = False
        """It was used up since the last look."""
        self._flooding_since: float | None = None
        """Since when it was used up at every look, or about to be."""

    def take(self, cost: Cost, now: float) -> None:
        """Pay for a frame that was read."""
        self._refill(now)
        if cost is Cost.REPEAT and self._repeats >= 1:
            self._repeats -= 1
            return
        if cost is Cost.NOTHING:
            return
        self._frames -= 1
        if self._frames < 0:
            self.is_empty = self._emptied = True
            if self._flooding_since is None:
                self._flooding_since = now

    def look(self, now: float, *, is_waiting: bool) -> bool:
        """To be called at every look; whether the client has used up its allowance at all of them for too long.

        Args:
            is_waiting: more of the client lies unread. It uses that up in a moment, unless it is read so late that it
                has a second's frames left.
        """
        self._refill(now)
        goes_on = is_waiting and self._frames < self._per_second
        if not (self.is_empty or self._emptied or goes_on):
            self._flooding_since = None
        self._emptied = False
        self.is_empty = self._frames < 0
        return self._flooding_since is not None and now - self._flooding_since >= FLOOD_SECONDS

    @property
    def is_calm(self) -> bool:
        """Whether the client has stayed within its allowance since the look before the last."""
        return self._flooding_since is None

    def _refill(self, now: float) -> None:
        elapsed, self._at = max(0.0, now - self._at), now
        refill = elapsed * REFILL
        self._frames = min(FRAMES_BURST_MAX, self._frames + refill * self._per_second)
        self._repeats = min(REPEATS_PER_SECOND_MAX, self._repeats + refill * REPEATS_PER_SECOND_MAX)
