"""When a reading of the wall clock is believed, and what may be judged by it. Pure: readings come as arguments.

The wall clock can be wrong: a machine starts without one, an operator mistypes a date, a time server lies. One wrong
reading must not destroy anything, so a jump holds all judgement by time until the clock has run evenly for an hour.
The rules, of readings `(wall, monotonic)`:

* A jump while running: the wall clock has moved more than `JUMP_SECONDS` more or less than the monotonic clock has,
  since the last reading, or since the one with which the even hour began.
* A jump at the start: the wall clock is more than `JUMP_SECONDS` behind the time that the last run kept, or more than
  `AHEAD_SECONDS_MAX` ahead of it (`JUMP_SECONDS`, if the last run ended while it was held).
* A jump begins a hold, or the hour of a hold anew. After an even hour the new time is believed, also if it is lower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, NamedTuple

JUMP_SECONDS: Final = 300.0
"""More than this is a jump. Reason: clocks are set by less every day."""

AHEAD_SECONDS_MAX: Final = 24 * 3600.0
"""At the start the clock may be so far ahead of the kept time: the server was off meanwhile."""

EVEN_SECONDS: Final = 3600.0
"""So long must the wall clock run evenly until it is believed again."""


class Moment(NamedTuple):
    """One time for each of its three uses, in seconds since the Unix epoch."""

    wall: float
    """For stamps: what the wall clock says, whether or not it is believed."""
    reckoned: float
    """For the ends of what is written: never lower than any time that was believed."""
    judged: float
    """For deciding that something is old: it is if its end is not above this. Minus infinity while held: nothing is old
    then."""


@dataclass(frozen=True, slots=True)
class Kept:
    """What the next run is told about this one's time."""

    time: float
    """The highest wall time that was believed; while held, moved on by the monotonic clock."""
    held: bool
    """The clock was not believed."""


class Belief:
    """Judges the readings of one run, in the order in which they were taken."""

    __slots__ = ("_anchor", "_anchor_monotonic", "_believed", "_believed_at", "_last", "held_since")

    def __init__(self, kept: Kept | None, wall: float, monotonic: float) -> None:
        """Begin with the first reading of a run; `kept` is what the last run left, `None`: there was none."""
        self._believed = wall if kept is None else kept.time
        """The highest wall time that was believed."""
        self._believed_at = monotonic
        """The monotonic time of that reading."""
        self._anchor = self._last = wall - monotonic
        """How far the two clocks lay apart at the reading since which they run evenly, and at the last one."""
        self._anchor_monotonic = monotonic
        self.held_since: float | None = None
        """When the hold began, as the wall clock reckons it now; `None`: the clock is believed."""
        if kept is not None:
            ahead = wall - kept.time
            if ahead < -JUMP_SECONDS or ahead > (JUMP_SECONDS if kept.held else AHEAD_SECONDS_MAX):
                self.held_since = wall
        if self.held_since is None:
            self._believed = max(self._believed, wall)

    def look(self, wall: float, monotonic: float) -> Moment:
        """What a reading may be used for."""
        apart = wall - monotonic
        if abs(apart - self._last) > JUMP_SECONDS or abs(apart - self._anchor) > JUMP_SECONDS:
            self._jump(wall, monotonic)
        elif monotonic - self._anchor_monotonic >= EVEN_SECONDS:
            self._anchor, self._anchor_monotonic = apart, monotonic
            if self.held_since is not None:
                self.held_since = None
                self._believed, self._believed_at = wall, monotonic
        self._last = apart
        if self.held_since is not None:
            return Moment(wall, max(wall, self._moved_on(monotonic)), -math.inf)
        if wall >= self._believed:
            self._believed, self._believed_at = wall, monotonic
        return Moment(wall, self._believed, wall)

    def kept(self, monotonic: float) -> Kept:
        """What the next run is to be told now."""
        if self.held_since is None:
            return Kept(self._believed, held=False)
        return Kept(self._moved_on(monotonic), held=True)

    def _jump(self, wall: float, monotonic: float) -> None:
        if self.held_since is None:
            self.held_since = wall
        else:
            # The beginning of the hold, as the clock that runs now would have shown it.
            self.held_since += wall - monotonic - self._anchor
        self._anchor, self._anchor_monotonic = wall - monotonic, monotonic

    def _moved_on(self, monotonic: float) -> float:
        return self._believed + monotonic - self._believed_at
