"""Whether a token and a right hold, and how their refusal is put: at the head of a request, and again in its act.

Tokens end and rights are taken away while a request travels. The act is the hand-over to the store, which commits in
order. A judgement here holds until the next checkpoint, so it holds for everything handed over before that.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import replace
from typing import TYPE_CHECKING

from actors.messages import Judge
from storage.records import Diagnosis
from storage.store import Store
from web import rights, wire
from web.errors import (
    ACCESS_DENIED,
    INVALID_TOKEN,
    KEYS_MISSING,
    NOT_FOUND,
    REVOKED,
    TOKEN_EXPIRED,
    ConnectionRefused,
    Problem,
    Refusal,
    retry_after,
)
from web.tokens import LEEWAY_SECONDS, KeysMissing, Principal, TokenError, TokenExpired, TokenRevoked

if TYPE_CHECKING:
    from web.services import Services

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


def problem_of_token(services: Services, error: TokenError) -> Problem:
    """The answer to a request whose token is not accepted."""
    challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    match error:
        case TokenExpired():
            return Problem("token_expired", "the token has expired", challenge)
        case TokenRevoked():
            return Problem("unauthenticated", detail_of_revoked(error), challenge)
        case KeysMissing():
            detail = "tokens cannot be verified right now; nothing was done"
            assert services.remote_keys is not None, "only a JWKS URL can have a key that is not here"
            return Problem("storage_unavailable", detail, retry_after(services.remote_keys.retry_after_seconds))
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


# In the moment of the act


def judge_token(services: Services, who: Principal) -> None:
    """See that the token of the current request is still accepted, in the same stretch as the act it allows.

    Raises:
        Problem: 401 as `authenticate`.
    """
    if (refused := refusal_of_sender(services, who)) is not None:
        say_not_accepted(refused.detail)
        raise refused


def refusal_of_sender(services: Services, who: Principal) -> Problem | None:
    """The answer to somebody whose token is not accepted any more; `None`: it is."""
    try:
        services.verifier.check(who, services.clock.wall())
    except TokenError as error:
        return problem_of_token(services, error)
    return None


def judge_of(services: Services, who: Principal, may: Callable[[Principal, Diagnosis], bool]) -> Judge:
    """The function that an actor asks in the same stretch as the act that `who` wants. Refuses as the head of the
    request does."""

    def judge(diagnosis: Diagnosis | None) -> Problem | None:
        if (refused := refusal_of_sender(services, who)) is not None:
            return refused
        if diagnosis is None:
            return absent(services, who)
        return None if may(who, diagnosis) else forbidden()

    return judge


def absent_to_follower(services: Services, who: Principal) -> Refusal:
    """For whoever wants to follow a diagnosis that is not registered."""
    allowed = services.settings.allow_anonymous
    return NOT_FOUND if rights.may_know_absence_connecting(who, anonymous_allowed=allowed) else ACCESS_DENIED


def refusal_of_follower(services: Services, who: Principal, diagnosis: Diagnosis | None) -> ConnectionRefused | None:
    """Why somebody may not follow a diagnosis registered so (`None`: not at all); `None`: may follow."""
    if diagnosis is None:
        return ConnectionRefused(absent_to_follower(services, who))
    if not rights.may_subscribe(who, diagnosis, anonymous_allowed=services.settings.allow_anonymous):
        return ConnectionRefused(ACCESS_DENIED)
    try:
        services.verifier.check(who, services.clock.wall())
    except TokenError as error:
        return ConnectionRefused(refusal_of_token(error))
    return None


# Diagnoses


async def allowed_now(store: Store, diagnosis_id: str, may: Callable[[Diagnosis], bool]) -> Diagnosis | None:
    """The diagnosis as it is registered now, no checkpoint since; `None`: `may` does not allow it.

    A refusal takes one look-up of the database whether the diagnosis is in memory, is stored or does not exist: the
    time it takes does not tell which.

    Raises:
        NoSuchDiagnosis: it is not registered.
    """
    while (diagnosis := store.known(diagnosis_id)) is None or not may(diagnosis):
        found = await store.look_up(diagnosis_id)
        if found is diagnosis or not may(found):
            return None
    return diagnosis


def absent(services: Services, who: Principal) -> Problem:
    """For a diagnosis that is not registered: 404 for those who may know that, else the same as for somebody else's."""
    if rights.may_know_absence(who, anonymous_allowed=services.settings.allow_anonymous):
        return Problem("not_found", "this diagnosis is not registered")
    return forbidden()


def forbidden() -> Problem:
    """The same words for a diagnosis that is somebody else's and one that does not exist."""
    return Problem("forbidden", "you may not do this with this diagnosis")
