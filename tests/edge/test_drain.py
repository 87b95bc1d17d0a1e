"""The end of a server: in order, and within one deadline, whatever its peers do."""

from __future__ import annotations

import collections
import itertools
import math
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.edge.peers import Peer, connect, open_descriptors, request, running_edge, upgrade
from tests.edge.test_http1 import short
from tests.server.harness import Server
from tests.server.process import served
from web.http import serving
from web.http.descriptors import connections_possible
from web.http.line import Patience
from web.http.serving import Edge, Terms
from web.server.composition import CONNECTIONS_SECONDS_MAX

STALLED = 1000
JSON = b"application/json"


class Slow:
    """An application that answers once it may."""

    def __init__(self) -> None:
        self.arrived = trio.Event()
        self.may_answer = trio.Event()

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/slow":
            self.arrived.set()
            await self.may_answer.wait()
        await short(scope, receive, send)


async def test_idle_connections_end_at_once_and_a_request_in_hand_is_answered() -> None:
    app = Slow()
    async with running_edge(app, idle_seconds=60) as edge:
        async with await connect(edge.url) as fresh, await connect(edge.url) as idle, await connect(edge.url) as busy:
            await idle.send(request())
            assert (await idle.answer()).status == 200
            await busy.send(request(b"/slow"))
            await app.arrived.wait()
            edge.stopping.set()
            assert await fresh.end() == b""
            assert await idle.end() == b""
            assert not edge.ended.is_set()
            app.may_answer.set()
            answer = await busy.answer()
            assert await busy.end() == b""
        with trio.fail_after(10):
            await edge.ended.wait()
    assert (answer.status, answer.headers["connection"]) == (200, "close")


async def test_nothing_new_is_accepted_while_the_rest_drains() -> None:
    app = Slow()
    async with running_edge(app) as edge, await connect(edge.url) as busy:
        await busy.send(request(b"/slow"))
        await app.arrived.wait()
        edge.stopping.set()
        await trio.testing.wait_all_tasks_blocked()
        with pytest.raises(OSError, match="connect"):
            await connect(edge.url)
        app.may_answer.set()
        assert (await busy.answer()).status == 200


async def test_a_connection_accepted_just_before_the_stop_ends_at_once() -> None:
    patience = Patience(idle_seconds=60)
    edge = Edge(short, Terms(connections_max=1, drain_seconds_max=1.0, patience=patience))
    await edge.retire()
    server_end, client_end = socket.socketpair()
    server_end.setblocking(False)
    with client_end, trio.fail_after(10):
        await edge.accept(server_end, None)


async def test_what_was_given_away_is_drained_after_the_last_accept_and_before_the_end() -> None:
    order: list[str] = []
    app = Slow()

    async def drain() -> None:
        order.append("drain")
        with pytest.raises(OSError, match="connect"):
            await connect(edge.url)
        app.may_answer.set()

    async with running_edge(app, drain=drain) as edge, await connect(edge.url) as busy:
        await busy.send(request(b"/slow"))
        await app.arrived.wait()
        edge.stopping.set()
        assert (await busy.answer()).status == 200
        order.append("answered")
        with trio.fail_after(10):
            await edge.ended.wait()
    assert order == ["drain", "answered"]


async def test_a_goodbye_that_never_ends_and_a_route_that_never_answers_are_cut_at_the_deadline() -> None:
    app = Slow()
    hanging = running_edge(app, drain=trio.sleep_forever, drain_seconds_max=0.3)
    async with hanging as edge, await connect(edge.url) as busy:
        await busy.send(request(b"/slow"))
        await app.arrived.wait()
        edge.stopping.set()
        with trio.fail_after(10):
            await edge.ended.wait()
        assert await busy.end() == b""


