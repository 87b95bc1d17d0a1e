"""What a follower gets over its socket: order, receipts, liveness, ends. On socket pairs, with a clock that jumps."""

from __future__ import annotations

import selectors
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from actors.messages import Forget, Purge
from actors.resume import Wanted
from actors.transport import Burst, Ending
from actors.which import EVERYBODY
from storage.records import AcknowledgedBy, Act, Seq
from tests.actors.world import DIAGNOSIS, anybody
from tests.edge.pairs import Edge, connect_frame, edge
from tests.edge.raw import BINARY, CLOSE, PING, PONG, TEXT, Got, RawClient, client_frame
from web.websocket.poller import SelectorPoller


async def numbers(client: RawClient, count: int) -> list[int]:
    """The numbers of the next events; Pings in between are skipped."""
    found: list[int] = []
    while len(found) < count:
        got = await client.next()
        assert got is not None
        if got.opcode == TEXT:
            found.append(got.json["seq"])
    return found


async def test_the_replay_follows_the_greeting_then_live_then_events(autojump_clock: MockClock) -> None:
    async with edge() as server:
        await server.publish(2)
        client, _ = await server.follow(head=connect_frame())
        await client.says("connect", "feedback_update", "feedback_update", "live")
        assert await client.pinged() == b"2"
        await server.publish()
        assert [one["seq"] for one in await client.says("feedback_update")] == [3]


