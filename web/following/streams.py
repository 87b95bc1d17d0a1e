"""`GET /diagnoses/{id}/events`: following a diagnosis by Server-Sent Events (PROTOCOL section 8).

The same subscriber as behind a WebSocket, with another transport: its task is woken and reads the ring from the
position. The stream goes one way, so nothing in it acknowledges; the next request does, by where it continues.
"""

from __future__ import annotations

from collections import deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Final

import trio

from actors.messages import Admission
from actors.reading import Due
from actors.ring import Gap
from actors.roster import Subscriber
from actors.transport import Burst, Ending
from storage.clock import Clock
from storage.records import Epoch, Seq, SubscriberId
from web.contract import wire
from web.contract.errors import CloseCode, ConnectionRefused, Problem, close_of, problem_of_refusal
from web.contract.exchange import Answer, Request
from web.contract.operations import EVENT_STREAM
from web.contract.parameters import Parameters, parse_stream
from web.contract.principals import Principal
from web.following.admission import Entrance
from web.following.connection_log import ConnectionLog
from web.following.session import Session
from web.identity.access import Access

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

    def feed(self, burst: Burst) -> bool:
        self._woken.set()
        return True

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


class StreamCloses:
    """Streams that ended, by why; figures since the start."""

    def __init__(self) -> None:
        self._by_code = dict.fromkeys((None, *map(int, CloseCode)), 0)

    def closed(self, code: int | None) -> None:
        """Count the end of a stream.

        Args:
            code: of its `bye`; `None`: its client has left.
        """
        self._by_code[code] += 1

    def statistics(self) -> Mapping[int | None, int]:
        """How many there were, by code."""
        return dict(self._by_code)


class Streams:
    """Serves event streams. One per server."""

    def __init__(
        self,
        access: Access,
        entrance: Entrance,
        log: ConnectionLog,
        closes: StreamCloses,
        clock: Clock,
        jitter: Callable[[], float],
        hold: Callable[[object], Awaitable[None]],
    ) -> None:
        """Let in by `entrance`.

        Args:
            jitter: random numbers from 0 up to 1.
            hold: waits where clients take a subscriber from each other for ever, which its argument names.
        """
        self._access = access
        self._entrance = entrance
        self._log = log
        self._closes = closes
        self._clock = clock
        self._jitter = jitter
        self._hold = hold

    async def follow(self, asked: Request) -> Answer:
        """The stream of one diagnosis. Raises as a handler does."""
        who, anonymous = asked.who, asked.who.sub is None
        parameters = parse_stream(
            asked.parameters["diagnosis_id"], asked.query, last_event_id(asked), anonymous=anonymous
        )
        await self._access.diagnosis_to_follow(who, parameters.diagnosis_id)
        if asked.method == "HEAD":
            return stream_answer(b"")
        transport = StreamTransport()
        subscriber = Subscriber(SubscriberId(who.sub, parameters.device), who, transport)
        assert asked.at_end is not None, "a stream is no handshake"
        asked.at_end(partial(self._over, subscriber, transport, asked.id, self._clock.monotonic()))
        try:
            self._entrance.hold(subscriber, parameters.diagnosis_id, asked)
            admission = await self._entrance.admit(who, subscriber, parameters)
        except ConnectionRefused as refused:
            raise problem_of_refusal(refused.refusal) from None
        return stream_answer(self._frames(parameters, transport, subscriber, who, admission))

    def _over(self, subscriber: Subscriber, transport: StreamTransport, request_id: str, began_at: float) -> None:
        subscriber.detach()
        if subscriber.roster is None:
            return  # never admitted: the line of its request says why
        code, reason = None, "its connection ended"
        if transport.ending is not None:
            code, reason = close_of(transport.ending)
        elif transport.overflowed:
            reason = "it did not read its replies"
        seconds = self._clock.monotonic() - began_at
        self._closes.closed(code)
        self._log.ended("event stream", subscriber, code, reason, seconds, request_id)

    async def _frames(
        self,
        parameters: Parameters,
        transport: StreamTransport,
        subscriber: Subscriber,
        who: Principal,
        admission: Admission,
    ) -> AsyncIterator[bytes]:
        """What the client gets, until the server ends the connection; the client's end cancels this."""
        session = self._entrance.session(parameters, subscriber, transport)
        epoch, clock = admission.window.epoch, self._clock
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
                bye, retry_ms = session.goodbye(*close_of(transport.ending), self._jitter)
                subscriber.detach()
                yield with_retry(reached(bye), retry_ms)
                if transport.ending is Ending.REPLACED:
                    # As with WebSockets: clients that keep taking a device from each other slow each other down.
                    await self._hold((parameters.diagnosis_id, subscriber.id))
                return
            if due := subscriber.take(EVENTS_AT_ONCE):
                for gap in [item for item in due if isinstance(item, Gap)]:
                    self._log.gap(subscriber, gap)
                for part in _in_parts(_due_message(session, epoch, item) for item in due):
                    yield part
                spoke_at = clock.monotonic()
            elif not await transport.woken(spoke_at + silence_seconds - clock.monotonic()):
                spoke_at = clock.monotonic()
                if parameters.heartbeat_seconds is None:
                    yield COMMENT
                elif subscriber.is_caught_up:
                    yield reached(session.frame("heartbeat", wire.seq_data(subscriber.position)))


def last_event_id(asked: Request) -> str | None:
    """The header of a request; `None`: there is none.

    Raises:
        Problem: `invalid_field`, there are two.
    """
    given = asked.headers.getlist(LAST_EVENT_ID)
    if len(given) > 1:
        raise Problem("invalid_field", f"{LAST_EVENT_ID} must be given once")
    return given[0] if given else None


def stream_answer(body: bytes | AsyncIterator[bytes]) -> Answer:
    """An answer that is a stream of events, or begins and ends as one."""
    # `no`: nginx would otherwise collect the stream before it passes it on.
    headers = {"Cache-Control": "no-store", "X-Accel-Buffering": "no", "Content-Type": EVENT_STREAM}
    return Answer(200, headers, body)


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
    return message(session.text_of(due), f"{epoch}.{reached}")


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
