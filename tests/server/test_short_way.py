"""What a connection does while plain requests are answered in its own task."""

from __future__ import annotations

from dataclasses import replace

import pytest
import trio
import trio.testing

from tests.edge.peers import connect
from tests.server.harness import Server, running_server
from tests.server.test_two_ways import FEEDBACK, get, post
from web.contract.principals import Principal
from web.http import bodies
from web.publishing.broadcasts import Publisher
from web.server.settings import Settings

UNKNOWN = b"GET /diagnoses HTTP/1.1\r\nHost: localhost\r\n\r\n"
"""It has no token: its handler waits for nothing."""


async def short_of(server: Server) -> int:
    """How many requests took the short way; the question is one of them."""
    found: int = (await server.status())["node"]["requests"]["short"]
    return found


@pytest.mark.one_way
async def test_a_body_may_come_in_pieces_and_the_next_request_right_behind_it(server: Server) -> None:
    await server.register()
    first, second = post()(server), post()(server)
    body_begins = first.index(b"\r\n\r\n") + 4
    before = await short_of(server)
    async with await connect(server.url) as peer:
        await peer.send(first[:body_begins])
        for at in range(body_begins, len(first) - 1, 10):
            await peer.send(first[at : min(at + 10, len(first) - 1)])
            await trio.testing.wait_all_tasks_blocked()
        await peer.send(first[-1:] + second)
        assert [(await peer.answer()).status for _ in range(2)] == [200, 200]
    assert await short_of(server) - before == 3


@pytest.mark.one_way
async def test_a_head_longer_than_most_takes_the_short_way(server: Server) -> None:
    await server.register()
    before = await short_of(server)
    async with await connect(server.url) as peer:
        await peer.send(get(b"/diagnoses/42", b"Cookie: " + b"a" * 6000)(server))
        assert (await peer.answer()).status == 200
    assert await short_of(server) - before == 2


async def test_a_body_that_does_not_come_is_waited_for_so_long(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.register()
    monkeypatch.setattr(bodies, "BODY_SECONDS_MAX", 0.2)
    async with await connect(server.url) as peer:
        await peer.send(post()(server)[:-1])
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (408, "close")
        assert await peer.end() == b""


async def test_a_refusal_before_the_end_of_a_body_ends_the_connection_and_is_read(server: Server) -> None:
    head = post(b"a" * 60_000, sub="nobody")(server).replace(b"Authorization: Bearer ", b"X: ")
    async with await connect(server.url) as peer:
        await peer.send(head[:5_000])
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (401, "close")
        await peer.send(head[5_000:])
        assert await peer.end() == b""


async def test_a_peer_that_ends_while_its_body_is_waited_for_is_answered_400(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register()
    async with await connect(server.url) as peer:
        await peer.send(post()(server)[:-1])
        await trio.testing.wait_all_tasks_blocked(0.01)
        await peer.stream.send_eof()
        answer = await peer.answer()
        assert answer.status == 400
        assert "x-request-id" not in answer.headers
        assert await peer.end() == b""


async def test_requests_that_wait_for_nothing_leave_others_their_turns(server: Server) -> None:
    turns = 0

    async def count() -> None:
        nonlocal turns
        while True:
            await trio.lowlevel.checkpoint()
            turns += 1

    async with await connect(server.url) as peer, trio.open_nursery() as nursery:
        nursery.start_soon(count)
        await peer.send(UNKNOWN * 100)
        for _ in range(100):
            assert (await peer.answer()).status == 401
        nursery.cancel_scope.cancel()
    assert turns >= 90  # one between any two answers, as far as the test and the server begin and end together


async def test_idle_connections_end_after_their_time_and_when_the_server_stops(settings: Settings) -> None:
    async with running_server(replace(settings, keep_alive_seconds=0.3)) as server, await connect(server.url) as peer:
        await peer.send(get(b"/healthz")(server))
        assert (await peer.answer()).status == 200
        assert await peer.end() == b""
    async with running_server(replace(settings, keep_alive_seconds=600)) as server, await connect(server.url) as peer:
        await peer.send(get(b"/healthz")(server))
        assert (await peer.answer()).status == 200
        server.stop()
        with trio.fail_after(5):
            assert await peer.end() == b""


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """Set when a publish is in hand, and what it waits for."""
    in_hand, may_go_on = trio.Event(), trio.Event()
    authorized_target = Publisher.authorized_target

    async def slow(self: Publisher, who: Principal, text: bytes, what: str) -> str | None:
        in_hand.set()
        await may_go_on.wait()
        return await authorized_target(self, who, text, what)

    monkeypatch.setattr(Publisher, "authorized_target", slow)
    return in_hand, may_go_on


async def test_a_request_in_hand_when_the_server_stops_is_answered_and_is_the_last(
    server: Server, held: tuple[trio.Event, trio.Event]
) -> None:
    in_hand, may_go_on = held
    await server.register()
    async with await connect(server.url) as peer:
        await peer.send(post()(server) + post()(server))
        with trio.fail_after(5):
            await in_hand.wait()
        server.stop()
        await trio.testing.wait_all_tasks_blocked(0.01)
        may_go_on.set()
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (200, "close")
        assert await peer.end() == b""


async def test_what_a_request_has_begun_is_done_though_its_peer_has_left(
    server: Server, held: tuple[trio.Event, trio.Event]
) -> None:
    in_hand, may_go_on = held
    await server.register()
    async with server.live() as client:
        peer = await connect(server.url)
        await peer.send(post(FEEDBACK)(server))
        with trio.fail_after(5):
            await in_hand.wait()
        await trio.aclose_forcefully(peer.stream)
        may_go_on.set()
        assert (await client.next())["data"]["feedback_id"] == 1
