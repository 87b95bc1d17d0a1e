"""Following a diagnosis: what a client sees, from its first connect to its return."""

from __future__ import annotations

import socket
import struct

import pytest
import trio

from tests.server.harness import Client, Server

pytestmark = pytest.mark.by_workers


def numbers(frames: list[dict[str, object]]) -> list[object]:
    return [frame["seq"] for frame in frames if "seq" in frame]


async def test_a_connect_registers_a_connection_and_greets_it_once(server: Server) -> None:
    await server.register()
    async with server.connect() as client:
        connect, live = await client.until_live()
        assert connect["type"] == "connect"
        assert connect["diagnosis_id"] == 42
        data = connect["data"]
        assert (data["user_id"], data["device"], data["head"], data["floor"]) == ("amira", None, 0, 0)
        assert (data["resume"], data["missed"], data["queued"]) == ("fresh", 0, 0)
        assert live["data"] == {"seq": 0}
        assert (await server.status())["connections_by_diagnosis"] == {"42": 1}


async def test_a_disconnect_removes_the_connection(server: Server) -> None:
    await server.register()
    async with server.live():
        pass
    await server.until_alone()


@pytest.mark.both_ways
async def test_a_broadcast_reaches_one_connection(server: Server) -> None:
    await server.register()
    async with server.live() as client:
        answer = (await server.publish(7)).json()
        event = await client.next()
    assert (answer["status"], answer["seq"], answer["clients_notified"]) == ("broadcasted", 1, 1)
    assert (event["type"], event["seq"], event["data"]["feedback_id"]) == ("feedback_update", 1, 7)


@pytest.mark.one_process("the status counts the connections of other workers as they told them last, up to 2 s ago")
async def test_a_broadcast_reaches_many_connections_and_every_route_uses_the_same_registry(server: Server) -> None:
    await server.register(42, "amira", "bo")
    async with server.live() as one, server.live() as two, server.live(sub="bo") as three:
        answer = (await server.publish()).json()
        events = [await client.next() for client in (one, two, three)]
    assert answer["clients_notified"] == 3
    assert answer["subscribers"] == {"online": 2, "known": 2, "at_risk": 0}
    assert events[0] == events[1] == events[2]


async def test_a_broadcast_stays_within_its_diagnosis(server: Server) -> None:
    await server.register(1)
    await server.register("one-more")
    async with server.live(1) as first, server.live("one-more") as second:
        await server.publish(10, 1)
        await server.publish(20, "one-more")
        assert (await first.next())["data"]["feedback_id"] == 10
        assert (await second.next())["diagnosis_id"] == "one-more"


@pytest.mark.both_ways
async def test_hundreds_of_concurrent_broadcasts_and_connects_neither_deadlock_nor_lose_order(server: Server) -> None:
    await server.register()
    seen: list[list[object]] = []

    async def follow() -> None:
        async with server.connect(start="new") as client:
            frames = await client.until_live()
            start = frames[0]["data"]["head"]
            events = await client.events(300 - start)
            seen.append([start, *numbers(events)])

    async def publish(count: int) -> None:
        for number in range(count):
            assert (await server.publish(number)).status_code == 200

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for _ in range(6):
                nursery.start_soon(publish, 50)
            for _ in range(100):
                nursery.start_soon(follow)
    assert len(seen) == 100
    for got in seen:
        assert got == list(range(int(str(got[0])), 301))


async def test_a_dead_client_among_live_ones_changes_nothing(server: Server) -> None:
    await server.register()
    async with server.live() as alive, server.live() as doomed:
        _reset(doomed)
        for number in range(20):
            assert (await server.publish(number)).status_code == 200
        assert numbers(await alive.events(20)) == list(range(1, 21))
    await server.until_alone()


def _reset(client: Client) -> None:
    """Cut the connection as a crashed machine would: an RST, no close frame."""
    stream = client.connection._stream
    assert isinstance(stream, trio.SocketStream)
    stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    stream.socket.close()


@pytest.mark.by_nats
async def test_events_are_kept_while_nobody_is_there_and_delivered_in_order_on_connect(server: Server) -> None:
    await server.register()
    for number in range(5):
        assert (await server.publish(number)).json()["clients_notified"] == 0
    async with server.connect() as client:
        frames = await client.until_live()
    assert frames[0]["data"]["queued"] == 5
    assert [frame["type"] for frame in frames] == ["connect", *["feedback_update"] * 5, "live"]
    assert numbers(frames) == [1, 2, 3, 4, 5]


async def test_events_are_kept_for_the_one_who_is_away_while_others_are_there(server: Server) -> None:
    await server.register(42, "amira", "bo")
    async with server.live(sub="bo", device="phone"):
        await server.publish(1)
    async with server.live() as online:
        await server.publish(2)
        await server.publish(3)
        assert numbers(await online.events(2)) == [2, 3]
    async with server.connect(sub="bo", device="phone") as back:
        frames = await back.until_live()
    assert numbers(frames) in ([2, 3], [1, 2, 3])  # a lost acknowledgement costs a repeat, never a loss


