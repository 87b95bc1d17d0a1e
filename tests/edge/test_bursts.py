"""Requests that come at once are begun in turns, and whoever else asks does not wait until all of them are answered."""

from __future__ import annotations

import socket
from typing import Any

import trio
import trio.testing

from tests.edge.peers import Peer, connect, request, running_edge
from tests.edge.test_http1 import short
from web.http.serving import BEGUN_AT_ONCE_MAX

BURST = 12 * BEGUN_AT_ONCE_MAX


class Noting:
    """An application that notes what is begun: by whom, and how many turns everybody had had by then."""

    def __init__(self) -> None:
        self.begun: list[tuple[bytes, int]] = []
        self.turns = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            self.begun.append((scope["path"].encode(), self.turns))
        await short(scope, receive, send)

    async def count_turns(self) -> None:
        """Have a turn whenever everybody has one."""
        while True:
            self.turns += 1
            await trio.lowlevel.checkpoint()

    def most_in_a_turn(self) -> int:
        """The most requests that were begun between two turns of everybody."""
        turns = [turn for _, turn in self.begun]
        return max(map(turns.count, turns))

    def place_of(self, path: bytes) -> int:
        """How many requests were begun before the one for this path."""
        return [found for found, _ in self.begun].index(path)


def send_now(peer: Peer, data: bytes) -> None:
    """Send this without letting the server run."""
    with socket.socket(fileno=socket.dup(peer.stream.socket.fileno())) as ours:
        assert ours.send(data) == len(data)


def complete(burst: list[Peer]) -> None:
    for peer in burst:
        send_now(peer, b"\n")


async def waiting(url: str, count: int) -> list[Peer]:
    """Connections that have sent a request but for its last byte."""
    peers = [await connect(url) for _ in range(count)]
    for peer in peers:
        await peer.send(request(b"/burst")[:-1])
    await trio.testing.wait_all_tasks_blocked(0.05)
    return peers


async def check_all_answered(peers: list[Peer]) -> None:
    for peer in peers:
        assert (await peer.answer()).status == 200
        await trio.aclose_forcefully(peer.stream)


async def test_few_requests_of_a_burst_are_begun_in_one_turn() -> None:
    app = Noting()
    async with running_edge(app) as edge, trio.open_nursery() as nursery:
        burst = await waiting(edge.url, BURST)
        nursery.start_soon(app.count_turns)
        complete(burst)
        await check_all_answered(burst)
        nursery.cancel_scope.cancel()
    assert len(app.begun) == BURST
    # What is begun in one turn of the turns may be spread over two of the loop, and fall together with some before.
    assert app.most_in_a_turn() <= 2 * BEGUN_AT_ONCE_MAX


async def test_requests_that_were_sent_together_on_one_connection_take_turns_with_others() -> None:
    app = Noting()
    async with running_edge(app) as edge, trio.open_nursery() as nursery:
        burst = await waiting(edge.url, BURST)
        nursery.start_soon(app.count_turns)
        for peer in burst:
            send_now(peer, b"\n" + request(b"/burst") * 3)
        for peer in burst:
            for _ in range(4):
                assert (await peer.answer()).status == 200
            await trio.aclose_forcefully(peer.stream)
        nursery.cancel_scope.cancel()
    assert len(app.begun) == 4 * BURST
    assert app.most_in_a_turn() <= 3 * BEGUN_AT_ONCE_MAX


async def test_another_address_does_not_wait_for_all_of_a_burst() -> None:
    app = Noting()
    async with running_edge(app) as edge:
        burst = await waiting(edge.url, BURST)
        port = int(edge.url.rpartition(":")[2])
        other = Peer(await trio.open_tcp_stream("127.0.0.1", port, local_address="127.0.0.2"))
        await trio.testing.wait_all_tasks_blocked(0.05)
        complete(burst)
        send_now(other, request(b"/other"))
        assert (await other.answer()).status == 200
        await check_all_answered(burst)
        await trio.aclose_forcefully(other.stream)
    assert app.place_of(b"/other") <= 3 * BEGUN_AT_ONCE_MAX


async def test_a_connection_that_was_served_before_does_not_wait_for_a_crowd_of_new_ones_of_its_address() -> None:
    app = Noting()
    async with running_edge(app) as edge, await connect(edge.url) as stayed:
        await stayed.send(request(b"/first"))
        assert (await stayed.answer()).status == 200
        burst = await waiting(edge.url, BURST)
        complete(burst)
        send_now(stayed, request(b"/stayed"))
        assert (await stayed.answer()).status == 200
        await check_all_answered(burst)
    assert app.place_of(b"/stayed") <= 3 * BEGUN_AT_ONCE_MAX
