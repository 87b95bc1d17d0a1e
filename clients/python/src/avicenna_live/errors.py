"""What the client raises. Exceptions of the app's own functions pass through unchanged.

Exception
├── Ended           the server has ended the connection for good: do not come back by yourself
├── Unreachable     (within the package) no connection came about: come back
├── Refused         (within the package) the upgrade was answered with another HTTP status
├── Closed          (within the package) the connection is over
├── ProtocolFault   (within the package) the server does not speak our protocol
└── NoToken         (within the package) the app's function gave no token
"""

from __future__ import annotations


class Ended(Exception):
    """The server has ended the connection for good."""

    def __init__(self, code: int, reason: str, detail: str = "") -> None:
        """Keep why.

        Args:
            code: a close code (4000: another connection of this device took over), or an HTTP status.
            reason: of the server, for programs: `replaced`, `access denied`, ...
            detail: of the server, for people; empty: it gave none.
        """
        super().__init__(f"the server ended the connection: {code} {reason}{detail and ': '}{detail}".rstrip())
        self.code = code
        self.reason = reason
        self.detail = detail


class Unreachable(Exception):
    """No connection came about."""


class Refused(Exception):
    """The upgrade was answered with an HTTP status other than 101."""

    def __init__(self, status: int, retry_after: str | None) -> None:
        """Keep the answer; `retry_after` is that header, if there is one."""
        super().__init__(f"HTTP status {status} instead of a WebSocket")
        self.status = status
        self.retry_after = retry_after


class Closed(Exception):
    """The connection is over."""

    def __init__(self, code: int, reason: str) -> None:
        """Keep the close frame's code and reason; 1006: no close frame came."""
        super().__init__(code, reason)
        self.code = code
        self.reason = reason


class ProtocolFault(Exception):
    """The server does not speak our protocol."""


class NoToken(Exception):
    """The app's function raised, or returned what is no token."""
