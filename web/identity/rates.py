"""Token buckets: how often somebody may do something. Pure; the time is an argument."""

from __future__ import annotations

from collections import OrderedDict
from typing import Final

NAMES_MAX: Final = 10_000
"""Names with a bucket of their own, the ones seen last. Beyond: the one unseen for longest starts anew, full."""


class Rate:
    """So many a second for each name; what was not used within a second is lost."""

    def __init__(self, per_second: float, *, names_max: int = NAMES_MAX) -> None:
        self._per_second = per_second
        self._burst = max(1.0, per_second)
        self._names_max = names_max
        self._buckets: OrderedDict[str, tuple[float, float]] = OrderedDict()
        """What is left for each name, and when that was."""

    def take(self, name: str, now: float) -> float:
        """Take one for this name; seconds to wait until there is one, 0: taken."""
        left, at = self._buckets.get(name, (self._burst, now))
        left = min(self._burst, left + max(0.0, now - at) * self._per_second)
        taken = left >= 1
        self._buckets[name] = (left - 1 if taken else left, now)
        self._buckets.move_to_end(name)
        if len(self._buckets) > self._names_max:
            self._buckets.popitem(last=False)
        return 0.0 if taken else (1 - left) / self._per_second
