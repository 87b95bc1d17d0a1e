"""A WebSocket that echoes, on the same edge as the server's own: for tests and for Autobahn, never in the product."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial

import trio
from quart import websocket
from quart_trio import QuartTrio

from storage.clock import SystemClock
from web.http.adoption import NotAdoptable, adoption_of
from web.http.line import Patience
from web.http.listening import listen_on_tcp
from web.http.one_task import LeanWebsocket
from web.http.serving import Terms, serve
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


def echo_app(hub: Hub) -> QuartTrio:
    """One route, `/echo`."""
    app = QuartTrio("echo", static_folder=None)
    app.asgi_websocket_class = LeanWebsocket

    @app.websocket("/echo")
    async def echo() -> None:
        adoption = adoption_of(websocket)
        try:
            Echo(hub).open(adoption.adopt(), frames.switching_protocols(adoption.key, None))
        except NotAdoptable:
            return

    return app


@asynccontextmanager
async def echo_server(port: int = 0, limits: ChannelLimits = LIMITS) -> AsyncIterator[tuple[int, Hub]]:
    """A running echo server: its port, and its hub."""
    listener = listen_on_tcp("127.0.0.1", port)
    async with open_hub(open_poller(), clock=SystemClock(), jitter=lambda: 0.5, limits=limits) as hub:
        terms = Terms(
            connections_max=10_000,
            drain_seconds_max=5,
            patience=Patience(),
            elsewhere=lambda: hub.connections,
            drain=hub.drain,
        )
        async with trio.open_nursery() as serving_nursery:
            serve_echo = partial(serve, echo_app(hub), [listener], terms, stop=trio.sleep_forever)
            await serving_nursery.start(serve_echo)
            yield listener.getsockname()[1], hub
            serving_nursery.cancel_scope.cancel()
