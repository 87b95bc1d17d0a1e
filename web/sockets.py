"""`GET /ws/{diagnosis_id}`: a WebSocket, authenticated, admitted by its actor, and served until it ends.

A refusal is sent after the upgrade, so that a browser sees it: an `error` frame, then the close.
"""

from __future__ import annotations

from collections import deque
from typing import Final

import trio
from quart import Blueprint, websocket
from quart.wrappers import Websocket

from actors.errors import ActorError
from actors.messages import Admission, Subscribe
from actors.subscriber import Burst, Ending, EventFrame, Subscriber
from storage.errors import StorageError
from storage.records import Seq, SubscriberId
from web import wire
from web.access import authenticate_socket, check_may_subscribe, hold_connection, selected_subprotocol
from web.errors import CloseCode, ConnectionRefused, Refusal, close_of, refusal_of
from web.parameters import Parameters, parse
from web.services import Services
from web.session import Session
from web.tokens import Principal

EVENTS_AT_ONCE: Final = 50
"""Events read from the ring before other frames of the same client get their turn."""

REPLIES_MAX: Final = 100
"""Frames other than events that wait for one client. Beyond: it does not read, and is cut off."""

RETRY_SPREAD_SECONDS: Final = 5.0
"""Clients of a server that stops are told to come back at random within this time."""


class ChannelTransport:
    """Carries one client's frames over the ASGI channel: a task is woken and reads from the position."""

    def __init__(self) -> None:
        self.session: Session | None = None
        self.ending: Ending | None = None
        self.overflowed = False
        self._woken = trio.Event()
        self._replies: deque[bytes] = deque()

    def feed(self, burst: Burst) -> None:
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    def acknowledged(self, seq: Seq) -> None:
        if self.session is not None:
            self.session.acknowledged(seq)

    def end(self, ending: Ending) -> None:
        self.ending = ending
        self._woken.set()

    def say(self, frame: bytes) -> None:
        """Queue a frame that is no event; one too many cuts the client off."""
        if len(self._replies) >= REPLIES_MAX:
            self.overflowed = True
        else:
            self._replies.append(frame)
        self._woken.set()

    async def woken(self) -> None:
        """Wait until there may be something to do."""
        await self._woken.wait()
        self._woken = trio.Event()

    def take_replies(self) -> list[bytes]:
        """All frames queued by `say`."""
        replies = list(self._replies)
        self._replies.clear()
        return replies


def sockets(services: Services) -> Blueprint:
    """The WebSocket route."""
    blueprint = Blueprint("sockets", __name__)

    @blueprint.websocket("/ws/<diagnosis_id>")
    async def follow(diagnosis_id: str) -> None:
        # The proxy is resolved once: tasks started below would otherwise need Quart's context.
        channel: Websocket = websocket._get_current_object()  # type: ignore[attr-defined]
        await channel.accept(subprotocol=selected_subprotocol(channel))
        try:
            parameters = parse(diagnosis_id, channel.args)
            who = authenticate_socket(services, channel)
            await check_may_subscribe(services, who, parameters.diagnosis_id)
            await _serve(services, channel, parameters, who)
        except ConnectionRefused as refused:
            await _refuse(services, channel, diagnosis_id, refused.refusal)

    return blueprint


async def _refuse(services: Services, channel: Websocket, diagnosis_id: str, refusal: Refusal) -> None:
    data = wire.error_data(refusal.code, refusal.detail)
    await channel.send(wire.frame("error", diagnosis_id, services.clock.wall(), data).decode())
    await channel.close(refusal.close_code, refusal.reason)


async def _serve(services: Services, channel: Websocket, parameters: Parameters, who: Principal) -> None:
    """Subscribe, then carry frames both ways until one side ends it."""
    transport = ChannelTransport()
    subscriber = Subscriber(SubscriberId(who.sub, parameters.device), who, transport)
    session = transport.session = Session(
        parameters.diagnosis_id,
        who,
        subscriber,
        acknowledges=parameters.app_acknowledges,
        say=transport.say,
        registry=services.registry,
        expiry=services.expiry,
        clock=services.clock,
    )
    try:
        hold_connection(services, subscriber, parameters.diagnosis_id, channel)
        admission = await _admit(services, parameters, subscriber)
        # Rights may have been taken away while the actor was asked; from here on the roster is told.
        await check_may_subscribe(services, who, parameters.diagnosis_id)
        session.say("connect", wire.connect_data(admission, who, parameters.device))
        async with trio.open_nursery() as connection_nursery:
            connection_nursery.start_soon(_read, channel, session)
            await _write(services, channel, transport, session, subscriber)
            connection_nursery.cancel_scope.cancel()
    finally:
        subscriber.detach()


async def _admit(services: Services, parameters: Parameters, subscriber: Subscriber) -> Admission:
    try:
        return await services.registry.ask(parameters.diagnosis_id, Subscribe(subscriber, parameters.wanted))
    except (ActorError, StorageError) as error:
        refusal = refusal_of(error)
        if refusal is None:
            raise
        raise ConnectionRefused(refusal) from error


async def _read(channel: Websocket, session: Session) -> None:
    while True:
        session.received(await channel.receive())


async def _write(
    services: Services, channel: Websocket, transport: ChannelTransport, session: Session, subscriber: Subscriber
) -> None:
    """Write what is due until the server ends the connection; the client's end cancels this."""
    while True:
        for reply in transport.take_replies():
            await channel.send(reply.decode())
        if transport.ending is not None:
            code, reason = close_of(transport.ending)
            await _say_goodbye(services, channel, session, code, reason)
            return
        if transport.overflowed:
            await channel.close(CloseCode.POLICY, "rate limited")
            return
        due = subscriber.take(EVENTS_AT_ONCE)
        for item in due:
            frame = session.frame_of(item)
            await channel.send((wire.event_json(frame) if isinstance(item, EventFrame) else frame).decode())
        if due and not session.acknowledges:
            session.reached(subscriber.position)
        else:
            await transport.woken()


async def _say_goodbye(services: Services, channel: Websocket, session: Session, code: CloseCode, reason: str) -> None:
    retry = round(services.jitter() * RETRY_SPREAD_SECONDS * 1000) if code is CloseCode.RESTART else None
    await channel.send(session.frame("bye", wire.bye_data(code, reason, retry)).decode())
    await channel.close(code, reason)
