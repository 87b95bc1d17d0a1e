"""What happens to adopted connections, counted where it happens. Pure; figures since the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final

from web.contract.errors import CloseCode

OTHER: Final = 0
"""In place of any code that a client chose for itself. Reason: there are thousands, and each would be counted."""

CODES: Final = (*CloseCode, 1001, 1005, 1006)
"""Codes that are counted one by one: those of this server, those of browsers that leave (RFC 6455 section 7.4.1), and
those that stand for a Close without a code and for none at all."""


@dataclass(slots=True, eq=False)
class Counts:
    """Totals that all channels of one hub keep together."""

    aborted: int = 0
    """Connections cut off because their clients took no bytes or answered no Ping."""
    floods: int = 0
    """Connections closed because their clients sent too much, or did not read what they asked for."""
    closes: dict[int, int] = field(default_factory=lambda: dict.fromkeys((*map(int, CODES), OTHER), 0))
    """Connections that ended, by the code of the first Close."""

    def closed(self, code: int) -> None:
        """Count the end of a connection."""
        self.closes[code if code in self.closes else OTHER] += 1


@dataclass(frozen=True, slots=True)
class HubStatistics:
    """The adopted connections of one server. See `Counts` for the totals."""

    connections: int
    """Open now."""
    held: int
    """Connections whose Close is held back now."""
    aborted: int
    floods: int
    closes: Mapping[int, int]
