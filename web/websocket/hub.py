"""All adopted sockets in one Trio task: which can be read or written, which deadline has come, and rounds for others.

No task per connection: an idle one costs its few objects. An exception of one connection ends that connection alone.
What the connections carry is not known here.
"""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Awaitable, Callable, Hashable, Sequence
from contextlib import asynccontextmanager
from math import inf
from typing import Final

import trio

from actors.upkeep import describe, restart_on_crash
from storage.clock import Clock
from web.http.adoption import AdoptedSocket
from web.http.kernel_queues import unread_bytes, unsent_bytes
from web.websocket.channel import Channel, ChannelLimits, State
from web.websocket.counts import Counts, HubStatistics
from web.websocket.holds import Holds
from web.websocket.inbound import Inbound
from web.websocket.poller import WRITE, Poller

LOOK_SECONDS: Final = 0.1
"""How often it is looked which Closes are no longer held back, and who may send again."""

DEADLINES_LOOK_SECONDS: Final = 0.5
"""How often the connections' deadlines are looked at. Reason: they are seconds, and nobody counts on tenths."""

TURN_SECONDS_MAX: Final = 0.001
"""Time spent on sockets that are ready before everybody else gets a turn. Reason: a publish takes some ten turns."""

GAP_SECONDS: Final = 2.0
"""Longest time between two looks at deadlines. Beyond: the process stood still (a pause of the machine) and could not
hear its clients, so deadlines begin anew."""

LOOK_CHUNK: Final = 1024
"""Connections looked after between two checkpoints."""

HELD_MAX: Final = 1000
"""Connections whose Close, or whose stream's end, is held back. Beyond: it is sent at once. Reason: each is an open
socket."""

DRAIN_SECONDS: Final = 3.0
"""Time a drain gives clients to take their goodbye. Beyond: cut off."""

Round = tuple[float, Callable[[float], Awaitable[None]]]
"""What the hub has done for others, and every how many seconds; it is given the time on the monotonic clock."""

logger = logging.getLogger("avicenna.edge")


