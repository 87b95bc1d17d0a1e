"""The network of the scenarios fails as it is told: what a client and a server see of each fault."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.clients.proxy import DELAY_SECONDS, FaultProxy


class Ends:
    """A network, and both ends of the one connection that goes through it."""

    def __init__(self, network: FaultProxy, client: trio.SocketStream, server: trio.SocketStream) -> None:
        self.network = network
        self.client = client
        self.server = server

    async def passes(self, source: trio.SocketStream, sink: trio.SocketStream) -> None:
        """See that what is sent on the one arrives at the other."""
        await source.send_all(b"something")
        assert await sink.receive_some() == b"something"


async def connected(network: FaultProxy) -> trio.SocketStream:
    return await trio.open_tcp_stream("127.0.0.1", int(network.url.rpartition(":")[2]))


@asynccontextmanager
async def ends() -> AsyncIterator[Ends]:
    (listener,) = await trio.open_tcp_listeners(0, host="127.0.0.1")
    port: int = listener.socket.getsockname()[1]
    with trio.fail_after(10):
        async with listener, trio.open_nursery() as nursery:
            network = FaultProxy(nursery, lambda: port)
            async with await connected(network) as client, await listener.accept() as server:
                both = Ends(network, client, server)
                await both.passes(client, server)
                await both.passes(server, client)
                yield both
            network.close()
            nursery.cancel_scope.cancel()


async def test_a_cut_is_a_reset_on_both_sides_and_new_connections_pass() -> None:
    async with ends() as both:
        both.network.cut()
        for end in (both.client, both.server):
            with pytest.raises(trio.BrokenResourceError):
                await end.receive_some()
        async with await connected(both.network):
            pass


async def test_refused_connections_are_refused_until_they_pass_again_and_those_there_are_go_on() -> None:
    async with ends() as both:
        both.network.refuse()
        with pytest.raises(OSError, match="all attempts to connect"):
            await connected(both.network)
        await both.passes(both.client, both.server)
        both.network.through()
        async with await connected(both.network):
            pass


async def test_a_full_server_answers_503() -> None:
    async with ends() as both:
        both.network.answer_503()
        async with await connected(both.network) as client:
            await client.send_all(b"GET / HTTP/1.1\r\n\r\n")
            assert bytes(await client.receive_some()).startswith(b"HTTP/1.1 503 ")


async def test_what_accepts_and_says_nothing_says_nothing() -> None:
    async with ends() as both:
        both.network.accept_and_say_nothing()
        async with await connected(both.network) as client:
            await client.send_all(b"GET / HTTP/1.1\r\n\r\n")
            await nothing_comes(client)


async def test_delayed_bytes_arrive_later() -> None:
    async with ends() as both:
        both.network.delay()
        began = trio.current_time()
        await both.passes(both.client, both.server)
        assert trio.current_time() - began >= DELAY_SECONDS


async def test_a_black_hole_loses_everything_even_the_end() -> None:
    async with ends() as both:
        both.network.black_hole()
        await both.server.send_all(b"lost")
        await nothing_comes(both.client)
        await both.client.send_all(b"lost")
        await both.client.aclose()
        await nothing_comes(both.server)


async def test_what_the_client_sends_can_be_lost_alone() -> None:
    async with ends() as both:
        both.network.lose_what_the_client_sends()
        await both.client.send_all(b"lost")
        await both.passes(both.server, both.client)
        await nothing_comes(both.server)


async def test_each_direction_can_be_ended_alone() -> None:
    async with ends() as both:
        both.network.end_towards_client()
        assert await both.client.receive_some() == b""
        await both.passes(both.client, both.server)
    async with ends() as both:
        both.network.end_towards_server()
        assert await both.server.receive_some() == b""
        await both.passes(both.server, both.client)


async def nothing_comes(end: trio.SocketStream) -> None:
    """See that for a while nothing arrives: long enough for what is not lost."""
    with trio.move_on_after(0.2) as patience:
        await end.receive_some()
    assert patience.cancelled_caught
