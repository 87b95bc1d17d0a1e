"""Clients that give up: whenever they leave, their connection is over, and the server knows it."""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from tests.edge.peers import connect, living_tasks, request, running_edge
from tests.edge.test_http1 import short
from tests.server.harness import Server
from web.http.kernel_queues import unread_bytes, unsent_bytes
from web.http.line import Patience
from web.http.serving import Edge, Terms

CLIENTS = 60


async def open_now(server: Server) -> int:
    found: int = (await server.status())["connections_open"]
    return found


async def until_only_open(server: Server, count: int) -> None:
    with trio.fail_after(20):
        while await open_now(server) > count:
            await trio.sleep(0.05)


def reset(stream: trio.SocketStream) -> None:
    """Close it as a process that is killed does: with a reset."""
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\1\0\0\0\0\0\0\0")
    stream.socket.close()


async def at_once(stream: trio.SocketStream) -> None:
    stream.socket.close()


async def by_a_reset(stream: trio.SocketStream) -> None:
    reset(stream)


async def after_the_first_bytes(stream: trio.SocketStream) -> None:
    await stream.receive_some(100)
    stream.socket.close()


async def after_an_end_of_its_side(stream: trio.SocketStream) -> None:
    await stream.send_eof()
    await trio.sleep(0.01)
    stream.socket.close()


async def half_closed_within_the_answer_and_then_reset(stream: trio.SocketStream) -> None:
    await stream.receive_some(100)
    await stream.send_eof()
    reset(stream)


@pytest.mark.parametrize(
    "leave",
    [
        at_once,
        by_a_reset,
        after_the_first_bytes,
        after_an_end_of_its_side,
        half_closed_within_the_answer_and_then_reset,
    ],
)
async def test_an_event_stream_that_is_given_up_leaves_no_connection_behind(
    server: Server, leave: Callable[[trio.SocketStream], Awaitable[None]]
) -> None:
    await server.register()
    for number in range(20):
        await server.publish(number, comment="x" * 20_000)
    before = await open_now(server)
    head = request(b"/diagnoses/42/events", Authorization=b"Bearer " + server.token("amira").encode())
    for _ in range(CLIENTS):
        peer = await connect(server.url)
        await peer.send(head)
        await leave(peer.stream)
    await until_only_open(server, before)
    assert (await server.status())["total_connections"] == 0


async def test_all_connections_are_counted_whatever_they_are_for(server: Server) -> None:
    await server.register()
    before = await open_now(server)
    async with await connect(server.url) as silent, server.live():
        assert (await server.status())["total_connections"] == 1
        assert await open_now(server) == before + 2
        await silent.send(b"GET /")
        assert await open_now(server) == before + 2
    await until_only_open(server, before)


async def test_an_answer_that_never_comes_is_not_waited_for_by_a_connection_whose_peer_has_ended_its_side() -> None:
    async def never(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await short(scope, receive, send)
            return
        await trio.sleep_forever()

    async with (
        running_edge(never, drain_seconds_max=0.1, patience={"answer_seconds": 0.2}) as edge,
        await connect(edge.url) as peer,
    ):
        await peer.send(request())
        await peer.stream.send_eof()
        assert await peer.end() == b""


async def test_no_task_stays_behind_a_stream_whose_client_left_before_its_first_byte() -> None:
    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http" or scope["path"] != "/stream":
            await short(scope, receive, send)
            return
        while (await receive())["type"] != "http.disconnect":
            pass
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
        await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})

    async with running_edge(streaming) as edge:
        before = living_tasks()
        for _ in range(20):
            peer = await connect(edge.url)
            await peer.send(request(b"/stream"))
            reset_after_end(peer.stream)
        with trio.fail_after(10):
            while living_tasks() > before:
                await trio.sleep(0.02)


def reset_after_end(stream: trio.SocketStream) -> None:
    stream.socket.shutdown(socket.SHUT_WR)
    reset(stream)


def test_a_closed_socket_has_nothing_in_its_queues() -> None:
    # One that was cut is still looked at until its task has noticed.
    sock = socket.socket()
    sock.close()
    assert (unsent_bytes(sock), unread_bytes(sock)) == (0, 0)


@pytest.mark.parametrize("reads", [1, 20_000])
async def test_a_peer_that_accepts_nothing_is_cut_off_after_ten_seconds_and_counted(
    autojump_clock: MockClock, reads: int
) -> None:
    async def endless(scope: Any, receive: Any, send: Any) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        for _ in range(1000):
            await send({"type": "http.response.body", "body": b"x" * 10_000, "more_body": True})

    edge = Edge(endless, Terms(connections_max=1, drain_seconds_max=1.0, patience=Patience()))
    ours, theirs = socket.socketpair()
    ours.setblocking(False)
    with theirs:
        async with trio.open_nursery() as looking_nursery:
            looking_nursery.start_soon(edge.look_for_stalled)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(edge.accept, ours, None)
                theirs.send(request())
                await trio.sleep(0.5)
                # Room for a little, and not for so much that the kernel says so.
                theirs.recv(reads)
                stopped_at = trio.current_time()
            looking_nursery.cancel_scope.cancel()
        assert 9 <= trio.current_time() - stopped_at <= 12
    assert edge.terms.open.stalled == 1
