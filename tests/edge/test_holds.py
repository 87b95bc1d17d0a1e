"""The Close behind a refusal is held back, longer each time, so that whoever comes back at once is no hot loop."""

from __future__ import annotations

import json
import struct
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from actors.transport import Ending
from tests.edge.pairs import Edge, edge
from tests.edge.raw import CLOSE, PING, TEXT, Got, RawClient, client_frame, upgraded
from tests.logbook import Logbook
from tests.server.harness import Server, running_server
from tests.server.test_streams import Stream, streamed
from web.server.settings import Settings
from web.websocket.channel import HELD_BYTES_MAX
from web.websocket.holds import Holds

TIMES = [0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
LOOK = 0.11
"""The hub looks every tenth of a second."""


# The arithmetic


def test_each_time_is_twice_the_one_before_and_five_seconds_at_most() -> None:
    holds = Holds()
    assert [holds.seconds("a", float(number)) for number in range(7)] == TIMES
    assert holds.seconds("b", 7.0) == 0.2


def test_a_quiet_minute_is_forgotten_and_a_refusal_within_it_is_not() -> None:
    holds = Holds()
    assert [holds.seconds("a", at) for at in (0.0, 59.0, 118.0, 178.0)] == [0.2, 0.4, 0.8, 0.2]


def test_the_names_are_bounded_and_quiet_ones_are_let_go() -> None:
    holds = Holds(names_max=2)
    for at, name in enumerate(["a", "b", "a", "c"]):
        holds.seconds(name, float(at))
    assert holds.seconds("a", 4.0) == 0.8, "b was pushed out"
    assert holds.seconds("b", 5.0) == 0.2
    holds.forget_quiet(64.5)
    assert len(holds._lately) == 1
    holds.forget_quiet(65.0)
    assert len(holds._lately) == 0


# Take-overs, on socket pairs


async def replaced(server: Edge, device: str = "phone") -> RawClient:
    """A client whose connection has just been taken over by a newer one."""
    older, _ = await server.follow(device=device)
    await older.says("live")
    await server.follow(device=device)
    return older


async def bye_then_close(client: RawClient) -> float:
    """How long after its `bye` the Close comes."""
    (bye,) = await client.says("bye")
    assert (bye["data"]["code"], bye["data"]["reason"]) == (4000, "replaced")
    said_at = trio.current_time()
    got = await client.next()
    assert got is not None
    assert (got.code, got.reason) == (4000, "replaced")
    return trio.current_time() - said_at


async def test_bye_goes_out_at_once_and_the_close_behind_it_later_each_time(autojump_clock: MockClock) -> None:
    async with edge() as server:
        older, _ = await server.follow(device="phone")
        for seconds in TIMES:
            await older.says("live")
            newer, _ = await server.follow(device="phone")
            waited = await bye_then_close(older)
            assert seconds <= waited <= seconds + LOOK
            older = newer
        assert 0.2 <= await bye_then_close(await replaced(server, "tablet")) <= 0.2 + LOOK, "another device"
        await trio.sleep(60)
        assert 0.2 <= await bye_then_close(await replaced(server)) <= 0.2 + LOOK, "after a quiet minute"


async def test_other_ends_are_not_held_back(autojump_clock: MockClock) -> None:
    async with edge() as server:
        for ending in (Ending.REVOKED, Ending.QUARANTINED, Ending.STOPPING, Ending.DISCONNECTED):
            client, follower = await server.follow()
            await client.says("live")
            follower.end(ending)
            await client.says("bye")
            at = trio.current_time()
            got = await client.next()
            assert got is not None
            assert got.opcode == CLOSE
            assert trio.current_time() == at


async def test_a_held_connection_is_detached_and_its_place_is_given_back(autojump_clock: MockClock) -> None:
    async with edge() as server:
        older, follower = await server.follow(device="phone")
        await older.says("live")
        released: list[bool] = []
        follower._subscriber.released = lambda: released.append(True)
        await server.follow(device="phone")
        assert released == [True]
        assert sum(server.world.registry.connections.values()) == 1
        await older.says("bye")
        await server.publish()
        got = await older.next()
        assert got is not None
        assert got.code == 4000, "no event"


async def test_a_close_of_the_client_is_answered_at_once(autojump_clock: MockClock) -> None:
    async with edge() as server:
        for _ in range(6):
            older = await replaced(server)
        await older.says("bye")
        at = trio.current_time()
        await older.send(client_frame(CLOSE, struct.pack("!H", 1000)))
        got = await older.next()
        assert got is not None
        assert (got.code, got.reason) == (4000, "replaced")
        assert await older.next() is None
        assert trio.current_time() == at


async def test_a_client_that_leaves_without_a_close_is_gone_at_once(autojump_clock: MockClock) -> None:
    async with edge() as server:
        older = await replaced(server)
        await older.says("bye")
        before = server.hub.connections
        await older.stream.aclose()
        await trio.testing.wait_all_tasks_blocked()
        assert server.hub.connections == before - 1
        assert not server.hub._held


async def test_what_a_held_client_says_is_not_answered_and_a_flood_ends_the_hold(autojump_clock: MockClock) -> None:
    async with edge() as server:
        for _ in range(6):
            older = await replaced(server)
        await older.says("bye")
        at = trio.current_time()
        await older.send(client_frame(PING, b"x"), client_frame(TEXT, json.dumps({"type": "ping"}).encode()))
        with trio.move_on_after(1):
            raise AssertionError(await older.next())
        assert trio.current_time() == at + 1
        frame = client_frame(TEXT, b"x" * 4000)
        for _ in range(HELD_BYTES_MAX // len(frame) + 1):
            await older.send(frame)
        got = await older.next()
        assert got is not None
        assert got.code == 4000
        assert trio.current_time() == at + 1


async def test_a_drain_ends_all_that_are_held_at_once(autojump_clock: MockClock) -> None:
    async with edge() as server:
        clients = [await replaced(server, "phone") for _ in range(6)]
        newest = [await replaced(server, f"device{number}") for number in range(20)]
        assert len(server.hub._held) >= 20
        for client in newest:
            await client.says("bye")
        at = trio.current_time()
        async with trio.open_nursery() as nursery:
            await server.world.registry.end_all()
            nursery.start_soon(server.hub.drain)
            for client in newest:
                got = await client.next()
                assert got is not None
                assert got.code == 4000
            assert trio.current_time() == at
            for client in server.clients:
                await client.leave()
        assert trio.current_time() == at
        assert len(clients) == 6


async def test_beyond_the_limit_the_close_goes_out_at_once(autojump_clock: MockClock) -> None:
    async with edge(held_max=2) as server:
        first, second, third = [await replaced(server, f"device{number}") for number in range(3)]
        assert await bye_then_close(third) == 0.0
        assert await bye_then_close(first) > 0.0
        assert await bye_then_close(second) >= 0.0


async def test_who_does_not_read_is_cut_off_as_without_a_hold(autojump_clock: MockClock) -> None:
    async with edge() as server:
        _, follower = await server.follow(device="phone")
        await server.fill(follower)
        await server.follow(device="phone")
        at = trio.current_time()
        while not follower.fd < 0 and server.hub.connections > 1:
            await trio.sleep(0.5)
        assert trio.current_time() - at <= 11


# Refusals, on the real server


async def refused_at(server: Server, path: str, *headers: str) -> tuple[Got, float, Got]:
    """The `error`, how long after it was asked for the Close comes, and the Close."""
    asked_at = trio.current_time()
    client = await upgraded(int(server.url.rpartition(":")[2]), path, *headers)
    error = await client.next()
    close = await client.next()
    waited = trio.current_time() - asked_at
    assert error is not None
    assert close is not None
    assert error.json["type"] == "error"
    await client.stream.aclose()
    return error, waited, close


@pytest.mark.one_process("each worker counts whom it holds back")
async def test_refusals_are_told_at_once_and_counted_by_address_and_token(server: Server) -> None:
    await server.register()
    expired, bad = (f"Authorization: Bearer {one}" for one in (server.token("amira", ttl_seconds=-60), "nonsense"))
    async with trio.open_nursery() as nursery:

        async def twice(*headers: str) -> None:
            for seconds in (0.2, 0.4):
                _, waited, close = await refused_at(server, "/ws/42", *headers)
                assert close.code == 1008
                assert waited >= seconds * 0.9

        for headers in ((expired,), (bad,), ()):
            nursery.start_soon(twice, *headers)
    # Whatever is wrong with it: an unknown diagnosis, a wrong parameter.
    good = f"Authorization: Bearer {server.token('amira')}"
    assert (await refused_at(server, "/ws/43", good))[2].reason == "access denied"
    assert (await refused_at(server, "/ws/42?ack=never", good))[1] >= 0.36


async def test_a_client_that_comes_back_whenever_a_connection_ends_makes_few_connections(server: Server) -> None:
    # As `async for websocket in websockets.connect(url)` does: a handshake that succeeded resets its backoff.
    await server.register()
    token = server.token("amira", ttl_seconds=-60)
    connections = 0
    with trio.move_on_after(3.5):
        while True:
            connections += 1
            async with server.connect(sub=None, token=token) as client:
                (error,), code, reason = await client.close_frames()
            assert (error["data"]["code"], code, reason) == ("token_expired", 1008, "token expired")
    assert 2 <= connections <= 6


@pytest.mark.one_process("each worker counts whom it holds back")
async def test_two_clients_with_one_device_take_it_from_each_other_now_and_then(
    server: Server, logbook: Logbook
) -> None:
    await server.register()
    connections = 0

    async def follow_for_ever() -> None:
        nonlocal connections
        while True:
            connections += 1
            async with server.connect(device="phone") as client:
                frames, code, _ = await client.close_frames()
            assert (frames[-1]["type"], code) == ("bye", 4000)

    with trio.move_on_after(3.5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_for_ever)
            nursery.start_soon(follow_for_ever)
    assert 3 <= connections <= 8
    assert len([line for line in logbook.lines if "code=4000" in line]) == 1, "the others are one line a minute"


async def test_a_tenth_of_the_connections_is_held_at_most(tmp_path: Path) -> None:
    async with running_server(Settings(port=0, data=tmp_path / "data", max_connections=19)) as server:
        port = int(server.url.rpartition(":")[2])
        for _ in TIMES:  # whose Close is answered at once, so that the next is held for long
            client = await upgraded(port, "/ws/42")
            await client.says("error")
            await client.leave()
        held, not_held = [await upgraded(port, "/ws/42") for _ in range(2)]
        for client in (held, not_held):
            await client.says("error")
        began_at = trio.current_time()
        close = await not_held.next()
        assert close is not None
        assert close.code == 1008
        assert trio.current_time() - began_at < 4, "it would have been 5"
        with trio.move_on_after(0.1) as patience:
            await held.next()
        assert patience.cancelled_caught
        for client in (held, not_held):
            await client.stream.aclose()


# Event streams, on the real server


async def until_bye(stream: Stream) -> None:
    """Read a stream up to the `bye` of its take-over."""
    while (one := await stream.next()).frame["type"] != "bye":
        pass
    assert one.frame["data"]["code"] == 4000


async def end_after(stream: Stream) -> float:
    """How long after now a stream ends."""
    began_at = trio.current_time()
    with pytest.raises(EOFError):
        await stream.block()
    return trio.current_time() - began_at


async def test_two_streams_of_one_device_take_it_from_each_other_now_and_then(server: Server) -> None:
    await server.register()
    connections = 0

    async def follow_for_ever() -> None:
        nonlocal connections
        while True:
            connections += 1
            async with streamed(server, device="phone") as stream:
                await until_bye(stream)
                await end_after(stream)

    with trio.move_on_after(3.5):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow_for_ever)
            nursery.start_soon(follow_for_ever)
    assert 3 <= connections <= 8


@pytest.mark.one_process("each worker counts whom it holds back")
async def test_a_stream_and_a_websocket_of_one_device_count_together(server: Server) -> None:
    await server.register()
    async with streamed(server, device="phone") as stream, server.live(device="phone") as client:
        await until_bye(stream)
        assert await end_after(stream) >= 0.15
        async with streamed(server, device="phone") as newer, server.live(device="phone"):
            await client.next_of("bye")
            await until_bye(newer)
            assert await end_after(newer) >= 0.7, "the third"


async def test_a_held_stream_is_detached_and_a_drain_ends_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.websocket.holds.FIRST_SECONDS", 60.0)
    async with running_server(settings) as server:
        await server.register()
        async with streamed(server, device="phone") as older, streamed(server, device="phone") as newer:
            await until_bye(older)
            await newer.until_live()
            assert (await server.status())["total_connections"] == 1
            await server.publish()
            assert (await newer.next()).number == 1
            with trio.move_on_after(0.3) as patience:
                await end_after(older)
            assert patience.cancelled_caught
            server.stop()
            assert await end_after(older) < 5


async def test_streams_count_among_those_that_are_held(autojump_clock: MockClock) -> None:
    async with edge(held_max=2) as server, trio.open_nursery() as nursery:
        hub = server.hub
        for name in ("a", "b"):
            nursery.start_soon(hub.hold_stream, name)
        await trio.testing.wait_all_tasks_blocked()
        at = trio.current_time()
        await hub.hold_stream("c")
        assert trio.current_time() == at
        assert await bye_then_close(await replaced(server)) == 0.0
        nursery.cancel_scope.cancel()
    assert hub._streams_held == 0


async def test_a_drain_ends_the_holds_of_streams_at_once(autojump_clock: MockClock) -> None:
    async with edge() as server, trio.open_nursery() as nursery:
        at = trio.current_time()
        nursery.start_soon(server.hub.hold_stream, "a")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(server.hub.drain)
    assert trio.current_time() == at
