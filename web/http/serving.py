"""Serving: accepts connections up to a limit, and at the end takes them down in order, within one deadline."""

from __future__ import annotations

import logging
import socket
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from math import inf
from typing import Final

import trio
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.typing import AppWrapper, ASGIFramework, LifespanState

from web.contract.errors import Problem
from web.http import answers
from web.http.accepting import Address, accept_from
from web.http.connection import PLAIN_COST, REQUEST_COST, Connection
from web.http.handshake import Headers
from web.http.line import Line, Patience, linger
from web.http.nonblocking import Gone, close, send_some
from web.http.open_connections import CountedSocket, OpenConnections
from web.http.short_way import Application, Ways
from web.http.turns import Turns

EXTRA_MAX: Final = 16
"""Connections beyond the limit whose request is read all the same: it may ask for the health, or be an operator's.
Beyond: refused unread."""

EXTRA_SECONDS_MAX: Final = 2.0
"""Longest time the head of such a request may take. Beyond: 503."""

BEGUN_AT_ONCE_MAX: Final = 8
"""Requests begun in one turn of the event loop; plain ones count less (`PLAIN_COST`). Reason: they take some
milliseconds, and a publish takes ten turns. Beyond: the next turn, addresses one after another."""

STALL_LOOKS: Final = 10
"""How often it is looked whether a peer has accepted anything, within the longest time that it may not."""

LOOKED_AT_ONCE_MAX: Final = 32
"""Connections that are looked at, and cut, in one turn of everybody."""

LATE_LOOK_SECONDS: Final = 0.25
"""Between two looks for connections that were waited for long enough. Reason: a deadline of its own for each wait costs
more than all looks together; who is late may be closed so much later."""

LATE_LOOKED_AT_ONCE_MAX: Final = 1024
"""Of these, connections looked at in one turn of everybody; each takes a tenth of a microsecond."""

SHARE_LOG_SECONDS: Final = 60.0
"""Between two lines about addresses that want more than their share."""

REFUSED_AT_ONCE_MAX: Final = 100
"""Connections beyond the limit that are told so and waited for. Beyond: closed without a word."""

ANSWERED_SECONDS_MAX: Final = 1.0
"""Longest time a refused connection may take to read why."""

REQUESTS_MAX: Final = 1_000_000
"""Requests on one connection. Beyond: closed after the answer, which says so."""

logger = logging.getLogger("avicenna.http")


def _unlimited(client: Address | None) -> None:
    """There is no limit to malformed requests."""


async def _nothing() -> None:
    """There is nothing to say goodbye to."""


def _everywhere(path: bytes) -> bool:
    """No path is kept from these listeners."""
    return True


def _nobody(path: bytes, headers: Headers) -> bool:
    """No request is served beyond the limit."""
    return False


def _shared(host: str) -> str | None:
    """No address has a limit of its own."""
    return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Terms:
    """On what terms connections are served."""

    connections_max: int
    """Open at once, those given away included. Beyond: 503."""
    drain_seconds_max: float
    """From the request to stop until what is still open is cut."""
    patience: Patience
    elsewhere: Callable[[], int] = lambda: 0
    """How many sockets that were given away are open."""
    open: OpenConnections = field(default_factory=OpenConnections)
    """Counts everything that was accepted and is not closed."""
    address_connections_max: int = 0
    """Of these, connections of one address, as `address_of` names it. Beyond: 503."""
    address_of: Callable[[str], str | None] = _shared
    """The address a peer counts for, from its host; `None`: it may have as many as it likes."""
    is_served: Callable[[bytes], bool] = _everywhere
    """Whether a path is served here. Else: 404."""
    is_served_when_full: Callable[[bytes, Headers], bool] = _nobody
    """Whether a request of this path and these headers is served on a connection beyond the limit. Else: 503."""
    short_way: Application | None = None
    """Serves plain requests; `None`: all take the long way."""
    ways: Ways = field(default_factory=Ways)
    """Counts requests."""
    excess: Callable[[Address | None], Problem | None] = _unlimited
    """Counts a malformed request of this peer; what it is answered if it is one too many."""
    state: LifespanState = field(default_factory=dict)
    """What the scope of a request of the long way says beside the state of the application (ASGI "Lifespan State")."""
    drain: Callable[[], Awaitable[None]] = _nothing
    """Closes connections that were handed over (WebSockets), once nothing new is accepted; cancelled when time is
    up."""


