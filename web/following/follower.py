"""An adopted WebSocket that follows a diagnosis: the transport of one subscriber.

In step with its diagnosis, it writes each burst with one `send`, straight from the actor's fan-out. A socket that
would block falls out of step, and is caught up from its position when the hub says that it takes bytes again.
"""

from __future__ import annotations

from typing import Final

import trio

from actors.reading import RenderedEvent
from actors.ring import Gap
from actors.roster import Subscriber
from actors.transport import Burst, Ending
from storage.records import Seq
from web.contract import wire
from web.contract.errors import CloseCode, close_of
from web.contract.trace_context import TracedId
from web.following.connection_log import ConnectionLog
from web.following.heartbeat import Heartbeat
from web.following.receipts import RECEIPT_EVENTS_MAX, Receipts, receipt_ping, receipt_seq
from web.following.session import Session
from web.http.adoption import AdoptedSocket
from web.websocket import frames
from web.websocket.channel import Channel, State
from web.websocket.flood import Cost
from web.websocket.hub import Hub, Round

CATCH_UP_EVENTS: Final = 5
"""Events taken from the ring at once while catching up."""

CATCH_UP_BYTES: Final = 64 * 1024
"""After so many bytes no further events are taken for now. Reason: composed bytes lie in memory until the client
reads."""

RECEIPTS_LOOK_SECONDS: Final = 0.1
"""How often diagnoses are looked at for receipts to ask for."""

HEARTBEATS_LOOK_SECONDS: Final = 0.5
"""How often it is looked who is due a heartbeat. Reason: they are seconds apart, and nobody counts on tenths."""

LOOK_CHUNK: Final = 1024
"""Followers looked after between two checkpoints."""

assert RECEIPT_EVENTS_MAX % CATCH_UP_EVENTS == 0


class Followers:
    """What all followers of one server share, and what is done for them now and then: the rounds of the hub."""

    def __init__(self, log: ConnectionLog) -> None:
        """Nobody follows yet.

        Args:
            log: is told how connections end.
        """
        self.log = log
        self.receipts = Receipts()
        self.beating: dict[Follower, None] = {}
        """Those whose clients asked for heartbeats."""

    @property
    def rounds(self) -> tuple[Round, ...]:
        """What the hub is to do."""
        return (RECEIPTS_LOOK_SECONDS, self._ask_for_receipts), (HEARTBEATS_LOOK_SECONDS, self._look_after)

    async def _ask_for_receipts(self, now: float) -> None:
        for roster in self.receipts.take_due(now):
            for index, subscriber in enumerate(list(roster.subscribers), start=1):
                if isinstance(subscriber.transport, Follower):
                    subscriber.transport.ask_receipt()
                if index % LOOK_CHUNK == 0:
                    await trio.lowlevel.checkpoint()

    async def _look_after(self, now: float) -> None:
        """Send the heartbeats that are due, and let go of diagnoses that nobody follows."""
        self.receipts.forget_deserted()
        for index, follower in enumerate(list(self.beating), start=1):
            follower.beat(now)
            if index % LOOK_CHUNK == 0:
                await trio.lowlevel.checkpoint()