@pytest.mark.guarantee(11)
async def test_a_thousand_peers_that_never_read_do_not_hold_up_the_end() -> None:
    stalled = 0

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        nonlocal stalled
        if scope["type"] != "http":
            await short(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        stalled += 1
        while True:
            await send({"type": "http.response.body", "body": b"x" * 20_000, "more_body": True})
            await trio.lowlevel.checkpoint()

    assert connections_possible(2 * STALLED) == 2 * STALLED, "this process may not open enough files"
    descriptors = open_descriptors()
    peers = []
    # None may be cut before the end: its route goes on sending to nobody, and takes the others' time for that.
    running = running_edge(
        endless,
        send_buffer_bytes=4096,
        drain_seconds_max=0.5,
        connections_max=2000,
        patience={"stall_seconds": math.inf},
    )
    async with running as edge:
        for _ in range(STALLED):
            peer = await connect(edge.url)
            peers.append(peer)
            await peer.send(request())
        with trio.fail_after(60):
            while stalled < STALLED:
                await trio.sleep(0.05)
        edge.stopping.set()
        with trio.fail_after(60):  # of its own accord it would never end
            await edge.ended.wait()
    for peer in peers:
        await trio.aclose_forcefully(peer.stream)
    assert open_descriptors() <= descriptors


async def test_upgrades_that_are_not_yet_answered_end_with_the_server() -> None:
    async def waiting(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            await trio.sleep_forever()
        await short(scope, receive, send)

    async with running_edge(waiting, drain_seconds_max=0.3) as edge, await connect(edge.url) as peer:
        await peer.send(upgrade())
        await trio.testing.wait_all_tasks_blocked()
        edge.stopping.set()
        with trio.fail_after(10):
            await edge.ended.wait()
        assert await peer.end() == b""


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(11)
async def test_sigterm_in_the_middle_of_posts_loses_no_accepted_event_and_exits_with_0(tmp_path: Path) -> None:
    accepted: list[int] = []
    target = b"/ws/broadcast-feedback-update"
    async with served(tmp_path / "data") as (process, server):
        await server.register()

        token = b"Bearer " + server.token("amira").encode()

        async def publish(first: int) -> None:
            async with await connect(server.url) as peer:
                for number in itertools.count(first):
                    body = b'{"diagnosis_id": 42, "feedback_id": %d, "rating": 5}' % number
                    try:
                        await peer.send(request(target, b"POST", body, Authorization=token, Content_Type=JSON))
                        answer = await peer.answer()
                    except (EOFError, trio.BrokenResourceError):
                        return  # no longer accepted
                    if answer.status != 200:
                        assert answer.status == 503
                        return
                    accepted.append(number)

        async with trio.open_nursery() as publishers:
            for first in range(8):
                publishers.start_soon(publish, first * 100_000)
            with trio.fail_after(20):
                while len(accepted) < 50:
                    await trio.sleep(0.01)
            began = trio.current_time()
            assert await process.stop() == 0
            assert trio.current_time() - began < 10
    async with served(tmp_path / "data") as (process, server), server.connect(start="oldest") as client:
        frames = await client.until_live()
        head = frames[0]["data"]["head"]
        newest = [frame["data"]["feedback_id"] for frame in frames if "seq" in frame]
    assert head >= len(accepted)
    assert set(accepted[-20:]) <= set(newest)


@pytest.mark.guarantee(11)
async def test_event_streams_that_begin_as_the_server_stops_are_told_so_too(server: Server) -> None:
    await server.register()
    token = b"Bearer " + server.token("amira").encode()
    said: list[bytes] = []

    async def follow(peer: Peer) -> None:
        async with peer:
            said.append(await peer.end())

    first = await connect(server.url)
    await first.send(request(b"/diagnoses/42/events", Authorization=token))
    assert (await first.answer()).status == 200
    peers = [await connect(server.url) for _ in range(40)]
    began = trio.current_time()
    async with first, trio.open_nursery() as followers:
        for number, peer in enumerate(peers):
            await peer.send(request(b"/diagnoses/42/events", Authorization=token))
            followers.start_soon(follow, peer)
            if number == len(peers) // 2:
                server.stop()
        assert b'"code":1012' in await first.end()
    assert trio.current_time() - began < CONNECTIONS_SECONDS_MAX, "none had to be cut"
    streams = [one for one in said if b"event-stream" in one]
    refused = [one for one in said if b'"code":"draining"' in one]
    assert [one for one in streams if b'"code":1012' not in one] == []
    assert [one for one in said if one and one not in streams + refused] == []


async def test_after_the_deadline_nothing_is_begun_however_many_tasks_are_runnable(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    edges: list[Edge] = []
    begun_late: collections.Counter[int] = collections.Counter()
    numbers = itertools.count()
    go = trio.Event()

    class Known(Edge):
        def __init__(self, *args: Any) -> None:
            super().__init__(*args)
            edges.append(self)

    async def busy(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await short(scope, receive, send)
            return
        number = next(numbers)
        begun_late[number] = 0
        await go.wait()
        while True:
            begun_late[number] += trio.current_time() >= edges[0].cut_at
            time.sleep(0.002)  # noqa: ASYNC251 - it works, it does not wait
            await trio.lowlevel.checkpoint()

    monkeypatch.setattr(serving, "Edge", Known)
    async with running_edge(busy, drain_seconds_max=0.5) as edge:
        peers = [await connect(edge.url) for _ in range(100)]
        for peer in peers:
            await peer.send(request())
        with trio.fail_after(10):
            while len(begun_late) < len(peers):
                await trio.sleep(0.01)
        go.set()
        edge.stopping.set()
        with trio.fail_after(10):
            await edge.ended.wait()
        for peer in peers:
            await trio.aclose_forcefully(peer.stream)
    assert max(begun_late.values()) <= 1, "the turn that was under way is finished, and no further one begun"


async def test_what_is_read_after_the_deadline_is_not_begun_any_more() -> None:
    begun = 0

    async def counting(scope: Any, receive: Any, send: Any) -> None:
        nonlocal begun
        begun += 1
        await short(scope, receive, send)

    edge = Edge(counting, Terms(connections_max=1, drain_seconds_max=1.0, patience=Patience()))
    server_end, client_end = socket.socketpair()
    server_end.setblocking(False)
    with client_end:
        async with trio.open_nursery() as connections_nursery:
            connections_nursery.start_soon(edge.accept, server_end, None)
            await trio.testing.wait_all_tasks_blocked()
            edge.cut_at = trio.current_time()
            client_end.send(request())
        assert client_end.recv(1) == b""
    assert begun == 0
