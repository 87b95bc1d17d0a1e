"""Keys from a JWKS URL: fetched, rotated, kept while the source is down, and never asked for too often."""

from __future__ import annotations

import json
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import jwt
import pytest
import trio
import trio.testing
from cryptography.hazmat.primitives.asymmetric import ed25519

from storage.clock import SystemClock
from tests.access.test_keys import jwk_of
from tests.server.harness import Server, running_server
from web.jwks import ASKED_AGAIN_SECONDS, DOCUMENT_BYTES_MAX, RemoteKeys, fetch_document
from web.revoked import Revoked
from web.settings import Settings
from web.tokens import KeysMissing, TokenInvalid, Verifier


class Source:
    """An identity provider in memory."""

    def __init__(self) -> None:
        self.keys: dict[str, ed25519.Ed25519PrivateKey] = {}
        self.is_down = False
        self.fetches = 0
        self.add("first")

    def add(self, kid: str) -> None:
        self.keys[kid] = ed25519.Ed25519PrivateKey.generate()

    def fetch(self, url: str) -> bytes:
        self.fetches += 1
        if self.is_down:
            raise OSError("down")
        return self.document

    @property
    def document(self) -> bytes:
        return json.dumps({"keys": [jwk_of(key, kid=kid) for kid, key in self.keys.items()]}).encode()

    def token(self, kid: str, now: float) -> str:
        claims = {"sub": "amira", "iat": int(now), "exp": int(now) + 86_400 * 20}
        return jwt.encode(claims, self.keys[kid], "EdDSA", headers={"kid": kid})


@asynccontextmanager
async def fetching(source: Source) -> AsyncIterator[tuple[RemoteKeys, Verifier]]:
    """The keys of `source`, refreshed every hour."""
    verifier = Verifier([], Revoked(), awaits_keys=True)
    keys = RemoteKeys("https://idp.example/jwks", verifier, SystemClock(), refresh_seconds=3600, fetch=source.fetch)
    async with trio.open_nursery() as nursery:
        await keys.fetch()
        nursery.start_soon(keys.run)
        yield keys, verifier
        nursery.cancel_scope.cancel()


