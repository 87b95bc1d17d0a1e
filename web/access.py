"""Who is asking, and may they: tokens out of requests, rights against diagnoses.

The one place where a missing right is told apart from a missing diagnosis, and to whom.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final, TypeVar

from quart import request
from quart.wrappers import Websocket
from quart.wrappers.base import BaseRequestWebsocket

from actors.errors import Draining
from actors.messages import Admission, Asks, Subscribe
from actors.subscriber import Subscriber
from storage.errors import NoSuchDiagnosis
from storage.records import Diagnosis
from web import rights
from web.errors import (
    ACCESS_DENIED,
    INVALID_TOKEN,
    ORIGIN_NOT_ALLOWED,
    ConnectionRefused,
    Problem,
    retry_after,
    too_many,
)
from web.judging import (
    absent,
    absent_to_follower,
    allowed_now,
    forbidden,
    problem_of_token,
    refusal_of_follower,
    refusal_of_token,
    say_not_accepted,
)
from web.limits import TooMany
from web.origins import normal_origin
from web.parameters import Parameters
from web.peers import address_of, is_own_origin
from web.services import Services
from web.tokens import ANONYMOUS, Principal, TokenError

Answer = TypeVar("Answer")

SUBPROTOCOL: Final = "avicenna.v1"
"""The subprotocol the server selects where a client offers it."""

BEARER_SUBPROTOCOL: Final = "bearer."
"""A browser can set no header: it offers its token as a second subprotocol with this prefix."""


def bearer_token(channel: BaseRequestWebsocket) -> str | None:
    """The token of an `Authorization: Bearer` header (RFC 6750), `None`: there is none. Two headers: a bad one."""
    headers = channel.headers.getlist("Authorization")
    if not headers:
        return None
    scheme, _, token = headers[0].partition(" ")
    return token.strip() if scheme.lower() == "bearer" and len(headers) == 1 else ""


def verified(services: Services, token: str) -> Principal:
    """Whose token this is. If it is not accepted, the log has the reason. Raises as `Verifier.verify`."""
    try:
        return services.verifier.verify(token, services.clock.wall())
    except TokenError as error:
        say_not_accepted(error)
        raise


def origin_allowed(services: Services, channel: BaseRequestWebsocket) -> bool:
    """Whether a request comes from a page that may talk to this server, or from no page at all."""
    origin = channel.headers.get("Origin")
    settings = services.settings
    if origin is None or normal_origin(origin) in settings.allowed_origins:
        return True
    return is_own_origin(origin, channel, settings.public_url, settings.trusted_proxies)


def asked_by_a_foreign_page(services: Services) -> bool:
    """Whether a page that may not talk to this server had a browser send the current request.

    What a page only embeds (an image, a script) is sent without `Origin`, but browsers say where they come from
    (Fetch Metadata).
    """
    if "Origin" in request.headers:
        return not origin_allowed(services, request)
    return request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin")


# HTTP


def authenticate(services: Services, *, anonymous_allowed: bool = False, query_allowed: bool = False) -> Principal:
    """Who sent the current request.

    Args:
        anonymous_allowed: a request without a token is not refused.
        query_allowed: the token may stand in the query, if the operator does not mind.

    Raises:
        Problem: 401, the token is missing, invalid or expired.
    """
    token = bearer_token(request)
    if token is None and query_allowed and services.settings.query_tokens:
        token = request.args.get("token") or None
    if token is None:
        if anonymous_allowed:
            return ANONYMOUS
        say_not_accepted("there is none")
        raise Problem("unauthenticated", "a bearer token is required", {"WWW-Authenticate": "Bearer"})
    try:
        who = verified(services, token)
        services.limits.request_of(who.sub)
    except TokenError as error:
        raise problem_of_token(services, error) from None
    except TooMany as excess:
        raise Problem("rate_limited", str(excess), retry_after(excess.retry_after_seconds)) from None
    return who


async def authorized_diagnosis(
    services: Services, who: Principal, diagnosis_id: str, may: Callable[[Principal, Diagnosis], bool]
) -> Diagnosis:
    """The diagnosis, if `who` may do this with it.

    Raises:
        Problem: 403, or 404 for those who may know.
    """
    try:
        diagnosis = await allowed_now(services.store, diagnosis_id, partial(may, who))
    except NoSuchDiagnosis:
        raise absent(services, who) from None
    if diagnosis is None:
        raise forbidden()
    return diagnosis


async def check_may_broadcast_something(services: Services, who: Principal) -> None:
    """Let only those pass who have a scope to broadcast, or own a diagnosis; asked before much is read or decoded.

    Raises:
        Problem: 403.
    """
    if not rights.may_broadcast_anywhere(who) and not await services.store.diagnoses(owner=who.sub, limit=1):
        raise Problem("forbidden", "you may not broadcast to any diagnosis")


def count_event(services: Services, who: Principal) -> None:
    """Count an event that somebody publishes, whatever becomes of it.

    Raises:
        Problem: 429, it is one too many.
    """
    try:
        services.limits.event_of(who.sub)
    except TooMany as excess:
        detail = f"{excess}; nothing was stored"
        raise Problem("rate_limited", detail, retry_after(excess.retry_after_seconds)) from None


async def ask_for(services: Services, who: Principal, diagnosis_id: str, message: Asks[Answer]) -> Answer:
    """Ask an actor in the name of somebody with the right; a diagnosis that was deleted meanwhile is answered as at the
    head.

    Raises:
        Problem: 403, or 404 for those who may know; or what the message's judge answered.
        ActorError, StorageError: see `Registry.ask`.
    """
    try:
        with services.acts.patience():
            return await services.registry.ask(diagnosis_id, message)
    except NoSuchDiagnosis:
        raise absent(services, who) from None
    except Problem as refused:
        if refused.status == 401:
            say_not_accepted(refused.detail)
        raise


def authenticate_for(services: Services, right: rights.Right) -> Principal:
    """Who sent the current request, if one of its scopes gives it this right.

    Raises:
        Problem: 401 as `authenticate`, or 403.
    """
    who = authenticate(services)
    if not who.has(*right.scopes):
        raise Problem("forbidden", f"this needs the scope {' or '.join(right.scopes)}")
    return who


async def authorized_to_follow(services: Services, who: Principal, diagnosis_id: str) -> Diagnosis:
    """The diagnosis, if `who` may follow it. Raises as `authorized_diagnosis`."""
    allowed = services.settings.allow_anonymous
    return await authorized_diagnosis(
        services, who, diagnosis_id, partial(rights.may_subscribe, anonymous_allowed=allowed)
    )


# WebSocket


def selected_subprotocol(websocket: Websocket) -> str | None:
    """The subprotocol to answer with."""
    return SUBPROTOCOL if SUBPROTOCOL in websocket.requested_subprotocols else None


def count_connect(services: Services, websocket: Websocket) -> None:
    """Count an attempt to connect, whatever becomes of it, for the address it comes from.

    Raises:
        ConnectionRefused: it is one too many.
    """
    try:
        services.limits.connect_from(lambda: address_of(websocket, services.settings.trusted_proxies))
    except TooMany as excess:
        raise ConnectionRefused(too_many(str(excess))) from None


def authenticate_socket(services: Services, websocket: Websocket) -> Principal:
    """Who opens this WebSocket.

    Raises:
        ConnectionRefused: the token is missing or not accepted, the origin is not allowed, or a limit is reached.
    """
    try:
        _check_origin(services, websocket)
        token = socket_token(services, websocket)
        if token is None:
            if services.settings.allow_anonymous:
                return ANONYMOUS
            say_not_accepted("there is none")
            raise ConnectionRefused(INVALID_TOKEN)
        who = verified(services, token)
        services.limits.connect_of(who.sub)
    except TokenError as error:
        raise ConnectionRefused(refusal_of_token(error)) from None
    except TooMany as excess:
        raise ConnectionRefused(too_many(str(excess))) from None
    return who


def socket_token(services: Services, websocket: Websocket) -> str | None:
    """The token of an upgrade: header before subprotocol before query; `None`: there is none. Two of one: a bad one."""
    if (token := bearer_token(websocket)) is not None:
        return token
    offered = [one for one in websocket.requested_subprotocols if one.startswith(BEARER_SUBPROTOCOL)]
    if offered:
        return offered[0].removeprefix(BEARER_SUBPROTOCOL) if len(offered) == 1 else ""
    if services.settings.query_tokens:
        return websocket.args.get("token") or None
    return None


def _check_origin(services: Services, websocket: Websocket) -> None:
    """A browser names the page it is on; anything else passes (RFC 6455 section 10.2)."""
    if not origin_allowed(services, websocket):
        raise ConnectionRefused(ORIGIN_NOT_ALLOWED)


def hold_connection(
    services: Services, subscriber: Subscriber, diagnosis_id: str, channel: BaseRequestWebsocket
) -> None:
    """Count a connection that is about to be made; `subscriber.detach()` gives its place back.

    A named subscriber that takes over its own older connection needs no further place.

    Raises:
        ConnectionRefused: its user, diagnosis or address has as many as it may have.
    """
    replaces = subscriber.id.device is not None and services.registry.is_connected(diagnosis_id, subscriber.id)
    try:
        subscriber.released = services.limits.hold(
            subscriber.id.sub,
            diagnosis_id,
            lambda: address_of(channel, services.settings.trusted_proxies),
            replaces=replaces,
        )
    except TooMany as excess:
        raise ConnectionRefused(too_many(str(excess))) from None


async def admit(services: Services, who: Principal, subscriber: Subscriber, parameters: Parameters) -> Admission:
    """Have the actor attach a subscriber of somebody who may follow, and look again whether that still holds.

    Raises:
        ConnectionRefused: as `check_may_subscribe`.
        ActorError, StorageError: see `Registry.ask`; `Draining` also if the server has begun to stop meanwhile.
    """
    try:
        judge = partial(refusal_of_follower, services, who)
        message = Subscribe(subscriber, parameters.wanted, judge, parameters.peeks)
        with services.acts.patience():
            admission = await services.registry.ask(parameters.diagnosis_id, message)
    except NoSuchDiagnosis:
        raise ConnectionRefused(absent_to_follower(services, who)) from None
    # Rights may have been taken away while the actor was asked; from here on the roster is told.
    await check_may_subscribe(services, who, parameters.diagnosis_id)
    if services.stopping.is_set():
        raise Draining("the server is stopping")  # its goodbye may have been said already
    return admission


async def check_may_subscribe(services: Services, who: Principal, diagnosis_id: str) -> None:
    """Let only those pass who may follow this diagnosis, and whose token is still accepted; no checkpoint since.

    Raises:
        ConnectionRefused: `access denied`, or `diagnosis not found` for those who may know; or as
            `authenticate_socket`.
    """
    allowed = services.settings.allow_anonymous
    may = partial(rights.may_subscribe, who, anonymous_allowed=allowed)
    try:
        diagnosis = await allowed_now(services.store, diagnosis_id, may)
    except NoSuchDiagnosis:
        raise ConnectionRefused(absent_to_follower(services, who)) from None
    if diagnosis is None:
        raise ConnectionRefused(ACCESS_DENIED)
    try:
        services.verifier.check(who, services.clock.wall())
    except TokenError as error:
        say_not_accepted(error)
        raise ConnectionRefused(refusal_of_token(error)) from None