@pytest.mark.by_nats
async def test_the_cap_drops_the_oldest_and_the_client_is_told_which(server: Server) -> None:
    await server.register()
    async with server.live(device="phone", ack="app"):
        pass
    for number in range(105):
        await server.publish(number)
    async with server.connect(device="phone", ack="app") as client:
        frames = await client.until_live()
    assert frames[0]["data"]["resume"] == "partial"
    assert frames[0]["data"]["missed"] == 5
    assert frames[1]["data"] == {"from": 1, "to": 5, "count": 5, "reason": "evicted"}
    assert numbers(frames) == list(range(6, 106))


async def test_the_queue_is_delivered_once_to_a_client_that_acknowledges(server: Server) -> None:
    await server.register()
    for number in range(3):
        await server.publish(number)
    async with server.connect(ack="app") as client:
        assert numbers(await client.until_live()) == [1, 2, 3]
        await client.say(type="ack", seq=3)
        assert (await client.next_of("acked"))["data"] == {"seq": 3}
    async with server.connect(ack="app") as client:
        frames = await client.until_live()
    assert (frames[0]["data"]["resume"], numbers(frames)) == ("exact", [])


@pytest.mark.both_ways
async def test_an_event_looks_the_same_live_and_replayed(server: Server) -> None:
    await server.register()
    async with server.live() as client:
        await server.publish(1, comment="warm", recommendation_id="r-1")
        live = await client.next()
    async with server.connect(after=0) as client:
        assert live in await client.until_live()


@pytest.mark.by_nats
async def test_a_client_resumes_from_its_own_position(server: Server) -> None:
    await server.register()
    for number in range(10):
        await server.publish(number)
    async with server.connect() as client:
        epoch = (await client.until_live())[0]["data"]["epoch"]
    async with server.connect(after=7, epoch=epoch) as client:
        frames = await client.until_live()
    assert (frames[0]["data"]["resume"], numbers(frames)) == ("exact", [8, 9, 10])
    async with server.connect(after=7, epoch="another") as client:
        frames = await client.until_live()
    assert (frames[0]["data"]["resume"], numbers(frames)) == ("reset", list(range(1, 11)))


@pytest.mark.parametrize(("start", "expected"), [("oldest", [1, 2, 3]), ("new", []), ("2", [2, 3]), ("9", [1, 2, 3])])
async def test_a_fresh_subscriber_begins_where_it_asks_to(server: Server, start: str, expected: list[int]) -> None:
    await server.register()
    for number in range(3):
        await server.publish(number)
    async with server.connect(start=start) as client:
        frames = await client.until_live()
    assert (frames[0]["data"]["resume"], numbers(frames)) == ("fresh", expected)


@pytest.mark.by_nats
async def test_a_named_device_has_one_connection_and_the_newer_one_takes_over(server: Server) -> None:
    await server.register()
    async with server.live(device="phone") as older, server.live(device="phone") as newer:
        frames, code, reason = await older.close_frames()
        assert (code, reason) == (4000, "replaced")
        assert frames[-1]["type"] == "bye"
        await server.publish()
        assert (await newer.next())["seq"] == 1


async def test_a_ping_is_answered_with_its_data(server: Server) -> None:
    await server.register()
    async with server.live() as client:
        await client.say(type="ping", data={"n": 1})
        assert (await client.next_of("pong"))["data"] == {"n": 1}
        await client.say(type="ping")
        assert (await client.next_of("pong"))["data"] is None


@pytest.mark.parametrize(
    ("text", "code"),
    [
        ("{", "bad_frame"),
        ("[]", "bad_frame"),
        ("{}", "unknown_type"),
        ('{"type":"subscribe"}', "unknown_type"),
        ('{"type":"ack"}', "invalid_field"),
        ('{"type":"ack","seq":-1}', "invalid_field"),
        ('{"type":"ack","seq":99}', "invalid_field"),
        ('{"type":"ping","data":3}', "invalid_field"),
        ('{"type":"auth","token":"nonsense"}', "invalid_token"),
    ],
)
async def test_a_wrong_frame_gets_an_error_and_the_connection_stays(server: Server, text: str, code: str) -> None:
    await server.register()
    async with server.live() as client:
        await client.connection.send_message(text)
        assert (await client.next_of("error"))["data"]["code"] == code
        await client.connection.send_message(b"binary")
        assert (await client.next_of("error"))["data"]["code"] == "bad_frame"
        await client.say(type="ping")
        await client.next_of("pong")


@pytest.mark.by_nats
async def test_a_purged_viewer_loses_the_connection_at_once(server: Server) -> None:
    await server.register(42, "amira", "bo")
    async with server.live(sub="bo") as viewer, server.live() as owner:
        assert (await server.register(42, "amira")).status_code == 200
        _, code, reason = await viewer.close_frames()
        assert (code, reason) == (1008, "viewer removed")
        await server.publish()
        assert (await owner.next())["seq"] == 1


@pytest.mark.by_nats
async def test_deleting_a_diagnosis_ends_its_connections_and_registering_it_again_starts_a_new_epoch(
    server: Server,
) -> None:
    first = (await server.register()).json()
    await server.publish()
    async with server.connect() as client:
        await client.until_live()
        deleted = await server.http.delete("/diagnoses/42", headers=server.bearer("registrar", "register"))
        assert deleted.status_code == 200
        _, code, reason = await client.close_frames()
        assert (code, reason) == (1008, "diagnosis deleted")
    again = await server.register()
    assert again.status_code == 201
    assert again.json()["epoch"] != first["epoch"]
    assert (await server.publish()).json()["seq"] == 1
