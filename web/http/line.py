"""The socket of one connection: read with patience, and written with a deadline for a peer that accepts nothing.

One task at a time reads, and one writes. Nothing here knows what the bytes mean.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from math import inf
from typing import Final, Protocol

import trio

from web.http import answers
from web.http.kernel_queues import unsent_bytes
from web.http.nonblocking import Gone, close, receive, send_some

READ_BYTES_MAX: Final = answers.HEAD_BYTES_MAX
"""Read at once. Reason: a head that is too large is seen before much of it is in memory."""

HEAD_BYTES_USUAL: Final = 2 * 1024
"""Read first between requests. Reason: nearly every request fits, and room for more costs a tenth of a connect. Beyond:
read on, so that a longer head is whole."""

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


class Keeper(Protocol):
    """Who keeps lines, and looks at them every now and then."""

    patience: Patience
    writing: dict[Line, None]
    """Those that wait for their peers to accept something."""

    @property
    def is_stopping(self) -> bool:
        """Whether connections end after their answers."""

    def stalled(self) -> None:
        """Count a connection that is cut because its peer accepts nothing."""


class Line:
    """One peer, as far as bytes go. Its keeper calls `look_whether_late` and `look_whether_stalled`."""

    def __init__(self, keeper: Keeper, sock: socket.socket) -> None:
        """Of a socket that does not block."""
        self.is_broken = False
        """Nothing more can be read or written."""
        self.is_idle = True
        """No request is in hand, though part of a head may have come."""
        self.is_within_head = False
        self.was_answered = False
        """The last answer has been given."""
        self._keeper = keeper
        self._sock = sock
        self._is_given_away = False
        """The socket is somebody else's: not to be touched any more."""
        self._deadline = inf
        """When a peer that is to send something must have sent it."""
        self._is_waiting = False
        """The reader waits for the peer."""
        self._was_waited_for = False
        """Trio has watched the socket, and may do so still."""
        self._writing: trio.Lock | None = None
        """Held by whoever writes what is unsent; made when something is."""
        self._unsent: list[memoryview] = []
        """What the kernel has not taken yet."""
        self.is_handed_over = False
        """What is unsent is the end of an answer, and the reader's to write: its request does not wait for it."""
        self._queued = 0
        """Bytes in the kernel's queue when it was last looked."""
        self._moved_at = inf
        """When the peer was last seen to accept something of what is written."""

    # How long the peer is waited for

    def await_request(self, seconds: float) -> None:
        """A request is to begin within so many seconds."""
        self.is_idle, self.is_within_head = True, False
        if self._keeper.is_stopping:  # the connection was accepted just before
            self._be_patient_until(-inf)
        else:
            self._deadline = trio.current_time() + seconds

    def begin_head(self, seconds: float | None) -> None:
        """A head has begun, and is to be whole within so many seconds; `None`: the deadline stays."""
        self.is_within_head = True
        if seconds is not None:
            self._be_patient_until(trio.current_time() + seconds)

    def begin_request(self) -> None:
        """A request is in hand: nothing is expected of the peer."""
        self.is_idle = self.is_within_head = False
        self._deadline = inf

    def retire(self) -> None:
        """The server stops: an idle connection ends now, another one after its answer."""
        if self.is_idle:
            self._be_patient_until(-inf)

    def look_whether_late(self, now: float) -> None:
        """Wake the reader if its peer has been waited for long enough."""
        if self._is_waiting and now >= self._deadline:
            self._wake()

    def _be_patient_until(self, deadline: float) -> None:
        self._deadline = deadline
        if deadline == -inf:
            self._wake()

    def _wake(self) -> None:
        """Have the reader look again; a deadline of its own for each wait would cost a tenth of a request."""
        if self._is_waiting and not self.is_broken:
            trio.lowlevel.notify_closing(self._sock)

    # Reading

    async def receive(self, *, waits_first: bool = False) -> bytes | None:
        """What came; empty: the peer has ended, or is gone, or the socket has been given away; `None`: out of patience.

        Bytes that lie in the socket at the deadline came in time, however late this process looks: it may have been
        paused. So the socket is read once more, without waiting.

        Args:
            waits_first: nothing can have come yet, so it is not looked before it is waited. There is a checkpoint.
        """
        if not waits_first:
            await trio.lowlevel.checkpoint_if_cancelled()
        while True:
            if self.is_handed_over:
                await self.finish_answer()
            # Whoever waits is woken when the deadline has passed, unless it has passed from the beginning.
            if not waits_first or self._deadline == -inf or self.is_broken:
                data = self.arrived()
                if data is not None or trio.current_time() >= self._deadline:
                    return data
            waits_first = False
            self._is_waiting = self._was_waited_for = True
            try:  # noqa: SIM105 - `suppress` costs a microsecond at each wait
                await trio.lowlevel.wait_readable(self._sock)
            except trio.ClosedResourceError:
                pass
            self._is_waiting = False

    def arrived(self) -> bytes | None:
        """What lies in the socket; empty: the peer has ended, or is gone; `None`: nothing yet."""
        if self.is_broken:
            return b""
        if not self.is_idle:
            return self._received(READ_BYTES_MAX)
        data = self._received(HEAD_BYTES_USUAL)
        if data is None or len(data) < HEAD_BYTES_USUAL:
            return data
        return data + (self._received(READ_BYTES_MAX - HEAD_BYTES_USUAL) or b"")

    def _received(self, bytes_max: int) -> bytes | None:
        try:
            return self._sock.recv(bytes_max)
        except BlockingIOError:
            return None
        except OSError:
            self.is_broken = True
            return b""

    def is_silent(self) -> bool:
        """Whether nothing lies in the socket, and the peer is there; a peer that is not has broken the line."""
        try:
            if self._sock.recv(1, socket.MSG_PEEK):
                return False
        except BlockingIOError:
            return True
        except OSError:
            pass
        self.is_broken = True
        return False

    # Writing

    async def write(self, parts: Sequence[bytes]) -> bool:
        """Write all of it; False: the peer is gone, or has accepted no byte for too long.

        No checkpoint if the peer accepts it at once.
        """
        self._send_at_once(parts)
        if self._unsent:
            # Shielded, as part of a message may be out already. `cut` ends it all the same.
            with trio.CancelScope(shield=True):
                await self._write_unsent()
        return not self.is_broken

    def write_end(self, parts: Sequence[bytes]) -> bool:
        """Write the end of an answer; False: the peer is gone.

        What the peer does not accept at once is handed over to the reader, and the task of the request and all it holds
        can go.
        """
        self._send_at_once(parts)
        if self._unsent:
            self.is_handed_over = True
            self._wake()
        return not self.is_broken

    def _send_at_once(self, parts: Sequence[bytes]) -> None:
        """Have the peer accept what it does now, unless it has not accepted what was written before."""
        if self.is_broken:
            return
        length = 0
        if not self._unsent:
            try:  # noqa: SIM105 - as above
                length = self._sock.sendmsg(parts)
            except OSError:  # if more is wrong than that it is full, that is found again
                pass
            if length == sum(map(len, parts)):
                return
        self._unsent.extend([memoryview(part) for part in parts if part])
        self._sent(length)

    async def finish_answer(self) -> None:
        """Write what is left of an answer whose request is over. Nothing is read before that."""
        if self.is_handed_over:
            await self._write_unsent()
            self.is_handed_over = False
            self.was_answered = self.was_answered or self._keeper.is_stopping
            self.await_request(self._keeper.patience.idle_seconds)

    async def _write_unsent(self) -> None:
        """Cancellation: what was not written is still unsent."""
        self._writing = self._writing or trio.Lock()
        async with self._writing:
            while self._unsent and not self.is_broken:
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
        self._keeper.writing[self] = None
        self._was_waited_for = True
        try:
            return await send_some(self._sock, data)
        except (Gone, OSError):
            self.is_broken = True
            return 0
        finally:
            del self._keeper.writing[self]

    def look_whether_stalled(self) -> None:
        """End the connection if its peer has accepted nothing for too long, while it is written to.

        The length of the kernel's queue shows whether the peer accepts bytes. Whether the socket is writable does not:
        it may be while the peer reads nothing, and may not be while the peer reads slowly.
        """
        seconds, now = self._keeper.patience.stall_seconds, trio.current_time()
        was_queued, self._queued = self._queued, unsent_bytes(self._sock)
        if self._queued != was_queued:
            self._moved_at = now
        elif now - self._moved_at >= seconds:
            logger.info("a connection is cut: its peer accepted nothing for %g s", seconds)
            self._keeper.stalled()
            self.cut()

    # The end

    def cut(self) -> None:
        """End the connection now, also if it is writing: that is shielded from everything but the socket's end."""
        self.is_broken = True
        self.close()

    async def linger(self) -> None:
        """Have the peer read our last answer before the connection goes: what is unread at the end resets it away."""
        if self.was_answered and not self.is_broken:
            await linger(self._sock, self._keeper.patience.linger_seconds)

    def take_socket(self) -> socket.socket:
        """The socket, out of this connection and out of Trio, non-blocking."""
        if self._was_waited_for:
            trio.lowlevel.notify_closing(self._sock)
        self._is_given_away = self.is_broken = True
        return self._sock

    def close(self) -> None:
        """Close the socket, unless it is somebody else's."""
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
