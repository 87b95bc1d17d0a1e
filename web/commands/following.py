"""What a client that follows a diagnosis must know: its position, and whether and when to come back. Pure.

This is the client's half of PROTOCOL sections 3-5: resume by number, apply an event once, obey close codes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Any, Final

NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
NO_CODE: Final = 1005
"""The Close had none."""

NOTHING_HEARD: Final = 1006
"""No close frame came: the connection broke, or there was none (RFC 6455 section 7.1.5)."""

POLICY: Final = 1008
WRONG_PARAMETER: Final = "invalid field"
"""The reason of a 1008 that the URL is to blame for."""

COME_BACK: Final = frozenset({NORMAL, 1001, NO_CODE, NOTHING_HEARD, 1011, 1012, 1013, 1014, 1015})
"""Close codes after which a client returns with its position: broken, failed, restarting or busy, not refused."""

TOKEN_REFUSED: Final = frozenset({"invalid token", "token expired", "revoked"})
"""Reasons of a 1008 that another token cures."""

UNAUTHENTICATED: Final = 401
TOO_MANY_REQUESTS: Final = 429

_CODE_OF: Final = {
    401: "unauthenticated",
    403: "forbidden",
    404: "not_found",
    422: "invalid_field",
    429: "rate_limited",
    4000: "replaced",
}
"""By HTTP status or close code."""

_CODE_OF_REASON: Final = {
    "invalid token": "unauthenticated",
    "token expired": "token_expired",
    "revoked": "unauthenticated",
    "access denied": "forbidden",
    "viewer removed": "forbidden",
    "disconnected by operator": "forbidden",
    "origin not allowed": "origin_not_allowed",
    "diagnosis not found": "not_found",
    "diagnosis deleted": "not_found",
    "rate limited": "rate_limited",
    WRONG_PARAMETER: "invalid_field",
}
"""By the reason of a 1008."""

BACKOFF_SECONDS_FIRST: Final = 0.5
TOKEN_SECONDS_FIRST: Final = 1.0
"""First longest wait after a refused token that may be replaced."""

BACKOFF_SECONDS_MAX: Final = 30.0
"""The longest wait doubles from the first up to this."""

RETRY_AFTER_SECONDS_MAX: Final = 300.0
"""Longest wait a server can ask for. Beyond: this one."""

HEARTBEAT_SECONDS: Final = 20
"""Default of the heartbeat interval."""

SILENT_HEARTBEATS_MAX: Final = 1.5
"""A connection that is silent for so many heartbeats is dead."""

EVENTS: Final = frozenset({"recommendation_update", "effectiveness_update", "feedback_update"})


@dataclass(slots=True)
class Position:
    """The position of one client, across connections."""

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

        An event at or below the position is a repeat, which a client must not apply again.

        Raises:
            Hole: numbers are missing before it.
        """
        data = frame.get("data") or {}
        match frame.get("type"):
            case "connect":
                if data["resume"] == "reset":
                    self.seq = data["floor"]
                elif self.seq is None:
                    self.seq = data["head"] - data["queued"] - data["missed"]
                self.epoch = data["epoch"]
            case "gap":
                self._reach(data["from"], data["to"])
            case kind if kind in EVENTS:
                if self.seq is not None and frame["seq"] <= self.seq:
                    return False
                self._reach(frame["seq"], frame["seq"])
        return True

    def _reach(self, first: int, last: int) -> None:
        """These numbers have come."""
        if self.seq is None or first > self.seq + 1:
            raise Hole(f"number {first} after {self.seq}")
        self.seq = max(self.seq, last)


class Hole(Exception):
    """The server has left out numbers, which it never does."""


class Then(StrEnum):
    """What a client does when a connection is over."""

    COME_BACK = "come_back"
    NEEDS_AUTH = "needs_auth"
    """Come back with another token."""
    ENDED = "ended"


def then(code: int, reason: str) -> Then:
    """What a client does after this close code and reason, or this HTTP status instead of an upgrade."""
    if code in COME_BACK or code == TOO_MANY_REQUESTS or 500 <= code <= 599:
        return Then.COME_BACK
    if code == UNAUTHENTICATED or (code == POLICY and reason in TOKEN_REFUSED):
        return Then.NEEDS_AUTH
    return Then.ENDED


def code_of(code: int, reason: str) -> str:
    """The problem code (PROTOCOL section 7) that says the same as this close code and reason, or this HTTP status.

    `failed`: none does.
    """
    return _CODE_OF.get(code) or (_CODE_OF_REASON.get(reason, "failed") if code == POLICY else "failed")


class Backoff:
    """Waits between attempts: any time up to a longest one, which doubles. So a crowd does not come back at once."""

    def __init__(self, jitter: Callable[[], float], first_seconds: float = BACKOFF_SECONDS_FIRST) -> None:
        """Begin with waits up to `first_seconds`. `jitter` gives random numbers from 0 up to 1."""
        self._jitter = jitter
        self._first_seconds = first_seconds
        self._failures = 0

    def reset(self) -> None:
        """The connection worked: the next failure counts as the first."""
        self._failures = 0

    def seconds(self, retry_after_ms: object = None) -> float:
        """The wait before the next attempt.

        Args:
            retry_after_ms: what `bye` asked for; the server has spread it over its clients already.
        """
        if isinstance(retry_after_ms, int | float) and retry_after_ms >= 0:
            return min(retry_after_ms / 1000, RETRY_AFTER_SECONDS_MAX)
        longest = min(self._first_seconds * 2.0 ** min(self._failures, 16), BACKOFF_SECONDS_MAX)
        self._failures += 1
        return longest * self._jitter()
