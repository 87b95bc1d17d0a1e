"""What an operator can see and do, and that every act leaves a row."""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trio

from storage.records import Event
from tests.server.harness import Server, running_server
from web.server.settings import Settings

pytestmark = [pytest.mark.both_ways, pytest.mark.by_workers]

OPERATOR = ("op", "operate")


async def get(server: Server, path: str) -> Any:
    answer = await server.http.get(path, headers=server.bearer(*OPERATOR))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def post(server: Server, path: str) -> Any:
    answer = await server.http.post(path, headers=server.bearer(*OPERATOR))
    assert answer.status_code == 200, answer.text
    return answer.json()


async def delete(server: Server, path: str) -> httpx.Response:
    return await server.http.delete(path, headers=server.bearer(*OPERATOR))


async def test_an_actor_that_nobody_needs_is_passive(server: Server) -> None:
    await server.register()
    actor = await get(server, "/actors/42")
    assert (actor["state"], actor["incarnation"], actor["subscribers"]) == ("passive", 0, 0)
    assert (actor["head"], actor["floor"], actor["last_crash"]) == (0, 0, None)


@pytest.mark.one_process("the limit of the mailbox is that of all workers together")
async def test_a_running_actor_shows_its_figures_and_its_laggards(server: Server) -> None:
    await server.register()
    async with server.live(device="phone", ack="app"):
        await server.publish(1)
        await server.publish(2)
        actor = await get(server, "/actors/42")
    assert (actor["state"], actor["incarnation"], actor["subscribers"]) == ("running", 1, 1)
    assert actor["mailbox"] == {"depth": 0, "limit": 1000}
    assert actor["head"] == 2
    assert actor["lag"] == [{"user_id": "amira", "device": "phone", "online": True, "cursor": 0, "lag": 2}]


async def test_actors_are_listed_in_pages(server: Server) -> None:
    for number in range(1, 4):
        await server.register(f"d{number}")
    first = await get(server, "/actors?limit=2")
    rest = await get(server, f"/actors?after={first['next']}")
    assert [one["diagnosis_id"] for one in first["items"] + rest["items"]] == ["d1", "d2", "d3"]
    assert rest["next"] is None


async def test_a_restart_keeps_sockets_open_and_loses_and_repeats_nothing(server: Server) -> None:
    await server.register()
    async with server.live(start="new") as client:
        for number in range(1, 6):
            await server.publish(number)
            actor = await post(server, "/actors/42/restart")
            assert (actor["state"], actor["incarnation"], actor["subscribers"]) == ("running", number + 1, 1)
        await server.publish(6)
        events = await client.events(6)
    assert [event["seq"] for event in events] == [1, 2, 3, 4, 5, 6]


async def test_a_restart_wakes_a_resting_actor(server: Server) -> None:
    await server.register()
    assert (await post(server, "/actors/42/restart"))["state"] == "running"


async def test_a_stop_keeps_sockets_open_and_the_next_message_wakes_the_actor(server: Server) -> None:
    await server.register()
    async with server.live() as client:
        await server.publish(1)
        actor = await post(server, "/actors/42/stop")
        assert (actor["state"], actor["subscribers"]) == ("passive", 1)
        assert (await server.publish(2)).json()["clients_notified"] == 1
        assert [event["seq"] for event in await client.events(2)] == [1, 2]
        assert (await get(server, "/actors/42"))["incarnation"] == 2


async def test_the_incarnation_keeps_counting_after_a_rest(server: Server) -> None:
    await server.register()
    await server.publish(1)
    assert (await post(server, "/actors/42/stop"))["state"] == "passive"
    await server.publish(2)
    assert (await get(server, "/actors/42"))["incarnation"] == 2


async def test_an_outbox_can_be_looked_at_and_purged(server: Server) -> None:
    await server.register()
    for number in range(3):
        await server.publish(number)
    page = await get(server, "/actors/42/outbox?limit=2")
    assert [event["seq"] for event in page["items"]] == [1, 2]
    rest = await get(server, f"/actors/42/outbox?after={page['next']}")
    assert [event["data"]["feedback_id"] for event in rest["items"]] == [2]
    assert (await delete(server, "/actors/42/outbox")).json()["floor"] == 3
    assert (await get(server, "/actors/42/outbox"))["items"] == []
    assert (await server.publish(4)).json()["seq"] == 4


