"""`GET /ws/{diagnosis_id}`: a WebSocket, authenticated, admitted by its actor, and given to the hub.

The route ends there: nothing of the request outlives it but the socket and the follower on it. A refusal is sent
after the upgrade, so that a browser sees it: an `error` frame, then the close.
"""

from __future__ import annotations

import hashlib
import logging
import sys
from dataclasses import replace
from typing import Final

from actors.errors import ActorError
from actors.roster import Subscriber
from actors.upkeep import describe
from storage.clock import Clock
from storage.errors import StorageError
from storage.records import AcknowledgedBy, SubscriberId
from web.contract import wire
from web.contract.errors import CloseCode, ConnectionRefused, Refusal, invalid_parameter, refusal_of
from web.contract.exchange import Request
from web.contract.parameters import Parameters, parse, repeated_header, repeated_parameter
from web.contract.principals import Principal
from web.contract.records import DIAGNOSIS_ID
from web.following.admission import Entrance, selected_subprotocol
from web.following.connection_log import ConnectionLog
from web.following.follower import Follower, Followers
from web.following.session import Session
from web.http.adoption import Adoption, NotAdoptable
from web.identity.access import Access
from web.websocket.channel import NO_CLOSE, Channel
from web.websocket.frames import switching_protocols, text_frame
from web.websocket.hub import Hub

GONE: Final = "the client left before it was answered"

logger = logging.getLogger("avicenna.web")


class Sockets:
    """Serves WebSockets. One per server."""

    def __init__(
        self,
        entrance: Entrance,
        access: Access,
        hub: Hub,
        followers: Followers,
        clock: Clock,
    ) -> None:
        """Let in by `entrance`, and hand over to `hub`."""
        self._entrance = entrance
        self._access = access
        self._hub = hub
        self._followers = followers
        self._log = followers.log
        self._clock = clock

    async def follow(self, asked: Request, adoption: Adoption) -> None:
        """Have a client follow the diagnosis in the path; it is answered here whatever happens."""
        head = switching_protocols(adoption.key, selected_subprotocol(asked))
        try:
            await self._admit(asked, adoption, head)
        except NotAdoptable:
            self._log.refused("WebSocket", asked, NO_CLOSE, GONE)
        except ConnectionRefused as refused:
            self._refuse(asked, adoption, head, refused.refusal)
        except (ActorError, StorageError) as error:
            if (refusal := refusal_of(error)) is None:
                self._break_off(asked, adoption, head, error)
            else:
                self._refuse(asked, adoption, head, refusal)
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            self._break_off(asked, adoption, head, error)

    async def _admit(self, asked: Request, adoption: Adoption, head: bytes) -> None:
        """Have the client follow from where it wants to.

        Raises:
            ConnectionRefused, ActorError, StorageError: it may not, or cannot now; its socket is still to be adopted.
            NotAdoptable: it is gone.

        Cancellation: it is gone, and is not attached any more.
        """
        self._entrance.count_connect(asked)
        if (repeated := repeated_parameter(asked.query) or repeated_header(asked.headers.items())) is not None:
            raise ConnectionRefused(invalid_parameter(repeated))
        parameters = self._parameters(asked)
        who = asked.who = self._entrance.authenticate(asked)
        await self._access.check_may_follow(who, parameters.diagnosis_id)
        # Interned: all who follow a diagnosis share one text. Not before it is known to be registered: Python 3.12
        # never frees what was interned, and anybody can name anything.
        parameters = replace(parameters, diagnosis_id=sys.intern(parameters.diagnosis_id))
        follower = Follower(self._hub, self._followers)
        session, subscriber = self._begin(asked, follower, parameters, who)
        try:
            self._entrance.hold(subscriber, parameters.diagnosis_id, asked)
            admission = await self._entrance.admit(who, subscriber, parameters)
            # No checkpoint until the hub has the socket: nothing may come between the greeting and what follows it.
            greeting = session.frame(
                "connect", wire.connect_data(admission, session.who, parameters.device, parameters.ack)
            )
            follower.open(adoption.adopt(), head + text_frame(greeting))
        except BaseException:
            follower.abort()
            raise

    def _parameters(self, asked: Request) -> Parameters:
        # A browser's network layer answers Pings while the page is frozen or stuck (decision 0055).
        default_ack: AcknowledgedBy = "app" if "Origin" in asked.headers else "transport"
        anonymous = self._access.rules.allow_anonymous and self._entrance.token_of(asked) is None
        return parse(asked.parameters["diagnosis_id"], asked.query, anonymous=anonymous, default_ack=default_ack)

    def _begin(
        self, asked: Request, follower: Follower, parameters: Parameters, who: Principal
    ) -> tuple[Session, Subscriber]:
        subscriber = Subscriber(SubscriberId(who.sub, parameters.device), who, follower)
        session = self._entrance.session(parameters, who, subscriber, follower)
        follower.begin(session, subscriber, parameters.heartbeat_seconds, asked.id)
        return session, subscriber

    def _refuse(self, asked: Request, adoption: Adoption, head: bytes, refusal: Refusal) -> None:
        """Answer the upgrade, say why, and close."""
        data = wire.error_data(refusal.code, refusal.detail)
        diagnosis_id = asked.parameters["diagnosis_id"]
        shown = diagnosis_id if DIAGNOSIS_ID.fullmatch(diagnosis_id) else ""
        error = wire.frame("error", shown, self._clock.wall(), data)
        self._close(asked, adoption, head + text_frame(error), refusal.close_code, refusal.reason)

    def _break_off(self, asked: Request, adoption: Adoption, head: bytes, error: Exception) -> None:
        """The server failed: the client is told to come back."""
        logger.error("a connection failed: %s", describe(error))
        self._close(asked, adoption, head, CloseCode.INTERNAL_ERROR, "internal error")

    def _close(self, asked: Request, adoption: Adoption, head: bytes, code: CloseCode, reason: str) -> None:
        """Answer the upgrade; the Close behind it comes later if this client was refused lately."""
        hub = self._hub
        # No checkpoint until the hub has the socket: the Close must not be due before that.
        try:
            sock = adoption.adopt()
        except NotAdoptable:
            self._log.refused("WebSocket", asked, NO_CLOSE, GONE)
            return
        self._log.refused("WebSocket", asked, code, reason)
        channel = RefusedChannel(hub, self._log)
        channel.close(code, reason, hold_seconds=hub.holds.seconds(self._name_of_refused(asked), hub.clock.monotonic()))
        channel.open(sock, head)

    def _name_of_refused(self, asked: Request) -> bytes:
        """The name under which refusals are counted together: an address and a token, or an address alone."""
        token = self._entrance.token_of(asked) or ""
        named = f"{self._access.address_of(asked)} {token}"
        return hashlib.sha256(named.encode("utf-8", "surrogatepass")).digest()


class RefusedChannel(Channel):
    """The WebSocket of a client that may not follow: it is told so, and nothing else."""

    __slots__ = ("_log",)

    def __init__(self, hub: Hub, log: ConnectionLog) -> None:
        super().__init__(hub)
        self._log = log

    def stalled(self, why: str) -> None:
        self._log.stalled(None, why)
