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

from quart import Blueprint, g, websocket

from actors.errors import ActorError
from actors.messages import Admission
from actors.subscriber import Subscriber
from actors.supervisor import describe
from storage.errors import StorageError
from storage.records import AcknowledgedBy, SubscriberId
from web import wire
from web.access import (
    admit,
    authenticate_socket,
    check_may_subscribe,
    count_connect,
    hold_connection,
    selected_subprotocol,
    socket_token,
)
from web.edge.adoption import Adoption, NotAdoptable, adoption_of
from web.edge.channel import NO_CLOSE, Channel
from web.edge.follower import Follower
from web.edge.frames import switching_protocols, text_frame
from web.errors import CloseCode, ConnectionRefused, Refusal, invalid_parameter, refusal_of
from web.logs import current_request_id
from web.parameters import Parameters, parse, repeated_header, repeated_parameter
from web.peers import address_of
from web.records import DIAGNOSIS_ID
from web.services import Services
from web.session import Session
from web.tokens import Principal

GONE: Final = "the client left before it was answered"

logger = logging.getLogger("avicenna.web")


def sockets(services: Services) -> Blueprint:
    """The WebSocket route."""
    blueprint = Blueprint("sockets", __name__)

    @blueprint.websocket("/ws/<diagnosis_id>")
    async def follow(diagnosis_id: str) -> None:
        adoption = adoption_of(websocket)
        head = switching_protocols(adoption.key, selected_subprotocol(websocket))
        try:
            await _admit(services, adoption, head, diagnosis_id)
        except NotAdoptable:
            _log_end(services, NO_CLOSE, GONE)
        except ConnectionRefused as refused:
            _refuse(services, adoption, head, diagnosis_id, refused.refusal)
        except (ActorError, StorageError) as error:
            if (refusal := refusal_of(error)) is None:
                _break_off(services, adoption, head, error)
            else:
                _refuse(services, adoption, head, diagnosis_id, refusal)
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            _break_off(services, adoption, head, error)

    return blueprint


async def _admit(services: Services, adoption: Adoption, head: bytes, diagnosis_id: str) -> None:
    """Have the client follow from where it wants to.

    Raises:
        ConnectionRefused, ActorError, StorageError: it may not, or cannot now; its socket is still to be adopted.
        NotAdoptable: it is gone.

    Cancellation: it is gone, and is not attached any more.
    """
    count_connect(services, websocket)
    if (repeated := repeated_parameter(websocket.args) or repeated_header(websocket.headers)) is not None:
        raise ConnectionRefused(invalid_parameter(repeated))
    parameters = _parameters(services, diagnosis_id)
    who = authenticate_socket(services, websocket)
    g.sub = who.sub
    await check_may_subscribe(services, who, parameters.diagnosis_id)
    # Interned: all who follow a diagnosis share one text. Not before it is known to be registered: Python 3.12 never
    # frees what was interned, and anybody can name anything.
    parameters = replace(parameters, diagnosis_id=sys.intern(parameters.diagnosis_id))
    follower = Follower(services.hub)
    session, subscriber = _begin(services, follower, parameters, who)
    try:
        hold_connection(services, subscriber, parameters.diagnosis_id, websocket)
        admission = await admit(services, who, subscriber, parameters)
        # No checkpoint until the hub has the socket: nothing may come between the greeting and what follows it.
        greeting = _greeting(session, admission, parameters)
        follower.open(adoption.adopt(), head + text_frame(greeting))
    except BaseException:
        follower.abort()
        raise


def _parameters(services: Services, diagnosis_id: str) -> Parameters:
    # A browser's network layer answers Pings while the page is frozen or stuck (decision 0055).
    default_ack: AcknowledgedBy = "app" if "Origin" in websocket.headers else "transport"
    anonymous = services.settings.allow_anonymous and socket_token(services, websocket) is None
    return parse(diagnosis_id, websocket.args, anonymous=anonymous, default_ack=default_ack)


def _begin(
    services: Services, follower: Follower, parameters: Parameters, who: Principal
) -> tuple[Session, Subscriber]:
    subscriber = Subscriber(SubscriberId(who.sub, parameters.device), who, follower)
    session = Session(
        parameters.diagnosis_id,
        who,
        subscriber,
        ack=parameters.ack,
        speaker=follower,
        registry=services.registry,
        expiry=services.expiry,
        clock=services.clock,
    )
    follower.begin(session, subscriber, parameters.heartbeat_seconds, current_request_id())
    return session, subscriber


def _greeting(session: Session, admission: Admission, parameters: Parameters) -> bytes:
    return session.frame("connect", wire.connect_data(admission, session.who, parameters.device, parameters.ack))


def _refuse(services: Services, adoption: Adoption, head: bytes, diagnosis_id: str, refusal: Refusal) -> None:
    """Answer the upgrade, say why, and close."""
    data = wire.error_data(refusal.code, refusal.detail)
    shown = diagnosis_id if DIAGNOSIS_ID.fullmatch(diagnosis_id) else ""
    error = wire.frame("error", shown, services.clock.wall(), data)
    _close(services, adoption, head + text_frame(error), refusal.close_code, refusal.reason)


def _break_off(services: Services, adoption: Adoption, head: bytes, error: Exception) -> None:
    """The server failed: the client is told to come back."""
    logger.error("a connection failed: %s", describe(error))
    _close(services, adoption, head, CloseCode.INTERNAL_ERROR, "internal error")


def _close(services: Services, adoption: Adoption, head: bytes, code: CloseCode, reason: str) -> None:
    """Answer the upgrade; the Close behind it comes later if this client was refused lately."""
    hub = services.hub
    # No checkpoint until the hub has the socket: the Close must not be due before that.
    try:
        sock = adoption.adopt()
    except NotAdoptable:
        _log_end(services, NO_CLOSE, GONE)
        return
    _log_end(services, code, reason)
    channel = Channel(hub)
    channel.close(code, reason, hold_seconds=hub.holds.seconds(_name_of_refused(services), hub.clock.monotonic()))
    channel.open(sock, head)


def _name_of_refused(services: Services) -> bytes:
    """The name under which refusals are counted together: an address and a token, or an address alone."""
    address = address_of(websocket, services.settings.trusted_proxies)
    token = socket_token(services, websocket) or ""
    return hashlib.sha256(f"{address} {token}".encode("utf-8", "surrogatepass")).digest()


def _log_end(services: Services, code: int, reason: str) -> None:
    """The line of a WebSocket that ends before `connect`."""
    services.connection_log.refused("WebSocket", websocket, g.get("sub"), code, reason)
