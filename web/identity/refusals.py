"""How a refusal is put: of a token that is not accepted, of a diagnosis that is not shown. Pure, but for a log line."""

from __future__ import annotations

import logging
from dataclasses import replace

from web.contract import wire
from web.contract.errors import (
    INVALID_TOKEN,
    KEYS_MISSING,
    REVOKED,
    TOKEN_EXPIRED,
    Problem,
    Refusal,
    retry_after,
)
from web.identity.tokens import LEEWAY_SECONDS, KeysMissing, TokenError, TokenExpired, TokenRevoked

logger = logging.getLogger("avicenna.access")


def say_not_accepted(why: object) -> None:
    """One line for the operator: clients are told less."""
    logger.info("a token was not accepted: %s", why)


def detail_of_revoked(error: TokenRevoked) -> str:
    """What the holder of a revoked token is told; for a login service also from when on a new token will do."""
    if error.covers_until is None:
        return "the token has been revoked"
    until = wire.timestamp(error.covers_until)
    return f"issued within {LEEWAY_SECONDS} s of a revocation: get a new one after {until} (with an iat after it)"


def problem_of_token(error: TokenError, keys_retry_seconds: float) -> Problem:
    """How a request is answered whose token is not accepted.

    Args:
        keys_retry_seconds: when a key that is missing may be there.
    """
    challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    match error:
        case TokenExpired():
            return Problem("token_expired", "the token has expired", challenge)
        case TokenRevoked():
            return Problem("unauthenticated", detail_of_revoked(error), challenge)
        case KeysMissing():
            detail = "tokens cannot be verified right now; nothing was done"
            return Problem("storage_unavailable", detail, retry_after(keys_retry_seconds))
        case _:
            return Problem("unauthenticated", "the token is not valid", challenge)


def refusal_of_token(error: TokenError) -> Refusal:
    """The refusal of a WebSocket whose token is not accepted."""
    match error:
        case TokenExpired():
            return TOKEN_EXPIRED
        case TokenRevoked():
            return replace(REVOKED, detail=detail_of_revoked(error))
        case KeysMissing():
            return KEYS_MISSING
        case _:
            return INVALID_TOKEN


def forbidden() -> Problem:
    """The same words for a diagnosis that is somebody else's and one that does not exist."""
    return Problem("forbidden", "you may not do this with this diagnosis")
