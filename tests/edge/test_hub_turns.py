"""One turn of the hub serves everybody a little: whoever floods waits, and who has answered is never cut off."""

from __future__ import annotations

from collections.abc import Sequence

import trio
import trio.lowlevel
from trio.testing import MockClock

from actors.resume import Wanted
from tests.edge.pairs import Edge, edge
from tests.edge.raw import CLOSE, PING, PONG, TEXT, RawClient, client_frame
from web.websocket.channel import FRAMES_AT_ONCE_MAX
from web.websocket.flood import FLOOD_SECONDS
from web.websocket.hub import DEADLINES_LOOK_SECONDS, LOOK_SECONDS
from web.websocket.poller import EpollPoller


class SlowPoller(EpollPoller):
    """Somebody else needs a while between any two turns of the hub."""

    def __init__(self, clock: MockClock, seconds: float) -> None:
        super().__init__()
        self._clock = clock
        self._seconds = seconds
        self.looks = 0

    async def wait(self) -> Sequence[tuple[int, int]]:
        self._clock.jump(self._seconds)
        return await super().wait()

    def look(self) -> Sequence[tuple[int, int]]:
        self.looks += 1
        return super().look()


async def test_sockets_are_read_however_late_every_look_is(autojump_clock: MockClock) -> None:
    seconds = 2 * max(LOOK_SECONDS, DEADLINES_LOOK_SECONDS)
    async with edge(poller=SlowPoller(autojump_clock, seconds)) as server:
        client, _ = await server.follow()
        await client.says("live")
        await client.send(client_frame(TEXT, b'{"type":"ping"}'))
        with trio.fail_after(20 * seconds):
            assert (await client.says("pong"))[-1]["type"] == "pong"


async def stopped(server: Edge, clock: MockClock, seconds: float) -> None:
    """The process stands still for so long: nothing runs, and then the hub goes on."""
    clock.jump(seconds)
    await trio.lowlevel.checkpoint()


async def text(client: RawClient) -> dict[str, object]:
    """The next text frame; Pongs in between are skipped."""
    while (got := await client.next()) is not None and got.opcode == PONG:
        pass
    assert got is not None
    return got.json


async def test_who_answered_while_the_process_stood_still_is_not_cut_off(autojump_clock: MockClock) -> None:
    async with edge() as server:
        pairs = [await server.follow(device=f"d{number}") for number in range(20)]
        for client, _ in pairs:
            await client.says("live")
        for client, _ in pairs:
            await client.pinged()
        for client, _ in pairs:
            await client.send(client_frame(PONG))
        await stopped(server, autojump_clock, 60)
        await trio.sleep(3)
        assert server.hub.connections == 20
        assert server.hub.counts.aborted == 0


async def test_deadlines_begin_anew_after_the_process_stood_still(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, _ = await server.follow()
        await client.says("live")
        await client.pinged()
        await stopped(server, autojump_clock, 60)
        began_at = trio.current_time()
        while server.hub.connections:
            await trio.sleep(0.1)
        assert trio.current_time() - began_at >= server.hub.limits.pong_seconds - 1
        assert server.hub.counts.aborted == 1


async def test_nobody_is_cut_off_for_silence_before_its_socket_was_read(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        await client.pinged()
        server.hub.poller.watch(follower.fd, read=False)
        await client.send(client_frame(PONG))
        await trio.sleep(2 * server.hub.limits.pong_seconds)
        assert server.hub.connections == 1


async def test_a_socket_full_of_small_frames_leaves_the_others_their_turn(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        server.hub.poller.watch(follower.fd, read=False)
        await client.send(client_frame(TEXT, b"") * 80)
        for read in (FRAMES_AT_ONCE_MAX, FRAMES_AT_ONCE_MAX, 80 - 2 * FRAMES_AT_ONCE_MAX):
            follower.on_readable()
            assert len([await client.says("error") for _ in range(read)]) == read
            assert await nothing_more(client)


async def test_a_long_frame_is_read_in_few_turns(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        server.hub.poller.watch(follower.fd, read=False)
        await client.send(client_frame(TEXT, b'{"type":"ping","data":{"x":"%b"}}' % (b"x" * 8000)))
        for _ in range(4):
            follower.on_readable()
        assert (await client.says("pong"))[-1]["type"] == "pong"


async def nothing_more(client: RawClient) -> bool:
    """Whether the server has written nothing that is unread."""
    with trio.move_on_after(0.5):
        await client.next()
        return False
    return True


async def test_who_has_used_up_its_allowance_is_read_again_later_and_answers_no_ping_meanwhile(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        await client.send(client_frame(PING) * 130)
        await trio.sleep(0.5)
        assert (follower.is_throttled, server.hub.connections) == (True, 1)
        await trio.sleep(4)
        assert (follower.is_throttled, server.hub.connections) == (False, 1)
        await client.send(client_frame(TEXT, b'{"type":"ping"}'))
        assert (await text(client))["type"] == "pong"


async def test_a_goodbye_to_who_is_not_read_is_answered_all_the_same(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        await client.send(client_frame(PING) * 130)
        await trio.sleep(0.5)
        assert follower.is_throttled
        await server.world.registry.end_all()
        assert (await text(client))["type"] == "bye"
        await client.send(client_frame(CLOSE, (1012).to_bytes(2, "big")))
        with trio.fail_after(1):
            while server.hub.connections:
                await trio.sleep(0.05)


async def test_an_ack_of_what_is_stored_is_answered_without_the_store(autojump_clock: MockClock) -> None:
    async with edge() as server:
        await server.publish(3)
        client, _ = await server.follow(ack="app", wanted=Wanted(newest=0))
        await client.says("live")
        await client.send(client_frame(TEXT, b'{"type":"ack","seq":3}'))
        assert (await client.says("acked"))[-1]["data"] == {"seq": 3}
        before = server.world.store.inner.statistics().operations
        for seq in (3, 2, 1, 0):
            await client.send(client_frame(TEXT, b'{"type":"ack","seq":%d}' % seq))
            assert (await client.says("acked"))[-1]["data"] == {"seq": 3}
        assert server.world.store.inner.statistics().operations == before


async def test_a_flood_of_acks_is_cut_off_in_time_though_each_turn_of_the_hub_is_late(
    autojump_clock: MockClock,
) -> None:
    async with edge(poller=SlowPoller(autojump_clock, 0.03)) as server:
        await server.publish()
        client, _ = await server.follow()
        used_up_seconds = 5  # few frames are read in a late turn: not many more than are free
        with trio.fail_after(used_up_seconds + FLOOD_SECONDS):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(client.rest)
                while server.hub.connections:
                    await client.send(client_frame(TEXT, b'{"type":"ack","seq":1}') * 100)
                    await trio.sleep(0.1)