async def test_an_outbox_can_be_looked_at_without_what_its_events_say(server: Server) -> None:
    await server.register()
    await server.publish(1, comment="slept well")
    ((event,), _) = (await get(server, "/actors/42/outbox?payload=0")).values()
    assert (event["seq"], event["type"], event["bytes"] > 0, "data" in event) == (1, "feedback_update", True, False)
    answer = await server.http.get("/actors/42/outbox?payload=2", headers=server.bearer("op", "operate"))
    assert (answer.status_code, answer.json()["detail"]) == (422, "payload must be 0 or 1")


async def test_an_actor_tells_its_latest_restarts_and_why(server: Server) -> None:
    await server.register()
    await server.publish(1)
    for _ in range(2):
        await server.http.post("/actors/42/restart", headers=server.bearer("op", "operate"))
    found = (await get(server, "/actors/42"))["recent_restarts"]
    assert [(one["incarnation"], one["reason"], one["error"]) for one in found] == [
        (1, "operator", None),
        (2, "operator", None),
    ]


async def test_a_purge_is_told_to_who_was_away_and_to_who_comes_back_by_number(server: Server) -> None:
    await server.register()
    async with server.live(device="phone", ack="app"):
        pass
    for number in range(3):
        await server.publish(number)
    await delete(server, "/actors/42/outbox")
    async with server.connect(device="phone", ack="app") as client:
        frames = await client.until_live()
    assert frames[1]["data"] == {"from": 1, "to": 3, "count": 3, "reason": "purged"}
    assert frames[0]["data"]["resume"] == "partial"


async def test_a_subscriber_can_be_disconnected_and_forgotten(server: Server) -> None:
    await server.register(42, "amira", "bo")
    async with server.live(sub="bo", device="phone") as phone, server.live(sub="bo", device="desk") as desk:
        answer = await delete(server, "/actors/42/subscribers?sub=bo&device=phone&forget=1")
        assert answer.json() == {"disconnected": 1, "forgotten": 1}
        _, code, reason = await phone.close_frames()
        assert (code, reason) == (1008, "disconnected by operator")
        await server.publish()
        assert (await desk.next())["seq"] == 1
    async with server.connect(sub="bo", device="phone") as phone:
        assert (await phone.until_live())[0]["data"]["resume"] == "fresh"


async def test_disconnecting_without_a_sub_means_the_anonymous(server: Server) -> None:
    await server.register()
    async with server.live():
        assert (await delete(server, "/actors/42/subscribers")).json()["disconnected"] == 0
        assert (await delete(server, "/actors/42/subscribers?sub=amira")).json()["disconnected"] == 1


async def test_delivery_says_what_became_of_an_event_for_every_subscriber(server: Server) -> None:
    await server.register(42, "amira", "bo", "cyrus")
    async with server.live(sub="bo", ack="app"):
        pass
    async with server.live(sub="amira", ack="app") as reader, server.live(sub="cyrus", ack="app") as idler:
        await server.publish()
        await idler.events(1)
        await reader.events(1)
        await reader.say(type="ack", seq=1)
        await reader.next_of("acked")
        wanted = {"amira": "acknowledged", "bo": "pending", "cyrus": "written"}
        with trio.fail_after(10):  # another worker stores within a second what it was told
            while True:
                answer = await server.http.get("/diagnoses/42/delivery?seq=1", headers=server.bearer("amira"))
                items = {item["user_id"]: item for item in answer.json()["items"]}
                if {sub: item["state"] for sub, item in items.items()} == wanted:
                    break
                await trio.sleep(0.01)
    assert {sub: item["online"] for sub, item in items.items()} == {"amira": True, "bo": False, "cyrus": True}
    assert items["amira"]["acknowledged_at"] is not None
    for number in range(105):
        await server.publish(number)
    later = await server.http.get("/diagnoses/42/delivery?seq=1", headers=server.bearer("amira"))
    assert {item["user_id"]: item["state"] for item in later.json()["items"]}["bo"] == "lost"


async def test_delivery_comes_in_pages_whose_next_travels_in_a_url(server: Server) -> None:
    subs = ["amira", "bo", "zoë / 1"]
    await server.register(42, *subs)
    for sub in subs:
        async with server.live(sub=sub, device="d.1"):
            pass
    await server.publish()
    found, path, headers = [], "/diagnoses/42/delivery?seq=1&limit=1", server.bearer("amira")
    answer = (await server.http.get(path, headers=headers)).json()
    found += answer["items"]
    while answer["next"] is not None:
        assert re.fullmatch("[A-Za-z0-9_-]+", answer["next"])
        answer = (await server.http.get(f"{path}&after={answer['next']}", headers=headers)).json()
        found += answer["items"]
    assert [one["user_id"] for one in found] == subs
    for wrong in ("!", "a", "_w"):
        refused = await server.http.get(f"{path}&after={wrong}", headers=headers)
        assert (refused.status_code, refused.json()["code"]) == (422, "invalid_field")


