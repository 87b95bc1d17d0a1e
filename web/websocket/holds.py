"""How long the Close behind a refusal is held back, so that a client which comes back at once is no hot loop. Pure.

Libraries that reconnect for ever (`async for ws in websockets.connect(...)`) do so the moment a connection has ended,
whatever the code says. The refusal itself is never held back; the time is an argument.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Hashable
from math import inf
from typing import Final

FIRST_SECONDS: Final = 0.2
"""Behind the first refusal."""

LONGEST_SECONDS: Final = 5.0
"""At most; each is twice the one before it. Reason: shorter than the times libraries give a server for its Close."""

QUIET_SECONDS: Final = 60.0
"""After so long without a refusal a name is forgotten."""

NAMES_MAX: Final = 10_000
"""Names that are remembered, the ones refused last. Beyond: the one that has been quiet for longest begins anew."""


class Holds:
    """The names that were refused lately."""

    def __init__(self, *, names_max: int = NAMES_MAX) -> None:
        self._names_max = names_max
        self._lately: OrderedDict[Hashable, tuple[float, float]] = OrderedDict()
        """The last time to hold back and when that was, by name, the one refused last at the end."""

    def seconds(self, name: Hashable, now: float) -> float:
        """How long to hold back the Close behind this refusal."""
        before, at = self._lately.pop(name, (0.0, -inf))
        seconds = FIRST_SECONDS if now - at >= QUIET_SECONDS else min(LONGEST_SECONDS, 2 * before)
        self._lately[name] = (seconds, now)
        if len(self._lately) > self._names_max:
            self._lately.popitem(last=False)
        return seconds

    def forget_quiet(self, now: float) -> None:
        """Forget names that have been quiet for long enough."""
        while self._lately and now - next(iter(self._lately.values()))[1] >= QUIET_SECONDS:
            self._lately.popitem(last=False)
