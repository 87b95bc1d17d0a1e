"""One adopted WebSocket: frames in and out, liveness, and a close that always closes the socket. No task; nothing
waits.

What is unsent is a tail of bytes; it is finished before anything else is composed, so frames never interleave.
What is said is decided by subclasses (`web.following.follower`). Its keeper (`Keeper`, the hub) calls `flush`,
`on_readable` and `on_time`.
"""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from enum import IntEnum
from math import inf
from typing import Final, Protocol

from storage.clock import Clock
from web.contract.errors import CloseCode
from web.contract.wire import PING_INTERVAL_SECONDS
from web.http.adoption import AdoptedSocket
from web.websocket import frames
from web.websocket.counts import Counts
from web.websocket.flood import Allowance, Cost
from web.websocket.inbound import Close, Control, Fragment, Inbound, Message, Violation, sole_pong
from web.websocket.poller import Poller

READ_BYTES_MAX: Final = 4 * 1024
"""Bytes read from one socket before the others get their turn, of a frame that is known to be so long."""

FRAMES_AT_ONCE_MAX: Final = 32
"""Frames read from one socket before the others get their turn."""

FRAME_BYTES_MIN: Final = 6
"""The shortest frame of a client: opcode, length, mask (RFC 6455 section 5.2)."""

REPLIES_MAX: Final = 100
"""Frames other than events that wait for one client. Beyond: it does not read, and is cut off."""

HELD_BYTES_MAX: Final = 64 * 1024
"""Bytes a client may send while its Close is held back. Beyond: the Close is sent at once."""

NO_CODE: Final = 1005
"""In place of a code where the Close had none (RFC 6455 section 7.1.5)."""

NO_CLOSE: Final = 1006
"""In place of a code where there was no Close."""

LOST: Final = "the connection was lost"

_RESET_ON_CLOSE: Final = struct.pack("ii", 1, 0)


@dataclass(frozen=True, slots=True)
class ChannelLimits:
    """What one connection may take (PROTOCOL sections 3 and 6)."""

    message_bytes_max: int = 8 * 1024
    """Largest message of a client, however many frames it comes in. Beyond: close 1009."""
    frames_per_second_max: int = 20
    """Frames a client may send steadily. Beyond: it is read no faster, and closed if it goes on (`flood`)."""
    silence_seconds: float = PING_INTERVAL_SECONDS
    """After so long without a sign of life the client is pinged."""
    pong_seconds: float = 10.0
    """So long it may take to answer a ping that has reached it. Beyond: aborted."""
    accept_seconds: float = 10.0
    """So long it may accept no byte, or take over its goodbye. Beyond: aborted; its cursor is kept."""
    closing_seconds: float = 2.0
    """So long it may take to answer a Close. Beyond: closed all the same."""
    send_buffer_bytes: int | None = 64 * 1024
    """What the kernel may keep for a client that does not read (Linux doubles it). Reason: left to itself it
    keeps megabytes, of events that are old by then. `None`: the kernel decides."""


class State(IntEnum):
    """The life of a channel; it only ever moves down this list."""

    OPENING = 0
    """No socket yet."""
    OPEN = 1
    HELD = 2
    """The last frames are on their way, or written; the Close behind them is held back for a while."""
    ENDING = 3
    """A Close is on its way, or written; the client's own is awaited."""
    FAILED = 4
    """The client broke the protocol or sends too much: a Close is on its way. Until that is out, nothing more is read
    from it; then what it still sends is thrown away."""
    CLOSED = 5


class Closing:
    """How one connection ends; made when that begins."""

    __slots__ = ("code", "deadline", "goodbye", "heard_bytes", "held", "is_answered", "reason")

    def __init__(self, code: int | None, reason: str, goodbye: bytes) -> None:
        self.code = code
        """Of the first Close, whoever sends it; `None`: it has none."""
        self.reason = reason
        self.goodbye: bytes | None = goodbye
        """The last frames, until they are composed."""
        self.held = b""
        """The Close that is held back."""
        self.heard_bytes = 0
        """Bytes that have come while the Close is held back."""
        self.is_answered = False
        """The client's own Close has come."""
        self.deadline = inf