async def test_what_was_published_between_admission_and_the_first_write_is_part_of_the_stream(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        await server.publish()
        follower = server.prepare()
        await server.admit(follower)
        await server.publish()
        client = server.opened(follower, connect_frame())
        said = await client.says("connect", "feedback_update", "live", "feedback_update")
        assert [one.get("seq") for one in said] == [None, 1, None, 2]


async def test_who_was_told_to_end_before_its_first_write_is_told_after_the_greeting(autojump_clock: MockClock) -> None:
    async with edge() as server:
        follower = server.prepare()
        await server.admit(follower)
        follower.end(Ending.DELETED)
        client = server.opened(follower, connect_frame())
        await client.says("connect", "bye")
        got = await client.next()
        assert got is not None
        assert (got.code, got.reason) == (1008, "diagnosis deleted")


@pytest.mark.parametrize(
    ("ending", "code", "retry"),
    [
        (Ending.REPLACED, 4000, None),
        (Ending.REVOKED, 1008, None),
        (Ending.QUARANTINED, 1013, 2500),
        (Ending.STOPPING, 1012, 2500),
        (Ending.RENEWED, 1012, 2500),
    ],
)
async def test_the_server_says_bye_with_the_code_it_closes_with(
    ending: Ending, code: int, retry: int | None, autojump_clock: MockClock
) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        follower.end(ending)
        (bye,) = await client.says("bye")
        assert (bye["data"]["code"], bye["data"]["retry_after_ms"]) == (code, retry)
        got = await client.next()
        assert got is not None
        assert got.code == code
        await client.send(client_frame(CLOSE, code.to_bytes(2, "big")))
        assert await client.next() is None
        assert server.hub.connections == 0


# Receipts


async def test_a_pong_that_echoes_a_receipt_moves_the_cursor(autojump_clock: MockClock) -> None:
    async with edge() as server:
        await server.publish(3)
        client, _ = await server.follow()
        await numbers(client, 3)
        await client.says("live")
        assert await server.cursor() == 0
        await client.pong(await client.pinged())
        await trio.sleep(2)
        assert await server.cursor() == 3


@pytest.mark.parametrize(
    ("ending", "ack", "answer", "cursor"),
    [
        (Ending.STOPPING, "transport", 1012, 3),
        (Ending.STOPPING, "app", 1012, 0),
        (Ending.STOPPING, "transport", 1000, 0),
        (Ending.STOPPING, "transport", 1001, 0),
        (Ending.STOPPING, "transport", None, 0),
        (Ending.QUARANTINED, "transport", 1013, 0),
        (Ending.REPLACED, "transport", 4000, 0),
        (Ending.REVOKED, "transport", 1008, 0),
    ],
)
async def test_a_close_that_answers_bye_1012_with_its_code_is_a_receipt_and_no_other_is(
    ending: Ending, ack: AcknowledgedBy, answer: int | None, cursor: int, autojump_clock: MockClock
) -> None:
    async with edge() as server:
        client, follower = await server.follow(ack=ack)
        await client.says("live")
        await server.publish(3)
        follower.end(ending)
        while (got := await client.next()) is not None and got.opcode != CLOSE:
            pass
        await client.send(client_frame(CLOSE, b"" if answer is None else answer.to_bytes(2, "big")))
        assert await client.next() is None
        await trio.sleep(2)
        assert await server.cursor() == cursor


async def test_a_close_that_crosses_ours_on_the_way_is_no_receipt_whatever_its_code(autojump_clock: MockClock) -> None:
    async with edge() as server:
        for device in ("before", "unread"):
            client, follower = await server.follow(device=device, wanted=Wanted(newest=0))
            await client.says("live")
            await server.publish(3)
            close = client_frame(CLOSE, (1012).to_bytes(2, "big"))
            if device == "before":
                await client.send(close)
                follower.end(Ending.STOPPING)
            else:
                follower.end(Ending.STOPPING)
                await client.send(close)  # nothing that came before it is read
            await trio.sleep(2)
            assert server.hub.connections == 0
        cursors = [await server.cursor(device=device) for device in ("before", "unread")]
        assert cursors == [0, 3], "where each began"


async def test_who_is_forgotten_before_it_answers_the_goodbye_stays_forgotten(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        await server.publish(3)
        follower.end(Ending.STOPPING)
        forget = Forget(EVERYBODY, Act("op", "forget"), anybody)
        await server.world.registry.ask(DIAGNOSIS, forget)
        while (got := await client.next()) is not None and got.opcode != CLOSE:
            pass
        await client.send(client_frame(CLOSE, (1012).to_bytes(2, "big")))
        assert await client.next() is None
        await trio.sleep(2)
        assert await server.cursor() is None


async def test_a_live_event_after_a_silence_carries_its_receipt(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, _ = await server.follow()
        await client.says("live")
        await server.publish()
        await client.says("feedback_update")
        assert await client.pinged() == b"1"


async def test_a_receipt_comes_at_the_latest_one_second_after_an_event(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, _ = await server.follow()
        await client.says("live")
        await server.publish(3)
        at = trio.current_time()
        await client.says("feedback_update")
        assert await client.pinged() == b"1"
        await client.says("feedback_update", "feedback_update")
        assert await client.pinged() == b"3"
        assert trio.current_time() - at <= 1


@pytest.mark.parametrize("seconds", [0.03, 0.25, 0.7])
async def test_in_a_steady_stream_no_receipt_is_asked_for_but_with_an_event(
    seconds: float, autojump_clock: MockClock
) -> None:
    async with edge() as server:
        client, _ = await server.follow()
        await client.says("live")
        asked = 0
        for _ in range(20):
            await server.publish()
            await client.says("feedback_update")
            published_at = trio.current_time()
            with trio.move_on_after(seconds):
                got = await client.next()
                assert got is not None
                assert got.opcode == PING
                assert trio.current_time() == published_at
                asked += 1
                await trio.sleep_forever()
        assert 20 * seconds / 2 < asked <= 20 * seconds / 0.8 + 1


async def test_receipts_are_at_most_fifty_events_apart(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, _ = await server.follow()
        await client.says("live")
        await server.publish(120)
        asked: list[int] = []
        while not asked or asked[-1] < 101:
            got = await client.next()
            assert got is not None
            if got.opcode == PING:
                asked.append(int(got.payload))
        assert asked == [1, 51, 101]


async def test_a_replay_is_receipted_every_fifty_events_and_at_its_end(autojump_clock: MockClock) -> None:
    async with edge() as server:
        await server.publish(90)
        client, _ = await server.follow()
        seen: list[int | str] = []
        while "live" not in seen or seen[-1] == "live":
            got = await client.next()
            assert got is not None
            seen.append(f"ping {int(got.payload)}" if got.opcode == PING else got.json.get("seq", "live"))
        assert [one for one in seen if not isinstance(one, int)] == ["ping 50", "live", "ping 90"]


async def test_a_gap_with_no_event_behind_it_is_receipted_too(autojump_clock: MockClock) -> None:
    async with edge() as server:
        await server.publish(3)
        client, _ = await server.follow()
        await numbers(client, 3)
        await client.says("live")
        await client.pong(await client.pinged())
        await client.leave()
        await trio.sleep(2)
        await server.publish(5)
        purge = Purge(Act("op", "outbox.purge"), anybody)
        await server.world.registry.ask(DIAGNOSIS, purge)
        client, _ = await server.follow()
        (gap, _) = await client.says("gap", "live")
        assert (gap["data"]["from"], gap["data"]["to"]) == (4, 8)
        assert await client.pinged() == b"8"
        await client.pong(b"8")
        await trio.sleep(2)
        assert await server.cursor() == 8


async def test_a_pong_above_the_position_or_with_other_content_moves_nothing(autojump_clock: MockClock) -> None:
    async with edge() as server:
        await server.publish(3)
        client, _ = await server.follow()
        for payload in (b"4", b"99999", b"-1", b"x", b"", "٣".encode(), b"9" * 125):
            await client.pong(payload)
        await trio.sleep(5)
        assert await server.cursor() == 0
        await client.pong(b"2")
        await trio.sleep(5)
        assert await server.cursor() == 2


async def test_a_client_that_acknowledges_by_itself_is_not_asked_and_its_pongs_move_nothing(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        await server.publish(2)
        client, _ = await server.follow(ack="app")
        await client.says("feedback_update", "feedback_update", "live")
        await client.pong(b"2")
        await server.publish()
        await client.says("feedback_update")
        await trio.sleep(5)
        assert await server.cursor() == 0
        await client.say(type="ack", seq=3)
        assert (await client.says("acked"))[0]["data"] == {"seq": 3}


async def test_an_ack_frame_moves_the_cursor_of_a_client_that_is_asked_for_receipts_too(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        await server.publish()
        client, _ = await server.follow()
        await client.says("feedback_update", "live")
        await client.pinged()
        await client.say(type="ack", seq=1)
        assert (await client.says("acked"))[0]["data"] == {"seq": 1}
        await client.say(type="ack", seq=2)
        assert (await client.says("error"))[0]["data"]["code"] == "invalid_field"


async def test_a_receipt_that_fell_due_while_the_socket_was_full_follows_when_it_takes_bytes_again(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        await server.fill(follower)
        position = follower._subscriber.position
        await trio.sleep(2)
        asked = 0
        while asked < position:
            got = await client.next()
            assert got is not None
            if got.opcode == PING:
                asked = int(got.payload)


# Slow and silent clients


@pytest.mark.guarantee(3)
@pytest.mark.guarantee(4)
async def test_a_client_that_lags_gets_whole_frames_in_order_and_a_gap_where_it_lagged_too_far(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        await server.publish(300, size=5_000)
        assert follower.blocked
        seen: list[int] = []
        while not seen or seen[-1] < 300:
            got = await client.next()
            assert got is not None
            if got.opcode == TEXT and got.json["type"] == "gap":
                gap = got.json["data"]
                assert gap["from"] == len(seen) + 1
                seen.extend(range(gap["from"], gap["to"] + 1))
            elif got.opcode == TEXT:
                seen.append(got.json["seq"])
        assert seen == list(range(1, 301))
        await server.publish()
        assert await numbers(client, 1) == [301]


async def test_replies_and_pongs_wait_for_the_frame_that_is_half_written(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        await server.fill(follower)
        await client.say(type="ping", data={"n": 1})
        await client.send(client_frame(PING, b"hello"))
        await trio.sleep(1)
        kinds: list[str] = []
        while kinds[-2:] not in (["pong", "hello"], ["hello", "pong"]):
            got = await client.next()
            assert got is not None
            if got.opcode != PING:
                kinds.append(got.payload.decode() if got.opcode == PONG else got.json["type"])


async def test_who_accepts_no_byte_for_ten_seconds_is_aborted_and_its_cursor_kept(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow(device="phone")
        await client.says("live")
        await server.publish()
        await client.says("feedback_update")
        await client.pong(await client.pinged())
        await server.fill(follower)
        at = trio.current_time()
        while server.hub.connections:
            await trio.sleep(0.1)
        assert 10 <= trio.current_time() - at <= 11
        assert await server.cursor(device="phone") == 1


async def test_who_takes_a_little_now_and_then_is_not_aborted(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        await server.fill(follower)
        await server.publish(60, size=20_000)
        for _ in range(12):
            await trio.sleep(4)
            await client.stream.receive_some(75_000)
        assert server.hub.connections == 1


async def test_a_silent_client_is_pinged_after_25_seconds_and_lives_if_it_answers(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, _ = await server.follow()
        await client.says("live")
        at = trio.current_time()
        for _ in range(3):
            payload = await client.pinged()
            assert 24 <= trio.current_time() - at <= 27
            at = trio.current_time()
            await client.pong(payload)


async def test_a_client_that_answers_no_ping_within_ten_seconds_is_aborted(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, _ = await server.follow()
        await client.says("live")
        await client.pinged()
        at = trio.current_time()
        assert await client.next() is None
        assert 10 <= trio.current_time() - at <= 11


async def test_the_time_for_the_pong_runs_only_once_the_ping_has_left(autojump_clock: MockClock) -> None:
    async with edge() as server:
        unsent = 1000
        server.hub.unsent = lambda _: unsent
        client, _ = await server.follow()
        await client.says("live")
        await client.pinged()
        for _ in range(6):
            await trio.sleep(9)
            unsent -= 100  # slow, but the queue moves
        assert server.hub.connections == 1
        unsent = 0
        await trio.sleep(9)
        assert server.hub.connections == 1
        assert await client.next() is None


async def test_a_ping_that_cannot_leave_because_nothing_is_read_ends_the_connection_too(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        server.hub.unsent = lambda _: 1000
        client, _ = await server.follow()
        await client.says("live")
        await client.pinged()
        assert await client.next() is None


@pytest.mark.guarantee(7)
async def test_who_never_reads_does_not_delay_the_others(autojump_clock: MockClock) -> None:
    async with edge() as server:
        stalled = [await server.follow("amira", f"stalled-{number}") for number in range(20)]
        client, _ = await server.follow()
        await client.says("live")
        for number in range(1, 101):
            await server.publish(1, size=20_000)
            assert await numbers(client, 1) == [number]
        assert all(follower.blocked for _, follower in stalled)
        await trio.sleep(11)
        assert server.hub.connections == 1


# Ends


async def test_a_newer_connection_of_a_device_cuts_the_older_one_even_if_it_is_half_open(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        older, _ = await server.follow(device="phone")
        newer, _ = await server.follow(device="phone")
        await newer.says("live")
        await trio.sleep(3)  # the older one answers nothing
        assert server.hub.connections == 1
        await older.says("live", "bye")
        got = await older.next()
        assert got is not None
        assert (got.code, got.reason) == (4000, "replaced")
        assert await older.next() is None


async def test_the_closing_of_a_client_is_answered_with_its_code_and_the_socket_closed(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        for code in (1000, 1001, 4123):
            client, _ = await server.follow()
            await client.says("live")
            await client.send(client_frame(CLOSE, code.to_bytes(2, "big") + b"so long"))
            got = await client.next()
            assert got is not None
            assert got.code == code
            assert await client.next() is None
        assert server.hub.connections == 0
        assert not server.world.registry.connections


async def test_the_goodbye_comes_after_the_frame_that_is_half_written(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, follower = await server.follow()
        await client.says("live")
        await server.fill(follower)
        follower.end(Ending.DISCONNECTED)
        *_, bye, close = await client.rest()
        assert bye.json["type"] == "bye"
        assert (close.code, close.reason) == (1008, "disconnected by operator")


async def test_a_drain_cuts_off_who_does_not_take_its_goodbye(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client, _ = await server.follow()
        await client.says("live")
        _, stalled = await server.follow(device="stalled")
        while not stalled.blocked:
            await server.publish(1, size=20_000)
            await numbers(client, 1)
        await server.world.registry.end_all()
        at = trio.current_time()
        await server.hub.drain()
        assert trio.current_time() - at <= 4
        assert server.hub.connections == 0
        frames = await client.rest()
        assert frames[-1].code == 1012


async def follow_and_ask_without_reading(server: Edge) -> RawClient:
    """A client that reads nothing and asks so much that the server is done with it."""
    client, follower = await server.follow()
    await client.says("live")
    await server.fill(follower)
    for _ in range(101):
        await client.say(type="ping")
    with trio.fail_after(20):
        while server.world.registry.connections:
            await trio.sleep(0.1)
    return client


async def test_a_client_that_answers_and_reads_too_little_cannot_pile_up_replies(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client = await follow_and_ask_without_reading(server)
        frames = await client.rest()
        assert (frames[-1].code, frames[-1].reason) == (1008, "rate limited")


# Too many frames


@pytest.mark.parametrize(
    "frame", [client_frame(TEXT, b'{"type":"ping"}'), client_frame(PING), client_frame(TEXT, b"x")]
)
async def test_who_has_used_up_its_allowance_and_goes_on_for_five_seconds_sends_too_much(
    frame: bytes, autojump_clock: MockClock
) -> None:
    async with edge() as server:
        client, _ = await server.follow()

        async def read() -> None:
            frames.extend(await client.rest())

        frames: list[Got] = []
        at = trio.current_time()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            while server.world.registry.connections:
                await client.send(frame)
                await trio.sleep(0.01)
            used_up_seconds = 100 / (100 - 20)
            assert 4.9 + used_up_seconds <= trio.current_time() - at <= 7.5 + used_up_seconds
        *_, bye, close = frames
        assert bye.json["data"] == {"code": 1008, "reason": "rate limited", "retry_after_ms": None}
        assert (close.code, close.reason) == (1008, "rate limited")


async def test_twenty_frames_a_second_a_burst_and_a_hundred_repeated_acks_a_second_are_not_too_many(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        await server.publish()
        client, _ = await server.follow()
        await client.send(client_frame(PING) * 100)
        for _ in range(200):
            await client.send(client_frame(TEXT, b'{"type":"ack","seq":1}') * 5, client_frame(PING))
            await trio.sleep(0.05)
            client._bytes.clear()
            await client._more()
        assert server.hub.connections == 1


# Failures


async def test_a_failure_over_one_connection_ends_that_connection_with_1011_and_no_other(
    autojump_clock: MockClock,
) -> None:
    async with edge() as server:
        broken, follower = await server.follow(device="broken")
        client, _ = await server.follow()
        await broken.says("live")
        await client.says("live")

        class Wrong(dict[bool, bytes]):
            def get(self, *_: object) -> Any:
                raise RuntimeError("a fault of ours")

        follower.feed(Burst(Seq(1), Seq(1), (b"",), Wrong()))
        (bye,) = await broken.says("bye")
        assert bye["data"]["code"] == 1011
        await server.publish()
        assert await numbers(client, 1) == [1]


async def test_events_take_one_write_each_and_share_their_bytes(autojump_clock: MockClock) -> None:
    async with edge() as server:
        pairs = [await server.follow(device=f"d{number}") for number in range(3)]
        written: list[object] = []

        class Counting:
            def __init__(self, inner: object) -> None:
                self.inner = inner

            def send(self, data: bytes) -> int:
                written.append(data)
                return len(data)

            def __getattr__(self, name: str) -> object:
                return getattr(self.inner, name)

        for _, follower in pairs:
            follower._sock = Counting(follower._sock)  # type: ignore[assignment]
        await server.publish()
        assert len(written) == 3
        assert len({id(data) for data in written}) == 1


async def test_another_poller_serves_as_well(autojump_clock: MockClock) -> None:
    async with edge(poller=SelectorPoller(selectors.SelectSelector())) as server:
        client, follower = await server.follow(wanted=Wanted(newest=0))
        await client.says("live")
        await server.fill(follower)
        assert await numbers(client, follower._subscriber.position) == list(range(1, follower._subscriber.position + 1))
        await client.send(client_frame(BINARY, b"x"))
        while (got := await client.next()) is not None and got.opcode == PING:
            pass
        assert got is not None
        assert got.json["data"]["code"] == "bad_frame"
        await client.leave()
        assert server.hub.connections == 0


async def test_acks_of_nothing_new_without_end_are_too_many(autojump_clock: MockClock) -> None:
    async with edge() as server:
        await server.publish()
        client, _ = await server.follow()
        at = trio.current_time()
        frames: list[Got] = []

        async def read() -> None:
            frames.extend(await client.rest())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            while server.world.registry.connections:
                await client.send(client_frame(TEXT, b'{"type":"ack","seq":1}') * 30)
                await trio.sleep(0.1)
            assert 5 <= trio.current_time() - at <= 9
        assert (frames[-1].code, frames[-1].reason) == (1008, "rate limited")


async def test_nothing_is_read_from_who_floods_until_its_goodbye_is_out(autojump_clock: MockClock) -> None:
    async with edge() as server:
        client = await follow_and_ask_without_reading(server)
        sent = 0
        with trio.move_on_after(1):
            while sent < 1_000_000:
                await client.send(client_frame(PING) * 1000)
                sent += 1000
        assert sent < 1_000_000, "the kernel takes no more once nobody reads"
        at = trio.current_time()
        while server.hub.connections:
            await trio.sleep(0.1)
        assert trio.current_time() - at <= 11, "and who never reads is cut off all the same"
