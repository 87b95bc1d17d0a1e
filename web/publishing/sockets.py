"""`GET /publish`: a WebSocket that publishes; authenticated, and given to the hub with two tasks of its own.

Whoever has a token is let in: the right to a diagnosis is judged frame by frame, as for requests.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from functools import partial
from typing import Final

import trio

from actors.errors import Draining
from actors.transport import Ending
from actors.upkeep import describe
from web.contract import wire
from web.contract.errors import ConnectionRefused, refusal_of, too_many
from web.contract.exchange import Request
from web.contract.log_fields import current_request
from web.contract.principals import Principal
from web.http.adoption import Adoption, NotAdoptable
from web.identity.access import Access
from web.identity.limits import TooMany
from web.identity.upgrades import Upgrades, selected_subprotocol
from web.publishing.sender import MESSAGE_BYTES_MAX, WINDOW, Sender, Senders
from web.websocket.frames import switching_protocols, text_frame
from web.websocket.hub import Hub
from web.websocket.refusing import Refusing

ENDED_AT_ONCE_MAX: Final = 256
"""Connections ended between two checkpoints."""


class PublishSockets:
    """Serves WebSockets that publish. One per server."""

    def __init__(
        self,
        upgrades: Upgrades,
        access: Access,
        hub: Hub,
        senders: Senders,
        refusing: Refusing,
        senders_nursery: trio.Nursery,
        stopping: trio.Event,
    ) -> None:
        """Let in until `stopping` is set, hand over to `hub`, and work in this nursery."""
        self._upgrades = upgrades
        self._access = access
        self._hub = hub
        self._senders = senders
        self._refusing = refusing
        self._senders_nursery = senders_nursery
        self._stopping = stopping

    async def publish(self, asked: Request, adoption: Adoption) -> None:
        """Have a client publish; it is answered here whatever happens."""
        head = switching_protocols(adoption.key, selected_subprotocol(asked))
        try:
            self._admit(asked, adoption, head)
        except NotAdoptable:
            self._refusing.left(asked)
        except ConnectionRefused as refused:
            self._refusing.refuse(asked, adoption, head, refused.refusal, None)
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            self._refusing.break_off(asked, adoption, head, describe(error))

    def _admit(self, asked: Request, adoption: Adoption, head: bytes) -> None:
        """Have the client publish.

        Raises:
            ConnectionRefused: it may not, or cannot now; its socket is still to be adopted.
            NotAdoptable: it is gone.
        """
        self._upgrades.count_connect(asked)
        self._upgrades.check_once(asked)
        who = asked.who = self._upgrades.authenticate(asked, anonymous_allowed=False)
        if self._stopping.is_set():
            stopping = refusal_of(Draining("the server is stopping"))
            assert stopping is not None, "it is an expected one"
            raise ConnectionRefused(stopping)
        sender = Sender(self._hub, self._senders, who, asked.id)
        try:
            sender.released = self._access.limits.hold(who.sub, None, partial(self._access.address_of, asked))
        except TooMany as excess:
            raise ConnectionRefused(too_many(str(excess))) from None
        try:
            greeting = sender.frame("connect", wire.publishing_data(who, WINDOW, MESSAGE_BYTES_MAX))
            sender.open(adoption.adopt(), head + text_frame(greeting))
        except BaseException:
            sender.abort()
            raise
        if sender.is_parting:
            return
        self._senders.live[sender] = None
        self._senders.expiry.watch(sender.token)
        self._senders.expiry.changed(sender.token)
        # An empty context: the tasks must not keep alive the context of the upgrade.
        context = contextvars.Context()
        context.run(current_request.set, asked.id)
        context.run(partial(self._senders_nursery.start_soon, sender.run, name="sender"))

    async def end_where(self, picks: Callable[[Principal], bool], ending: Ending) -> None:
        """End the connections whose clients `picks` picks; those that come meanwhile are not ended."""
        for number, sender in enumerate(list(self._senders.live), start=1):
            if picks(sender.token.who):
                sender.token.end(ending)
            if number % ENDED_AT_ONCE_MAX == 0:
                await trio.lowlevel.checkpoint()

    async def end_all(self) -> None:
        """The server stops: say goodbye to every connection."""
        await self.end_where(lambda who: True, Ending.STOPPING)
