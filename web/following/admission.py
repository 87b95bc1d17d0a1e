"""How somebody is let in who wants to follow a diagnosis: judged, counted, and attached by its actor."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Final

import trio

from actors.acts import Acts
from actors.errors import Draining
from actors.messages import Admission, Subscribe
from actors.registry import Registry
from actors.roster import Subscriber
from storage.clock import Clock
from storage.errors import NoSuchDiagnosis
from web.contract.errors import INVALID_TOKEN, ORIGIN_NOT_ALLOWED, ConnectionRefused, too_many
from web.contract.exchange import Request
from web.contract.parameters import Parameters
from web.contract.principals import ANONYMOUS, Principal
from web.following.expiry import Expiry
from web.following.session import Session, Speaker
from web.identity.access import Access, bearer_token
from web.identity.limits import TooMany
from web.identity.refusals import refusal_of_token, say_not_accepted
from web.identity.tokens import TokenError

SUBPROTOCOL: Final = "avicenna.v1"
"""The subprotocol the server selects where a client offers it."""

BEARER_SUBPROTOCOL: Final = "bearer."
"""A browser can set no header: it offers its token as a second subprotocol with this prefix."""


class Entrance:
    """Lets clients in, over a WebSocket or an event stream. One per server."""

    def __init__(
        self, access: Access, acts: Acts, registry: Registry, expiry: Expiry, clock: Clock, stopping: trio.Event
    ) -> None:
        """Let in until `stopping` is set."""
        self._access = access
        self._acts = acts
        self._registry = registry
        self._expiry = expiry
        self._clock = clock
        self._stopping = stopping

    def count_connect(self, asked: Request) -> None:
        """Count an attempt to connect, whatever becomes of it, for the address it comes from.

        Raises:
            ConnectionRefused: it is one too many.
        """
        try:
            self._access.limits.connect_from(partial(self._access.address_of, asked))
        except TooMany as excess:
            raise ConnectionRefused(too_many(str(excess))) from None

    def authenticate(self, asked: Request) -> Principal:
        """Who opens a WebSocket.

        Raises:
            ConnectionRefused: the token is missing or not accepted, the origin is not allowed, or a limit is reached.
        """
        # A browser names the page it is on; anything else passes (RFC 6455 section 10.2).
        if not self._access.origin_allowed(asked):
            raise ConnectionRefused(ORIGIN_NOT_ALLOWED)
        token = self.token_of(asked)
        if token is None:
            if self._access.rules.allow_anonymous:
                return ANONYMOUS
            say_not_accepted("there is none")
            raise ConnectionRefused(INVALID_TOKEN)
        try:
            who = self._access.verified(token)
            self._access.limits.connect_of(who.sub)
        except TokenError as error:
            raise ConnectionRefused(refusal_of_token(error)) from None
        except TooMany as excess:
            raise ConnectionRefused(too_many(str(excess))) from None
        return who

    def token_of(self, asked: Request) -> str | None:
        """The token of an upgrade: header before subprotocol before query; `None`: there is none."""
        return token_of_upgrade(asked, query_allowed=self._access.rules.query_tokens)

    def hold(self, subscriber: Subscriber, diagnosis_id: str, asked: Request) -> None:
        """Count a connection that is about to be made; `subscriber.detach()` gives its place back.

        A named subscriber that takes over its own older connection needs no further place.

        Raises:
            ConnectionRefused: its user, diagnosis or address has as many as it may have.
        """
        replaces = subscriber.id.device is not None and self._registry.is_connected(diagnosis_id, subscriber.id)
        try:
            subscriber.released = self._access.limits.hold(
                subscriber.id.sub, diagnosis_id, partial(self._access.address_of, asked), replaces=replaces
            )
        except TooMany as excess:
            raise ConnectionRefused(too_many(str(excess))) from None

    def session(self, parameters: Parameters, who: Principal, subscriber: Subscriber, speaker: Speaker) -> Session:
        """The conversation with a client, which `speaker` carries; its token is watched from now on."""
        return Session(
            parameters.diagnosis_id,
            who,
            subscriber,
            ack=parameters.ack,
            speaker=speaker,
            registry=self._registry,
            expiry=self._expiry,
            clock=self._clock,
        )

    async def admit(self, who: Principal, subscriber: Subscriber, parameters: Parameters) -> Admission:
        """Have the actor attach a subscriber of somebody who may follow, and look again whether that still holds.

        Raises:
            ConnectionRefused: as `Access.check_may_follow`.
            ActorError, StorageError: see `Registry.ask`; `Draining` also if the server has begun to stop meanwhile.
        """
        judge = partial(self._access.refusal_of_follower, who)
        message = Subscribe(subscriber, parameters.wanted, judge, parameters.peeks)
        try:
            admission = await self._acts.ask(parameters.diagnosis_id, message)
        except NoSuchDiagnosis:
            refused = self._access.refusal_of_follower(who, None)
            assert refused is not None, "nobody may follow what is not registered"
            raise refused from None
        # Rights may have been taken away while the actor was asked; from here on whoever loses them is ended
        # (`web.operating.consequences` says why nobody is missed).
        await self._access.check_may_follow(who, parameters.diagnosis_id)
        if self._stopping.is_set():
            raise Draining("the server is stopping")  # its goodbye may have been said already
        return admission


def requested_subprotocols(asked: Request) -> Sequence[str]:
    """What a client offers, in its order of preference (RFC 6455 section 11.3.4)."""
    return [one.strip() for given in asked.headers.getlist("Sec-WebSocket-Protocol") for one in given.split(",")]


def selected_subprotocol(asked: Request) -> str | None:
    """The subprotocol to answer with."""
    return SUBPROTOCOL if SUBPROTOCOL in requested_subprotocols(asked) else None


def token_of_upgrade(asked: Request, *, query_allowed: bool) -> str | None:
    """The token of an upgrade: header before subprotocol before query; `None`: there is none. Two of one: a bad one."""
    if (token := bearer_token(asked)) is not None:
        return token
    offered = [one for one in requested_subprotocols(asked) if one.startswith(BEARER_SUBPROTOCOL)]
    if offered:
        return offered[0].removeprefix(BEARER_SUBPROTOCOL) if len(offered) == 1 else ""
    if query_allowed:
        return asked.query.get("token") or None
    return None
