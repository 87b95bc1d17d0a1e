"""`GET /diagnoses/{id}/events`: following a diagnosis by Server-Sent Events (PROTOCOL section 8).

The same subscriber as behind a WebSocket, with another transport: its task is woken and reads the ring from the
position. The stream goes one way, so nothing in it acknowledges; the next request does, by where it continues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator
from functools import partial
from typing import Final

import trio
from quart import Blueprint, Response, g, request

from actors.messages import Admission
from actors.ring import Gap
from actors.subscriber import Burst, Due, Ending, EventFrame, Subscriber
from storage.records import Epoch, Seq, SubscriberId
from web import wire
from web.access import admit, asked_by_a_foreign_page, authenticate, authorized_to_follow, hold_connection
from web.edge.lean import at_end
from web.errors import ConnectionRefused, Problem, close_of, problem_of_refusal
from web.logs import current_request_id
from web.parameters import Parameters, parse_stream
from web.services import Services
from web.session import Session
from web.tokens import Principal

STREAM_MEDIA_TYPE: Final = "text/event-stream"

ROUTE: Final = "streams.follow"
"""Quart's name for the route."""

LAST_EVENT_ID: Final = "Last-Event-ID"

EVENTS_AT_ONCE: Final = 50
"""Events taken from the ring at once. They are the frames that all who follow share."""

WRITTEN_BYTES: Final = 16 * 1024
"""A write ends with the message that reaches so many bytes. Reason: written bytes stay in memory until the client
reads."""

REPLIES_MAX: Final = 100
"""Frames other than events that wait for one client. Beyond: it does not read, and its stream ends."""

COMMENT: Final = b":\n\n"
"""Keeps proxies and the client's own timer from giving up a silent stream."""


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
        with trio.move_on_after(max(0.0, seconds)):
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
        g.sub = who.sub
        parameters = parse_stream(diagnosis_id, request.args, last_event_id(), anonymous=who.sub is None)
        await authorized_to_follow(services, who, parameters.diagnosis_id)
        if request.method == "HEAD":
            return stream_response(b"")
        transport = StreamTransport()
        subscriber = Subscriber(SubscriberId(who.sub, parameters.device), who, transport)
        began_at = services.clock.monotonic()
        at_end(partial(_over, services, subscriber, transport, current_request_id(), began_at))
        try:
            hold_connection(services, subscriber, parameters.diagnosis_id, request)
            admission = await admit(services, who, subscriber, parameters)
        except ConnectionRefused as refused:
            raise problem_of_refusal(refused.refusal) from None
        return stream_response(_frames(services, parameters, transport, subscriber, who, admission))

    return blueprint


def _over(
    services: Services, subscriber: Subscriber, transport: StreamTransport, request_id: str | None, began_at: float
) -> None:
    subscriber.detach()
    if subscriber.roster is None:
        return  # it was never admitted: the line of its request says why
    code, reason = None, "its connection ended"
    if transport.ending is not None:
        code, reason = close_of(transport.ending)
    elif transport.overflowed:
        reason = "it did not read its replies"
    seconds = services.clock.monotonic() - began_at
    services.connection_log.ended("event stream", subscriber, code, reason, seconds, request_id)


def last_event_id() -> str | None:
    """The header of the current request; `None`: there is none.

    Raises:
        Problem: `invalid_field`, there are two.
    """
    given = request.headers.getlist(LAST_EVENT_ID)
    if len(given) > 1:
        raise Problem("invalid_field", f"{LAST_EVENT_ID} must be given once")
    return given[0] if given else None


def stream_response(body: bytes | AsyncIterator[bytes]) -> Response:
    """An answer that is a stream of events, or begins and ends as one."""
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
        ack=parameters.ack,
        speaker=transport,
        registry=services.registry,
        expiry=services.expiry,
        clock=services.clock,
    )
    epoch, clock = admission.window.epoch, services.clock
    silence_seconds = parameters.heartbeat_seconds or wire.PING_INTERVAL_SECONDS

    def reached(frame: bytes) -> bytes:
        """A frame that is no event: its id is the position reached, as that of every message."""
        return message(frame, f"{epoch}.{subscriber.position}")

    greeting = session.frame("connect", wire.connect_data(admission, who, parameters.device, parameters.ack))
    yield message(greeting, f"{epoch}.{admission.plan.position}")
    spoke_at = clock.monotonic()
    while not transport.overflowed:
        if replies := transport.take_replies():
            yield b"".join(map(reached, replies))
            spoke_at = clock.monotonic()
        if transport.ending is not None:
            bye, retry_ms = session.goodbye(*close_of(transport.ending), services.jitter)
            subscriber.detach()
            yield with_retry(reached(bye), retry_ms)
            if transport.ending is Ending.REPLACED:
                # As with WebSockets: clients that keep taking a device from each other slow each other down.
                await services.hub.hold_stream((parameters.diagnosis_id, subscriber.id))
            return
        if due := subscriber.take(EVENTS_AT_ONCE):
            for gap in [item for item in due if isinstance(item, Gap)]:
                services.connection_log.gap(subscriber, gap)
            for part in _in_parts(_due_message(session, epoch, item) for item in due):
                yield part
            spoke_at = clock.monotonic()
        elif not await transport.woken(spoke_at + silence_seconds - clock.monotonic()):
            spoke_at = clock.monotonic()
            if parameters.heartbeat_seconds is None:
                yield COMMENT
            elif subscriber.is_caught_up:
                yield reached(session.frame("heartbeat", wire.seq_data(subscriber.position)))


def _in_parts(messages: Iterable[bytes]) -> Iterator[bytes]:
    """The messages, in writes of at least `WRITTEN_BYTES` but for the last; each is made when it is due."""
    part = bytearray()
    for one in messages:
        part += one
        if len(part) >= WRITTEN_BYTES:
            yield bytes(part)
            part.clear()
    if part:
        yield bytes(part)


def _due_message(session: Session, epoch: Epoch, due: Due) -> bytes:
    reached = due.last if isinstance(due, Gap) else due.seq
    frame = session.frame_of(due)
    return message(wire.event_json(frame) if isinstance(due, EventFrame) else frame, f"{epoch}.{reached}")


def with_retry(said: bytes, retry_ms: int | None) -> bytes:
    """A message, and before it when the browser is to come back; `None`: as ever."""
    return said if retry_ms is None else b"retry: %d\n%b" % (retry_ms, said)


def message(data: bytes, event_id: str | None = None) -> bytes:
    """One message of a stream (WHATWG HTML section 9.2.5), of no named type, so that `onmessage` gets all of them.

    Args:
        data: JSON text; it holds no line break.
        event_id: what `Last-Event-ID` will be; `None`: as before.
    """
    return b"data: %b\n\n" % data if event_id is None else b"id: %b\ndata: %b\n\n" % (event_id.encode(), data)
