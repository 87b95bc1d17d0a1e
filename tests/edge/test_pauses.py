"""A process that is paused: what arrived meanwhile arrived in time, whatever the deadlines say when it goes on."""

from __future__ import annotations

import contextlib
import signal
import socket
import time
from pathlib import Path
from typing import Any

import pytest
import trio
import trio.testing

from tests.edge.peers import Answer, Peer, connect, request, running_edge
from tests.edge.test_http1 import short
from tests.server.harness import Server
from tests.server.process import served
from web.http import bodies
from web.http.line import Patience
from web.http.serving import Edge, Terms

PAUSE_SECONDS = 0.5
"""Longer than every time of these tests."""


def paused_while(peer: Peer, data: bytes) -> None:
    """The peer sends this, and no task of this process runs for so long."""
    with socket.socket(fileno=socket.dup(peer.stream.socket.fileno())) as ours:
        ours.setblocking(False)
        assert ours.send(data) == len(data)
    time.sleep(PAUSE_SECONDS)


async def test_requests_on_idle_connections_that_arrive_during_a_stop_of_the_process_are_answered(
    tmp_path: Path,
) -> None:
    async with served(tmp_path / "data", AVICENNA_KEEP_ALIVE_SECONDS="1") as (process, server):
        await server.register()
        body = b'{"diagnosis_id": 42, "feedback_id": 1, "rating": 5}'
        token = b"Bearer " + server.token("amira").encode()
        path = b"/ws/broadcast-feedback-update"
        publish = request(path, b"POST", body, Content_Type=b"application/json", Authorization=token)
        peers = [await connect(server.url) for _ in range(8)]
        for peer in peers:
            await peer.send(publish)
            assert (await peer.answer()).status == 200
        process.process.send_signal(signal.SIGSTOP)
        for peer in peers:
            await peer.send(publish)
        await trio.sleep(1.5)
        process.process.send_signal(signal.SIGCONT)
        for peer in peers:
            assert (await peer.answer()).status == 200
            await trio.aclose_forcefully(peer.stream)


async def unhurried(scope: Any, receive: Any, send: Any) -> None:
    """An application that others get a few turns before: most routes wait for an actor and a commit."""
    if scope["type"] == "http":
        for _ in range(10):
            await trio.lowlevel.checkpoint()
    await short(scope, receive, send)


@pytest.mark.parametrize("first", [b"", b"GET / HT"], ids=["nothing", "half a head"])
@pytest.mark.parametrize("is_reused", [False, True])
async def test_a_request_that_arrives_during_a_pause_is_answered(first: bytes, is_reused: bool) -> None:
    impatient = {"first_byte_seconds": 0.2, "head_seconds": 0.2}
    async with running_edge(unhurried, idle_seconds=0.2, patience=impatient) as edge, await connect(edge.url) as peer:
        if is_reused:
            await peer.send(request())
            assert (await peer.answer()).status == 200
        await peer.send(first)
        await trio.testing.wait_all_tasks_blocked()
        paused_while(peer, request().removeprefix(first))
        assert (await peer.answer()).status == 200
        paused_while(peer, request())
        assert (await peer.answer()).status == 200, "the connection goes on"


async def test_a_head_that_is_not_whole_after_a_pause_is_answered_408_without_a_further_wait() -> None:
    async with (
        running_edge(short, idle_seconds=1000, patience={"head_seconds": 0.2}) as edge,
        await connect(edge.url) as peer,
    ):
        await peer.send(b"GET / HT")
        await trio.testing.wait_all_tasks_blocked()
        paused_while(peer, b"TP/1.1\r\n")
        assert (await peer.answer()).status == 408
        assert await peer.end() == b""


@pytest.mark.parametrize("size", [10, 60_000])
async def test_a_body_that_becomes_whole_during_a_pause_is_taken(
    server: Server, monkeypatch: pytest.MonkeyPatch, size: int
) -> None:
    await server.register()
    monkeypatch.setattr(bodies, "BODY_SECONDS_MAX", 0.2)
    body = b'{"diagnosis_id": 42, "feedback_id": 1, "rating": 5}'.rjust(size)
    token = b"Bearer " + server.token("amira").encode()
    whole = request(
        b"/ws/broadcast-feedback-update", b"POST", body, Content_Type=b"application/json", Authorization=token
    )
    async with await connect(server.url) as peer:
        await peer.send(whole[: -len(body)])
        await trio.testing.wait_all_tasks_blocked()
        paused_while(peer, body)
        assert (await peer.answer()).status == 200


async def test_a_body_that_is_not_whole_after_a_pause_is_answered_408(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register()
    monkeypatch.setattr(bodies, "BODY_SECONDS_MAX", 0.2)
    token = b"Bearer " + server.token("amira").encode()
    whole = request(
        b"/ws/broadcast-feedback-update", b"POST", b"x" * 100, Content_Type=b"application/json", Authorization=token
    )
    async with await connect(server.url) as peer:
        await peer.send(whole[:-50])
        await trio.testing.wait_all_tasks_blocked()
        paused_while(peer, b"x" * 49)
        answer = await peer.answer()
        assert (answer.status, answer.problem["code"]) == (408, "bad_json")


async def test_a_peer_that_reads_again_during_a_pause_is_not_cut_off() -> None:
    size = 4_000_000

    async def large(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await short(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"%d" % size)]})
        await send({"type": "http.response.body", "body": b"x" * size})

    async with running_edge(large, patience={"stall_seconds": 0.2}) as edge, await connect(edge.url) as peer:
        peer.stream.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 64 * 1024)
        await peer.send(request())
        await trio.testing.wait_all_tasks_blocked()
        received = read_while_paused(peer.stream.socket)
        answer = await rest_of(peer, received)
    assert len(answer.body) == size


def read_while_paused(sock: Any) -> bytes:
    """Read what the server had written, and then let time pass, without letting the server run."""
    received = b""
    until = time.perf_counter() + PAUSE_SECONDS
    with socket.socket(fileno=socket.dup(sock.fileno())) as ours:
        ours.setblocking(False)
        while time.perf_counter() < until:
            with contextlib.suppress(BlockingIOError):
                received += ours.recv(65536)
    return received


async def rest_of(peer: Peer, received: bytes) -> Answer:
    peer._read = received
    return await peer.answer()


async def test_a_request_in_hand_when_the_server_stops_is_answered_though_it_was_read_in_that_turn() -> None:
    edge = Edge(unhurried, Terms(connections_max=1, drain_seconds_max=1.0, patience=Patience()))
    server_end, client_end = socket.socketpair()
    server_end.setblocking(False)
    with client_end:
        async with trio.open_nursery() as connections_nursery:
            connections_nursery.start_soon(edge.accept, server_end, None)
            await trio.testing.wait_all_tasks_blocked()
            client_end.send(request())
            await trio.lowlevel.checkpoint()  # the connection is woken by its socket, and runs after this task
            await edge.retire()
        answer = client_end.recv(65536)
    assert answer.startswith(b"HTTP/1.1 200 ")
