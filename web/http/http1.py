"""HTTP/1.1 as this server takes it: Hypercorn's, with limits, without HTTP/2, and with WebSockets to give away."""

from __future__ import annotations

import re
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any, Final, Protocol, cast

import h11
import trio
from h11._receivebuffer import ReceiveBuffer
from hypercorn.events import Closed, RawData
from hypercorn.events import Event as ToConnection
from hypercorn.protocol.events import Body, Data, Event, Request, Response, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.worker_context import EventWrapper
from hypercorn.typing import ASGISendEvent, ConnectionState, H11SendableEvent

from web.contract.errors import Problem
from web.http import answers
from web.http.adoption import HANDLE, Adoption, NotAdoptable, Owner
from web.http.handshake import BadHandshake, Headers, WrongVersion, is_upgrade, key_of
from web.http.targets import BadTarget, origin_form

HTTP_VERSIONS: Final = (b"1.1", b"1.0")

_BLANK_LINE: Final = re.compile(rb"\n\r?\n")


@dataclass(frozen=True, slots=True)
class Written(ToConnection):
    """Bytes of an answer, one behind the other, none of which is copied: thousands may share a body."""

    parts: Sequence[bytes]
    is_end: bool
    """Nothing of the answer is left: its request does not wait until this is written."""


class Parent(Owner, Protocol):
    """What the protocol needs of its connection."""

    adoption: Adoption | None
    is_last: bool
    """The connection ends after one request."""

    def refusal(self, path: bytes, headers: Headers, *, is_upgrade: bool) -> Problem | None:
        """Why a request is not served on this connection; `None`: it is."""

    def counted(self, problem: Problem) -> Problem:
        """Count a malformed request; the answer to it, which may be that there are too many."""


class Exchange(HTTPStream):
    """One request and its answer."""

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Take one event of the application."""
        await super().app_send(message)
        if message is not None and message.get("more_body"):
            # A streamed answer leaves others their turn, whether its peer reads all of it at once or has left.
            await trio.lowlevel.checkpoint()

    async def _send_error_response(self, status_code: int) -> None:
        has_body = self.scope["method"] != "HEAD"
        await _answer(self.send, answers.problem_of_status(status_code), has_body=has_body)
        self.state = ASGIHTTPState.CLOSED


class Upgrade(WSStream):
    """A WebSocket until it is given away, or as long as a route uses the ASGI channel."""

    async def handle(self, event: Event) -> None:
        """Take one event of the protocol."""
        if isinstance(event, Body | Data) and not self.closed and not self.handshake.accepted:
            # Bytes before the 101 (RFC 6455 section 4.1 has the client wait). First the state: `adopt` looks at it.
            self.state = ASGIWebsocketState.HTTPCLOSED
            await _answer(self.send, answers.malformed("nothing may follow a handshake before its answer"))
            # Hypercorn forgets this: the connection would stay open for ever.
            await self.send(StreamClosed(stream_id=self.stream_id))
        else:
            await super().handle(event)

    async def app_send(self, message: ASGISendEvent | None) -> None:
        """Take one event of the application."""
        if self.closed:
            # A route that goes on sending to a peer that left would otherwise never let another task run.
            await trio.lowlevel.checkpoint()
            return
        await super().app_send(message)

    async def _send_error_response(self, status_code: int) -> None:
        await _answer(self.send, answers.problem_of_status(status_code))


async def _answer(send: Callable[[Event], Awaitable[None]], problem: Problem, *, has_body: bool = True) -> None:
    """Answer in place of a route; the log says so."""
    answers.say(problem)
    for event in answers.events_of(problem, STREAM_ID, has_body=has_body):
        await send(event)


class _Received(ReceiveBuffer):
    """h11's, which parses each line at a price. So the lines are counted first, and too many are refused unparsed."""

    lines_max = 0
    """Lines that may come next: a head has one more than a trailer."""

    def maybe_extract_lines(self) -> list[bytearray] | None:
        """The lines of a head, or of a trailer; `None`: they are not whole."""
        data = self._data
        if data.count(b"\n") > self.lines_max and not data.startswith((b"\n", b"\r\n")):
            end = _BLANK_LINE.search(data)
            if data.count(b"\n", 0, len(data) if end is None else end.start() + 1) > self.lines_max:
                raise h11.RemoteProtocolError("too many lines", error_status_hint=431)
        return super().maybe_extract_lines()


