"""Every status, problem code and close code of this server, in one place (PROTOCOL sections 4 and 7).

WebError
+-- Problem              an HTTP request is answered with an RFC 9457 problem document
`-- ConnectionRefused    a WebSocket gets an `error` frame and then a close: what its `Refusal` says
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from enum import Enum, IntEnum
from typing import Final

from actors.errors import Crashed, DevicesExhausted, Draining, MailboxFull, Quarantined
from actors.transport import Ending
from storage.errors import (
    Busy,
    CannotCopy,
    Failed,
    KeyReused,
    KeysExhausted,
    NoSuchDiagnosis,
    NoSuchRevocation,
    NotSupported,
    OutboxDamaged,
    Unstorable,
)

STATUS_OF_CODE: Final = {
    "bad_json": 400,
    "unauthenticated": 401,
    "token_expired": 401,
    "forbidden": 403,
    "origin_not_allowed": 403,
    "not_found": 404,
    "method_not_allowed": 405,
    "key_reused": 409,
    "length_required": 411,
    "too_large": 413,
    "unsupported_media_type": 415,
    "misdirected_request": 421,
    "invalid_field": 422,
    "mailbox_full": 429,
    "rate_limited": 429,
    "internal_error": 500,
    "not_supported": 501,
    "quarantined": 503,
    "draining": 503,
    "storage_unavailable": 503,
}
"""The HTTP status each problem code comes with."""

STATUSES_OF_THE_EDGE: Final = (408, 414, 426, 431, 501, 505)
"""Further statuses that come with one of these codes: a request that is not proper HTTP has no code of its own."""

RETRY_AFTER_SECONDS: Final = 1
"""What a client that met a full mailbox or a full disk is told to wait."""


RETRY_SPREAD_SECONDS: Final = 5.0
"""Clients that are sent away together are told to come back at random within this time."""

REPAIR_RETRY_SECONDS: Final = 60
"""The same for a damaged diagnosis. Reason: a retry is useless before an operator has acted."""


class WebError(Exception):
    """Any refusal a client is told about."""


@dataclass(eq=False)
class Problem(WebError):
    """An HTTP request that is refused."""

    code: str
    """A key of `STATUS_OF_CODE`."""
    detail: str
    """For people: names the field and the limit, never a value that was sent."""
    headers: dict[str, str] = field(default_factory=dict)
    status_instead: int | None = None
    """A status that says more than that of the code: answers of the edge have no code of their own."""

    @property
    def status(self) -> int:
        """The HTTP status."""
        return self.status_instead or STATUS_OF_CODE[self.code]


class CloseCode(IntEnum):
    """WebSocket close codes this server sends (RFC 6455 section 7.4, PROTOCOL section 4)."""

    NORMAL = 1000
    PROTOCOL_ERROR = 1002
    INVALID_TEXT = 1007
    POLICY = 1008
    TOO_BIG = 1009
    INTERNAL_ERROR = 1011
    RESTART = 1012
    TRY_LATER = 1013
    REPLACED = 4000


@dataclass(frozen=True, slots=True)
class Refusal:
    """How a WebSocket is refused before `connect`: an `error` frame, then this close."""

    code: str
    """Of the `error` frame."""
    detail: str
    reason: str
    """Of the close frame."""
    close_code: CloseCode = CloseCode.POLICY


class ConnectionRefused(WebError):
    """A WebSocket that is refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.detail)
        self.refusal = refusal


INVALID_TOKEN: Final = Refusal("invalid_token", "a valid token is required", "invalid token")
TOKEN_EXPIRED: Final = Refusal("token_expired", "the token has expired", "token expired")
ACCESS_DENIED: Final = Refusal("access_denied", "you may not follow this diagnosis", "access denied")
NOT_FOUND: Final = Refusal("not_found", "this diagnosis is not registered", "diagnosis not found")
REVOKED: Final = Refusal("invalid_token", "the token has been revoked", "revoked")
KEYS_MISSING: Final = Refusal("quarantined", "tokens cannot be verified right now", "try later", CloseCode.TRY_LATER)
ORIGIN_NOT_ALLOWED: Final = Refusal("origin_not_allowed", "this origin may not connect", "origin not allowed")


def too_many(detail: str) -> Refusal:
    """A limit of the operator is reached; `detail` names it."""
    return Refusal("rate_limited", detail, "rate limited")


def invalid_parameter(detail: str) -> Refusal:
    """A query parameter or header of the upgrade is wrong; `detail` names it and its limit."""
    return Refusal("invalid_field", detail, "invalid field")


