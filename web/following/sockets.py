"""`GET /ws/{diagnosis_id}`: a WebSocket, authenticated, admitted by its actor, and given to the hub.

The route ends there: nothing of the request outlives it but the socket and the follower on it.
"""

from __future__ import annotations

from actors.errors import ActorError
from actors.roster import Subscriber
from actors.upkeep import describe
from storage.errors import StorageError
from storage.records import AcknowledgedBy, SubscriberId
from web.contract import wire
from web.contract.errors import ConnectionRefused, Refusal, refusal_of
from web.contract.exchange import Request
from web.contract.parameters import Parameters, parse
from web.contract.principals import Principal
from web.contract.records import DIAGNOSIS_ID
from web.following.admission import Entrance
from web.following.follower import Follower, Followers
from web.following.session import Session
from web.http.adoption import Adoption, NotAdoptable
from web.identity.access import Access
from web.identity.upgrades import Upgrades, selected_subprotocol
from web.websocket.frames import switching_protocols, text_frame
from web.websocket.hub import Hub
from web.websocket.refusing import Refusing


class Sockets:
    """Serves WebSockets. One per server."""

    def __init__(
        self,
        upgrades: Upgrades,
        entrance: Entrance,
        access: Access,
        hub: Hub,
        followers: Followers,
        refusing: Refusing,
    ) -> None:
        """Let in by `entrance`, and hand over to `hub`."""
        self._upgrades = upgrades
        self._entrance = entrance
        self._access = access
        self._hub = hub
        self._followers = followers
        self._refusing = refusing

    async def follow(self, asked: Request, adoption: Adoption) -> None:
        """Have a client follow the diagnosis in the path; it is answered here whatever happens."""
        head = switching_protocols(adoption.key, selected_subprotocol(asked))
        try:
            await self._admit(asked, adoption, head)
        except NotAdoptable:
            self._refusing.left(asked)
        except ConnectionRefused as refused:
            self._refuse(asked, adoption, head, refused.refusal)
        except (ActorError, StorageError) as error:
            if (refusal := refusal_of(error)) is None:
                self._refusing.break_off(asked, adoption, head, describe(error))
            else:
                self._refuse(asked, adoption, head, refusal)
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            self._refusing.break_off(asked, adoption, head, describe(error))

    def _refuse(self, asked: Request, adoption: Adoption, head: bytes, refusal: Refusal) -> None:
        diagnosis_id = asked.parameters["diagnosis_id"]
        shown = diagnosis_id if DIAGNOSIS_ID.fullmatch(diagnosis_id) else ""
        self._refusing.refuse(asked, adoption, head, refusal, shown)

    async def _admit(self, asked: Request, adoption: Adoption, head: bytes) -> None:
        """Have the client follow from where it wants to.

        Raises:
            ConnectionRefused, ActorError, StorageError: it may not, or cannot now; its socket is still to be adopted.
            NotAdoptable: it is gone.

        Cancellation: it is gone, and is not attached any more.
        """
        self._upgrades.count_connect(asked)
        self._upgrades.check_once(asked)
        parameters = self._parameters(asked)
        allowed = self._access.rules.allow_anonymous
        who = asked.who = self._upgrades.authenticate(asked, anonymous_allowed=allowed)
        await self._access.check_may_follow(who, parameters.diagnosis_id)
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
        anonymous = self._access.rules.allow_anonymous and self._access.token_of(asked) is None
        return parse(asked.parameters["diagnosis_id"], asked.query, anonymous=anonymous, default_ack=default_ack)

    def _begin(
        self, asked: Request, follower: Follower, parameters: Parameters, who: Principal
    ) -> tuple[Session, Subscriber]:
        subscriber = Subscriber(SubscriberId(who.sub, parameters.device), who, follower)
        session = self._entrance.session(parameters, subscriber, follower)
        follower.begin(session, subscriber, parameters.heartbeat_seconds, asked.id)
        return session, subscriber