class Requests(h11.Connection):
    """h11's, but for what is not looked at: one empty line before a request, and whatever follows one that is the last
    (RFC 9112 sections 2.2 and 9.6)."""

    def __init__(self, *args: Any, **options: Any) -> None:
        super().__init__(*args, **options)
        self._received = self._receive_buffer = _Received()

    they_are_waiting_for_100_continue = False
    """Hypercorn would ask for every body. Here the route asks, once it has looked at the token."""

    _has_skipped = False

    def next_event(self) -> h11.Event | type[h11.NEED_DATA | h11.PAUSED]:
        """The next event of the peer."""
        if self.their_state is h11.MUST_CLOSE and (behind := len(self.trailing_data[0])):
            self._receive_buffer.maybe_extract_at_most(behind)
        is_head = self.their_state is h11.IDLE
        self._received.lines_max = answers.HEADER_LINES_MAX + (1 if is_head else 0)
        if is_head and not self._has_skipped:
            begin = self.trailing_data[0][:2]
            if begin == b"\r":
                return h11.NEED_DATA
            if begin == b"\r\n":
                self._receive_buffer.maybe_extract_at_most(2)
                self._has_skipped = True
        event = super().next_event()
        if isinstance(event, h11.Request):
            self._has_skipped = False
        return event


class Pause(EventWrapper):
    """Holds the reader until an answer is out. Then a request that came behind the answered one is begun in its
    turn."""

    def __init__(self, turn: Callable[[], Awaitable[None]]) -> None:
        super().__init__()
        self._turn = turn

    async def wait(self) -> None:
        """Return when the next request may be begun."""
        await super().wait()
        await self._turn()