class Keeper(Protocol):
    """What a channel needs of the one that looks after it: the hub."""

    clock: Clock
    now: float
    """When this turn began, on the monotonic clock."""
    tick: float
    """As `now`, but moved on now and then only: channels that begin in between share the object."""
    resumed_at: float
    """When the process went on after it had stood still."""
    limits: ChannelLimits
    poller: Poller
    unsent: Callable[[AdoptedSocket], int]
    """How many bytes of a socket have not reached its peer's machine."""
    unread: Callable[[AdoptedSocket], int]
    """How many bytes of its peer's lie unread in a socket."""
    counts: Counts

    def add(self, channel: Channel) -> None:
        """Look after a channel from now on. Raises OSError: there is no room."""

    def remove(self, channel: Channel) -> None:
        """Forget a channel whose socket is about to be closed."""

    def hold(self, channel: Channel, seconds: float) -> bool:
        """Release a channel so many seconds from now; False: not that one, too many wait, or the server stops."""

    def throttle(self, channel: Channel) -> None:
        """A client has used up its allowance: look when it may send again."""

    def lend_inbound(self) -> Inbound:
        """A decoder; one that is idle again comes back through `return_inbound`."""

    def return_inbound(self, inbound: Inbound) -> None:
        """Take back an idle decoder."""