class Edge:
    """The connections of one server that have not been given away."""

    def __init__(self, app: ASGIFramework, terms: Terms) -> None:
        self.app: AppWrapper = ASGIWrapper(app)
        self.config = _config()
        self.context = WorkerContext(None)
        self.state: LifespanState = {}
        self.patience = terms.patience
        self.connections: dict[Connection, None] = {}
        self.writing: dict[Line, None] = {}
        self.terms = terms
        self.turns = Turns(BEGUN_AT_ONCE_MAX * REQUEST_COST, share=PLAIN_COST)
        self._extra = 0
        self._share_logged_at = -inf
        self.is_stopping = False
        """Connections end after their answers."""
        self.cut_at = inf
        """When every connection that is left ends, whatever it does."""
        self._emptied = trio.Event()
        self._refused = 0
        self._is_full = False

    async def accept_from(self, listener: socket.socket, connections_nursery: trio.Nursery) -> None:
        """Serve the connections of a listener, until cancelled; closes it."""
        await accept_from(listener, self.terms.open.counting(listener), self.accept_counted, connections_nursery)

    async def accept_counted(self, counted: CountedSocket, client: Address | None) -> None:
        """Serve one more connection, counted as long as its socket is open, whoever has it. Takes the socket."""
        address = None if client is None else self.terms.address_of(client[0])
        if address is not None:
            if self.terms.open.of_address[address] >= self.terms.address_connections_max:
                self._say_share_is_taken()
                await self._refuse(counted, answers.address_full())
                return
            self.terms.open.admit(counted, address)
        await self.accept(counted, client)

    async def accept(self, sock: socket.socket, client: Address | None) -> None:
        """Serve one more connection, until its end.

        Ownership: takes the socket.
        """
        if len(self.connections) + self.terms.elsewhere() - self._extra < self.terms.connections_max:
            self._is_full = False
            await self._run(Connection(self, sock, client))
            return
        if not self._is_full:
            self._is_full = True
            logger.warning("refusing connections: all %d are taken", self.terms.connections_max)
        if self._extra >= EXTRA_MAX:
            await self._refuse(sock, answers.server_full())
            return
        self._extra += 1
        try:
            await self._run(Connection(self, sock, client, extra_seconds=EXTRA_SECONDS_MAX))
        finally:
            self._extra -= 1

    async def _run(self, connection: Connection) -> None:
        self.connections[connection] = None
        await connection.run()

    def _say_share_is_taken(self) -> None:
        if trio.current_time() - self._share_logged_at >= SHARE_LOG_SECONDS:
            self._share_logged_at = trio.current_time()
            logger.warning(
                "refusing connections of an address that has %d, its share (address_share); "
                "if it is a proxy's, name it in trusted_proxies",
                self.terms.address_connections_max,
            )

    def left(self, connection: Connection) -> None:
        """The connection is no longer ours to count."""
        self.connections.pop(connection, None)
        if not self.connections:
            self._emptied.set()

    @property
    def is_over(self) -> bool:
        """Whether no connection does anything any more."""
        return self.cut_at != inf and trio.current_time() >= self.cut_at

    def stalled(self) -> None:
        """Count a connection that is cut since its peer accepted nothing."""
        self.terms.open.stalled += 1

    def counted(self, problem: Problem, client: Address | None) -> Problem:
        """Count a malformed request of this peer; the answer to it."""
        return self.terms.excess(client) or problem

    async def look_for_stalled(self) -> None:
        """Cut connections whose peers accept nothing of what is written; until cancelled."""
        while True:
            await trio.sleep(self.patience.stall_seconds / STALL_LOOKS)
            for count, connection in enumerate(list(self.writing), start=1):
                if connection in self.writing:
                    connection.look_whether_stalled()
                if count % LOOKED_AT_ONCE_MAX == 0:
                    await trio.lowlevel.checkpoint()

    async def look_for_late(self) -> None:
        """Wake connections whose peers were waited for long enough; until cancelled."""
        while True:
            await trio.sleep(LATE_LOOK_SECONDS)
            now = trio.current_time()
            for count, connection in enumerate(list(self.connections), start=1):
                connection.look_whether_late(now)
                if count % LATE_LOOKED_AT_ONCE_MAX == 0:
                    await trio.lowlevel.checkpoint()

    async def retire(self) -> None:
        """Have idle connections end now, and the others after their answers."""
        self.is_stopping = True
        await self.context.terminated.set()
        for connection in list(self.connections):
            connection.retire()

    async def wait_until_empty(self) -> None:
        """Return when the last connection is gone."""
        while self.connections:
            self._emptied = trio.Event()
            await self._emptied.wait()

    def cut(self) -> None:
        """End every connection that is left."""
        if self.connections:
            logger.warning("cutting %d connections that have not ended in time", len(self.connections))
        for connection in list(self.connections):
            connection.cut()

    async def _refuse(self, sock: socket.socket, problem: Problem) -> None:
        self._refused += 1
        try:
            if self._refused <= REFUSED_AT_ONCE_MAX:
                with trio.move_on_after(ANSWERED_SECONDS_MAX):
                    await send_some(sock, answers.bytes_of(problem))  # an empty queue has room for it
                    await linger(sock, ANSWERED_SECONDS_MAX)
        except Gone:
            return
        finally:
            self._refused -= 1
            close(sock)


