"""How somebody is let in who wants to follow a diagnosis: counted, and attached by its actor."""

from __future__ import annotations

from functools import partial
from typing import Final

import trio

from actors.acts import Acts
from actors.errors import Draining
from actors.messages import Admission, Subscribe
from actors.registry import Registry
from actors.roster import Subscriber
from storage.clock import Clock
from storage.errors import Busy, NoSuchDiagnosis
from web.contract.errors import ConnectionRefused, too_many
from web.contract.exchange import Request
from web.contract.parameters import Parameters
from web.contract.principals import Principal
from web.following.session import Services, Session, Speaker
from web.identity.access import Access
from web.identity.expiry import Expiry
from web.identity.limits import TooMany

RIGHTS_SECONDS_MAX: Final = 60.0
"""How old may be what is known of rights when somebody is let in. Reason: what others take away is not heard of while
the engine is away. Beyond: refused, to come back later."""


class Entrance:
    """Lets clients in, over a WebSocket or an event stream. One per server."""

    def __init__(
        self, access: Access, acts: Acts, registry: Registry, expiry: Expiry, clock: Clock, stopping: trio.Event
    ) -> None:
        """Let in until `stopping` is set."""
        self._access = access
        self._acts = acts
        self._registry = registry
        self._clock = clock
        self._services = Services(registry, expiry, clock)
        self._stopping = stopping

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

    def session(self, parameters: Parameters, subscriber: Subscriber, speaker: Speaker) -> Session:
        """The conversation with a client, which `speaker` carries; its token is watched from now on."""
        return Session(subscriber, ack=parameters.ack, speaker=speaker, services=self._services)

    async def admit(self, who: Principal, subscriber: Subscriber, parameters: Parameters) -> Admission:
        """Have the actor attach a subscriber of somebody who may follow, and look again whether that still holds.

        Raises:
            ConnectionRefused: as `Access.check_may_follow`.
            ActorError, StorageError: see `Registry.ask`; `Draining` also if the server has begun to stop meanwhile;
                `Busy` also if the rights that are known here may be too old.
        """
        store = self._acts.store
        away_since = store.statistics().away_since if store.shared else None
        if away_since is not None and self._clock.monotonic() - away_since > RIGHTS_SECONDS_MAX:
            raise Busy("the engine is away, and rights may have changed")
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