def close_of(ending: Ending) -> tuple[CloseCode, str]:
    """The close code and reason for a connection the server ends after `connect`."""
    match ending:
        case Ending.REPLACED:
            return CloseCode.REPLACED, "replaced"
        case Ending.QUARANTINED:
            return CloseCode.TRY_LATER, "quarantined"
        case Ending.STOPPING | Ending.RENEWED:
            return CloseCode.RESTART, "restart"
        case Ending.DELETED | Ending.VIEWER_REMOVED | Ending.DISCONNECTED | Ending.TOKEN_EXPIRED | Ending.REVOKED:
            return CloseCode.POLICY, ending.value


class Asked(Enum):
    """What a request was to do. The words about its outcome depend on that."""

    TO_READ = 0
    """Read only: no outcome can be unknown."""
    TO_ACT = 1
    """A change that takes no `Idempotency-Key`."""
    TO_PUBLISH = 2


def problem_of(error: Exception, asked: Asked) -> Problem | None:
    """What an answer of the rooms below means to an HTTP client; `None`: not an expected one."""
    is_read = asked is Asked.TO_READ
    done, again = "done", "look before you repeat it"
    if asked is Asked.TO_PUBLISH:
        done, again = "stored", "repeat it with the same Idempotency-Key"
    match error:
        case Busy() | Failed() if is_read:
            return Problem("storage_unavailable", "this cannot be read right now", retry_after(RETRY_AFTER_SECONDS))
        case Crashed() if is_read:
            return Problem("internal_error", "the request failed twice")
        case MailboxFull():
            return Problem("mailbox_full", f"{error}; nothing was stored", retry_after(RETRY_AFTER_SECONDS))
        case Quarantined():
            return Problem("quarantined", str(error), retry_after(error.retry_after_seconds))
        case Draining():
            return Problem("draining", "the server is stopping; nothing was stored", retry_after(RETRY_AFTER_SECONDS))
        case Crashed():
            return Problem("internal_error", f"the request failed twice; {again}")
        case KeysExhausted():
            detail = f"{error} (setting idempotency_keys_max); nothing was stored"
            return Problem("rate_limited", detail, retry_after(RETRY_AFTER_SECONDS))
        case Busy():
            return Problem("storage_unavailable", f"certainly not stored: {error}", retry_after(RETRY_AFTER_SECONDS))
        case Failed():
            detail = f"it is unknown whether this was {done}; {again}"
            return Problem("storage_unavailable", detail, retry_after(RETRY_AFTER_SECONDS))
        case OutboxDamaged():
            detail = str(error) if is_read else f"certainly not stored: {error}"
            return Problem("storage_unavailable", detail, retry_after(REPAIR_RETRY_SECONDS))
        case CannotCopy():
            return Problem("storage_unavailable", str(error), retry_after(RETRY_AFTER_SECONDS))
        case NotSupported():
            return Problem("not_supported", str(error))
        case Unstorable():
            return Problem("invalid_field", str(error))
        case KeyReused():
            return Problem("key_reused", "this Idempotency-Key was used for another event of this diagnosis")
        case NoSuchDiagnosis():
            return Problem("not_found", "this diagnosis is not registered")
        case NoSuchRevocation():
            return Problem("not_found", "there is no revocation with this id")
        case DevicesExhausted():
            return Problem("invalid_field", f"device: {error}")
        case _:
            return None


def refusal_of(error: Exception) -> Refusal | None:
    """What an answer of the rooms below means to a WebSocket that wants to subscribe; `None`: unexpected."""
    match error:
        case Quarantined():
            return Refusal("quarantined", str(error), "quarantined", CloseCode.TRY_LATER)
        case Draining():
            return Refusal("quarantined", "the server is stopping", "restart", CloseCode.RESTART)
        case Busy() | Failed() | MailboxFull() | Crashed():
            return Refusal("quarantined", "the diagnosis is not available right now", "try later", CloseCode.TRY_LATER)
        case OutboxDamaged():
            return Refusal("quarantined", str(error), "quarantined", CloseCode.TRY_LATER)
        case DevicesExhausted():
            return invalid_parameter(f"device: {error}")
        case _:
            return None


def problem_of_refusal(refusal: Refusal) -> Problem:
    """The same refusal for a client that follows over HTTP."""
    code = {"invalid_token": "unauthenticated", "access_denied": "forbidden"}.get(refusal.code, refusal.code)
    match STATUS_OF_CODE[code]:
        case 401:
            headers = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
        case 429 | 503:
            headers = retry_after(RETRY_AFTER_SECONDS)
        case _:
            headers = {}
    return Problem(code, refusal.detail, headers)


def retry_after(seconds: float) -> dict[str, str]:
    """The header that says when to come back."""
    return {"Retry-After": str(max(1, math.ceil(seconds)))}
