"""Heartbeats of WebSockets: after so long without a message, to whoever asked and is caught up."""

from __future__ import annotations

from typing import Any

import trio
from trio.testing import MockClock

from actors.resume import Wanted
from storage.records import Seq
from tests.edge.pairs import edge
from tests.edge.raw import PING, RawClient

LOOK = 1.01
"""Seconds a heartbeat may be late: two looks, and what a computer cannot add."""


async def message(client: RawClient) -> dict[str, Any]:
    """The next message; Pings before it are answered."""
    while (got := await client.next(400)) is not None and got.opcode == PING:
        await client.pong(got.payload)
    assert got is not None
    return got.json


async def heartbeat(client: RawClient) -> int:
    """The number in the next message, which is a heartbeat."""
    frame = await message(client)
    assert frame["type"] == "heartbeat"
    assert frame.keys() == {"type", "diagnosis_id", "timestamp", "data"}
    return int(frame["data"]["seq"])


async def test_a_silent_connection_gets_heartbeats_at_its_own_pace(autojump_clock: MockClock) -> None:
    async with edge() as server:
        quick, _ = await server.follow(heartbeat_seconds=5)
        slow, _ = await server.follow("bo", heartbeat_seconds=300)
        for client in (quick, slow):
            await client.says("live")
        at = began_at = trio.current_time()
        for _ in range(3):
            assert await heartbeat(quick) == 0
            assert 5 <= trio.current_time() - at <= 5 + LOOK
            at = trio.current_time()
        assert await heartbeat(slow) == 0
        assert 300 <= trio.current_time() - began_at <= 300 + LOOK


async def test_who_did_not_ask_gets_none_and_nobody_is_looked_after_for_it(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, _ = await server.follow()
        await client.says("live")
        assert server.followers.beating == {}
        assert await client.pinged() == b""


async def test_a_heartbeat_carries_the_position_that_was_written_or_begun_from(autojump_clock: MockClock) -> None:
    async with edge() as server:
        await server.publish(3)
        reader, _ = await server.follow(ack="app", heartbeat_seconds=5)
        await reader.says("feedback_update", "feedback_update", "feedback_update", "live")
        assert await heartbeat(reader) == 3
        resumed, _ = await server.follow("bo", ack="app", wanted=Wanted(Seq(3)), heartbeat_seconds=5)
        await resumed.says("live")
        assert await heartbeat(resumed) == 3
        await server.publish()
        await resumed.says("feedback_update")
        assert await heartbeat(resumed) == 4


async def test_a_busy_diagnosis_and_answers_put_heartbeats_off_and_pings_do_not(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, _ = await server.follow(ack="app", heartbeat_seconds=5)
        await client.says("live")
        for _ in range(10):
            await trio.sleep(4)
            await server.publish()
            assert (await message(client))["type"] == "feedback_update"
        for _ in range(10):
            await trio.sleep(4)
            await client.say(type="ping")
            assert (await message(client))["type"] == "pong"
        at = trio.current_time()
        assert await heartbeat(client) == 10
        assert 5 <= trio.current_time() - at <= 5 + LOOK

    async with edge() as server:
        client, _ = await server.follow(ack="app", heartbeat_seconds=30)
        await client.says("live")
        at = trio.current_time()
        assert await client.pinged() == b""
        await client.pong(b"")
        assert await heartbeat(client) == 0
        assert 30 <= trio.current_time() - at <= 30 + LOOK


async def test_who_lags_gets_no_heartbeat_before_it_has_caught_up(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow(ack="app", heartbeat_seconds=5)
        await client.says("live")
        await server.fill(follower)
        await trio.sleep(8)
        assert follower.blocked
        head = server.world.actor().window
        assert head is not None
        while (frame := await message(client))["type"] != "heartbeat":
            assert frame["type"] in ("feedback_update", "gap")
        assert frame["data"]["seq"] == head.head


async def test_a_connection_that_has_ended_is_not_looked_after(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow(ack="app", heartbeat_seconds=5)
        await client.says("live")
        follower.abort()
        assert server.followers.beating == {}
        never_opened = server.prepare(heartbeat_seconds=5)
        await server.admit(never_opened)
        never_opened.abort()
        assert server.followers.beating == {}


async def test_a_heartbeat_that_fails_ends_its_own_connection_alone(autojump_clock: MockClock) -> None:
    async with edge() as server:
        broken, follower = await server.follow(ack="app", heartbeat_seconds=5)
        other, _ = await server.follow("bo", ack="app", heartbeat_seconds=6)
        for client in (broken, other):
            await client.says("live")
        del follower._subscriber.position
        (bye,) = await broken.says("bye")
        assert bye["data"]["code"] == 1011
        assert await heartbeat(other) == 0
