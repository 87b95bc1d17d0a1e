"""Limits, origins and CORS, as a client of a running server meets them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Any

import httpx
import pytest
import trio

from tests.server.harness import Client, Server, open_socket, running_server
from tests.server.test_broadcasts import assert_problem
from tests.server.test_bulk import feedback, results, send, text_of
from web.server.settings import Settings

PAGE, EVIL = "https://page.example", "https://evil.example"


@asynccontextmanager
async def limited(settings: Settings, **limits: Any) -> AsyncIterator[Server]:
    """A server with these limits and diagnosis 42."""
    async with running_server(Settings(port=0, data=settings.data, **limits)) as server:
        await server.register(42, "amira", "bo")
        yield server


async def refused(client: Client) -> tuple[str, int, str]:
    frames, code, reason = await client.close_frames()
    assert [frame["type"] for frame in frames] == ["error"]
    return frames[0]["data"]["code"], code, reason


TOO_MANY = ("rate_limited", 1008, "rate limited")


async def test_a_user_has_so_many_connections_and_a_place_is_given_back(settings: Settings) -> None:
    async with limited(settings, user_connections_max=1) as server:
        async with server.live() as first:
            async with server.connect() as second:
                assert await refused(second) == TOO_MANY
            async with server.live(sub="bo"):
                await first.say(type="ping")
                await first.next_of("pong")
        await server.until_alone()
        async with server.live():
            pass


@pytest.mark.one_process("each worker counts its own connections")
async def test_a_device_takes_over_its_own_connection_at_the_limit(settings: Settings) -> None:
    async with (
        limited(settings, user_connections_max=1) as server,
        server.live(device="phone") as first,
        server.live(device="phone"),
    ):
        assert (await first.close_frames())[1] == 4000
        async with server.connect(device="tablet") as third:
            assert await refused(third) == TOO_MANY


@pytest.mark.one_process("each worker counts its own connections")
async def test_a_diagnosis_and_an_address_have_so_many_connections(settings: Settings) -> None:
    for limit in ("diagnosis_connections_max", "address_connections_max"):
        async with limited(settings, **{limit: 1}) as server, server.live(), server.connect(sub="bo") as client:
            assert await refused(client) == TOO_MANY


@pytest.mark.parametrize("limit", ["user_connects_per_second", "address_connects_per_second"])
async def test_connects_are_limited_by_the_second(settings: Settings, limit: str) -> None:
    async with limited(settings, **{limit: 0.01}) as server:
        async with server.live():
            pass
        async with server.connect() as client:
            assert await refused(client) == TOO_MANY


async def test_requests_of_a_user_are_limited_by_the_second(settings: Settings) -> None:
    async with limited(settings, user_requests_per_second=0.01) as server:
        assert (await server.publish(1)).status_code == 200
        answer = await server.publish(2)
        assert (answer.status_code, answer.json()["code"]) == (429, "rate_limited")
        assert 1 <= int(answer.headers["Retry-After"]) <= 100
        assert (await server.http.get("/ws/status", headers=server.bearer("bo"))).status_code == 200


async def test_requests_are_limited_by_the_address_that_a_trusted_proxy_names(settings: Settings) -> None:
    trusting = {"trusted_proxies": ("127.0.0.0/8",), "address_requests_per_second": 0.01}
    async with limited(settings, **trusting) as server:

        async def status_for(address: str) -> int:
            return (await server.http.get("/healthz", headers={"X-Forwarded-For": address})).status_code

        assert [await status_for(one) for one in ("192.0.2.1", "192.0.2.2", "192.0.2.1")] == [200, 200, 429]
    async with limited(settings, address_requests_per_second=0.01) as server:
        assert await status_for("192.0.2.3") == 429, "nobody is believed who is not trusted"


@pytest.mark.parametrize("first", ["singly", "in bulk"])
async def test_events_of_a_user_are_limited_by_the_second_however_they_are_published(
    settings: Settings, first: str
) -> None:
    async with limited(settings, user_events_per_second=2) as server:
        lines = text_of(*(feedback(number) for number in range(4)))
        if first == "singly":
            assert [(await server.publish(number)).status_code for number in range(2)] == [200, 200]
        else:
            found = results(await send(server, lines))
            assert [(one["status"], one.get("code")) for one in found[:3]] == [
                (200, None),
                (200, None),
                (429, "rate_limited"),
            ]
            assert "user_events_per_second" in found[2]["detail"]
        answers = [await server.publish(number) for number in range(20)]
        (refused, *_) = [one for one in answers if one.status_code == 429]
        assert (refused.json()["code"], refused.headers["Retry-After"]) == ("rate_limited", "1")
        assert "user_events_per_second" in refused.json()["detail"]
        assert (await server.publish(1, sub="bo")).status_code == 403, "others have a rate of their own"


async def test_beyond_the_bound_of_keys_an_event_with_a_new_key_is_refused_and_all_else_goes_on(
    settings: Settings,
) -> None:
    async with limited(settings, idempotency_keys_max=2) as server:

        async def publish(number: int, key: str | None) -> httpx.Response:
            body = {"diagnosis_id": 42, "feedback_id": number, "rating": 5}
            return await server.post("feedback", body, **({} if key is None else {"Idempotency-Key": key}))

        assert (await publish(1, "a")).json()["seq"] == 1
        node = (await server.status())["node"]
        assert (node["idempotency_keys"], node["idempotency_keys_max"]) == (1, 2)
        assert 0 <= node["idempotency_keys_oldest_seconds"] < 60
        lines = text_of(*(feedback(number, idempotency_key=key) for number, key in ((2, "b"), (3, "c"), (4, None))))
        found = results(await send(server, lines))
        assert [(one["status"], one.get("seq"), one.get("code")) for one in found] == [
            (200, 2, None),
            (429, None, "rate_limited"),
            (200, 3, None),
        ]
        refused = await publish(3, "c")
        assert_problem(refused, 429, "rate_limited", "idempotency_keys_max")
        assert "Retry-After" in refused.headers
        again = (await publish(1, "a")).json()
        assert (again["seq"], again["replayed"]) == (1, True)
        assert (await publish(9, "a")).status_code == 409
        assert (await publish(5, None)).json()["seq"] == 4


async def test_an_upgrade_with_a_bad_parameter_counts_as_a_connect_of_its_address(settings: Settings) -> None:
    for query in ("after=x", "after=1&after=2", "device=a b"):
        async with limited(settings, address_connects_per_second=0.01) as server:
            token = server.token("amira")
            url = server.url.replace("http", "ws", 1)
            async with open_socket(f"{url}/ws/42?{query.replace(' ', '%20')}&token={token}") as client:
                assert (await refused(client))[0] == "invalid_field"
            async with server.connect() as client:
                assert await refused(client) == TOO_MANY


HANDSHAKE = b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: MDEyMzQ1Njc4OTAxMjM0NQ==\r\n\r\n"


@pytest.mark.parametrize(
    "malformed",
    [
        b"GET / HTTP/9.9\r\n\r\n",
        b"nonsense\r\n\r\n",
        b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 200 + b"\r\n",
        b"GET /ws/42 HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n\r\n",
        b"GET /nowhere HTTP/1.1\r\nHost: x\r\nConnection: Upgrade\r\nUpgrade: websocket\r\n" + HANDSHAKE,
    ],
)
async def test_a_malformed_request_counts_as_one_of_its_address(settings: Settings, malformed: bytes) -> None:
    async with limited(settings, address_requests_per_second=2) as server:  # one was for the registration
        statuses = [await answered(server, malformed) for _ in range(20)]
        assert statuses[0] != 429
        assert 429 in statuses
    trusting = {"trusted_proxies": ("127.0.0.0/8",), "address_requests_per_second": 2}
    async with limited(settings, **trusting) as server:
        statuses = [await answered(server, malformed) for _ in range(20)]
        is_routed = b"nowhere" in malformed
        assert (429 in statuses) is is_routed, "a proxy is not blamed for what its clients send"


async def answered(server: Server, request: bytes) -> int:
    """The status of the answer to some bytes."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    async with await trio.open_tcp_stream(host, int(port)) as stream:
        await stream.send_all(request)
        with trio.fail_after(10):
            return int((await stream.receive_some())[9:12])


