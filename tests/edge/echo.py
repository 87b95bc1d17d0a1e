"""A WebSocket that echoes, on the same edge as the server's own: for tests and for Autobahn, never in the product."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio
from quart import websocket
from quart_trio import QuartTrio

from storage.clock import SystemClock
from web.contract.exchange import Answer
from web.http.accepting import Address
from web.http.adoption import Adoption, NotAdoptable, adoption_of
from web.http.line import Patience
from web.http.listening import listen_on_tcp
from web.http.one_task import LeanWebsocket
from web.http.plain import Plain
from web.http.serving import Terms, serve
from web.http.short_way import Serve, Take, Ways
from web.websocket import frames
from web.websocket.channel import Channel, ChannelLimits
from web.websocket.flood import Cost
from web.websocket.hub import Hub, open_hub
from web.websocket.poller import open_poller

LIMITS = ChannelLimits(message_bytes_max=32 * 1024 * 1024, frames_per_second_max=1_000_000)
"""The echo takes what no follower may send."""


class Echo(Channel):
    """Answers every message with itself."""

    __slots__ = ()

    def received(self, message: str | bytes) -> Cost:
        if isinstance(message, str):
            self.say(message.encode())
        else:
            self._reply(frames.binary_frame(message))
        return Cost.FRAME


class EchoApp(QuartTrio):
    """One route, `/echo`, by either way."""

    asgi_websocket_class = LeanWebsocket

    def __init__(self, hub: Hub) -> None:
        super().__init__("echo", static_folder=None)
        self._hub = hub
        self.add_websocket("/echo", "echo", self._echo)

    def serving(self, plain: Plain, client: Address | None) -> Serve | None:
        """No plain request."""
        return None

    def taking(self, plain: Plain, client: Address | None) -> Take | None:
        """The WebSocket of a plain handshake."""
        return self._take if plain.path == "/echo" else None

    async def _echo(self) -> None:
        await self._take(adoption_of(websocket))

    async def _take(self, adoption: Adoption) -> Answer | None:
        with contextlib.suppress(NotAdoptable):
            Echo(self._hub).open(adoption.adopt(), frames.switching_protocols(adoption.key, None))
        return None


@asynccontextmanager
async def echo_server(
    port: int = 0, limits: ChannelLimits = LIMITS, ways: Ways | None = None
) -> AsyncIterator[tuple[int, Hub]]:
    """A running echo server: its port, and its hub.

    Args:
        ways: counts handshakes, and plain ones take the short way; `None`: all take the long way.
    """
    listener = listen_on_tcp("127.0.0.1", port)
    async with open_hub(open_poller(), clock=SystemClock(), jitter=lambda: 0.5, limits=limits) as hub:
        app = EchoApp(hub)
        terms = Terms(
            connections_max=10_000,
            drain_seconds_max=5,
            patience=Patience(),
            elsewhere=lambda: hub.connections,
            drain=hub.drain,
            short_way=None if ways is None else app,
            ways=ways or Ways(),
        )
        async with trio.open_nursery() as serving_nursery:
            serve_echo = partial(serve, app, [listener], terms, stop=trio.sleep_forever)
            await serving_nursery.start(serve_echo)
            yield listener.getsockname()[1], hub
            serving_nursery.cancel_scope.cancel()
