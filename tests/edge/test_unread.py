"""Answers that are not read: the server holds what they share once, and little for each."""

from __future__ import annotations

import gc
import math
import socket
import tracemalloc
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing
from trio.testing import MockClock

from tests.edge.peers import Peer, request, running_edge
from tests.edge.test_http1 import short
from tests.server.harness import Server
from web.following.streams import WRITTEN_BYTES
from web.http.one_task import LeanRequest

UNREAD = 40
BODY = b"".join(b"%07d." % number for number in range(100_000))


async def large(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        await short(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(BODY))]})
    await send({"type": "http.response.body", "body": BODY})


class Counting:
    """Answers as `large` does, and counts."""

    def __init__(self) -> None:
        self.begun = self.over = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        self.begun += scope["type"] == "http"
        await large(scope, receive, send)
        self.over += scope["type"] == "http"


async def until(happened: Callable[[], bool]) -> None:
    """Wait for something that no event tells of; the clock of the test does not matter."""
    while not happened():
        await trio.testing.wait_all_tasks_blocked(0.01)


@asynccontextmanager
async def unread(url: str, head: bytes, count: int) -> AsyncIterator[list[Peer]]:
    """Connections that ask and do not read."""
    host, _, port = url.removeprefix("http://").rpartition(":")
    peers = []
    for _ in range(count):
        sock = trio.socket.socket()
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        await sock.connect((host, int(port)))
        peers.append(Peer(trio.SocketStream(sock)))
        await peers[-1].send(head)
    await trio.testing.wait_all_tasks_blocked(0.05)
    try:
        yield peers
    finally:
        for peer in peers:
            await trio.aclose_forcefully(peer.stream)


@pytest.fixture
def traced() -> Any:
    gc.collect()
    tracemalloc.start()
    yield
    tracemalloc.stop()


async def test_an_answer_that_many_do_not_read_is_in_memory_once(traced: None) -> None:
    async with running_edge(large, send_buffer_bytes=4096) as edge, unread(edge.url, request(), 1):
        before = tracemalloc.get_traced_memory()[0]
        async with unread(edge.url, request(), UNREAD):
            each = (tracemalloc.get_traced_memory()[0] - before) / UNREAD
    assert each < 100_000, "of a body eight times as large"


async def test_an_answer_larger_than_a_write_arrives_whole() -> None:
    async with running_edge(large, send_buffer_bytes=4096) as edge, unread(edge.url, request(), 1) as peers:
        assert (await peers[0].answer()).body == BODY
        await peers[0].send(request())
        assert (await peers[0].answer()).body == BODY


async def test_a_request_is_over_though_its_answer_is_not_read() -> None:
    app = Counting()
    async with running_edge(app, send_buffer_bytes=4096) as edge, unread(edge.url, request(), UNREAD) as peers:
        await until(lambda: app.over == UNREAD)
        assert (await peers[-1].answer()).body == BODY


def requests_held() -> int:
    gc.collect()  # the matcher of routes leaves a cycle
    return sum(isinstance(one, LeanRequest) for one in gc.get_objects())


async def test_answers_that_are_not_read_hold_no_requests(server: Server) -> None:
    async with unread(server.url, request(b"/openapi.json"), UNREAD):
        await until(lambda: not requests_held())


async def test_what_comes_behind_a_request_is_not_begun_before_its_answer_is_written() -> None:
    app = Counting()
    async with running_edge(app, send_buffer_bytes=4096) as edge, unread(edge.url, request() * 3, 1) as peers:
        await until(lambda: app.over == 1)
        assert app.begun == 1
        await peers[0].send(request(method=b"HEAD"))
        for _ in range(3):
            assert (await peers[0].answer()).body == BODY
        assert (await peers[0].answer(has_body=False)).headers["content-length"] == str(len(BODY))
        await peers[0].send(request())
        assert (await peers[0].answer()).body == BODY


@pytest.mark.parametrize("head", [request(), request(Connection=b"close")], ids=["kept", "last"])
async def test_a_peer_that_has_ended_its_side_gets_the_whole_answer_once_it_reads(head: bytes) -> None:
    async with running_edge(large, send_buffer_bytes=4096) as edge, unread(edge.url, head, 1) as peers:
        await peers[0].stream.send_eof()
        assert (await peers[0].answer()).body == BODY
        assert await peers[0].end() == b""


async def pass_seconds(clock: MockClock, seconds: int) -> None:
    """Let time pass a second at a time, and everybody do what is due. A clock that jumps by itself would do so
    also while the kernel takes its time."""
    for _ in range(seconds):
        clock.jump(1)
        await trio.testing.wait_all_tasks_blocked()


async def test_a_connection_is_not_idle_while_its_answer_is_not_read(mock_clock: MockClock) -> None:
    patience = {"stall_seconds": math.inf}
    app = Counting()
    running = running_edge(app, send_buffer_bytes=4096, idle_seconds=1.0, patience=patience)
    async with running as edge, unread(edge.url, request(), 1) as peers:
        await until(lambda: app.over == 1)
        await pass_seconds(mock_clock, 100)
        assert (await peers[0].answer()).body == BODY
        await trio.testing.wait_all_tasks_blocked(0.01)
        await pass_seconds(mock_clock, 10)
        assert await peers[0].end() == b"", "and then it is"


async def test_a_peer_that_goes_on_reading_nothing_is_cut_off(mock_clock: MockClock) -> None:
    app = Counting()
    running = running_edge(app, send_buffer_bytes=4096, idle_seconds=1000.0, patience={"stall_seconds": 10.0})
    async with running as edge, unread(edge.url, request(), UNREAD) as peers:
        await until(lambda: app.over == UNREAD)
        await pass_seconds(mock_clock, 15)
        for peer in peers:
            assert len(await peer.end()) < len(BODY)


async def test_an_answer_in_hand_when_the_server_stops_is_written_to_its_end() -> None:
    async with running_edge(large, send_buffer_bytes=4096) as edge, unread(edge.url, request(), 1) as peers:
        edge.stopping.set()
        await trio.testing.wait_all_tasks_blocked()
        assert (await peers[0].answer()).body == BODY
        assert await peers[0].end() == b""
        with trio.fail_after(10):
            await edge.ended.wait()


async def test_an_answer_that_is_not_read_is_cut_when_the_time_to_stop_is_up(mock_clock: MockClock) -> None:
    app = Counting()
    async with running_edge(app, send_buffer_bytes=4096) as edge, unread(edge.url, request(), UNREAD) as peers:
        await until(lambda: app.over == UNREAD)
        edge.stopping.set()
        while not edge.ended.is_set():
            await pass_seconds(mock_clock, 1)
        assert len(await peers[0].end()) < len(BODY)


@pytest.mark.one_process("the other worker has the outbox in memory, too")
async def test_a_stream_that_is_not_read_holds_a_write_and_not_its_replay(server: Server, traced: None) -> None:
    await server.register()
    for number in range(50):
        await server.publish(number, comment="x" * 60_000)
    head = request(b"/diagnoses/42/events", Authorization=b"Bearer " + server.token("amira").encode())
    async with unread(server.url, head, 1):
        before = tracemalloc.get_traced_memory()[0]
        async with unread(server.url, head, 10):
            each = (tracemalloc.get_traced_memory()[0] - before) / 10
    assert each < 20 * WRITTEN_BYTES, "of a replay of 3 MB"
