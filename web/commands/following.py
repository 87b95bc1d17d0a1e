"""What a client that follows a diagnosis must know: its position, and whether and when to come back. Pure.

This is the client's half of PROTOCOL sections 3-5: resume by number, apply an event once, obey close codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
NOTHING_HEARD: Final = 1006
"""No close frame came: the connection broke, or there was none (RFC 6455 section 7.1.5)."""

POLICY: Final = 1008
WRONG_PARAMETER: Final = "invalid field"
"""The reason of a 1008 whose fault is the URL's."""

COME_BACK: Final = frozenset({1005, NOTHING_HEARD, 1011, 1012, 1013, 1014})
"""Close codes after which a client returns with its position: broken, failed, restarting or busy, not refused."""

TOO_MANY_REQUESTS: Final = 429

BACKOFF_SECONDS_FIRST: Final = 0.5
BACKOFF_SECONDS_MAX: Final = 30.0
"""Waits double between these two."""

RETRY_AFTER_SECONDS_MAX: Final = 300.0
"""Longest wait a server can ask for. Beyond: this one."""

EVENTS: Final = frozenset({"recommendation_update", "effectiveness_update", "feedback_update"})


@dataclass(slots=True)
class Position:
    """Up to where one client has come, across connections."""

    seq: int | None = None
    """The last number applied, `None`: none yet, the server decides where we begin."""
    epoch: str | None = None
    """The numbering `seq` belongs to, `None`: the server's current one."""

    def query(self, start: str | None) -> dict[str, str | None]:
        """The query parameters that resume here; `start` counts only while there is nothing to resume."""
        if self.seq is None:
            return {"start": start}
        return {"after": str(self.seq), "epoch": self.epoch}

    def advance(self, frame: dict[str, Any]) -> bool:
        """Take note of a server frame; whether it is news.

        An event at or below the position is a repeat: applying it again is what a client must not do.
        """
        data = frame.get("data") or {}
        match frame.get("type"):
            case "connect":
                if data["resume"] == "reset":
                    self.seq = data["floor"]
                self.epoch = data["epoch"]
            case "gap":
                self._reach(data["to"])
            case "live":
                self._reach(data["seq"])
            case kind if kind in EVENTS:
                if self.seq is not None and frame["seq"] <= self.seq:
                    return False
                self._reach(frame["seq"])
        return True

    def _reach(self, seq: int) -> None:
        self.seq = seq if self.seq is None else max(self.seq, seq)


def comes_back(code: int) -> bool:
    """Whether a client returns by itself after this close code, or this HTTP status instead of an upgrade."""
    return code in COME_BACK or code == TOO_MANY_REQUESTS or 500 <= code <= 599


class Backoff:
    """Waits between attempts: doubling, with jitter, so that a crowd does not come back at once."""

    def __init__(self, jitter: Callable[[], float]) -> None:
        """Start with the shortest wait. `jitter` gives random numbers from 0 up to 1."""
        self._jitter = jitter
        self._failures = 0

    def reset(self) -> None:
        """The connection worked: the next failure is a first one."""
        self._failures = 0

    def seconds(self, retry_after_ms: object = None) -> float:
        """The wait before the next attempt.

        Args:
            retry_after_ms: what `bye` asked for; the server has spread it over its clients already.
        """
        if isinstance(retry_after_ms, int | float) and retry_after_ms >= 0:
            return min(retry_after_ms / 1000, RETRY_AFTER_SECONDS_MAX)
        longest = min(BACKOFF_SECONDS_FIRST * 2.0 ** min(self._failures, 16), BACKOFF_SECONDS_MAX)
        self._failures += 1
        return longest * (0.5 + self._jitter() / 2)
