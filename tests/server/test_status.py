"""Status, registry and health: what HTTP says about the server."""

from __future__ import annotations

from typing import Any

import pytest
import trio

from storage.sqlite.store import SqliteStore
from tests.server.harness import Server


async def test_an_empty_server_has_nothing_to_show(server: Server) -> None:
    status = await server.status()
    assert (status["total_diagnoses"], status["total_connections"]) == (0, 0)
    assert (status["connections_by_diagnosis"], status["queued_messages_by_diagnosis"]) == ({}, {})
    assert status["version"]


async def test_statistics_count_the_connections_of_every_diagnosis(server: Server) -> None:
    await server.register(1)
    await server.register(2)
    async with server.live(1), server.live(1), server.live(2):
        status = await server.status()
    assert (status["total_diagnoses"], status["total_connections"]) == (2, 3)
    assert status["connections_by_diagnosis"] == {"1": 2, "2": 1}


@pytest.mark.sqlite_only("an acknowledgement counts once it is stored")
async def test_queued_messages_are_those_some_subscriber_has_not_acknowledged(server: Server) -> None:
    await server.register()
    await server.publish(1)
    await server.publish(2)
    assert (await server.status())["queued_messages_by_diagnosis"] == {"42": 2}
    async with server.connect(ack="app") as client:
        await client.until_live()
        await client.say(type="ack", seq=1)
        await client.next_of("acked")
        await until_queued(server, {"42": 1})
        await client.say(type="ack", seq=2)
        await client.next_of("acked")
    await until_queued(server, {})


async def until_queued(server: Server, expected: dict[str, int]) -> None:
    """Wait until the status says how many wait: another worker hears of a cursor after it is stored."""
    with trio.fail_after(10):
        while (await server.status())["queued_messages_by_diagnosis"] != expected:
            await trio.sleep(0.01)


async def test_a_user_sees_only_own_diagnoses(server: Server) -> None:
    await server.register(1, "amira")
    await server.register(2, "bo")
    async with server.live(1), server.live(2, sub="bo"):
        answer = await server.http.get("/ws/status", headers=server.bearer("bo"))
    status = answer.json()
    assert (status["total_diagnoses"], status["connections_by_diagnosis"]) == (1, {"2": 1})


async def test_status_needs_a_token(server: Server) -> None:
    assert (await server.http.get("/ws/status")).status_code == 401


async def test_a_diagnosis_is_registered_shown_replaced_and_deleted(server: Server) -> None:
    created = await server.register("d-1", "amira", "bo", "bo")
    assert created.status_code == 201
    assert created.json()["viewers"] == ["bo"]
    replaced = await server.register("d-1", "cyrus")
    assert replaced.status_code == 200
    assert replaced.json()["epoch"] == created.json()["epoch"]
    shown = await server.http.get("/diagnoses/d-1", headers=server.bearer("cyrus"))
    assert shown.json()["owner"] == "cyrus"
    assert (await server.http.get("/diagnoses/d-1", headers=server.bearer("amira"))).status_code == 403
    headers = server.bearer("registrar", "register")
    assert (await server.http.delete("/diagnoses/d-1", headers=headers)).status_code == 200
    assert (await server.http.get("/diagnoses/d-1", headers=headers)).status_code == 404
    assert (await server.http.delete("/diagnoses/d-1", headers=headers)).status_code == 404


async def test_registering_needs_its_scope_and_an_owner(server: Server) -> None:
    refused = await server.http.put("/diagnoses/1", json={"owner": "amira"}, headers=server.bearer("amira"))
    assert (refused.status_code, refused.json()["code"]) == (403, "forbidden")
    headers = server.bearer("registrar", "register")
    for body in ({}, {"owner": ""}, {"owner": 3}, {"owner": "a", "viewers": "b"}, {"owner": "a", "x": 1}):
        answer = await server.http.put("/diagnoses/1", json=body, headers=headers)
        assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")


async def test_diagnoses_are_listed_in_pages(server: Server) -> None:
    for number in range(1, 6):
        await server.register(f"d{number}", "amira" if number % 2 else "bo")
    headers = server.bearer("registrar", "register")
    first = (await server.http.get("/diagnoses?limit=3", headers=headers)).json()
    rest = (await server.http.get("/diagnoses", params={"after": first["next"]}, headers=headers)).json()
    found = [item["diagnosis_id"] for item in first["items"] + rest["items"]]
    assert found == ["d1", "d2", "d3", "d4", "d5"]
    assert rest["next"] is None
    own = (await server.http.get("/diagnoses", headers=server.bearer("bo"))).json()
    assert [item["diagnosis_id"] for item in own["items"]] == ["d2", "d4"]
    wrong = await server.http.get("/diagnoses?limit=0", headers=headers)
    assert (wrong.status_code, wrong.json()["detail"]) == (422, "limit must be an integer 1-1000")


async def test_a_running_server_is_healthy_and_ready(server: Server) -> None:
    assert (await server.http.get("/healthz")).status_code == 200
    assert (await server.http.get("/readyz")).status_code == 200


@pytest.mark.sqlite_only("counts the reads of the database")
async def test_one_reading_of_all_outboxes_is_shared_by_all_operators_who_ask(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    for number in range(5):
        await server.register(number)
    read: list[str | None] = []
    inner = SqliteStore.outboxes

    async def counting(store: SqliteStore, *, owner: str | None = None, **page: Any) -> Any:
        read.append(owner)
        return await inner(store, owner=owner, **page)

    monkeypatch.setattr(SqliteStore, "outboxes", counting)
    async with trio.open_nursery() as nursery:
        for _ in range(10):
            nursery.start_soon(server.status)
    assert len(read) <= 2, "one, unless a second is over"
    await server.register(99)
    assert (await server.status())["total_diagnoses"] == 6, "a new one is noticed at once"
    own = (await server.http.get("/ws/status", headers=server.bearer("nobody"))).json()
    assert own["total_diagnoses"] == 0
    assert read[-1] == "nobody"
