"""Whether to come back after an end, and when. Pure: randomness comes as an argument."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final, Literal

NORMAL: Final = 1000
PROTOCOL_ERROR: Final = 1002
NO_CODE: Final = 1005
NOTHING_HEARD: Final = 1006
"""A close frame without a code, and none at all (RFC 6455 section 7.1.5). Neither is ever sent."""
POLICY: Final = 1008
REPLACED: Final = 4000

COME_BACK: Final = frozenset({NORMAL, 1001, NO_CODE, NOTHING_HEARD, 1011, 1012, 1013, 1014, 1015})
"""Close codes after which a client returns by itself: broken, failed, restarting or busy, not refused."""

TOKEN_REASONS: Final = frozenset({"invalid token", "token expired", "revoked"})
"""Reasons of a 1008 that another token can cure."""

HTTP_UNAUTHORIZED: Final = 401
HTTP_TOO_MANY: Final = 429

RETRY_AFTER_SECONDS_MAX: Final = 300.0
"""Longest wait a server can ask for. Beyond: this one."""

Then = Literal["come_back", "needs_auth", "ended"]


def after(code: int, reason: str) -> Then:
    """What follows a close code with this reason, or this HTTP status instead of an upgrade (PROTOCOL section 4)."""
    if code == HTTP_UNAUTHORIZED or (code == POLICY and reason in TOKEN_REASONS):
        return "needs_auth"
    return "come_back" if code in COME_BACK or code == HTTP_TOO_MANY or 500 <= code < 600 else "ended"


@dataclass(frozen=True, slots=True)
class Backoff:
    """Waits that double from `first_seconds` to `max_seconds`, with full jitter: a crowd does not come back at once."""

    first_seconds: float = 0.5
    max_seconds: float = 30.0

    def __post_init__(self) -> None:
        """Refuse what is no pair of waits. Raises `ValueError`."""
        if not 0 < self.first_seconds <= self.max_seconds:
            raise ValueError(
                f"backoff must have 0 < first_seconds <= max_seconds, not {self.first_seconds} and {self.max_seconds}"
            )

    def seconds(self, failures: int, random: float) -> float:
        """The wait after so many failures in a row before the last one.

        Args:
            failures: from 0.
            random: from 0 up to 1.
        """
        return random * min(self.max_seconds, self.first_seconds * 2.0 ** min(failures, 32))


REFUSED_TOKEN: Final = Backoff(1.0, 30.0)
"""Between two tokens that a function returned and the server refused."""


def wished_seconds(retry_after_ms: object) -> float | None:
    """The wait that a `bye` asks for, `None`: it does not."""
    if isinstance(retry_after_ms, bool) or not isinstance(retry_after_ms, int | float) or not retry_after_ms >= 0:
        return None
    return min(retry_after_ms / 1000, RETRY_AFTER_SECONDS_MAX)


def header_seconds(retry_after: str | None) -> float | None:
    """The wait that a `Retry-After` in seconds asks for. A date is not looked at: it needs two clocks that agree."""
    if retry_after is None or not (retry_after.isascii() and retry_after.isdigit() and len(retry_after) <= 9):
        return None
    return min(float(retry_after), RETRY_AFTER_SECONDS_MAX)