class Http1(H11Protocol):
    """The requests of one connection, one after another."""

    parent: Parent
    """Set by the connection, as is `can_read`: the base class's constructor does not take them."""

    def __init__(self, *args: Any) -> None:
        super().__init__(*args)
        self.connection = Requests(h11.SERVER, max_incomplete_event_size=answers.HEAD_BYTES_MAX)

    _received = 0
    _head_begins = 0
    """Both are counts of bytes since the connection began."""
    _is_head = False
    _unsent_head = b""
    _body_length = 0
    """What the head says that waits for its body."""
    _last_is_over: trio.Event | None = None
    """Set once the request is over, however it ends, after which nothing more can come; `None`: more may come."""

    @property
    def is_within_head(self) -> bool:
        """Whether part of a request's head has arrived, and not all of it."""
        return self.stream is None and bool(self.connection.trailing_data[0])

    async def handle(self, event: RawData | Closed) -> None:  # type: ignore[override]
        """Take bytes of the peer, or its end."""
        if isinstance(event, RawData):
            self._received += len(event.data)
        await super().handle(event)
        if isinstance(event, Closed):
            # The peer is gone: its stream has been told, and ends without telling this protocol.
            self._say_last_is_over()

    async def ask_for_body(self) -> None:
        """Somebody waits for the body: tell a client that holds it back to send it (RFC 9110 section 10.1.1)."""
        if isinstance(self.connection, h11.Connection) and self.connection.client_is_waiting_for_100_continue:
            await self._send_h11_event(h11.InformationalResponse(status_code=100, headers=[]))

    async def finish(self) -> None:
        """The peer has ended its side: wait until what it asked for is answered. A streamed answer ends."""
        stream = self.stream
        if isinstance(stream, Exchange) and self.connection.their_state is h11.CLOSED:
            self._last_is_over = trio.Event()
            await stream.app_put({"type": "http.disconnect"})
            await self._last_is_over.wait()

    async def refuse(self, problem: Problem, *, is_malformed: bool = True) -> None:
        """Answer in place of a route, and end the connection."""
        answer = self.parent.counted(problem) if is_malformed else problem
        await _answer(self.stream_send, answer, has_body=not self._is_head)
        await self.send(Closed())

    def check_adoptable(self) -> None:
        """Whether the WebSocket can be given away now.

        Raises:
            NotAdoptable: it cannot.
        """
        stream = self.stream
        if not isinstance(stream, Upgrade) or stream.closed or stream.state is not ASGIWebsocketState.HANDSHAKE:
            raise NotAdoptable

    def give_up_stream(self) -> None:
        """The WebSocket has been given away: what its route sends from now on goes nowhere."""
        assert self.stream is not None, "check_adoptable has passed"
        self.stream.closed = True

    async def stream_send(self, event: Event) -> None:
        """Take one event of an answer."""
        if isinstance(event, Response) and event.status_code >= 200 and self._is_last:
            names = {name.lower() for name, _ in event.headers}
            closing = [] if b"connection" in names else [(b"connection", b"close")]
            event = Response(
                stream_id=event.stream_id, headers=[*event.headers, *closing], status_code=event.status_code
            )
        await super().stream_send(event)

    @property
    def _is_last(self) -> bool:
        """Whether the connection ends after the current answer; the rest of a body would be in a next request's way."""
        connection = self.connection
        return (
            self.context.terminated.is_set()
            or self.parent.is_last
            or isinstance(connection, H11WSConnection)
            or connection.their_state is h11.SEND_BODY
        )

    async def _check_protocol(self, event: h11.Request) -> None:
        """No h2c: a request for it is answered in HTTP/1.1, as RFC 9110 section 7.8 allows."""

    async def _create_stream(self, request: h11.Request) -> None:
        self._is_head = request.method == b"HEAD"
        headers = list(request.headers)  # h11 makes each of them anew whenever it is asked
        behind = len(self.connection.trailing_data[0])
        if self._received - behind - self._head_begins > answers.HEAD_BYTES_MAX:
            await self.refuse(answers.head_too_large())
        elif {b"content-length", b"transfer-encoding"} <= {name for name, _ in headers}:
            # A proxy in front may take another part of the bytes for the body (RFC 9112 section 6.3).
            await self.refuse(answers.malformed("a request has Content-Length or Transfer-Encoding, not both"))
        elif request.http_version not in HTTP_VERSIONS:
            await self.refuse(answers.wrong_http_version())
        else:
            await self._begin_request(request, headers, behind)

    async def _begin_request(self, request: h11.Request, headers: Headers, behind: int) -> None:
        try:
            target, headers = origin_form(request.target, headers)
        except BadTarget as bad:
            await self.refuse(answers.malformed(str(bad)))
            return
        path, _, query = target.partition(b"?")
        wants_upgrade = is_upgrade(request.method, headers)
        if query.count(b"&") >= answers.PARAMETERS_MAX:
            await self.refuse(answers.too_many_parameters())
        elif (problem := self.parent.refusal(path, headers, is_upgrade=wants_upgrade)) is not None:
            await self.refuse(problem, is_malformed=False)
        elif wants_upgrade:
            await self._begin_upgrade(request, target, headers, behind)
        else:
            await self._begin(Exchange, request, target, headers, self.connection_state)

    async def _begin_upgrade(self, request: h11.Request, target: bytes, headers: Headers, behind: int) -> None:
        try:
            key = key_of(request.http_version, headers)
        except WrongVersion:
            await self.refuse(answers.wrong_websocket_version())
            return
        except BadHandshake as bad:
            await self.refuse(answers.malformed(str(bad)))
            return
        if behind:
            await self.refuse(answers.malformed("nothing may follow a handshake before its answer"))
            return
        adoption = self.parent.adoption = Adoption(self.parent, key)
        state = ConnectionState({**self.connection_state, HANDLE: adoption})
        self.connection = H11WSConnection(cast("h11.Connection", self.connection))
        # permessage-deflate is never negotiated: all clients share one frame, which one zlib context for each would
        # rule out.
        headers = [header for header in headers if header[0] != b"sec-websocket-extensions"]
        await self._begin(Upgrade, request, target, headers, state)

    async def _begin(
        self,
        kind: type[Exchange | Upgrade],
        request: h11.Request,
        target: bytes,
        headers: Headers,
        state: ConnectionState,
    ) -> None:
        stream = self.stream = kind(
            self.app,
            self.config,
            self.context,
            self.task_group,
            self.ssl,
            self.client,
            self.server,
            self.stream_send,
            STREAM_ID,
        )
        await stream.handle(
            Request(
                stream_id=STREAM_ID,
                headers=headers,
                http_version=request.http_version.decode(),
                method=request.method.decode("ascii"),
                raw_path=target,
                state=state,
            )
        )
        self.keep_alive_requests += 1

    async def _send_error_response(self, status_code: int) -> None:
        problem = self.parent.counted(answers.problem_of_status(status_code))
        await _answer(self.stream_send, problem, has_body=not self._is_head)

    async def _send_h11_event(self, event: H11SendableEvent) -> None:
        """Write an event; the head of an answer of known length waits for its body, so that both are one write."""
        try:
            data = self.connection.send(event)
        except h11.LocalProtocolError:
            if self.connection.their_state != h11.ERROR:
                raise
            return
        if isinstance(event, h11.Response) and (length := _length_of(event)) is not None:
            self._unsent_head, self._body_length = self._unsent_head + data, length
            return
        head, self._unsent_head = self._unsent_head, b""
        is_whole = bool(head) and len(data) == self._body_length
        if head or data:
            await self.send(Written((head, data), is_end=is_whole or isinstance(event, h11.EndOfMessage)))

    async def _maybe_recycle(self) -> None:
        # Tell the application last: on http.disconnect Quart-Trio cancels the task that is recycling the connection,
        # which would then be neither used again nor closed. The shield is for the same reason.
        stream, self.stream = self.stream, None
        with trio.CancelScope(shield=True):
            await super()._maybe_recycle()
            self._is_head = False
            self._head_begins = self._received - len(self.connection.trailing_data[0])
            if stream is not None:
                await stream.handle(StreamClosed(stream_id=STREAM_ID))
        self._say_last_is_over()

    def _say_last_is_over(self) -> None:
        if self._last_is_over is not None:
            self._last_is_over.set()


def _length_of(response: h11.Response) -> int | None:
    """Bytes of its body; `None`: it does not say."""
    return next((int(value) for name, value in response.headers if name == b"content-length"), None)
