"""Sockets that are refused: the upgrade succeeds, an error frame says why, and the close code reaches a browser."""

from __future__ import annotations

import sys

import pytest

from actors.registry import Registry
from storage.errors import NoSuchDiagnosis
from tests.logbook import Logbook
from tests.server.harness import Client, Server, open_socket, running_server
from tests.server.test_broadcasts import assert_problem
from web.server.settings import Settings

pytestmark = pytest.mark.both_ways


async def refused(client: Client) -> tuple[str, int, str]:
    """Code of the error frame, close code and reason."""
    frames, code, reason = await client.close_frames()
    assert [frame["type"] for frame in frames] == ["error"]
    return frames[0]["data"]["code"], code, reason


async def test_a_connect_without_a_token_is_refused(server: Server) -> None:
    await server.register()
    async with server.connect(sub=None) as client:
        assert await refused(client) == ("invalid_token", 1008, "invalid token")


async def test_a_connect_with_a_bad_token_is_refused(server: Server) -> None:
    await server.register()
    async with server.connect(sub=None, token="nonsense") as client:
        assert await refused(client) == ("invalid_token", 1008, "invalid token")


async def test_a_connect_with_an_expired_token_is_refused(server: Server) -> None:
    await server.register()
    async with server.connect(sub=None, token=server.token("amira", ttl_seconds=-60)) as client:
        assert await refused(client) == ("token_expired", 1008, "token expired")


async def test_a_foreign_and_an_unknown_diagnosis_are_both_access_denied(server: Server) -> None:
    await server.register()
    for diagnosis_id in (42, 43):
        async with server.connect(diagnosis_id, sub="mallory") as client:
            assert await refused(client) == ("access_denied", 1008, "access denied")


