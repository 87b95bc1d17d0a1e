"""Answers that are not read: the server holds what they share once, and little for each."""

from __future__ import annotations

import gc
import socket
import tracemalloc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
import trio.testing

from tests.edge.peers import Peer, request, running_edge
from tests.edge.test_http1 import short
from tests.server.harness import Server
from web.following.streams import WRITTEN_BYTES

UNREAD = 40
BODY = b"".join(b"%07d." % number for number in range(100_000))


async def large(scope: Any, receive: Any, send: Any) -> None:
    if scope["type"] != "http":
        await short(scope, receive, send)
        return
    await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % len(BODY))]})
    await send({"type": "http.response.body", "body": BODY})


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
