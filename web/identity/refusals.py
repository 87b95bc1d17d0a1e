"""How a refusal is put: of a token that is not accepted, of a diagnosis that is not shown. Pure, but for a log line."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import replace
from typing import Final, Literal, get_args

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


Reason = Literal["missing", "invalid", "expired", "revoked", "unverifiable"]
"""Why a token is not accepted; `unverifiable`: the keys of its issuer are not here yet."""

REASONS: Final[tuple[Reason, ...]] = get_args(Reason)


IN_QUERY: Final = "one in the query counts for WebSockets and event streams alone, and only with query_tokens = true"
"""What the log says of a request that has its token where none is looked for."""


class RefusedTokens:
    """Tokens that were not accepted: counted by reason since the start, each with a line for the operator."""

    def __init__(self) -> None:
        self._counts: dict[Reason, int] = dict.fromkeys(REASONS, 0)

    def say(self, why: TokenError | Problem | None, *, in_query: bool = False) -> None:
        """One more; clients are told less than the log.

        Args:
            why: `None`: there is no token where one is needed.
            in_query: there is one in the query, where none is looked for.
        """
        self._counts[_reason_of(why)] += 1
        logger.info("a token was not accepted: %s", _shown(why, in_query=in_query))

    def statistics(self) -> Mapping[str, int]:
        """How many there were, by reason."""
        return {str(reason): count for reason, count in self._counts.items()}


def _shown(why: TokenError | Problem | None, *, in_query: bool) -> object:
    if why is None:
        return IN_QUERY if in_query else "there is none"
    return why.detail if isinstance(why, Problem) else why


def _reason_of(why: TokenError | Problem | None) -> Reason:
    match why:
        case None:
            return "missing"
        case TokenExpired() | Problem(code="token_expired"):
            return "expired"
        case KeysMissing() | Problem(code="storage_unavailable"):
            return "unverifiable"
        case TokenRevoked() | Problem():
            # A problem is of a token that was accepted before: since then it was revoked, or its key was taken away.
            return "revoked"
        case _:
            return "invalid"


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