async def test_ids_that_clients_name_are_not_interned(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    await server.register("ward-7")
    interned: list[str] = []
    intern = sys.intern

    def noted(text: str) -> str:
        interned.append(text)
        return intern(text)

    monkeypatch.setattr(sys, "intern", noted)
    async with server.connect("ward-8", sub="watcher", scope="monitor") as client:
        assert await refused(client) == ("not_found", 1008, "diagnosis not found")
    assert (await server.http.get("/diagnoses/ward-9/events", headers=server.bearer("amira"))).status_code == 403
    async with server.connect("ward-7") as client:
        await client.until_live()
    assert not [one for one in interned if one.startswith("ward-")]


@pytest.mark.parametrize("scope", ["monitor", "operate"])
async def test_a_monitor_may_follow_everything_and_is_told_what_does_not_exist(server: Server, scope: str) -> None:
    await server.register()
    async with server.connect(sub="watcher", scope=scope) as client:
        await client.until_live()
    async with server.connect(43, sub="watcher", scope=scope) as client:
        assert await refused(client) == ("not_found", 1008, "diagnosis not found")


@pytest.mark.parametrize(
    "parameters",
    [
        {"device": "a b"},
        {"device": ""},
        {"device": "x" * 65},
        {"after": "-1"},
        {"after": "x"},
        {"after": "9" * 16},
        {"start": "middle"},
        {"ack": "never"},
    ],
)
async def test_a_wrong_parameter_is_named_and_refused(server: Server, parameters: dict[str, str]) -> None:
    await server.register()
    async with server.connect(**parameters) as client:
        frames, code, reason = await client.close_frames()
    assert (code, reason) == (1008, "invalid field")
    assert frames[0]["data"]["code"] == "invalid_field"
    assert next(iter(parameters)) in frames[0]["data"]["detail"]


async def test_a_parameter_that_is_given_twice_is_refused(server: Server) -> None:
    await server.register()
    url = f"{server.url.replace('http://', 'ws://')}/ws/42?token={server.token('amira')}&after=1&after=2"
    async with open_socket(url) as client:
        (error,), code, reason = await client.close_frames()
    assert (code, reason, error["data"]["detail"]) == (1008, "invalid field", "after must be given once")
    headers = server.bearer("amira")
    assert_problem(await server.http.get("/diagnoses?limit=1&limit=2", headers=headers), 422, "invalid_field", "limit")


async def test_a_diagnosis_id_in_the_path_is_checked_and_never_echoed(server: Server) -> None:
    async with server.connect("a%20b") as client:
        (error,), code, reason = await client.close_frames()
    assert (error["data"]["code"], code, reason) == ("invalid_field", 1008, "invalid field")
    assert error["diagnosis_id"] == ""


@pytest.mark.parametrize(("scope", "reason"), [("", "access denied"), ("monitor", "diagnosis not found")])
async def test_a_diagnosis_deleted_while_its_actor_is_asked_is_refused_as_any_other(
    server: Server, monkeypatch: pytest.MonkeyPatch, scope: str, reason: str
) -> None:
    def put(registry: Registry, diagnosis_id: str, message: object) -> None:
        raise NoSuchDiagnosis(diagnosis_id)

    await server.register()
    monkeypatch.setattr(Registry, "put", put)
    async with server.connect(sub="amira", scope=scope) as client:
        assert (await refused(client))[2] == reason
    answer = await server.http.get("/diagnoses/42/events", headers=server.bearer("amira", scope))
    assert answer.status_code == (404 if scope else 403)


async def test_a_token_travels_as_header_subprotocol_or_query_and_the_header_wins(server: Server) -> None:
    await server.register()
    url = server.url.replace("http://", "ws://") + "/ws/42"
    good, bad = server.token("amira"), "nonsense"
    async with open_socket(url, subprotocols=["avicenna.v1", f"bearer.{good}"]) as client:
        assert client.connection.subprotocol == "avicenna.v1"
        await client.until_live()
    async with open_socket(f"{url}?token={good}") as client:
        await client.until_live()
    async with open_socket(
        f"{url}?token={bad}",
        subprotocols=["avicenna.v1", f"bearer.{bad}"],
        extra_headers=[*server.bearer("amira").items()],
    ) as client:
        await client.until_live()
    async with open_socket(f"{url}?token={good}", subprotocols=["avicenna.v1", f"bearer.{bad}"]) as client:
        assert client.connection.subprotocol == "avicenna.v1"
        assert await refused(client) == ("invalid_token", 1008, "invalid token")


async def test_a_foreign_origin_is_refused_and_the_own_one_passes(server: Server) -> None:
    await server.register()
    url = server.url.replace("http://", "ws://") + f"/ws/42?token={server.token('amira')}"
    async with open_socket(url, extra_headers=[("Origin", "https://evil.example")]) as client:
        assert await refused(client) == ("origin_not_allowed", 1008, "origin not allowed")
    async with open_socket(url, extra_headers=[("Origin", server.url)]) as client:
        await client.until_live()


async def test_anonymous_subscribers_follow_where_the_operator_allows_it(settings: Settings) -> None:
    allowing = Settings(port=settings.port, data=settings.data, allow_anonymous=True)
    async with running_server(allowing) as server:
        await server.register()
        async with server.connect(sub=None) as client:
            assert (await client.until_live())[0]["data"]["user_id"] is None
        async with server.connect(43, sub=None) as client:
            assert await refused(client) == ("not_found", 1008, "diagnosis not found")
        for path in ("events", "position"):
            assert_problem(await server.http.get(f"/diagnoses/43/{path}"), 404, "not_found")
        totals = (await server.http.get("/ws/status")).json()
        assert totals["total_diagnoses"] == 1
        assert "connections_by_diagnosis" not in totals


async def test_query_tokens_can_be_turned_off(settings: Settings, logbook: Logbook) -> None:
    async with running_server(Settings(port=settings.port, data=settings.data, query_tokens=False)) as server:
        await server.register()
        async with server.connect(sub=None, token=server.token("amira")) as client:
            assert await refused(client) == ("invalid_token", 1008, "invalid token")
        assert any("not accepted: one in the query counts" in one and "query_tokens" in one for one in logbook.lines)
