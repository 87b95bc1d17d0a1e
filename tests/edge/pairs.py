"""Followers on socket pairs: the real actors on a memory store, the real hub, no HTTP, and a clock that jumps."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

import trio

from actors.messages import Subscribe
from actors.resume import Wanted
from actors.roster import Subscriber
from storage.records import AcknowledgedBy, SubscriberId
from tests.actors.world import DIAGNOSIS, World, WorldClock, anybody, world
from tests.edge.raw import RawClient
from web.contract import wire
from web.contract.principals import Principal
from web.following.connection_log import ConnectionLog
from web.following.follower import Follower, Followers
from web.following.session import Services, Session
from web.identity.expiry import Expiry
from web.identity.revoked import Revoked
from web.identity.tokens import Verifier
from web.websocket.channel import ChannelLimits
from web.websocket.frames import text_frame
from web.websocket.hub import HELD_MAX, Hub, open_hub
from web.websocket.poller import Poller, open_poller


@dataclass
class Edge:
    """A hub, its actors, and how to follow them."""

    world: World
    hub: Hub
    followers: Followers
    expiry: Expiry
    clients: list[RawClient] = field(default_factory=list)

    async def follow(
        self,
        sub: str = "amira",
        device: str | None = None,
        *,
        ack: AcknowledgedBy | None = "transport",
        wanted: Wanted | None = None,
        head: bytes = b"",
        heartbeat_seconds: int | None = None,
    ) -> tuple[RawClient, Follower]:
        """A client that follows the diagnosis, and the server's end of it."""
        follower = self.prepare(sub, device, ack=ack, heartbeat_seconds=heartbeat_seconds)
        await self.admit(follower, wanted)
        return self.opened(follower, head), follower

    def prepare(
        self,
        sub: str = "amira",
        device: str | None = None,
        *,
        ack: AcknowledgedBy | None = "transport",
        heartbeat_seconds: int | None = None,
    ) -> Follower:
        """The server's end before it has a socket."""
        follower, who = Follower(self.hub, self.followers), Principal(sub)
        subscriber = Subscriber(SubscriberId(sub, device), who, follower)
        session = Session(
            subscriber,
            ack=ack,
            speaker=follower,
            services=Services(self.world.registry, self.expiry, self.hub.clock),
        )
        follower.begin(session, subscriber, heartbeat_seconds)
        return follower

    async def admit(self, follower: Follower, wanted: Wanted | None = None) -> None:
        """Have the actor attach it."""
        message = Subscribe(follower._subscriber, wanted or Wanted(), anybody, follower._session.ack is None)
        await self.world.registry.ask(DIAGNOSIS, message)

    def opened(self, follower: Follower, head: bytes = b"") -> RawClient:
        """Give it a socket; the other end of it."""
        ours, theirs = socket.socketpair()
        ours.setblocking(False)
        follower.open(ours, head)
        client = RawClient(trio.SocketStream(trio.socket.from_stdlib_socket(theirs)))
        self.clients.append(client)
        return client

    async def publish(self, count: int = 1, size: int = 1) -> None:
        """Publish so many events, one after the other."""
        for _ in range(count):
            await self.world.publish(b'{"x":"%b"}' % (b"x" * size))

    async def fill(self, follower: Follower) -> None:
        """Publish until a client that does not read takes no more."""
        while not follower.blocked:
            await self.publish(1, size=20_000)

    async def cursor(self, sub: str = "amira", device: str | None = None) -> int | None:
        """The stored cursor of a subscriber."""
        cursors = await self.world.store.inner.cursors(DIAGNOSIS)
        return {one.subscriber: one.seq for one in cursors}.get(SubscriberId(sub, device))


@asynccontextmanager
async def edge(
    limits: ChannelLimits | None = None, poller: Poller | None = None, held_max: int = HELD_MAX
) -> AsyncIterator[Edge]:
    """A running hub over running actors."""
    clock = WorldClock()

    async def may_follow(who: Principal, diagnosis_id: str) -> bool:
        await trio.lowlevel.checkpoint()
        return True

    async def prepare(token: str) -> None:
        await trio.lowlevel.checkpoint()

    followers = Followers(ConnectionLog(clock))
    expiry = Expiry(Verifier([], Revoked()), clock, may_follow=may_follow, prepare=prepare)
    async with (
        world(render=wire.render_event) as made,
        open_hub(
            poller or open_poller(),
            clock=clock,
            jitter=lambda: 0.5,
            limits=limits,
            rounds=followers.rounds,
            held_max=held_max,
        ) as hub,
    ):
        running = Edge(made, hub, followers, expiry)
        try:
            yield running
        finally:
            for client in running.clients:
                await trio.aclose_forcefully(client.stream)


def connect_frame() -> bytes:
    """Something that stands for `connect`."""
    return text_frame(b'{"type":"connect"}')
