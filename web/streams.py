"""`GET /diagnoses/{id}/events`: following a diagnosis by Server-Sent Events (PROTOCOL section 8).

The same subscriber as behind a WebSocket, with another transport: its task is woken and reads the ring from the
position. The stream goes one way, so nothing in it acknowledges; the next request does, by where it continues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator
from typing import Final

import trio
from quart import Blueprint, Response, request

from actors.messages import Admission
from actors.ring import Gap
from actors.subscriber import Burst, Due, Ending, EventFrame, Subscriber
from storage.records import Epoch, Seq, SubscriberId
from web import wire
from web.access import admit, asked_by_a_foreign_page, authenticate, authorized_to_follow, hold_connection
from web.edge.lean import at_end
from web.errors import ConnectionRefused, Problem, close_of, problem_of_refusal
from web.parameters import Parameters, parse_stream
from web.services import Services
from web.session import Session
from web.tokens import Principal

STREAM_MEDIA_TYPE: Final = "text/event-stream"

EVENTS_AT_ONCE: Final = 50
"""Events in one write. Reason: what was written lies in memory until the client reads."""

REPLIES_MAX: Final = 100
"""Frames other than events that wait for one client. Beyond: it does not read, and its stream ends."""

HEARTBEAT: Final = b":\n\n"
"""A comment: keeps proxies and the client's own timer from giving up a silent stream."""


class StreamTransport:
    """Wakes the task that writes a stream."""

    def __init__(self) -> None:
        self.ending: Ending | None = None
        self.overflowed = False
        self._woken = trio.Event()
        self._replies: deque[bytes] = deque()

    def feed(self, burst: Burst) -> None:
        self._woken.set()

    def wake(self) -> None:
        self._woken.set()

    def acknowledged(self, seq: Seq) -> None:
        """Nothing in a stream asks for this."""

    def end(self, ending: Ending) -> None:
        self.ending = ending
        self._woken.set()

    def say(self, frame: bytes) -> None:
        """Queue a frame that is no event; one too many ends the stream."""
        if len(self._replies) >= REPLIES_MAX:
            self.overflowed = True
        else:
            self._replies.append(frame)
        self._woken.set()

    def take_replies(self) -> list[bytes]:
        """All frames queued by `say`."""
        replies = list(self._replies)
        self._replies.clear()
        return replies

    async def woken(self, seconds: float) -> bool:
        """Wait until there may be something to do; False: there was nothing for so long."""
        with trio.move_on_after(seconds):
            await self._woken.wait()
            self._woken = trio.Event()
            return True
        return False


def streams(services: Services) -> Blueprint:
    """The route of the event streams."""
    blueprint = Blueprint("streams", __name__)
    anonymous_allowed = services.settings.allow_anonymous

    @blueprint.get("/diagnoses/<diagnosis_id>/events")
    async def follow(diagnosis_id: str) -> Response:
        if asked_by_a_foreign_page(services):
            # Unlike other GETs this one changes something: it may take over a connection, and acknowledge.
            raise Problem("origin_not_allowed", "pages of this origin may not do this")
        who = authenticate(services, anonymous_allowed=anonymous_allowed, query_allowed=True)
        parameters = parse_stream(diagnosis_id, request.args, request.headers.get("Last-Event-ID"))
        await authorized_to_follow(services, who, parameters.diagnosis_id)
        if request.method == "HEAD":
            return _response(b"")
        transport = StreamTransport()
        subscriber = Subscriber(SubscriberId(who.sub, parameters.device), who, transport)
        at_end(subscriber.detach)
        try:
            hold_connection(services, subscriber, parameters.diagnosis_id, request)
            admission = await admit(services, who, subscriber, parameters)
        except ConnectionRefused as refused:
            raise problem_of_refusal(refused.refusal) from None
        return _response(_frames(services, parameters, transport, subscriber, who, admission))

    return blueprint


def _response(body: bytes | AsyncIterator[bytes]) -> Response:
    # `no`: nginx would otherwise collect the stream before it passes it on.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
    return Response(body, headers=headers, content_type=STREAM_MEDIA_TYPE)


async def _frames(
    services: Services,
    parameters: Parameters,
    transport: StreamTransport,
    subscriber: Subscriber,
    who: Principal,
    admission: Admission,
) -> AsyncIterator[bytes]:
    """What the client gets, until the server ends the connection; the client's end cancels this."""
    session = Session(
        parameters.diagnosis_id,
        who,
        subscriber,
        acknowledges=True,
        speaker=transport,
        registry=services.registry,
        expiry=services.expiry,
        clock=services.clock,
    )
    epoch = admission.window.epoch
    greeting = session.frame("connect", wire.connect_data(admission, who, parameters.device))
    yield message(greeting, f"{epoch}.{admission.plan.position}")
    while not transport.overflowed:
        if replies := transport.take_replies():
            yield b"".join(message(frame) for frame in replies)
        if transport.ending is not None:
            yield _goodbye(services, session, transport.ending)
            return
        if due := subscriber.take(EVENTS_AT_ONCE):
            yield b"".join(_due_message(session, epoch, item) for item in due)
        elif not await transport.woken(wire.PING_INTERVAL_SECONDS):
            yield HEARTBEAT


def _due_message(session: Session, epoch: Epoch, due: Due) -> bytes:
    reached = due.last if isinstance(due, Gap) else due.seq
    frame = session.frame_of(due)
    return message(wire.event_json(frame) if isinstance(due, EventFrame) else frame, f"{epoch}.{reached}")


def _goodbye(services: Services, session: Session, ending: Ending) -> bytes:
    frame, retry = session.goodbye(*close_of(ending), services.jitter)
    return message(frame) if retry is None else b"retry: %d\n%b" % (retry, message(frame))


def message(data: bytes, event_id: str | None = None) -> bytes:
    """One message of a stream (WHATWG HTML section 9.2.5), of no named type, so that `onmessage` gets all of them.

    Args:
        data: JSON text; it holds no line break.
        event_id: what `Last-Event-ID` will be; `None`: as before.
    """
    return b"data: %b\n\n" % data if event_id is None else b"id: %b\ndata: %b\n\n" % (event_id.encode(), data)
