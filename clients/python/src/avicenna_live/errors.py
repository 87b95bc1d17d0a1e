"""What the client raises. Exceptions of the app's own functions pass through unchanged.

Exception
├── Ended           the server has ended the connection for good: do not come back by yourself
├── BroadcastError  an update was not published, or nobody knows; its subclasses say why
├── QueueFull       a `BroadcastQueue` takes no further update now
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


class BroadcastError(Exception):
    """An update was not published, or nobody knows whether it was. Its text holds no token, key or payload."""

    def __init__(self, status: int, code: str, detail: str, request_id: str | None = None) -> None:
        """Keep the problem document (RFC 9457).

        Args:
            status: of HTTP; 0: there was no answer.
            code: of PROTOCOL section 7; empty: it was no server of ours.
            detail: the server's words; they name the field and the limit.
            request_id: names the request in the server's log.
        """
        super().__init__(f"{status} {code}: {detail}" if code else detail)
        self.status = status
        self.code = code
        self.detail = detail
        self.request_id = request_id


class InvalidField(BroadcastError):
    """422: a field is wrong; `detail` names it and its rule."""


class KeyReused(BroadcastError):
    """409: this idempotency key belongs to another update of this diagnosis."""


class Unauthenticated(BroadcastError):
    """401: the token is missing, invalid or expired."""


class Forbidden(BroadcastError):
    """403: this token may not broadcast to this diagnosis, or it is unknown."""


class NotFound(BroadcastError):
    """404: there is no such diagnosis."""


class TooLarge(BroadcastError):
    """413: the update is over 64 KiB."""


class RateLimited(BroadcastError):
    """429: too much at once, for longer than was waited."""


class Unavailable(BroadcastError):
    """5xx: the server could not, for longer than was waited. A repeat with the same key within 24 h makes one event."""


class NoAnswer(BroadcastError):
    """Nobody answered for longer than was waited: unless nothing was sent, the update may have been stored."""

    def __init__(self, was_sent: bool = True, *, url: str = "") -> None:
        """Keep what is known.

        Args:
            was_sent: False: there was no connection, so the update was certainly not stored.
            url: the server's, where it is known.
        """
        server = f"the server at {url}" if url else "the server"
        unknown = "it is not known whether the update was stored"
        super().__init__(0, "", f"{server} does not answer: {unknown if was_sent else 'nothing was sent'}")
        self.was_sent = was_sent
        self.url = url


class QueueFull(Exception):
    """A `BroadcastQueue` holds as many updates as it may; this one was not taken."""