async def serve(
    app: ASGIFramework,
    listeners: list[socket.socket],
    terms: Terms,
    *,
    beside: Sequence[tuple[socket.socket, Terms]] = (),
    stop: Callable[[], Awaitable[None]],
    task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED,
) -> None:
    """Serve `app` on these listeners until `stop` returns, then end every connection in order.

    Args:
        beside: further listeners, each with limits of its own; they end when the first ones do.

    Ownership: the listeners are closed when nothing more is accepted.

    Cancellation: ends everything at once.
    """
    edge = Edge(app, terms)
    lifespan = Lifespan(edge.app, edge.config, edge.state)
    others = [(listener, Edge(app, its_terms)) for listener, its_terms in beside]
    async with trio.open_nursery() as lifespan_nursery:
        await lifespan_nursery.start(lifespan.handle_lifespan)
        await lifespan.wait_for_startup()
        for one in (edge, *(other for _, other in others)):
            lifespan_nursery.start_soon(one.turns.run)
            lifespan_nursery.start_soon(one.look_for_stalled)
            lifespan_nursery.start_soon(one.look_for_late)
        async with trio.open_nursery() as connections_nursery:
            async with trio.open_nursery() as accepting_nursery:
                for listener in listeners:
                    accepting_nursery.start_soon(edge.accept_from, listener, connections_nursery)
                for listener, other in others:
                    other.state = edge.state | other.terms.state
                    accepting_nursery.start_soon(other.accept_from, listener, connections_nursery)
                task_status.started()
                await stop()
                accepting_nursery.cancel_scope.cancel()
            # Cancel every task when the time is up: where many are runnable, the task that cuts would get its turn
            # late.
            cut_at = connections_nursery.cancel_scope.deadline = trio.current_time() + terms.drain_seconds_max
            await _drain([edge, *(other for _, other in others)], terms, cut_at)
            connections_nursery.cancel_scope.cancel()
        await lifespan.wait_for_shutdown()
        lifespan_nursery.cancel_scope.cancel()


async def _drain(edges: Sequence[Edge], terms: Terms, cut_at: float) -> None:
    """Nothing new is accepted: have what is open end. Cancelled at the deadline: what has not ended by then is cut."""
    try:
        for edge in edges:
            edge.cut_at = cut_at
            await edge.retire()
        await terms.drain()
        for edge in edges:
            await edge.wait_until_empty()
    finally:
        for edge in edges:
            edge.cut()


def _config() -> Config:
    """What Hypercorn's parts look at."""
    config = Config()
    config.accesslog = None
    config.errorlog = logger
    config.h11_max_incomplete_size = answers.HEAD_BYTES_MAX
    config.include_server_header = False
    config.keep_alive_max_requests = REQUESTS_MAX
    return config
