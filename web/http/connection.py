"""One connection, from accept until its end or until its socket is adopted. Whatever goes wrong in it stays in it.

A request takes one of two ways, one after another as they come. Plain requests are answered in the task of the
connection (`web.http.short_way`). What is not plain goes to Hypercorn's protocol, which is made once it is needed, and
goes when a plain request follows.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from math import inf
from typing import Final, Protocol

import trio
from hypercorn.config import Config
from hypercorn.events import Closed, Event, RawData, Updated
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ConnectionState, LifespanState

from web.contract.errors import Problem
from web.http import answers
from web.http.accepting import Address
from web.http.adoption import Adoption, NotAdoptable
from web.http.handshake import Headers
from web.http.http1 import Http1, Pause, Written
from web.http.line import Keeper, Line
from web.http.plain import Plain, recognised
from web.http.short_way import Application, PlainBody, Serve, Take, Ways, says_close, written, written_by_the_edge
from web.http.tasks import Tasks
from web.http.turns import Turns

PLAIN_COST: Final = 1
REQUEST_COST: Final = 4
"""What it costs to begin a request, after a plain one on the same connection and otherwise. Reason: so much less the
short way takes; the next request is not read yet, and is most likely of the same kind."""

logger = logging.getLogger("avicenna.http")


class Rules(Protocol):
    """What a server serves where, and when it is full."""

    @property
    def is_served(self) -> Callable[[bytes], bool]:
        """Of a path."""

    @property
    def is_served_when_full(self) -> Callable[[bytes, Headers], bool]:
        """Of a path and the headers of a request."""

    @property
    def short_way(self) -> Application | None:
        """Serves plain requests; `None`: all take the long way."""

    @property
    def ways(self) -> Ways:
        """Counts requests."""


class Place(Keeper, Protocol):
    """Where connections are kept: the server they belong to."""

    app: AppWrapper
    config: Config
    context: WorkerContext
    state: LifespanState

    @property
    def terms(self) -> Rules:
        """What is served here."""

    @property
    def turns(self) -> Turns:
        """Of requests that begin."""

    @property
    def is_over(self) -> bool:
        """Whether no connection does anything any more."""

    def left(self, connection: Connection) -> None:
        """Stop counting the connection: it is over, or its socket was given away."""

    def counted(self, problem: Problem, client: Address | None) -> Problem:
        """Count a malformed request of this peer; the answer to it."""


class Connection(Line):
    """Reads for one peer, and writes what its requests are answered."""

    def __init__(
        self, place: Place, sock: socket.socket, client: Address | None, *, extra_seconds: float | None = None
    ) -> None:
        """Serve `client` on a socket that does not block.

        Args:
            extra_seconds: the connection is one beyond the limit. It has so long for the head of its one request, which
                is served only if it is of a kind that a full server serves.

        Ownership: the socket is the connection's, closed when `run` returns, unless it is adopted.
        """
        super().__init__(place, sock)
        self.adoption: Adoption | None = None
        self.is_last = extra_seconds is not None
        self._extra_seconds = extra_seconds
        self._place = place
        self._client = client
        self._requests = 0
        """So many were begun, whichever way."""
        self._is_kept_alive = False
        """A request has been answered, and another one may come."""
        self._cost = REQUEST_COST
        """Of the next request."""
        self._protocol: Http1 | None = None
        """Of the long way, as long as it is needed."""
        self._reading: trio.CancelScope | None = None
        """Cancelled to end the connection, whatever its reader is at on the long way."""

    async def run(self) -> None:
        """Serve the peer until one side ends the connection.

        Cancellation: ends it at once.
        """
        try:
            await self._serve()
        except* Exception as failures:
            logger.error("a connection ended by an unexpected error", exc_info=failures)
        finally:
            self._place.left(self)
            self.close()

    def refusal(self, path: bytes, headers: Headers, *, is_upgrade: bool) -> Problem | None:
        """Why a request is not served on this connection; `None`: it is."""
        terms = self._place.terms
        if not terms.is_served(path):
            return answers.not_served_here()
        if self.is_last and (is_upgrade or not terms.is_served_when_full(path, headers)):
            return answers.server_full()
        return None

    def counted(self, problem: Problem) -> Problem:
        """Count a malformed request; the answer to it."""
        return self._place.counted(problem, self._client)

    def cut(self) -> None:
        """End the connection now, also if it is writing: that is shielded from everything but the socket's end."""
        super().cut()
        if self._reading is not None:
            self._reading.cancel()

    async def turn(self) -> None:
        """Return when it is this peer's turn to have a request begun.

        Connections that are new and those that are kept alive take turns, too: a crowd that comes back does not stand
        before whoever has stayed, though both come through one proxy.
        """
        if self.is_handed_over:
            await self.finish_answer()
        host = None if self._client is None else self._client[0]
        await self._place.turns.take((host, self._is_kept_alive), self._cost)

    async def _serve(self) -> None:
        if self._extra_seconds is not None:
            self.await_request(self._extra_seconds)
            await self._serve_long(b"")
            return
        self.await_request(self._place.patience.first_byte_seconds)
        data = await self._next() or b""
        while data := await self._serve_short(data):
            if not (data := await self._serve_long(data)):
                return
        await self.finish_answer()
        await self.linger()
        self.close()

    async def _next(self, *, waits_first: bool = False) -> bytes | None:
        """What came next, in its turn if it begins a request; else as `receive`."""
        data = await self.receive(waits_first=waits_first)
        if data and self._place.is_over:
            self.cut()
            return b""
        if data and self.is_idle:
            await self.turn()
        return data

    # The short way

    def _found(self, data: bytes) -> tuple[Plain, Serve | None, Take | None] | None:
        """The plain request that these bytes begin with, and what serves it; `None`: it takes the long way."""
        terms = self._place.terms
        if terms.short_way is None or self.is_last or (plain := recognised(data)) is None:
            return None
        if not terms.is_served(plain.path.encode()):
            return None
        if plain.key is not None:
            take = terms.short_way.taking(plain, self._client)
            return None if take is None else (plain, None, take)
        serve = terms.short_way.serving(plain, self._client)
        return None if serve is None else (plain, serve, None)

    async def _serve_short(self, data: bytes) -> bytes:
        """Answer plain requests one after another; what has to take the long way, empty: the connection is over."""
        while data and (found := self._found(data)) is not None:
            plain, serve, take = found
            if take is not None:
                assert plain.key is not None, "only a handshake is taken"
                await self._upgrade(plain.key, take)
                return b""
            assert serve is not None, "either is there"
            body = PlainBody(self, data, plain)
            body.gather()
            if body.has_ended:
                return body.received
            data = await self._answer(serve, body)
        return data

    async def _answer(self, serve: Serve, body: PlainBody) -> bytes:
        """Answer one plain request; what begins the next one, empty: the connection is over.

        Nothing cancels the handler but the end of the server: what it has begun is done.
        """
        self._begin_short()
        answer = await serve(body)
        body.gather()
        if body.has_ended:
            self.refuse_rest()
            return b""
        is_last = self._is_last_request or not body.is_whole or says_close(answer)
        is_written = self.write_end(written(answer, is_last=is_last))
        self.was_answered = self.was_answered or is_last
        if is_last or not is_written:
            return b""
        self._is_kept_alive, self._cost = True, PLAIN_COST
        if not self.is_handed_over:
            self.await_request(self._place.patience.idle_seconds)
        if not (rest := body.rest):
            return await self._next(waits_first=True) or b""
        await trio.lowlevel.checkpoint()  # the handler may have waited for nothing: others get their turn
        await self.turn()
        return rest

    def refuse_rest(self) -> None:
        """The peer has ended within a body: tell it so, in place of any other answer. Once."""
        if not self.was_answered and not self.is_broken:
            self._refuse(self.counted(answers.problem_of_status(400)))

    async def _upgrade(self, key: bytes, take: Take) -> None:
        """Have a WebSocket taken, or answer its handshake."""
        self._begin_short()
        adoption = Adoption(self, key)
        try:
            answer = await take(adoption)
        finally:
            adoption.expire()
        if answer is not None and self._is_adoptable():
            self.was_answered = True
            self.write_end(written(answer, is_last=True))

    def _begin_short(self) -> None:
        self._requests += 1
        self._place.terms.ways.short += 1
        self.begin_request()

    @property
    def _is_last_request(self) -> bool:
        place = self._place
        return place.is_stopping or self._requests >= place.config.keep_alive_max_requests

    def _refuse(self, problem: Problem) -> None:
        """Answer in place of a route; it is the last answer."""
        answers.say(problem)
        self.was_answered = True
        self.write_end(written_by_the_edge(problem))

    # The long way

    async def _serve_long(self, data: bytes) -> bytes:
        """Have Hypercorn's protocol serve requests; a plain one behind them, empty: the connection is over."""
        place = self._place
        tasks = Tasks()
        async with tasks:
            protocol = self._protocol = Http1(
                place.app,
                place.config,
                place.context,
                tasks,
                ConnectionState(place.state),
                False,  # TLS ends at a proxy
                self._client,
                None,  # our own address: nobody asks
                self._protocol_send,
            )
            protocol.parent = self
            protocol.can_read = Pause(self.turn)
            protocol.keep_alive_requests = self._requests
            tasks.ask = protocol.ask_for_body
            try:
                plain = await self._read(protocol, data)
                if not plain:
                    await self._finish(protocol)
            finally:
                if self.adoption is not None:
                    self.adoption.expire()
        self._requests = protocol.keep_alive_requests
        self._protocol = None
        del tasks.ask  # breaks the reference cycle, so that no collection is needed
        return plain

    async def _read(self, protocol: Http1, first: bytes) -> bytes:
        """Hand over what the peer sends, as long as there is patience; a plain request that followed, if one did.

        Args:
            first: what came already, in its turn.
        """
        with trio.CancelScope() as self._reading:
            data = first or await self._next()
            while data:
                await protocol.handle(RawData(data))
                self._watch_head(protocol)
                data = await self._next()
                if data and self.is_idle and not protocol.is_within_head and self._found(data) is not None:
                    return data
            if data is not None and not self.is_broken:
                await protocol.handle(RawData(b""))
            elif self.is_broken or self._place.is_stopping:
                pass
            elif self._extra_seconds is not None:
                await protocol.refuse(answers.server_full())
            elif protocol.is_within_head:
                await protocol.refuse(answers.head_too_slow(self._place.patience.head_seconds))
        return b""

    async def _finish(self, protocol: Http1) -> None:
        """Nothing more is read: let the answer in hand end, and then the connection."""
        if not self.is_broken:
            with trio.move_on_after(inf if self.was_answered else self._place.patience.answer_seconds):
                await protocol.finish()
                await self.finish_answer()
        await protocol.handle(Closed())
        await self.linger()
        # At once, whatever its requests still do: nobody reads their answers any more.
        self.close()

    def _watch_head(self, protocol: Http1) -> None:
        """From the first byte of a head on there is one deadline for all of it."""
        if self.is_idle and not self.is_within_head and protocol.is_within_head:
            stays = self._place.is_stopping or self._extra_seconds is not None
            self.begin_head(None if stays else self._place.patience.head_seconds)

    async def _protocol_send(self, event: Event) -> None:
        match event:
            case RawData():
                await self._write_or_end((event.data,))
            case Written():
                await self._write_or_end(event.parts, is_end=event.is_end)
            case Closed():
                self.was_answered = True
                await self._end()
            case Updated(idle=True):
                self._is_kept_alive, self._cost = True, REQUEST_COST
                if not self.is_handed_over:
                    self.await_request(self._place.patience.idle_seconds)
            case Updated():
                self._place.terms.ways.long += 1
                self.begin_request()

    async def _write_or_end(self, parts: Sequence[bytes], *, is_end: bool = False) -> None:
        if not (self.write_end(parts) if is_end else await self.write(parts)):
            await self._end()

    async def _end(self) -> None:
        assert self._protocol is not None, "it ends"
        assert self._reading is not None, "it has begun to read"
        await self._protocol.handle(Closed())
        # The reader may be parked where nothing else wakes it.
        self._reading.cancel()

    # Adoption

    def give_away(self) -> socket.socket:
        """The socket, out of this connection and out of Trio, non-blocking.

        Raises:
            NotAdoptable: the peer left or spoke first.
        """
        # No checkpoint until the end: nobody may write to or read from a socket that is in between.
        if self._protocol is not None:
            self._protocol.check_adoptable()
            self._protocol.give_up_stream()
        elif not self._is_adoptable():
            raise NotAdoptable
        self._place.left(self)
        return self.take_socket()

    def _is_adoptable(self) -> bool:
        """Whether the peer of a plain handshake is there and has said nothing more; one that has is told so."""
        if self.is_broken or self.was_answered:
            return False
        if self.is_silent():
            return True
        if not self.is_broken:
            self._refuse(answers.malformed("nothing may follow a handshake before its answer"))
        return False