async def test_delivery_of_a_number_that_was_not_given_is_refused(server: Server) -> None:
    await server.register()
    for seq in ("0", "1", "x", ""):
        answer = await server.http.get(f"/diagnoses/42/delivery?seq={seq}", headers=server.bearer("amira"))
        assert answer.status_code == 422
        assert "seq must be" in answer.json()["detail"]


async def test_a_position_is_where_to_connect_after_loading_ones_data(server: Server) -> None:
    await server.register(42, "amira", "bo")
    await server.publish()
    position = (await server.http.get("/diagnoses/42/position", headers=server.bearer("bo"))).json()
    assert (position["head"], position["floor"]) == (1, 0)
    await server.publish()
    async with server.connect(sub="bo", after=position["head"], epoch=position["epoch"]) as client:
        assert [frame["seq"] for frame in await client.until_live() if "seq" in frame] == [2]
    assert (await server.http.get("/diagnoses/42/position", headers=server.bearer("eve"))).status_code == 403


async def test_operators_routes_need_the_scope_and_a_registered_diagnosis(server: Server) -> None:
    await server.register()
    routes = [
        ("GET", "/actors"),
        ("GET", "/actors/42"),
        ("POST", "/actors/42/restart"),
        ("POST", "/actors/42/stop"),
        ("GET", "/actors/42/outbox"),
        ("DELETE", "/actors/42/outbox"),
        ("DELETE", "/actors/42/subscribers"),
    ]
    for method, path in routes:
        assert (await server.http.request(method, path)).status_code == 401
        owner = await server.http.request(method, path, headers=server.bearer("amira"))
        assert owner.status_code == 403
        if "42" in path:
            unknown = path.replace("42", "43")
            answer = await server.http.request(method, unknown, headers=server.bearer(*OPERATOR))
            assert answer.status_code == 404


async def test_operator_restarts_under_load_lose_and_repeat_nothing(server: Server) -> None:
    await server.register(42, "amira", *[f"viewer{number}" for number in range(20)])
    received: list[list[int]] = []

    async def follow(number: int, *, task_status: trio.TaskStatus[None]) -> None:
        async with server.live(sub=f"viewer{number}") as client:
            task_status.started()
            received.append([event["seq"] for event in await client.events(200)])
            # trio-websocket fails where a Ping comes while it closes: the server's last one is behind us then.
            await client.connection.ping()

    async def publish() -> None:
        for number in range(50):
            assert (await server.publish(number)).status_code == 200

    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            for number in range(20):
                await nursery.start(follow, number)
            async with trio.open_nursery() as publishers:
                for _ in range(4):
                    publishers.start_soon(publish)
                for _ in range(50):
                    await post(server, "/actors/42/restart")
    assert received == [list(range(1, 201))] * 20


async def test_asking_for_a_position_loads_no_outbox(server: Server) -> None:
    await server.register()
    await server.publish()
    await server.http.post("/actors/42/stop", headers=server.bearer("op", "operate"))
    before = (await server.status())["node"]
    position = (await server.http.get("/diagnoses/42/position", headers=server.bearer("amira"))).json()
    assert (position["head"], position["floor"]) == (1, 0)
    after = (await server.status())["node"]
    assert (after["actors"], after["ring_bytes"]) == (before["actors"], before["ring_bytes"]) == (0, 0)
    await server.publish()
    again = (await server.http.get("/diagnoses/42/position", headers=server.bearer("amira"))).json()
    assert again == {**position, "head": 2}
    assert (await server.status())["node"]["ring_bytes"] > 0


@pytest.mark.one_process("where several processes share a store, nothing is rendered that nobody follows: no crash")
async def test_an_actor_that_crashed_shows_what_is_stored_and_not_what_it_had_read(settings: Settings) -> None:
    def crash(diagnosis_id: str, event: Event) -> bytes:
        raise RuntimeError

    async with running_server(replace(settings, quarantine_seconds=600), render=crash) as server:
        await server.register()
        while (await get(server, "/actors/42"))["state"] != "quarantined":
            await server.publish()
        shown = await get(server, "/actors/42")
        stored = await get(server, "/actors/42/outbox?payload=0")
        assert shown["head"] == stored["items"][-1]["seq"]
