"""Who is asking, and may they: tokens out of requests, rights against diagnoses.

The one place where a missing right is told apart from a missing diagnosis, and to whom.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Final

from quart import request
from quart.wrappers import Websocket

from storage.errors import NoSuchDiagnosis
from storage.records import Diagnosis
from web import rights
from web.errors import (
    ACCESS_DENIED,
    INVALID_TOKEN,
    NOT_FOUND,
    ORIGIN_NOT_ALLOWED,
    TOKEN_EXPIRED,
    ConnectionRefused,
    Problem,
)
from web.services import Services
from web.tokens import ANONYMOUS, Principal, TokenExpired, TokenInvalid

SUBPROTOCOL: Final = "avicenna.v1"
"""The subprotocol the server selects where a client offers it."""

BEARER_SUBPROTOCOL: Final = "bearer."
"""A browser can set no header: it offers its token as a second subprotocol with this prefix."""


def bearer_token(header: str | None) -> str | None:
    """The token of an `Authorization: Bearer` header (RFC 6750), `None` if there is none."""
    if header is None:
        return None
    scheme, _, token = header.partition(" ")
    return token.strip() if scheme.lower() == "bearer" else ""


# HTTP


def authenticate(services: Services, *, anonymous_allowed: bool = False) -> Principal:
    """Who sent the current request.

    Raises:
        Problem: 401, the token is missing, invalid or expired.
    """
    token = bearer_token(request.headers.get("Authorization"))
    if token is None:
        if anonymous_allowed:
            return ANONYMOUS
        raise Problem("unauthenticated", "a bearer token is required", {"WWW-Authenticate": "Bearer"})
    challenge = {"WWW-Authenticate": 'Bearer error="invalid_token"'}
    try:
        return services.verifier.verify(token, services.clock.wall())
    except TokenExpired:
        raise Problem("token_expired", "the token has expired", challenge) from None
    except TokenInvalid:
        raise Problem("unauthenticated", "the token is not valid", challenge) from None


async def authorized_diagnosis(
    services: Services, who: Principal, diagnosis_id: str, may: Callable[[Principal, Diagnosis], bool]
) -> Diagnosis:
    """The diagnosis, if `who` may do this with it.

    Raises:
        Problem: 403, or 404 for those who may know.
    """
    try:
        diagnosis = await services.store.get(diagnosis_id)
    except NoSuchDiagnosis:
        if rights.may_know_absence(who):
            raise Problem("not_found", "this diagnosis is not registered") from None
        raise forbidden() from None
    if not may(who, diagnosis):
        raise forbidden()
    return diagnosis


def forbidden() -> Problem:
    """The same words for a diagnosis that is somebody else's and one that does not exist."""
    return Problem("forbidden", "you may not do this with this diagnosis")


def require_scope(who: Principal, *scopes: str) -> None:
    """Let only tokens with one of these scopes pass.

    Raises:
        Problem: 403.
    """
    if not who.has(*scopes):
        raise Problem("forbidden", f"this needs the scope {' or '.join(scopes)}")


# WebSocket


def selected_subprotocol(websocket: Websocket) -> str | None:
    """The subprotocol to answer with."""
    return SUBPROTOCOL if SUBPROTOCOL in websocket.requested_subprotocols else None


def authenticate_socket(services: Services, websocket: Websocket) -> Principal:
    """Who opens this WebSocket: header before subprotocol before query.

    Raises:
        ConnectionRefused: the token is missing, invalid or expired, or the origin is not allowed.
    """
    _check_origin(services, websocket)
    token = _socket_token(services, websocket.headers.get("Authorization"), websocket.requested_subprotocols, websocket)
    if token is None:
        if services.settings.allow_anonymous:
            return ANONYMOUS
        raise ConnectionRefused(INVALID_TOKEN)
    try:
        return services.verifier.verify(token, services.clock.wall())
    except TokenExpired:
        raise ConnectionRefused(TOKEN_EXPIRED) from None
    except TokenInvalid:
        raise ConnectionRefused(INVALID_TOKEN) from None


def _socket_token(
    services: Services, header: str | None, subprotocols: Sequence[str], websocket: Websocket
) -> str | None:
    if (token := bearer_token(header)) is not None:
        return token
    for offered in subprotocols:
        if offered.startswith(BEARER_SUBPROTOCOL):
            return offered.removeprefix(BEARER_SUBPROTOCOL)
    if services.settings.query_tokens:
        return websocket.args.get("token") or None
    return None


def _check_origin(services: Services, websocket: Websocket) -> None:
    """A browser names the page it is on; anything else passes (RFC 6455 section 10.2)."""
    origin = websocket.headers.get("Origin")
    if origin is None or origin in services.settings.allowed_origins:
        return
    own = services.settings.public_url or f"http://{websocket.headers.get('Host', '')}"
    if origin.lower().rstrip("/") != own.lower().rstrip("/"):
        raise ConnectionRefused(ORIGIN_NOT_ALLOWED)


async def check_may_subscribe(services: Services, who: Principal, diagnosis_id: str) -> None:
    """Let only those pass who may follow this diagnosis.

    Raises:
        ConnectionRefused: `access denied`, or `diagnosis not found` for those who may know.
    """
    anonymous_allowed = services.settings.allow_anonymous
    try:
        diagnosis = await services.store.get(diagnosis_id)
    except NoSuchDiagnosis:
        may_know = who.has("monitor", "operate") or (who.sub is None and anonymous_allowed)
        raise ConnectionRefused(NOT_FOUND if may_know else ACCESS_DENIED) from None
    if not rights.may_subscribe(who, diagnosis, anonymous_allowed=anonymous_allowed):
        raise ConnectionRefused(ACCESS_DENIED)