# Origins


async def test_a_foreign_page_changes_nothing_and_the_own_one_does(settings: Settings) -> None:
    async with limited(settings) as server:
        statuses = {}
        for origin in (EVIL, "null", server.url):
            answer = await server.post("feedback", {"diagnosis_id": 42, "feedback_id": 1, "rating": 5}, Origin=origin)
            statuses[origin] = (answer.status_code, answer.json().get("code"))
        assert statuses == {
            EVIL: (403, "origin_not_allowed"),
            "null": (403, "origin_not_allowed"),
            server.url: (200, None),
        }


async def test_without_configured_origins_there_is_no_cors(settings: Settings) -> None:
    async with limited(settings) as server:
        answer = await server.http.get("/healthz", headers={"Origin": EVIL})
        preflight = await preflight_of(server, EVIL)
    for headers in (answer.headers, preflight.headers):
        assert not [name for name in headers if name.startswith("access-control")]
    assert preflight.status_code == 403


async def preflight_of(server: Server, origin: str) -> Any:
    headers = {"Origin": origin, "Access-Control-Request-Method": "POST"}
    return await server.http.request("OPTIONS", "/ws/broadcast-feedback-update", headers=headers)


async def test_pages_of_configured_origins_may_use_the_api_and_no_others(settings: Settings) -> None:
    async with limited(settings, allowed_origins=(PAGE,)) as server:
        preflight = await preflight_of(server, PAGE)
        assert preflight.status_code == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == PAGE
        assert "POST" in preflight.headers["Access-Control-Allow-Methods"]
        assert "Authorization" in preflight.headers["Access-Control-Allow-Headers"]
        assert "Origin" in preflight.headers["Vary"]
        assert "Access-Control-Allow-Credentials" not in preflight.headers
        assert "Content-Type" not in preflight.headers, "it has no content"
        refusal = await server.http.get("/ws/status", headers={"Origin": PAGE})
        assert refusal.status_code == 401
        assert refusal.headers["Access-Control-Allow-Origin"] == PAGE
        assert "X-Request-ID" in refusal.headers["Access-Control-Expose-Headers"]
        for origin in (EVIL, PAGE + ".evil.example", PAGE + ":8443", "http://page.example", "null"):
            answer = await preflight_of(server, origin)
            assert answer.status_code == 403
            assert "Access-Control-Allow-Origin" not in answer.headers
            assert "Origin" in answer.headers["Vary"]


@pytest.mark.parametrize(
    ("options", "headers", "passes"),
    [
        ({"public_url": "https://live.example"}, {"Origin": "https://live.example"}, True),
        ({"public_url": "https://live.example"}, {"Origin": "https://live.example:443"}, True),
        ({"public_url": "https://live.example"}, {"Origin": "http://live.example"}, False),
        ({"trusted_proxies": ("127.0.0.1",)}, {"X-Forwarded-Proto": "https", "Origin": "https://{host}"}, True),
        ({}, {"X-Forwarded-Proto": "https", "Origin": "https://{host}"}, False),
    ],
)
async def test_the_own_origin_is_the_public_url_or_what_a_trusted_proxy_says(
    settings: Settings, options: dict[str, Any], headers: dict[str, str], passes: bool
) -> None:
    async with limited(settings, **options) as server:
        host = server.url.removeprefix("http://")
        sent = [(name, value.format(host=host)) for name, value in headers.items()]
        url = f"ws://{host}/ws/42?token={server.token('amira')}"
        async with open_socket(url, extra_headers=sent) as client:
            if passes:
                await client.until_live()
            else:
                assert await refused(client) == ("origin_not_allowed", 1008, "origin not allowed")
