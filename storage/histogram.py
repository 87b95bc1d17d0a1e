"""Counting values in fixed buckets: an array and a bisection, cheap enough for a hot path. Pure."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import Final

SECONDS: Final = (0.0001, 0.00025, 0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0)
"""Upper bounds of buckets of times in seconds."""

COUNTS: Final = (1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 128.0, 256.0, 512.0)
"""Upper bounds of buckets of numbers of things."""


@dataclass(frozen=True, slots=True)
class Distribution:
    """How values were distributed until now."""

    bounds: tuple[float, ...]
    """The highest value of each bucket, ascending. One more bucket has no bound."""
    counts: tuple[int, ...]
    """Values of each bucket, that without a bound last."""
    sum: float
    """All values together."""

    @property
    def count(self) -> int:
        """How many values there were."""
        return sum(self.counts)

    @property
    def below(self) -> tuple[int, ...]:
        """For each bound, and at last for infinity: how many values were not above it."""
        return tuple(accumulate(self.counts))


class Histogram:
    """Counts values. One thread observes; `distribution` may be read at any time."""

    __slots__ = ("_bounds", "_counts", "_sum")

    def __init__(self, bounds: Sequence[float]) -> None:
        """No values yet.

        Args:
            bounds: the highest value of each bucket, ascending.
        """
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Count one value."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def distribution(self) -> Distribution:
        """What was counted until now."""
        return Distribution(self._bounds, tuple(self._counts), self._sum)


NO_SECONDS: Final = Histogram(SECONDS).distribution()
NO_COUNTS: Final = Histogram(COUNTS).distribution()
"""Distributions of nothing."""