async def inline(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Stands for a thread under a clock that cannot see threads."""
    await trio.lowlevel.checkpoint()
    return function(*args)


@pytest.fixture(autouse=True)
def _no_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "autojump_clock" in request.fixturenames:
        monkeypatch.setattr(trio.to_thread, "run_sync", inline)


async def test_an_unknown_kid_is_looked_for_at_most_once_a_minute(autojump_clock: trio.testing.MockClock) -> None:
    source, now = Source(), SystemClock().wall()
    async with fetching(source) as (keys, verifier):
        assert verifier.verify(source.token("first", now), now).sub == "amira"
        source.add("second")
        token = source.token("second", now)
        for _ in range(10):
            await keys.ready_for(token)
        assert source.fetches == 1, "fetched a moment ago"
        await trio.sleep(ASKED_AGAIN_SECONDS + 1)
        await keys.ready_for(token)
        assert verifier.verify(token, now).sub == "amira"
        source.add("unheard of")
        stranger = source.token("unheard of", now)
        del source.keys["unheard of"]
        await trio.sleep(ASKED_AGAIN_SECONDS + 1)
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(keys.ready_for, stranger)
        assert source.fetches == 3
        with pytest.raises(TokenInvalid):
            verifier.verify(stranger, now)


async def test_the_last_good_set_is_kept_while_the_source_is_down_or_talks_nonsense(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source, now = Source(), SystemClock().wall()
    async with fetching(source) as (_, verifier):
        source.is_down = True
        await trio.sleep(4000)
        assert source.fetches == 2
        source.is_down = False
        source.keys.clear()
        await trio.sleep(4000)
        assert source.fetches == 3
        source.add("second")
        await trio.sleep(4000)
        assert verifier.verify(source.token("second", now), now).sub == "amira"
    assert "idp.example cannot be fetched" in caplog.text
    assert "/jwks" not in caplog.text


async def test_a_key_that_was_taken_out_is_not_accepted_any_more(autojump_clock: trio.testing.MockClock) -> None:
    source, now = Source(), SystemClock().wall()
    async with fetching(source) as (_, verifier):
        token = source.token("first", now)
        assert verifier.verify(token, now).sub == "amira"
        del source.keys["first"]
        source.add("second")
        await trio.sleep(4000)
        with pytest.raises(TokenInvalid):
            verifier.verify(token, now)


async def test_until_the_first_set_is_there_a_token_cannot_be_judged(autojump_clock: trio.testing.MockClock) -> None:
    source, now = Source(), SystemClock().wall()
    source.is_down = True
    async with fetching(source) as (keys, verifier):
        with pytest.raises(KeysMissing):
            verifier.verify(source.token("first", now), now)
        source.is_down = False
        await trio.sleep(6)
        await keys.ready_for(source.token("first", now))
        assert verifier.verify(source.token("first", now), now).sub == "amira"


# Over HTTP


@contextmanager
def web_of(pages: dict[str, tuple[int, dict[str, str], bytes]]) -> Iterator[str]:
    """A web server with these pages: status, headers, body."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            status, headers, body = pages.get(self.path, (404, {}, b""))
            self.send_response(status)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as web:
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"http://127.0.0.1:{web.server_port}"
        finally:
            web.shutdown()
            thread.join()


def test_a_document_is_fetched_within_its_host_and_its_size() -> None:
    pages: dict[str, tuple[int, dict[str, str], bytes]] = {"/jwks": (200, {}, b"{}")}
    with web_of(pages) as url, web_of(pages) as elsewhere:
        pages["/moved"] = (302, {"Location": "/jwks"}, b"")
        pages["/away"] = (302, {"Location": f"{elsewhere}/jwks"}, b"")
        pages["/file"] = (302, {"Location": "file:///etc/hostname"}, b"")
        pages["/round"] = (302, {"Location": "/round"}, b"")
        pages["/big"] = (200, {}, b" " * (DOCUMENT_BYTES_MAX + 1))
        assert fetch_document(f"{url}/jwks") == fetch_document(f"{url}/moved") == b"{}"
        for path in ("away", "file", "round", "absent"):
            with pytest.raises(OSError, match=r"redirected to another host|the source answered (302|404)"):
                fetch_document(f"{url}/{path}")
        with pytest.raises(ValueError, match="at most"):
            fetch_document(f"{url}/big")


async def status_of(server: Server, token: str) -> tuple[int, str | None]:
    answer = await server.http.get("/ws/status", headers={"Authorization": f"Bearer {token}"})
    return answer.status_code, answer.json().get("code")


async def test_a_server_takes_its_keys_from_a_url_and_says_503_before_it_has_them(settings: Settings) -> None:
    source, now = Source(), SystemClock().wall()
    settings.data.mkdir()
    (settings.data / "jwt.key").write_bytes(b"k" * 32)
    pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
    with web_of(pages) as url:
        chosen = Settings(port=0, data=settings.data, jwks=f"{url}/jwks")
        async with running_server(chosen) as server:
            token = source.token("first", now)
            await server.register()
            assert await status_of(server, token) == (503, "storage_unavailable")
            async with server.connect(sub=None, token=token) as client:
                frames, code, reason = await client.close_frames()
            assert (frames[0]["data"]["code"], code, reason) == ("quarantined", 1013, "try later")
            assert await status_of(server, server.token("amira")) == (200, None), "the local key needs no URL"
        pages["/jwks"] = (200, {}, source.document)
        async with running_server(chosen) as server:
            assert await status_of(server, token) == (200, None)
            async with server.connect(sub=None, token=token) as client:
                await client.until_live()
                await client.say(type="auth", token=source.token("first", now + 1))
                assert (await client.next())["type"] == "auth_ok"
