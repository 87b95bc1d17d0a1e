"""Peeking over the wire: who only looks is not known, has no cursor, and changes nothing for anybody else."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from typing import Any

import pytest

from tests.server.harness import Server, running_server
from tests.server.test_broadcasts import assert_problem
from tests.server.test_streams import shape, streamed
from web.server.settings import Settings


async def deliveries(server: Server, seq: int = 1) -> dict[tuple[str | None, str | None], dict[str, Any]]:
    """What became of an event, by user and device."""
    answer = await server.http.get(f"/diagnoses/42/delivery?seq={seq}", headers=server.bearer("op", "operate"))
    return {(one["user_id"], one["device"]): one for one in answer.json()["items"]}


@pytest.mark.one_process("a receipt counts the connections of other workers as they told them last, a second ago")
async def test_who_peeks_is_notified_and_neither_known_nor_online(server: Server) -> None:
    await server.register()
    async with server.live(peek=1), streamed(server, peek=1) as stream:
        await stream.until_live()
        answer = (await server.publish(1)).json()
        assert (answer["clients_notified"], answer["subscribers"]) == (2, {"online": 0, "known": 0, "at_risk": 0})
        assert await deliveries(server) == {}
        actor = (await server.http.get("/actors/42", headers=server.bearer("op", "operate"))).json()
        assert (actor["subscribers"], actor["lag"]) == (2, [])
        assert (await server.status())["total_connections"] == 2


async def test_a_peek_changes_nothing_of_the_subscriber_it_belongs_to(server: Server) -> None:
    await server.register()
    async with server.live(device="phone", ack="app") as phone, server.live(ack="app") as unnamed:
        await server.publish(1)
        for client in (phone, unnamed):
            await client.events(1)
            await client.say(type="ack", seq=1)
            await client.next_of("acked")
    await server.until_alone()
    await server.publish(2)
    before = await deliveries(server, 2)
    async with server.connect(peek=1) as client:
        frames = await client.until_live()
        assert frames[0]["data"]["resume"] == "fresh"
        assert [frame.get("seq") for frame in frames] == [None, 1, 2, None]
        assert await deliveries(server, 2) == before
    async with server.connect(peek=1, after=2) as client:
        assert [frame["type"] for frame in await client.until_live()] == ["connect", "live"]
    await server.until_alone()
    assert await deliveries(server, 2) == before
    async with server.connect(ack="app") as client:
        assert [frame.get("seq") for frame in await client.until_live()] == [None, 2, None]


@pytest.mark.parametrize(("start", "expected"), [("oldest", [6, 7]), ("new", []), ("1", [7])])
async def test_a_peek_begins_at_start_and_is_fresh_every_time(server: Server, start: str, expected: list[int]) -> None:
    await server.register()
    for number in range(5):
        await server.publish(number)
    await server.http.delete("/actors/42/outbox", headers=server.bearer("op", "operate"))
    for number in range(2):
        await server.publish(number)
    for _ in range(2):
        async with server.connect(peek=1, start=start) as client:
            connect, *rest = await client.until_live()
            assert (connect["data"]["resume"], connect["data"]["ack"]) == ("fresh", None)
            assert [frame["seq"] for frame in rest[:-1]] == expected


async def test_a_peek_resumes_after_a_number_and_is_told_of_gaps_and_of_another_numbering(server: Server) -> None:
    await server.register()
    for number in range(105):
        await server.publish(number)
    async with server.connect(peek=1, after=3) as client:
        connect, gap, *_ = await client.until_live()
        assert (connect["data"]["resume"], connect["data"]["missed"]) == ("partial", 2)
        assert gap["data"] == {"from": 4, "to": 5, "count": 2, "reason": "evicted"}
    async with server.connect(peek=1, after=104) as client:
        connect, event, live = await client.until_live()
        assert (connect["data"]["resume"], event["seq"], live["data"]["seq"]) == ("exact", 105, 105)
    async with server.connect(peek=1, after=104, epoch="another") as client:
        connect, *rest = await client.until_live()
        assert (connect["data"]["resume"], connect["data"]["queued"], len(rest)) == ("reset", 100, 101)
    epoch = connect["data"]["epoch"]
    async with streamed(server, peek=1, last_event_id=f"{epoch}.104") as stream:
        assert shape(await stream.until_live()) == [("connect", 104), ("feedback_update", 105), ("live", 105)]


async def test_an_ack_of_who_peeks_is_an_error_and_the_connection_stays(server: Server) -> None:
    await server.register()
    await server.publish(1)
    async with server.live(peek=1) as client:
        for seq in (0, 1, 99):
            await client.say(type="ack", seq=seq)
            assert (await client.next())["data"]["code"] == "invalid_field"
        await client.say(type="ping")
        assert (await client.next())["type"] == "pong"
    assert await deliveries(server) == {}


@pytest.mark.parametrize(
    ("parameters", "named"),
    [
        ({"peek": "1", "device": "phone"}, "device"),
        ({"peek": "1", "ack": "app"}, "ack"),
        ({"peek": "1", "ack": "transport"}, "ack"),
        ({"peek": "2"}, "peek"),
        ({"peek": ""}, "peek"),
        ({"peek": "true"}, "peek"),
    ],
)
async def test_what_does_not_go_together_with_a_peek_is_refused(
    server: Server, parameters: dict[str, str], named: str
) -> None:
    await server.register()
    async with server.connect(**parameters) as client:
        (error,), code, reason = await client.close_frames()
        assert (error["data"]["code"], code, reason) == ("invalid_field", 1008, "invalid field")
        assert error["data"]["detail"].startswith(named)
    answer = await server.http.get("/diagnoses/42/events", params=parameters, headers=server.bearer("amira"))
    assert_problem(answer, 422, "invalid_field", named)


async def test_peek_0_follows_as_ever(server: Server) -> None:
    await server.register()
    async with server.live(peek=0, device="phone", ack="app"):
        assert (await server.publish(1)).json()["subscribers"]["known"] == 1


async def test_two_anonymous_strangers_share_no_queue_and_one_with_a_device_has_its_own(settings: Settings) -> None:
    async with running_server(Settings(port=0, data=settings.data, allow_anonymous=True)) as server:
        await server.register()
        await server.publish(1)
        for _ in range(2):
            async with server.connect(sub=None) as client:
                connect, event, _ = await client.until_live()
                assert (connect["data"]["resume"], connect["data"]["ack"], event["seq"]) == ("fresh", None, 1)
            async with streamed(server, sub=None) as stream:
                connect_message, event_message, _ = await stream.until_live()
                assert connect_message.frame["data"]["ack"] is None
                assert event_message.number == 1
        async with server.connect(sub=None) as client:
            await client.until_live()
            await client.say(type="ack", seq=1)
            assert (await client.next())["data"]["code"] == "invalid_field"
        assert await deliveries(server) == {}
        async with server.connect(sub=None, ack="app") as client:
            (error,), code, _ = await client.close_frames()
            assert (error["data"]["code"], code) == ("invalid_field", 1008)
        async with server.connect(sub=None, device="kiosk", ack="app") as client:
            await client.until_live()
            await client.say(type="ack", seq=1)
            assert (await client.next())["type"] == "acked"
        async with server.connect(sub=None, device="kiosk") as client:
            assert (await client.until_live())[0]["data"]["resume"] == "exact"
        assert (await deliveries(server)).keys() == {(None, "kiosk")}


async def test_the_parameter_ack_without_a_token_is_no_business_of_a_server_that_wants_one(server: Server) -> None:
    await server.register()
    async with server.connect(sub=None, ack="app") as client:
        _, code, reason = await client.close_frames()
        assert (code, reason) == (1008, "invalid token")


async def test_a_peek_takes_nothing_over_and_is_not_taken_over(server: Server) -> None:
    await server.register()
    async with server.live(device="phone") as phone, server.live(peek=1) as peek, server.live(peek=1) as another:
        await server.publish(1)
        for client in (phone, peek, another):
            assert (await client.next())["seq"] == 1


async def test_whoever_loses_the_right_stops_peeking(server: Server) -> None:
    await server.register(42, "amira", "bo", "cyrus", "dina")
    operator = server.bearer("op", "operate")
    async with (
        server.live(sub="amira", peek=1) as amira,
        server.live(sub="bo", peek=1) as bo,
        server.live(sub="cyrus", peek=1) as cyrus,
        server.live(sub="dina", peek=1) as dina,
    ):
        answer = await server.http.delete("/actors/42/subscribers?sub=bo&forget=1", headers=operator)
        assert answer.json() == {"disconnected": 1, "forgotten": 0}
        assert (await bo.close_frames())[1:] == (1008, "disconnected by operator")
        await server.register(42, "amira", "cyrus")
        assert (await dina.close_frames())[1:] == (1008, "viewer removed")
        await server.http.post("/revocations", json={"sub": "cyrus"}, headers=operator)
        assert (await cyrus.close_frames())[1:] == (1008, "revoked")
        assert (await server.http.delete("/subjects/amira", headers=operator)).json()["connections"] == 1
        assert (await amira.close_frames())[1:] == (1008, "disconnected by operator")


async def test_who_peeks_goes_on_across_a_restart_of_the_actor(server: Server) -> None:
    await server.register()
    async with server.live(peek=1) as client, streamed(server, peek=1) as stream:
        await stream.until_live()
        for number in range(3):
            await server.publish(number)
            for act in ("restart", "stop"):
                await server.http.post(f"/actors/42/{act}", headers=server.bearer("op", "operate"))
        assert [frame["seq"] for frame in await client.events(3)] == [1, 2, 3]
        assert [(await stream.next()).number for _ in range(3)] == [1, 2, 3]


@pytest.mark.sqlite_only("reads the file of the database")
async def test_the_access_trail_notes_who_peeks(settings: Settings) -> None:
    async with running_server(Settings(port=0, data=settings.data, access_trail=True)) as server:
        await server.register()
        async with server.live(peek=1):
            pass
        await server.until_alone()
    with closing(sqlite3.connect(settings.data / "avicenna.db")) as db:
        rows = db.execute("SELECT what, sub, device FROM access ORDER BY number").fetchall()
    assert rows == [("connect", "amira", None), ("disconnect", "amira", None)]