class Channel:
    """A WebSocket on a socket that does not block.

    Ownership: owns its socket from `open` on. The hub keeps it until it is closed.
    """

    __slots__ = (
        "_allowance",
        "_closing",
        "_hub",
        "_inbound",
        "_opened_at",
        "_pinged",
        "_pong",
        "_queued",
        "_replies",
        "_sock",
        "_stuck_since",
        "_tail",
        "blocked",
        "fd",
        "heard_at",
        "state",
    )

    _sock: AdoptedSocket

    def __init__(self, hub: Keeper) -> None:
        self._hub = hub
        self.fd = -1
        self.state = State.OPENING
        self.blocked = True
        """Something is unsent, or nothing may be sent any more: do not write."""
        self.heard_at = 0.0
        """When something last came from the client. Quantised to turns of the hub, so that many channels share one
        float."""
        self._tail: bytes | memoryview = b""
        self._replies: list[bytes] | None = None
        self._pong: bytes | None = None
        self._inbound: Inbound | None = None
        """Kept only while a message is incomplete."""
        self._allowance: Allowance | None = None
        """What the client may still send; `None`: a full allowance, as it has sent no frame that costs."""
        self._pinged = False
        """A ping of ours has not been answered."""
        self._queued = -1
        """Bytes in the kernel's send queue when they were last looked at; -1: not since it took any from us."""
        self._stuck_since = 0.0
        """Since when the unsent bytes make no progress, or a Ping that has left our socket is unanswered."""
        self._closing: Closing | None = None
        """`None`: it does not end yet."""
        self._opened_at = 0.0

    # For subclasses to fill

    def received(self, message: str | bytes) -> Cost:
        """Act on a message of the client; what it costs."""
        return Cost.FRAME

    def ponged(self, payload: bytes) -> Cost:
        """A Pong has come; what it costs."""
        return Cost.REPEAT

    def fragment(self, length: int) -> Cost:
        """A part of a message has come, with so many bytes; what it costs."""
        return Cost.FRAME

    @property
    def message_bytes_max(self) -> int:
        """Largest message of the client, however many frames it comes in. Beyond: close 1009."""
        return self._hub.limits.message_bytes_max

    @property
    def is_full(self) -> bool:
        """Whether the client has sent as much as is taken from it for now: it is not read from, and need not answer."""
        return False

    def compose_due(self) -> bytes:
        """What is due next beside replies; empty: nothing."""
        return b""

    def goodbye(self, code: CloseCode, reason: str, *, deaf: bool = False) -> None:
        """Close from this side, as `close` does."""
        self.close(code, reason, deaf=deaf)

    def left(self) -> None:
        """The conversation is over, whoever ended it. Called once."""

    def answered_goodbye(self, code: int) -> None:
        """The client has answered our Close with this code, ours; nothing that was written is on its way any more."""

    def stalled(self, why: str) -> None:
        """The client is cut off: it takes no bytes, or answers no Ping."""

    def over(self, code: int, reason: str, seconds: float | None) -> None:
        """The connection is gone. Called once, at last.

        Args:
            seconds: how long it was open; `None`: it never was.
        """

    # Output

    def open(self, sock: AdoptedSocket, head: bytes) -> None:
        """Take the socket; write `head`, and whatever is due behind it.

        If it was told to end before, it says so and goes.
        """
        self._sock, self.fd = sock, sock.fileno()
        self.heard_at = self._hub.now
        self._opened_at = self._hub.tick
        if self._hub.limits.send_buffer_bytes is not None:
            with suppress(OSError):
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, self._hub.limits.send_buffer_bytes)
        try:
            self._hub.add(self)
        except OSError:
            # The kernel has no room for one more to watch.
            self.abort()
            return
        if self.state is State.OPENING:
            self.state = State.OPEN
        else:
            self._close_within(self._hub.limits.accept_seconds)
        self.blocked = False
        self._tail = head + self._compose()
        self.flush()

    def say(self, frame: bytes) -> None:
        """Send a text message, as soon as the client takes it."""
        self._reply(frames.text_frame(frame))

    def _reply(self, frame: bytes) -> None:
        if self.state > State.OPEN:
            return
        if self._replies is None:
            self._replies = []
        if len(self._replies) >= REPLIES_MAX:
            self._replies = None
            self._flooded()
            return
        self._replies.append(frame)
        if not self.blocked:
            self.flush()

    def close(
        self, code: int | None, reason: str = "", *, bye: bytes = b"", deaf: bool = False, hold_seconds: float = 0.0
    ) -> None:
        """Send `bye` and a Close once what is unsent is out; the client has a while to answer, then it is cut off.

        Args:
            deaf: whatever the client says from now on, nobody listens.
            hold_seconds: the Close follows so much later, if not too many wait for theirs.
        """
        state, closing = State.FAILED if deaf else State.ENDING, Closing(code, reason, bye)
        close = frames.close(code, reason)
        if hold_seconds and self.state <= State.OPEN and self._hub.hold(self, hold_seconds):
            state, closing.held = State.HELD, close
        else:
            closing.goodbye = bye + close
        self._end(state, closing)

    def _fail(self, code: CloseCode) -> None:
        """The client broke the protocol (RFC 6455 section 7.1.7)."""
        self._end(State.FAILED, Closing(code, code.name.lower().replace("_", " "), frames.close(code)))

    def _flooded(self) -> None:
        """The client sends too much, or does not read what it asked for."""
        self._hub.counts.floods += 1
        self.goodbye(CloseCode.POLICY, "rate limited", deaf=True)

    def break_off(self) -> None:
        """Something of ours failed over this client."""
        if self.state <= State.OPEN:
            self.goodbye(CloseCode.INTERNAL_ERROR, "internal error")
        else:
            self.abort()

    def _end(self, state: State, closing: Closing) -> None:
        if self.state > State.OPEN:
            return
        has_socket, was_unread = self.state is State.OPEN, self.is_unread
        self.state, self._closing = state, closing
        if has_socket:
            self._close_within(self._hub.limits.accept_seconds)
        if was_unread or (has_socket and self.blocked):
            self._watch()
        self.left()
        if not self.blocked:
            self.flush()

    def _close_within(self, seconds: float) -> None:
        assert self._closing is not None, "it ends"
        self._closing.deadline = self._hub.clock.monotonic() + seconds

    def release(self) -> None:
        """Send the Close that was held back."""
        if self.state is not State.HELD:
            return
        assert self._closing is not None, "it ends"
        self.state = State.ENDING
        self._closing.goodbye = (self._closing.goodbye or b"") + self._closing.held
        if self.fd >= 0:
            self.flush()

    def flush(self) -> None:
        """Write what is unsent and what is due, until the socket is full or nothing is left."""
        tail = self._tail
        while tail or (tail := self._compose()):
            try:
                sent = self._sock.send(tail)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.abort()
                return
            if sent != len(tail):
                self.hold(memoryview(tail)[sent:], progressed=sent > 0)
                return
            tail = b""
        self._tail = b""
        was_blocked, self.blocked = self.blocked, self.state > State.OPEN
        if was_blocked:
            # Only what was held is flushed while blocked.
            self._watch()
        if self.state > State.HELD:
            self._said_goodbye()

    def hold(self, tail: memoryview, *, progressed: bool) -> None:
        """Keep what the socket did not take, until it does."""
        self._tail = tail
        if not self.blocked:
            self.blocked = progressed = True
            self._watch()
        if progressed:
            self._stuck_since = self._hub.clock.monotonic()
            self._queued = -1

    def _watch(self) -> None:
        """Have the poller report what there is to do: reading, unless the client sent too much; writing the rest."""
        is_unsent = bool(self._tail)
        is_deaf = self.state is State.FAILED and is_unsent
        self._hub.poller.watch(self.fd, read=not (is_deaf or self.is_unread), write=is_unsent)

    def _compose(self) -> bytes:
        """What comes next on the wire; empty: nothing."""
        parts: list[bytes] = []
        if self._pong is not None:
            parts.append(self._pong)
            self._pong = None
        if self._replies is not None:
            parts.extend(self._replies)
            self._replies = None
        if self.state is State.OPEN:
            parts.append(self.compose_due())
        elif self._closing is not None and self._closing.goodbye is not None:
            parts.append(self._closing.goodbye)
            self._closing.goodbye = None
        return b"".join(parts)

    def _said_goodbye(self) -> None:
        """Nothing more will be written."""
        if self._has_answered:
            self._let_go()
            return
        self._close_within(self._hub.limits.closing_seconds)
        if self.state is State.FAILED:
            # Closing now, with bytes of the client unread, would be a reset, and could overtake the Close.
            with suppress(OSError):
                self._sock.shutdown(socket.SHUT_WR)

    # Input

    def on_readable(self) -> None:
        """Take what the client sent."""
        try:
            data = self._sock.recv(self._bytes_wanted)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if not data:
            self._hung_up()
            return
        self.heard_at = self._hub.now
        self._pinged = False
        closing = self._closing
        if closing is not None and (self.state is State.FAILED or closing.is_answered):
            return
        if closing is None and self._is_at_head and (payload := sole_pong(data)) is not None:
            if (cost := self.ponged(payload)) is not Cost.NOTHING:
                self._pay(cost)
            return
        self._decode(data)
        if closing is not None and self.state is State.HELD:
            closing.heard_bytes += len(data)
            if closing.heard_bytes > HELD_BYTES_MAX:
                self.release()

    def _hung_up(self) -> None:
        """Nothing more comes from the client."""
        self._let_go()

    @property
    def _bytes_wanted(self) -> int:
        """How many bytes to read at once: no more frames than others can wait for, whatever their size."""
        if self._closing is not None and (self.state is State.FAILED or self._closing.is_answered):
            return READ_BYTES_MAX  # it is thrown away
        missing = 0 if self._inbound is None else self._inbound.missing_bytes
        return min(READ_BYTES_MAX, missing + FRAMES_AT_ONCE_MAX * FRAME_BYTES_MIN)

    @property
    def _is_at_head(self) -> bool:
        """Whether what is read next begins with a frame."""
        return self._inbound is None

    @property
    def is_throttled(self) -> bool:
        """Whether the client has sent all it may for now: it is not read from, and need not answer."""
        return self.state is State.OPEN and self._allowance is not None and self._allowance.is_empty

    @property
    def is_unread(self) -> bool:
        """Whether nothing is read from the client for now."""
        return self.is_throttled or (self.state is State.OPEN and self.is_full)

    @property
    def _has_answered(self) -> bool:
        """Whether the client's own Close has come."""
        return self._closing is not None and self._closing.is_answered

    def _decode(self, data: bytes) -> None:
        inbound = self._inbound or self._hub.lend_inbound()
        self._inbound = inbound
        try:
            for one in inbound.receive(data, self.message_bytes_max):
                self._take(one)
                if self.state > State.ENDING or self._has_answered:
                    self._inbound = None
                    return
        except Violation as violation:
            self._inbound = None
            if self.state is State.OPEN:
                self._fail(violation.code)
            else:
                self._let_go()
            return
        if inbound.is_idle:
            self._inbound = None
            self._hub.return_inbound(inbound)

    def _take(self, one: Message | Fragment | Control | Close) -> None:
        if isinstance(one, Close):
            self._take_close(one)
            return
        if self.state is not State.OPEN:
            return
        match one:
            case Message():
                cost = self.received(one.data)
            case Fragment():
                cost = self.fragment(one.length)
            case Control(is_ping=True):
                # One answer is enough for several Pings (RFC 6455 section 5.5.3), so nothing piles up here.
                self._pong = frames.pong(one.payload)
                if not self.blocked:
                    self.flush()
                cost = Cost.FRAME
            case Control():
                cost = self.ponged(one.payload)
        self._pay(cost)

    def _pay(self, cost: Cost) -> None:
        if cost is Cost.NOTHING or self.state is not State.OPEN:
            return
        if self._allowance is None:
            self._allowance = Allowance(self._hub.limits.frames_per_second_max, self.heard_at)
        was_empty = self._allowance.is_empty
        self._allowance.take(cost, self.heard_at)
        if self._allowance.is_empty and not was_empty:
            self._hub.throttle(self)
            self._watch()

    def look_at_allowance(self, now: float) -> bool:
        """Read on if the client may send again, or close if it floods; False: its allowance needs no further look."""
        if self.state is not State.OPEN or self._allowance is None:
            return False
        was_empty = self._allowance.is_empty
        if self._allowance.look(now, is_waiting=self._hub.unread(self._sock) > 0):
            self._flooded()
            return False
        if was_empty and not self._allowance.is_empty:
            self._watch()
        return not self._allowance.is_calm

    def _take_close(self, one: Close) -> None:
        closing = self._closing
        if closing is None:
            closing = Closing(one.code, "closed by the client", frames.close(one.code))
            closing.is_answered = True
            self._end(State.ENDING, closing)
            return
        closing.is_answered = True
        if self.state is State.HELD:
            self.release()
        elif not self._tail and closing.goodbye is None:
            # Our Close has left the kernel's queue, too: the two Closes have not crossed on the way.
            if one.code is not None and one.code == closing.code and not self._hub.unsent(self._sock):
                self.answered_goodbye(one.code)
            self._let_go()

    # Time

    def on_time(self, now: float) -> None:
        """Look after a connection that is blocked, or silent for long."""
        if self._closing is not None:
            self._watch_end(self._closing, now)
        elif self.is_throttled or (self.is_unread and not self.blocked):
            self._stuck_since = now
        elif self.blocked or self._pinged:
            self._watch_progress(now)
        else:
            self._pinged, self._queued = True, -1
            self._reply(frames.ping(b""))

    def _watch_end(self, closing: Closing, now: float) -> None:
        if now < max(closing.deadline, self._hub.resumed_at + self._hub.limits.closing_seconds):
            return
        if self._tail or closing.goodbye is not None:
            self._abort_stalled(f"it did not take its goodbye within {self._hub.limits.accept_seconds:g} s")
        elif self.state is not State.HELD:
            self._let_go()

    def _watch_progress(self, now: float) -> None:
        """The client must keep taking bytes; the time for its Pong runs only once the Ping has left our socket."""
        queued = self._hub.unsent(self._sock)
        if queued != self._queued:
            self._queued, self._stuck_since = queued, now
        has_left = not self.blocked and not queued
        patience = self._hub.limits.pong_seconds if has_left else self._hub.limits.accept_seconds
        if now - max(self._stuck_since, self._hub.resumed_at) < patience:
            return
        if has_left:
            # Bytes that came in time may still lie unread: other sockets were served first.
            self.on_readable()
            if self.state is not State.OPEN or not self._pinged:
                return
        what = "answered no Ping" if has_left else "accepted no byte"
        self._abort_stalled(f"it {what} for {patience:g} s")

    def _abort_stalled(self, why: str) -> None:
        self._hub.counts.aborted += 1
        self.stalled(why)
        self.abort(f"stalled: {why}")

    # The end

    def abort(self, why: str = LOST) -> None:
        """Cut the connection at once; what is unsent is lost."""
        if self.fd >= 0 and self.state is not State.CLOSED:
            with suppress(OSError):
                self._sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _RESET_ON_CLOSE)
        self._let_go(why)

    def _let_go(self, why: str = LOST) -> None:
        """Close the socket.

        Args:
            why: said of a connection that ends without a Close.
        """
        if self.state is State.CLOSED:
            return
        was_open = self.state <= State.OPEN
        self.state = State.CLOSED
        self.blocked = True
        if self.fd >= 0:
            self._hub.remove(self)
            self._sock.close()
        self._tail, self._replies, self._inbound, self._pong = b"", None, None, None
        closing, self._closing = self._closing, None
        if was_open:
            self.left()
        code, reason = (NO_CLOSE, why) if closing is None else (closing.code or NO_CODE, closing.reason)
        self._hub.counts.closed(code)
        self.over(code, reason, self._hub.clock.monotonic() - self._opened_at if self.fd >= 0 else None)