class Follower(Channel):
    """A subscriber's transport; see `actors.transport.Transport`. What it is fed never raises into its actor."""

    __slots__ = (
        "_asks",
        "_confirmed",
        "_followers",
        "_heartbeat",
        "_owes_receipt",
        "_request_id",
        "_session",
        "_subscriber",
    )

    _hub: Hub
    _session: Session
    _subscriber: Subscriber

    def __init__(self, hub: Hub, followers: Followers) -> None:
        super().__init__(hub)
        self._followers = followers
        self._asks = True
        """Whether the client is asked for receipts: its transport acknowledges."""
        self._confirmed = Seq(0)
        """The highest number a Pong has confirmed."""
        self._owes_receipt = False
        """A Ping for a receipt is due as soon as something can be written."""
        self._heartbeat: Heartbeat | None = None
        self._request_id: bytes | TracedId = b""
        """Of the upgrade, in the fewest bytes. Reason: thousands of followers have one."""
        """The id of the upgrade, for the log; empty: none. As bytes it takes half the memory of its text."""

    def begin(
        self,
        session: Session,
        subscriber: Subscriber,
        heartbeat_seconds: int | None = None,
        request_id: str | None = None,
    ) -> None:
        """Know whom this carries frames to. Before the subscriber is given to an actor.

        Args:
            heartbeat_seconds: longest silence, `None`: the client asked for no heartbeats.
            request_id: of the upgrade, in hexadecimal.
        """
        self._request_id = request_id if isinstance(request_id, TracedId) else bytes.fromhex(request_id or "")
        self._session, self._subscriber = session, subscriber
        self._asks = session.ack == "transport"
        if heartbeat_seconds is not None:
            self._heartbeat = Heartbeat(heartbeat_seconds, self._hub.clock.monotonic(), Seq(0))

    # Transport

    def feed(self, burst: Burst) -> bool:
        # The hot path: once for every event and connection.
        if self.blocked:
            return True
        subscriber = self._subscriber
        try:
            if subscriber.position + 1 != burst.first:
                self.flush()
                return True
            data = burst.made.get(self._asks) or self._compose_burst(burst)
            subscriber.position = burst.last
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            if sent != len(data):
                self.hold(memoryview(data)[sent:], progressed=True)
        except OSError:
            self.abort()
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            self._hub.contain(self, error)
            return True
        return False

    def _compose_burst(self, burst: Burst) -> bytes:
        roster = self._subscriber.roster
        assert roster is not None, "only attached subscribers are fed"
        self._followers.receipts.compose(burst, roster, self._hub.clock.monotonic())
        return burst.made[self._asks]

    def wake(self) -> None:
        if self.blocked:
            return
        try:
            self.flush()
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            self._hub.contain(self, error)

    def acknowledged(self, seq: Seq) -> None:
        if self.state > State.OPEN:
            return
        try:
            self._session.acknowledged(seq)
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            self._hub.contain(self, error)

    def end(self, ending: Ending) -> None:
        try:
            self.goodbye(*close_of(ending))
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            self._hub.contain(self, error)

    # Channel

    def open(self, sock: AdoptedSocket, head: bytes) -> None:
        super().open(sock, head)
        if self._heartbeat is not None and self.state is State.OPEN:
            self._heartbeat.spoke(self._hub.clock.monotonic())
            self._followers.beating[self] = None

    def say(self, frame: bytes) -> None:
        super().say(frame)
        if self._heartbeat is not None:
            self._heartbeat.spoke(self._hub.clock.monotonic())

    def beat(self, now: float) -> None:
        """Send a heartbeat if one is due."""
        if self.blocked or self._heartbeat is None:
            return
        subscriber = self._subscriber
        try:
            if self._heartbeat.is_due(subscriber.position, now) and subscriber.is_caught_up:
                self._session.say("heartbeat", wire.seq_data(subscriber.position))
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            self._hub.contain(self, error)

    def received(self, message: str | bytes) -> Cost:
        return self._session.received(message)

    def ponged(self, payload: bytes) -> Cost:
        seq = receipt_seq(payload)
        if seq is None or seq <= self._confirmed or not self._asks or not self._session.reached(seq):
            return Cost.REPEAT
        self._confirmed = seq
        return Cost.NOTHING

    def ask_receipt(self) -> None:
        """Ask the client how far it has received, if that is of use."""
        if self.state is not State.OPEN or not self._asks or self._confirmed >= self._subscriber.position:
            return
        self._owes_receipt = True
        self.wake()

    def compose_due(self) -> bytes:
        subscriber = self._subscriber
        if subscriber.is_caught_up and not self._owes_receipt:  # asked behind everything that is written
            return b""
        began_at = subscriber.position
        parts: list[bytes] = []
        size = events = 0
        while size < CATCH_UP_BYTES and events < RECEIPT_EVENTS_MAX and not subscriber.is_caught_up:
            due = subscriber.take(CATCH_UP_EVENTS)
            if not due:
                break
            for item in due:
                if isinstance(item, RenderedEvent):
                    text = item.text
                    events += 1
                else:
                    if isinstance(item, Gap):
                        self._followers.log.gap(subscriber, item)
                    text = self._session.text_of(item)
                frame = frames.text_frame(text)
                parts.append(frame)
                size += len(frame)
        if self._asks and (subscriber.position > began_at or self._owes_receipt):
            parts.append(receipt_ping(subscriber.position))
            self._owes_receipt = False
        return b"".join(parts)

    def goodbye(self, code: CloseCode, reason: str, *, deaf: bool = False) -> None:
        """Close from this side, after a `bye` (PROTOCOL section 4)."""
        if self.state > State.OPEN:
            return
        bye, _ = self._session.goodbye(code, reason, self._hub.jitter)
        hold_seconds = 0.0
        if code is CloseCode.REPLACED:
            # Two clients that take the same device from each other, at once and for ever, slow each other down.
            name = (self._session.diagnosis_id, self._subscriber.id)
            hold_seconds = self._hub.holds.seconds(name, self._hub.clock.monotonic())
        self.close(code, reason, bye=frames.text_frame(bye), deaf=deaf, hold_seconds=hold_seconds)

    def left(self) -> None:
        self._subscriber.detach()

    def answered_goodbye(self, code: int) -> None:
        # TCP keeps the order, so this is a receipt, as a Pong is. Other Closes are none: their clients come back and
        # ask anew.
        if code == CloseCode.RESTART and self._asks:
            self._session.received_all()

    def stalled(self, why: str) -> None:
        self._followers.log.stalled(self._subscriber, why, _shown(self._request_id))

    def over(self, code: int, reason: str, seconds: float | None) -> None:
        self._followers.beating.pop(self, None)
        if seconds is not None:
            request_id = _shown(self._request_id)
            self._followers.log.ended("WebSocket", self._subscriber, code, reason, seconds, request_id)
        # Break the reference cycle of session, subscriber and transport, so that no collection is needed.
        del self._session, self._subscriber


def _shown(request_id: bytes | TracedId) -> str:
    return request_id.hex() if isinstance(request_id, bytes) else request_id
