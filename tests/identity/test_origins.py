"""Origins of pages and apps, in whatever spelling, and hosts that a page cannot have chosen itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import trio
from hypothesis import given
from hypothesis import strategies as st

from tests.edge.peers import Answer, ask, connect, request, upgrade
from tests.identity.test_limits import limited, preflight_of, refused
from tests.server.harness import Server, open_socket
from tests.server.test_broadcasts import assert_problem
from web.contract.origins import normal_origin, split_authority
from web.server.settings import Settings, SettingsError, load
from web.websocket import holds

APPS = (
    "capacitor://localhost",
    "ionic://localhost",
    "tauri://localhost",
    "app://obsidian.md",
    "app://.",
    "chrome-extension://abcdefghijklmnopabcdefghijklmnop",
    "moz-extension://9f6b7c0e-3c1d-4f6e-8f62-0123456789ab",
)


@pytest.fixture(autouse=True)
def short_holds(monkeypatch: pytest.MonkeyPatch) -> None:
    """What follows a refusal follows soon: how long it is held back is no matter here."""
    monkeypatch.setattr(holds, "FIRST_SECONDS", 0.01)


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://App.Example.org:443", "https://app.example.org"),
        ("HTTPS://app.example.org/", "https://app.example.org"),
        ("http://app.example.org:80", "http://app.example.org"),
        ("http://app.example.org:0080", "http://app.example.org"),
        ("https://app.example.org:80", "https://app.example.org:80"),
        ("http://[0:0:0:0:0:0:0:1]:8000", "http://[::1]:8000"),
        ("Capacitor://localhost", "capacitor://localhost"),
        ("tauri://localhost:1420", "tauri://localhost:1420"),
        *((app, app) for app in APPS),
        ("null", "null"),
        ("", None),
        ("example.org", None),
        ("https://", None),
        ("https:///", None),
        ("https://a/b", None),
        ("https://a//", None),
        ("https://a?b", None),
        ("https://a#b", None),
        ("https://user@a", None),
        ("https://a:65536", None),
        ("https://a b", None),
        ("https://a, https://b", None),
        ("://a", None),
        ("1app://a", None),
        ("file://", None),
        ("https://app.example.org.", "https://app.example.org"),
        ("https://app.example.org.:443", "https://app.example.org"),
        ("https://app.example.org..", None),
        ("https://.", None),
        ("http://..", None),
        ("app://...", None),
        ("https://[::g]", None),
    ],
)
def test_an_origin_has_one_spelling(text: str, origin: str | None) -> None:
    assert normal_origin(text) == origin


@given(st.text() | st.text(alphabet="htps:/[].@?#0189abcé *"))
def test_any_text_is_an_origin_in_its_one_spelling_or_none(text: str) -> None:
    found = normal_origin(text)
    assert found is None or normal_origin(found) == found
    parts = split_authority(text)
    assert parts is None or split_authority(parts[0]) == (parts[0], "")


@pytest.mark.parametrize(
    "text",
    [
        "javascript://x",
        "JavaScript://x",
        "data://x",
        "blob://x",
        "file://x",
        "about://blank",
        "filesystem://x",
        "ws://app.example.org",
        "wss://app.example.org",
        "app://...",
        "app://..",
        "https://.",
        "https://...",
    ],
)
def test_what_can_be_no_origin_of_a_page_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match="AVICENNA_ALLOWED_ORIGINS must be"):
        load({"AVICENNA_ALLOWED_ORIGINS": text})


@pytest.mark.parametrize("name", ["allowed_origins", "public_url"])
@pytest.mark.parametrize("text", ["*", "https://*.example.org", "https://*", "*://example.org"])
def test_a_wildcard_is_refused_with_a_message_that_says_so(name: str, text: str) -> None:
    with pytest.raises(SettingsError, match=rf"AVICENNA_{name.upper()} must be .*no wildcards.*; it is "):
        load({f"AVICENNA_{name.upper()}": text})


@pytest.mark.parametrize("text", ["capacitor://localhost", "null", "app://x"])
def test_the_public_url_is_a_web_origin(text: str) -> None:
    with pytest.raises(SettingsError, match="AVICENNA_PUBLIC_URL must be an origin such as"):
        load({"AVICENNA_PUBLIC_URL": text})


def test_origins_of_apps_are_settings() -> None:
    given_as = ",".join((*APPS, "null", "https://App.Example.org:443/"))
    assert load({"AVICENNA_ALLOWED_ORIGINS": given_as}).allowed_origins == (*APPS, "null", "https://app.example.org")


@pytest.mark.parametrize(
    ("configured", "sent"),
    [
        *((app, app) for app in APPS),
        ("null", "null"),
        ("https://App.Example.org:443", "https://app.example.org"),
        ("https://app.example.org", "https://App.Example.org:443"),
        ("http://app.example.org:80/", "http://app.example.org"),
    ],
)
async def test_a_page_of_a_configured_origin_may_connect_and_use_the_api(
    settings: Settings, configured: str, sent: str
) -> None:
    async with limited(settings, allowed_origins=(configured,)) as server:
        preflight = await preflight_of(server, sent)
        assert preflight.status_code == 204
        assert preflight.headers["Access-Control-Allow-Origin"] == sent, "as the browser wrote it"
        answer = await server.post("feedback", {"diagnosis_id": 42, "feedback_id": 1, "rating": 5}, Origin=sent)
        assert (answer.status_code, answer.headers["Access-Control-Allow-Origin"]) == (200, sent)
        url = f"ws{server.url.removeprefix('http')}/ws/42?token={server.token('amira')}"
        async with open_socket(url, extra_headers=[("Origin", sent)]) as client:
            await client.until_live()
        for foreign in ("https://evil.example", "null", "capacitor://evil", "app://evil"):
            if foreign != sent:
                assert (await preflight_of(server, foreign)).status_code == 403
                async with open_socket(url, extra_headers=[("Origin", foreign)]) as client:
                    assert (await refused(client))[0] == "origin_not_allowed"


@pytest.mark.one_process("the parent warns")
async def test_null_is_a_warning_at_start(settings: Settings, caplog: pytest.LogCaptureFixture) -> None:
    def warnings() -> list[str]:
        return [one.message for one in caplog.records if one.levelname == "WARNING"]

    async with limited(settings, allowed_origins=("https://a.example",)):
        assert warnings() == []
    async with limited(settings, allowed_origins=("null",)):
        (said,) = warnings()
    assert said.startswith("allowed_origins has null")


# Hosts (DNS rebinding)


async def asked_on(
    server: Server, host: str, path: str = "/ws/status", method: bytes = b"GET", **headers: bytes
) -> Answer:
    """The answer to a request with this `Host`, by TCP."""
    sent = request(path.encode(), method, Connection=b"close", **headers)
    answer, _ = await ask(server.url, sent.replace(b"Host: test", b"Host: " + host.encode()))
    return answer


FOREIGN = ("evil.example", "evil.example:8000", "localhost.evil.example", "127.0.0.1.evil.example", "x.localhost")


async def test_an_open_server_is_not_asked_under_a_foreign_host(settings: Settings) -> None:
    async with limited(settings, allow_anonymous=True) as server:
        for host in FOREIGN:
            origin = f"http://{host}".encode()
            for path in ("/ws/status", "/diagnoses/42/events", "/diagnoses/42/position", "/openapi.json", "/nowhere"):
                answer = await asked_on(server, host, path, Origin=origin)
                assert (answer.status, answer.problem["code"]) == (421, "misdirected_request")
                assert "allowed_hosts" in answer.problem["detail"]
                assert host not in answer.problem["detail"]
            for method in (b"POST", b"DELETE", b"OPTIONS"):
                assert (await asked_on(server, host, "/diagnoses/42", method)).status == 421
            refusal, _ = await ask(server.url, upgrade(b"/ws/42").replace(b"Host: test", b"Host: " + host.encode()))
            assert (refusal.status, refusal.problem["code"]) == (421, "misdirected_request")


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1",
        "127.0.0.1:8000",
        "192.0.2.7:1",
        "[::1]:8000",
        "[fe80::1]",
        "localhost",
        "LocalHost.:8000",
        "live.example",
        "LIVE.example:443",
        "ward.example.org",
        "Ward.Example.ORG.:8080",
        "xn--bcher-kva.example",
    ],
)
async def test_an_open_server_is_asked_under_its_own_hosts(settings: Settings, host: str) -> None:
    known = {"public_url": "https://live.example", "allowed_hosts": ("ward.example.org.", "XN--bcher-kva.example")}
    async with limited(settings, allow_anonymous=True, **known) as server:
        assert (await asked_on(server, host)).status == 200
        async with await connect(server.url) as peer:
            await peer.send(upgrade(b"/ws/42").replace(b"Host: test", b"Host: " + host.encode()))
            assert (await peer.answer()).status == 101


async def test_the_configured_host_is_one_of_its_own(settings: Settings) -> None:
    async with limited(settings, allow_anonymous=True, host="LOCALHOST") as server:
        assert (await asked_on(server, "localhost")).status == 200
        assert (await asked_on(server, "test")).status == 421


async def test_an_absolute_target_is_judged_by_the_host_it_names(settings: Settings) -> None:
    async with limited(settings, allow_anonymous=True) as server:
        for named, other, status in (("evil.example", "localhost", 421), ("localhost", "evil.example", 200)):
            assert (await asked_on(server, other, f"http://{named}/ws/status")).status == status
            absolute = upgrade(f"http://{named}/ws/42".encode()).replace(b"Host: test", b"Host: " + other.encode())
            async with await connect(server.url) as peer:
                await peer.send(absolute)
                assert (await peer.answer()).status == (101 if status == 200 else 421)


async def test_an_absolute_target_decides_what_is_the_servers_own_origin(settings: Settings) -> None:
    body = b'{"diagnosis_id":42,"feedback_id":1,"rating":5}'
    async with limited(settings) as server:
        token = b"Bearer " + server.token("amira").encode()
        target = "http://live.example/ws/broadcast-feedback-update"
        for origin, status in ((b"http://live.example", 200), (b"http://evil.example", 403)):
            sent = request(
                target.encode(),
                b"POST",
                body,
                Authorization=token,
                Content_Type=b"application/json",
                Origin=origin,
                Connection=b"close",
            ).replace(b"Host: test", b"Host: evil.example")
            assert (await ask(server.url, sent))[0].status == status


async def test_a_request_without_a_host_is_not_for_an_open_server(settings: Settings) -> None:
    async with limited(settings, allow_anonymous=True) as server:
        answer, _ = await ask(server.url, b"GET /ws/status HTTP/1.0\r\n\r\n")
        assert (answer.status, answer.problem["code"]) == (421, "misdirected_request")
        assert (await ask(server.url, b"GET /healthz HTTP/1.0\r\n\r\n"))[0].status == 200


async def test_the_host_is_not_asked_for_health_and_readiness(settings: Settings) -> None:
    async with limited(settings, allow_anonymous=True) as server:
        for path in ("/healthz", "/readyz"):
            assert (await asked_on(server, "evil.example", path)).status == 200
            assert (await asked_on(server, "evil.example", path, b"POST")).status == 405
        assert (await asked_on(server, "evil.example", "/%2Fhealthz")).status == 404


@pytest.mark.one_process("two servers of one process have no Unix socket")
async def test_the_host_is_not_asked_where_a_token_is_required_or_a_proxy_is_trusted(
    settings: Settings, tmp_path: Path
) -> None:
    async with limited(settings) as server:
        assert (await asked_on(server, "evil.example")).status == 401
    async with limited(settings, allow_anonymous=True, trusted_proxies=("127.0.0.1",)) as server:
        assert (await asked_on(server, "evil.example")).status == 200
    options: dict[str, Any] = {"allow_anonymous": True, "unix_socket": tmp_path / "live.sock"}
    async with limited(settings, **options) as server:
        stream = await trio.open_unix_socket(str(tmp_path / "live.sock"))
        async with stream:
            await stream.send_all(b"GET /ws/status HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n")
            assert (await stream.receive_some(65536)).startswith(b"HTTP/1.1 200 ")
        assert (await asked_on(server, "evil.example")).status == 421


async def test_a_foreign_host_is_refused_in_the_words_of_the_document(settings: Settings) -> None:
    async with limited(settings, allow_anonymous=True) as server:
        answer = await server.http.get("/ws/status", headers={"Host": "evil.example"})
        assert_problem(answer, 421, "misdirected_request", "allowed_hosts")
        assert answer.headers["X-Request-ID"]


@pytest.mark.parametrize(
    ("text", "host"),
    [("Ward.Example.org.", "ward.example.org"), ("10.0.0.7", "10.0.0.7"), ("::1", "[::1]"), ("[0::1]", "[::1]")],
)
def test_an_allowed_host_has_one_spelling(text: str, host: str) -> None:
    assert load({"AVICENNA_ALLOWED_HOSTS": text}).allowed_hosts == (host,)


@pytest.mark.parametrize(
    "text", ["*", "*.example.org", "a:80", "a b", "http://a", "a/b", "user@a", "[::1]:80", ".", "é"]
)
def test_a_wrong_allowed_host_is_refused(text: str) -> None:
    with pytest.raises(SettingsError, match=r"AVICENNA_ALLOWED_HOSTS must be .*no port, no wildcards"):
        load({"AVICENNA_ALLOWED_HOSTS": text})