class Hub:
    """The adopted connections of one server."""

    def __init__(
        self,
        poller: Poller,
        *,
        clock: Clock,
        jitter: Callable[[], float],
        limits: ChannelLimits | None = None,
        unsent: Callable[[AdoptedSocket], int] = unsent_bytes,
        unread: Callable[[AdoptedSocket], int] = unread_bytes,
        rounds: Sequence[Round] = (),
        held_max: int = HELD_MAX,
    ) -> None:
        """A hub without connections.

        Args:
            jitter: random numbers from 0 up to 1.
            limits: what one connection may take.
            unsent: how many bytes of a socket have not reached its peer's machine.
            unread: how many of its peer's lie unread in it.
            rounds: what else is to be done now and then, beside the sockets.
            held_max: connections whose Close, or whose stream's end, may be held back at once.

        Ownership: the poller stays its maker's, to be closed when `run` has ended; `open_hub` sees to both.
        """
        self.poller = poller
        self.clock = clock
        self.jitter = jitter
        self.limits = limits or ChannelLimits()
        self.unsent = unsent
        self.unread = unread
        self.now = clock.monotonic()
        """When this turn began: a tenth of a second ago at most, while there is time for turns."""
        self.tick = self.now
        """As `now`, but moved on only ten times a second: channels that begin in between share the float."""
        self.holds = Holds()
        self._held_max = held_max
        self._held: dict[Channel, float] = {}
        """Channels whose Close is held back, and until when."""
        self._streams_held = 0
        """Event streams whose end is held back."""
        self._draining = trio.Event()
        self._channels: dict[int, Channel] = {}
        self._throttled: dict[Channel, None] = {}
        """Channels that have used up their allowance lately."""
        self.resumed_at = -inf
        """When the process last went on after it had stood still."""
        self.counts = Counts()
        self._looked_at = inf
        """When deadlines were last looked at; infinite: not yet."""
        self._rounds: tuple[Round, ...] = (
            (LOOK_SECONDS, self._look_often),
            (DEADLINES_LOOK_SECONDS, self._look_at_deadlines),
            *rounds,
        )
        self._spare: Inbound | None = None
        self._emptied = trio.Event()

    @property
    def connections(self) -> int:
        """Adopted sockets that are open."""
        return len(self._channels)

    def statistics(self) -> HubStatistics:
        """All adopted connections; looks at none of them."""
        counts = self.counts
        return HubStatistics(len(self._channels), len(self._held), counts.aborted, counts.floods, dict(counts.closes))

    # For channels

    def add(self, channel: Channel) -> None:
        """Look after a channel from now on."""
        self.poller.add(channel.fd)
        self._channels[channel.fd] = channel

    def remove(self, channel: Channel) -> None:
        """Forget a channel whose socket is about to be closed."""
        self._held.pop(channel, None)
        self._throttled.pop(channel, None)
        if self._channels.get(channel.fd) is not channel:
            return
        del self._channels[channel.fd]
        self.poller.remove(channel.fd)
        if not self._channels:
            self._emptied.set()

    def hold(self, channel: Channel, seconds: float) -> bool:
        """Release a channel so many seconds from now; False: too many are held, or the server stops."""
        if not self._has_room_to_hold:
            return False
        self._held[channel] = self.clock.monotonic() + seconds
        return True

    async def hold_stream(self, name: Hashable) -> None:
        """Wait before an event stream ends, as long as a Close behind the same refusal would be held back.

        Args:
            name: whose refusals are counted together; WebSockets of the same name count with it.

        Cancellation: it waits no longer.
        """
        seconds = self.holds.seconds(name, self.clock.monotonic())
        if not self._has_room_to_hold:
            return
        self._streams_held += 1
        try:
            with trio.move_on_after(seconds):
                await self._draining.wait()
        finally:
            self._streams_held -= 1

    @property
    def _has_room_to_hold(self) -> bool:
        return len(self._held) + self._streams_held < self._held_max

    def throttle(self, channel: Channel) -> None:
        """A client has used up its allowance: look when it may send again."""
        self._throttled[channel] = None

    def lend_inbound(self) -> Inbound:
        """A decoder; one that is idle again comes back through `return_inbound`."""
        inbound, self._spare = self._spare or Inbound(), None
        return inbound

    def return_inbound(self, inbound: Inbound) -> None:
        """Take back an idle decoder, for whoever sends next."""
        self._spare = inbound

    def contain(self, channel: Channel, error: Exception) -> None:
        """An exception over one connection ends that connection, with 1011 if it still can be told."""
        logger.error("a connection failed: %s", describe(error))
        try:
            channel.break_off()
        except Exception as another:  # noqa: BLE001 - the last boundary of a connection
            logger.error("and could not be told: %s", describe(another))
            channel.abort()

    # The task

    async def run(self, *, task_status: trio.TaskStatus[None] = trio.TASK_STATUS_IGNORED) -> None:
        """Look after all channels until cancelled, and cut off then whoever is left."""
        task_status.started()
        try:
            await restart_on_crash("hub", self._look_after_all, self.clock, self.jitter)
        finally:
            self.abort_all()

    async def _look_after_all(self) -> None:
        due_at = [self.clock.monotonic()] * len(self._rounds)
        next_at = due_at[0]
        while True:
            # Sockets are served in every turn, however late the looks are. The next look is due some time after this
            # one ended.
            await self._serve_ready(await self._ready_by(next_at))
            now = self.now = self.clock.monotonic()
            if now < next_at:
                continue
            for index, (seconds, look) in enumerate(self._rounds):
                if now >= due_at[index]:
                    await look(now)
                    due_at[index] = self.clock.monotonic() + seconds
            next_at = min(due_at)

    async def _ready_by(self, until: float) -> Sequence[tuple[int, int]]:
        """The sockets that are ready, as soon as there are some; those that are ready at this time, if it is over."""
        with trio.move_on_at(until):
            return await self.poller.wait()
        return self.poller.look()

    async def _serve_ready(self, ready: Sequence[tuple[int, int]]) -> None:
        self.now = turn_began = self.clock.monotonic()
        for fd, events in ready:
            # The socket may have been closed meanwhile, or its number given to a newer one: a look at that does no
            # harm.
            channel = self._channels.get(fd)
            if channel is None:
                continue
            try:
                if events & WRITE:
                    channel.flush()
                if events & ~WRITE and channel.state is not State.CLOSED:
                    channel.on_readable()
            except Exception as error:  # noqa: BLE001 - the boundary of a connection
                self.contain(channel, error)
            if self.clock.monotonic() - turn_began >= TURN_SECONDS_MAX:
                await trio.lowlevel.checkpoint()
                turn_began = self.clock.monotonic()

    async def _look_often(self, now: float) -> None:
        self.tick = now
        self._release_due(now)
        self._look_at_allowances(now)

    def _look_at_allowances(self, now: float) -> None:
        for channel in list(self._throttled):
            try:
                if not channel.look_at_allowance(now):
                    self._throttled.pop(channel, None)
            except Exception as error:  # noqa: BLE001 - the boundary of a connection
                self.contain(channel, error)

    def _release_due(self, now: float) -> None:
        for channel in [one for one, until in self._held.items() if until <= now]:
            self._release(channel)

    def _release(self, channel: Channel) -> None:
        del self._held[channel]
        try:
            channel.release()
        except Exception as error:  # noqa: BLE001 - the boundary of a connection
            self.contain(channel, error)

    async def _look_at_deadlines(self, now: float) -> None:
        if now > self._looked_at + DEADLINES_LOOK_SECONDS + GAP_SECONDS:
            self.resumed_at = now
        self.holds.forget_quiet(now)
        silent = now - self.limits.silence_seconds
        for index, channel in enumerate(list(self._channels.values()), start=1):
            if (channel.blocked or channel.heard_at <= silent) and channel.state is not State.CLOSED:
                try:
                    channel.on_time(now)
                except Exception as error:  # noqa: BLE001 - the boundary of a connection
                    self.contain(channel, error)
            if index % LOOK_CHUNK == 0:
                await trio.lowlevel.checkpoint()
        self._looked_at = self.clock.monotonic()

    # Drain

    async def drain(self) -> None:
        """Wait until every connection is gone, a while at most, then cut off the rest. Say goodbye to them first.

        From now on neither a Close nor the end of a stream is held back.

        Cancellation: cuts them off at once.
        """
        self._held_max = 0
        self._draining.set()
        for channel in list(self._held):
            self._release(channel)
        try:
            with trio.move_on_after(DRAIN_SECONDS):
                while self._channels:
                    self._emptied = trio.Event()
                    await self._emptied.wait()
        finally:
            self.abort_all()

    def abort_all(self) -> None:
        """Cut off every connection."""
        for channel in list(self._channels.values()):
            channel.abort()


@asynccontextmanager
async def open_hub(
    poller: Poller,
    *,
    clock: Clock,
    jitter: Callable[[], float],
    limits: ChannelLimits | None = None,
    rounds: Sequence[Round] = (),
    held_max: int = HELD_MAX,
) -> AsyncIterator[Hub]:
    """A running hub; at the end whoever is left is cut off. Arguments as of `Hub`.

    Ownership: closes the poller.
    """
    hub = Hub(poller, clock=clock, jitter=jitter, limits=limits, rounds=rounds, held_max=held_max)
    try:
        async with trio.open_nursery() as hub_nursery:
            await hub_nursery.start(hub.run)
            yield hub
            hub_nursery.cancel_scope.cancel()
    finally:
        poller.close()
