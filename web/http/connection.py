"""One connection, from accept until its end or until its socket is adopted. Whatever goes wrong in it stays in it."""

from __future__ import annotations

import logging
import socket
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
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
from web.http.adoption import Adoption
from web.http.handshake import Headers
from web.http.http1 import Http1, Pause, Written
from web.http.kernel_queues import unsent_bytes
from web.http.nonblocking import Gone, close, receive, send_some
from web.http.tasks import Tasks
from web.http.turns import Turns

READ_BYTES_MAX: Final = answers.HEAD_BYTES_MAX
"""Read at once. Reason: a head that is too large is seen before much of it is in memory."""

HEAD_BYTES_USUAL: Final = 2 * 1024
"""Read at once between requests. Reason: nearly every request fits, and room for more costs a tenth of a connect."""

LINGER_BYTES_MAX: Final = 8 * 1024 * 1024
"""Read and thrown away after a last answer, so that closing does not reset it away. Beyond: closed all the same.
Reason: a bulk request that is somewhat too large (4 MiB) is still read to its end."""

logger = logging.getLogger("avicenna.http")


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a connection is waited for."""

    first_byte_seconds: float = 10.0
    """Before its first byte. Beyond: closed."""
    idle_seconds: float = 75.0
    """Between requests. Beyond: closed."""
    head_seconds: float = 10.0
    """From the first byte of a head to its last. Beyond: 408."""
    stall_seconds: float = 10.0
    """For a peer to accept a byte. Beyond: closed, whatever was being written."""
    answer_seconds: float = 120.0
    """For an answer, once the peer has ended its side. Beyond: closed; what its route has begun is done."""
    linger_seconds: float = 2.0
    """For a peer to close after a last answer. Beyond: closed."""


class Rules(Protocol):
    """What a server serves where, and when it is full."""

    @property
    def is_served(self) -> Callable[[bytes], bool]:
        """Of a path."""

    @property
    def is_served_when_full(self) -> Callable[[bytes, Headers], bool]:
        """Of a path and the headers of a request."""


class Place(Protocol):
    """Where connections are kept: the server they belong to."""

    app: AppWrapper
    config: Config
    context: WorkerContext
    state: LifespanState
    patience: Patience
    writing: dict[Connection, None]
    """Those that wait for their peers to accept something."""

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

    def stalled(self) -> None:
        """Count a connection that is cut because its peer accepts nothing."""

    def counted(self, problem: Problem, client: Address | None) -> Problem:
        """Count a malformed request of this peer; the answer to it."""


class Connection:
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
        self.adoption: Adoption | None = None
        self.is_last = extra_seconds is not None
        self._extra_seconds = extra_seconds
        self._place = place
        self._sock = sock
        self._is_given_away = False
        """The socket is somebody else's: not to be touched any more."""
        self._client = client
        self._reading = trio.CancelScope()
        """Cancelled to end the connection; whatever its reader is at."""
        self._deadline = inf
        """When a peer that is to send something must have sent it."""
        self._waiting: trio.CancelScope | None = None
        """While the reader waits for the peer."""
        self._writing = trio.Lock()
        self._unsent: list[memoryview] = []
        """What the kernel has not taken yet."""
        self._is_handed_over = False
        """What is unsent is the end of an answer, and the reader's to write: its request does not wait for it."""
        self._queued = 0
        """Bytes in the kernel's queue when it was last looked."""
        self._moved_at = inf
        """When the peer was last seen to accept something of what is written."""
        self._is_idle = True
        self._is_within_head = False
        self._is_kept_alive = False
        """A request has been answered, and another one may come."""
        self._was_answered = False
        """The protocol has ended the connection, after an answer."""
        self._is_broken = False

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
            self._close()

    def retire(self) -> None:
        """The server stops: an idle connection ends now, another one after its answer."""
        if self._is_idle:
            self._be_patient_until(-inf)

    def refusal(self, path: bytes, headers: Headers, *, is_upgrade: bool) -> Problem | None:
        """Why a request is not served on this connection; `None`: it is."""
        terms = self._place.terms
        if not terms.is_served(path):
            return answers.not_served_here()
        if self.is_last and (is_upgrade or not terms.is_served_when_full(path, headers)):
            return answers.server_full()
        return None

    def cut(self) -> None:
        """End the connection now, also if it is writing: that is shielded from everything but the socket's end."""
        self._is_broken = True
        self._close()
        self._reading.cancel()

    async def turn(self) -> None:
        """Return when it is this peer's turn to have a request begun.

        Connections that are new and those that are kept alive take turns, too: a crowd that comes back does not stand
        before whoever has stayed, though both come through one proxy.
        """
        await self._finish_answer()
        host = None if self._client is None else self._client[0]
        await self._place.turns.take((host, self._is_kept_alive), 1)

    async def _serve(self) -> None:
        place = self._place
        tasks = Tasks()
        async with tasks:
            self._protocol = Http1(
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
            self._protocol.parent = self
            self._protocol.can_read = Pause(self.turn)
            tasks.ask = self._protocol.ask_for_body
            try:
                await self._read()
                if not self._is_broken:
                    with trio.move_on_after(inf if self._was_answered else place.patience.answer_seconds):
                        await self._protocol.finish()
                        await self._finish_answer()
                await self._protocol.handle(Closed())
                await self._linger()
                # At once, whatever its requests still do: nobody reads their answers any more.
                self._close()
            finally:
                if self.adoption is not None:
                    self.adoption.expire()
        del self._protocol, tasks.ask  # breaks the reference cycle, so that no collection is needed

    async def _read(self) -> None:
        """Hand over what the peer sends, as long as there is patience."""
        first_byte_seconds = self._place.patience.first_byte_seconds
        self._await_request(first_byte_seconds if self._extra_seconds is None else self._extra_seconds)
        with self._reading:
            while data := await self._receive():
                if self._place.is_over:
                    self.cut()
                    return
                if self._is_idle:
                    await self.turn()
                await self._protocol.handle(RawData(data))
                self._watch_head()
            if data is not None and not self._is_broken:
                await self._protocol.handle(RawData(b""))
            elif self._is_broken or self._place.context.terminated.is_set():
                return
            elif self._extra_seconds is not None:
                await self._protocol.refuse(answers.server_full())
            elif self._protocol.is_within_head:
                await self._protocol.refuse(answers.head_too_slow(self._place.patience.head_seconds))

    async def _receive(self) -> bytes | None:
        """What came; empty: the peer has ended, or is gone, or the socket has been given away; `None`: out of patience.

        Bytes that lie in the socket at the deadline came in time, however late this process looks: it may have been
        paused. So the socket is read once more, without waiting.
        """
        await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            await self._finish_answer()
            if (data := self._arrived()) is not None or trio.current_time() >= self._deadline:
                return data
            with trio.CancelScope(deadline=self._deadline) as self._waiting, suppress(trio.ClosedResourceError):
                await trio.lowlevel.wait_readable(self._sock)
            self._waiting = None

    async def _finish_answer(self) -> None:
        """Write what is left of an answer whose request is over. Nothing is read before that."""
        if self._is_handed_over:
            await self._write_unsent()
            self._is_handed_over = False
            self._was_answered = self._was_answered or self._place.context.terminated.is_set()
            self._await_request(self._place.patience.idle_seconds)

    def _arrived(self) -> bytes | None:
        """What lies in the socket; `None`: nothing yet."""
        if not self._is_broken:
            try:
                return self._sock.recv(HEAD_BYTES_USUAL if self._is_idle else READ_BYTES_MAX)
            except BlockingIOError:
                return None
            except OSError:
                self._is_broken = True
        return b""

    def _await_request(self, seconds: float) -> None:
        self._is_idle, self._is_within_head = True, False
        # Where the server stops, the connection was accepted just before it.
        self._be_patient_until(-inf if self._place.context.terminated.is_set() else trio.current_time() + seconds)

    def _watch_head(self) -> None:
        """From the first byte of a head on there is one deadline for all of it."""
        if self._is_idle and not self._is_within_head and self._protocol.is_within_head:
            self._is_within_head = True
            if not self._place.context.terminated.is_set() and self._extra_seconds is None:
                self._be_patient_until(trio.current_time() + self._place.patience.head_seconds)

    def _be_patient_until(self, deadline: float) -> None:
        self._deadline = deadline
        if self._waiting is not None:
            self._waiting.deadline = deadline

    async def _protocol_send(self, event: Event) -> None:
        match event:
            case RawData():
                await self._write_or_end((event.data,))
            case Written():
                await self._write_or_end(event.parts, is_end=event.is_end)
            case Closed():
                self._was_answered = True
                await self._end()
            case Updated(idle=True):
                self._is_kept_alive = True
                if not self._is_handed_over:
                    self._await_request(self._place.patience.idle_seconds)
            case Updated():
                self._is_idle = self._is_within_head = False
                self._be_patient_until(inf)

    async def _end(self) -> None:
        await self._protocol.handle(Closed())
        # The reader may be parked where nothing else wakes it.
        self._reading.cancel()

    async def _write_or_end(self, parts: Sequence[bytes], *, is_end: bool = False) -> None:
        if not await self._write(parts, is_end=is_end):
            await self._end()

    async def _write(self, parts: Sequence[bytes], *, is_end: bool) -> bool:
        """Write all of it; False: the peer is gone, or has accepted no byte for too long.

        No checkpoint if the peer accepts it at once, nor at the end of an answer: what the peer does not accept of that
        is handed over to the reader, and the task of the request and all it holds can go.
        """
        if self._is_broken:
            return False
        is_first = not self._unsent
        self._unsent.extend(memoryview(part) for part in parts if part)
        if is_first:
            with suppress(OSError):  # if more is wrong than that it is full, that is found again
                self._sent(self._sock.sendmsg(self._unsent))
        if self._unsent and is_end:
            self._is_handed_over = True
            if self._waiting is not None:
                self._waiting.cancel()
        elif self._unsent:
            # Shielded, as part of a message may be out already. `cut` ends it all the same.
            with trio.CancelScope(shield=True):
                await self._write_unsent()
        return not self._is_broken

    async def _write_unsent(self) -> None:
        """Cancellation: what was not written is still unsent."""
        async with self._writing:
            while self._unsent and not self._is_broken:
                self._sent(await self._send_some(self._unsent[0]))

    def _sent(self, length: int) -> None:
        """So many bytes of what is unsent are with the kernel."""
        while length and length >= len(self._unsent[0]):
            length -= len(self._unsent.pop(0))
        if length:
            self._unsent[0] = self._unsent[0][length:]

    async def _send_some(self, data: memoryview) -> int:
        """Have the peer accept some of it, at least a byte; 0: it never will."""
        self._queued, self._moved_at = unsent_bytes(self._sock), trio.current_time()
        self._place.writing[self] = None
        try:
            return await send_some(self._sock, data)
        except (Gone, OSError):
            self._is_broken = True
            return 0
        finally:
            del self._place.writing[self]

    def look_whether_stalled(self) -> None:
        """End the connection if its peer has accepted nothing for too long, while it is written to.

        The length of the kernel's queue shows whether the peer accepts bytes. Whether the socket is writable does not:
        it may be while the peer reads nothing, and may not be while the peer reads slowly.
        """
        seconds, now = self._place.patience.stall_seconds, trio.current_time()
        was_queued, self._queued = self._queued, unsent_bytes(self._sock)
        if self._queued != was_queued:
            self._moved_at = now
        elif now - self._moved_at >= seconds:
            logger.info("a connection is cut: its peer accepted nothing for %g s", seconds)
            self._place.stalled()
            self.cut()

    async def _linger(self) -> None:
        """Have the peer read our last answer before the connection goes: what is unread at the end resets it away."""
        if not self._was_answered or self._is_broken:
            return
        await linger(self._sock, self._place.patience.linger_seconds)

    def counted(self, problem: Problem) -> Problem:
        """Count a malformed request; the answer to it."""
        return self._place.counted(problem, self._client)

    # Adoption

    def give_away(self) -> socket.socket:
        """The socket, out of this connection and out of Trio, non-blocking.

        Raises:
            NotAdoptable: the peer left or spoke first.
        """
        self._protocol.check_adoptable()
        # No checkpoint until the end: nobody may write to or read from a socket that is in between.
        self._protocol.give_up_stream()
        trio.lowlevel.notify_closing(self._sock)
        self._is_given_away = self._is_broken = True
        self._place.left(self)
        return self._sock

    def _close(self) -> None:
        if not self._is_given_away:
            close(self._sock)


async def linger(sock: socket.socket, seconds: float) -> None:
    """Say that nothing more comes, and throw away what still arrives, for so long."""
    rest = LINGER_BYTES_MAX
    with trio.move_on_after(seconds), suppress(OSError, Gone):
        sock.shutdown(socket.SHUT_WR)
        while rest > 0 and (data := await receive(sock, READ_BYTES_MAX)):
            rest -= len(data)
            await trio.lowlevel.checkpoint()  # a peer that never stops sending leaves the others their turn
