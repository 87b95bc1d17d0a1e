"""Keys from a JWKS URL: fetched, rotated, kept while the source is down, and never asked for too often."""

from __future__ import annotations

import json
import re
import ssl
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
from tests.identity.test_keys import jwk_of
from tests.server.harness import Server, begin, running_server
from web.identity.download import DOCUMENT_BYTES_MAX, FETCH_SECONDS_MAX, fetch_document
from web.identity.jwks import ASKED_AGAIN_SECONDS, FETCHES_AT_ONCE_MAX, FIRST_AGAIN_SECONDS, Fetch, RemoteKeys
from web.identity.revoked import Revoked
from web.identity.tokens import KeysMissing, TokenInvalid, Verifier
from web.identity.unknown_keys import UnknownKeys
from web.server.settings import Settings


class Source:
    """An identity provider in memory."""

    def __init__(self) -> None:
        self.keys: dict[str, ed25519.Ed25519PrivateKey] = {}
        self.is_down = False
        self.takes_seconds = 0.0
        """How long an answer, made when the fetch begins, is under way."""
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


def junk(kid: str | None) -> str:
    """A token of nobody, which names this key."""
    headers = {} if kid is None else {"kid": kid}
    return jwt.encode({"sub": "amira", "exp": 2_000_000_000}, STRANGER, "EdDSA", headers=headers)


STRANGER = ed25519.Ed25519PrivateKey.generate()


class Front:
    """What stands in front of every route: a token waits for its key, and is judged."""

    def __init__(self, source: Source, fetch: Fetch | None = None) -> None:
        unknown = UnknownKeys()
        self.verifier = Verifier([], Revoked(), unknown=unknown)
        self.keys = RemoteKeys(
            "https://idp.example/jwks",
            self.verifier,
            unknown,
            SystemClock(),
            refresh_seconds=3600,
            fetch=fetch or source.fetch,
        )

    async def status(self, token: str) -> int:
        """What a request with this token is answered."""
        await self.keys.ready_for(token)
        try:
            self.verifier.verify(token, SystemClock().wall())
        except KeysMissing:
            return 503
        except TokenInvalid:
            return 401
        return 200


@asynccontextmanager
async def fetching(source: Source) -> AsyncIterator[Front]:
    """The keys of `source`, refreshed every hour."""
    front = Front(source)
    async with trio.open_nursery() as nursery:
        await front.keys.fetch()
        nursery.start_soon(front.keys.run)
        yield front
        nursery.cancel_scope.cancel()


async def inline(function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    """Stands for a thread under a clock that cannot see threads."""
    await trio.lowlevel.checkpoint()
    answer = function(*args)
    await trio.sleep(function.__self__.takes_seconds)  # type: ignore[attr-defined]
    return answer


@pytest.fixture(autouse=True)
def _no_threads(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    if "autojump_clock" in request.fixturenames:
        monkeypatch.setattr(trio.to_thread, "run_sync", inline)


async def test_a_key_made_right_after_a_start_is_fetched_at_once(autojump_clock: trio.testing.MockClock) -> None:
    source, now = Source(), SystemClock().wall()
    async with fetching(source) as front:
        assert await front.status(source.token("first", now)) == 200
        source.add("second")
        began = trio.current_time()
        assert await front.status(source.token("second", now)) == 200
        assert (source.fetches, trio.current_time()) == (2, began)


async def test_a_key_made_right_after_a_made_up_one_was_named_is_never_refused_for_good(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source, now = Source(), SystemClock().wall()
    async with fetching(source) as front:
        assert await front.status(junk("junk")) == 401
        source.add("second")
        token, began = source.token("second", now), trio.current_time()
        while (status := await front.status(token)) == 503:
            assert 0 < front.keys.retry_after_seconds <= ASKED_AGAIN_SECONDS
            await trio.sleep(front.keys.retry_after_seconds)
        assert status == 200
        assert trio.current_time() - began <= ASKED_AGAIN_SECONDS
        assert source.fetches == 3


async def test_no_request_waits_while_no_fetch_may_begin(autojump_clock: trio.testing.MockClock) -> None:
    source = Source()
    async with fetching(source) as front:
        await front.status(junk("junk"))
        await trio.sleep(1)
        began = trio.current_time()
        assert await front.status(junk("other")) == 503
        assert trio.current_time() == began
        assert front.keys.retry_after_seconds == pytest.approx(ASKED_AGAIN_SECONDS - 1)


async def test_made_up_names_of_keys_cause_at_most_360_fetches_an_hour(autojump_clock: trio.testing.MockClock) -> None:
    source = Source()
    async with fetching(source) as front:
        at_first = source.fetches
        for number in range(3600):
            await front.status(junk(str(number)))
            await front.status(junk("always the same"))
            await trio.sleep(1)
        assert 300 <= source.fetches - at_first <= 361, "one more is the refresh of this hour"


async def test_a_name_is_refused_for_good_only_after_a_fetch_that_began_later_has_succeeded(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = Source()
    async with fetching(source) as front:
        source.is_down = True
        for _ in range(5):
            assert await front.status(junk("junk")) == 503
            await trio.sleep(ASKED_AGAIN_SECONDS)
        source.is_down = False
        assert await front.status(junk("junk")) == 401
        assert await front.status(junk("junk")) == 401


async def test_a_fetch_that_began_before_a_key_was_named_says_nothing_about_it(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source, now = Source(), SystemClock().wall()
    async with fetching(source) as front:
        source.takes_seconds = 4
        async with trio.open_nursery() as nursery:
            nursery.start_soon(front.status, junk("junk"))
            await trio.sleep(1)
            source.add("second")
            assert await front.status(source.token("second", now)) == 503
        await trio.sleep(front.keys.retry_after_seconds)
        assert await front.status(source.token("second", now)) == 200


async def test_requests_wait_for_one_fetch_under_way_and_no_longer_than_ten_seconds(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source, now = Source(), SystemClock().wall()
    async with fetching(source) as front:
        source.add("second")
        source.takes_seconds = 9
        statuses: list[int] = []

        async def ask() -> None:
            statuses.append(await front.status(source.token("second", now)))

        began = trio.current_time()
        async with trio.open_nursery() as nursery:
            for _ in range(100):
                nursery.start_soon(ask)
        assert (statuses, source.fetches) == ([200] * 100, 2)
        assert trio.current_time() - began == pytest.approx(9)
        source.takes_seconds = 1000
        await trio.sleep(1)
        began = trio.current_time()
        assert await front.status(junk("third")) == 503
        assert FETCH_SECONDS_MAX <= trio.current_time() - began <= FETCH_SECONDS_MAX + 1


async def test_a_thousand_names_are_remembered_and_one_that_was_pushed_out_counts_as_new(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source = Source()
    async with fetching(source) as front:
        assert await front.status(junk("junk")) == 401
        for number in range(999):
            await front.status(junk(str(number)))
        assert await front.status(junk("junk")) == 401
        for number in range(1000):
            await front.status(junk(str(number)))
        assert await front.status(junk("junk")) == 503
        await trio.sleep(ASKED_AGAIN_SECONDS)
        assert await front.status(junk("junk")) == 401


async def test_a_key_that_its_source_shows_late_is_found_although_it_was_refused(
    autojump_clock: trio.testing.MockClock,
) -> None:
    source, now = Source(), SystemClock().wall()
    async with fetching(source) as front:
        source.add("late")
        token = source.token("late", now)
        late = source.keys.pop("late")
        assert await front.status(token) == 401
        source.keys["late"] = late
        await trio.sleep(ASKED_AGAIN_SECONDS)
        assert await front.status(token) == 200


async def test_a_token_that_no_fetch_can_help_is_refused_without_one(autojump_clock: trio.testing.MockClock) -> None:
    source = Source()
    hopeless = {
        "a secret with the name of a public key": jwt.encode(
            {"sub": "a"}, b"k" * 32, "HS256", headers={"kid": "first"}
        ),
        "a secret without a name": jwt.encode({"sub": "a"}, b"k" * 32, "HS256"),
        "another algorithm": jwt.encode({"sub": "a"}, b"k" * 64, "HS512", headers={"kid": "other"}),
        "a name no key may have": junk("k" * 201),
    }
    async with fetching(source) as front:
        assert {name: await front.status(token) for name, token in hopeless.items()} == dict.fromkeys(hopeless, 401)
        assert source.fetches == 1


async def test_the_last_good_set_is_kept_while_the_source_is_down_or_talks_nonsense(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    source, now = Source(), SystemClock().wall()
    async with fetching(source) as front:
        source.is_down = True
        await trio.sleep(4000)
        assert source.fetches == 2
        source.is_down = False
        source.keys.clear()
        await trio.sleep(4000)
        assert source.fetches == 3
        source.add("second")
        await trio.sleep(4000)
        assert await front.status(source.token("second", now)) == 200
    assert "idp.example cannot be fetched" in caplog.text
    assert "/jwks" not in caplog.text


async def test_a_key_that_was_taken_out_is_not_accepted_any_more(autojump_clock: trio.testing.MockClock) -> None:
    source, now = Source(), SystemClock().wall()
    async with fetching(source) as front:
        token = source.token("first", now)
        assert await front.status(token) == 200
        del source.keys["first"]
        source.add("second")
        await trio.sleep(4000)
        assert await front.status(token) == 401


async def test_until_the_first_set_is_there_a_token_cannot_be_judged(autojump_clock: trio.testing.MockClock) -> None:
    source, now = Source(), SystemClock().wall()
    source.is_down = True
    async with fetching(source) as front:
        assert await front.status(source.token("first", now)) == 503
        source.is_down = False
        await trio.sleep(FIRST_AGAIN_SECONDS + 1)
        assert await front.status(source.token("first", now)) == 200
        assert await front.status(junk("junk")) == 503
        await trio.sleep(ASKED_AGAIN_SECONDS)
        assert await front.status(junk("junk")) == 401


async def test_a_fetch_that_hangs_does_not_stop_the_next_ones() -> None:
    source, now, released = Source(), SystemClock().wall(), threading.Event()

    def fetch(url: str) -> bytes:
        document = source.fetch(url)
        if source.fetches < FETCHES_AT_ONCE_MAX:
            released.wait()
        return document

    front = Front(source, fetch)
    try:
        for _ in range(FETCHES_AT_ONCE_MAX - 1):
            with trio.move_on_after(0.1) as given_up:
                await front.keys.fetch()
            assert given_up.cancelled_caught
        with trio.fail_after(5):
            await front.keys.fetch()
        assert await front.status(source.token("first", now)) == 200
    finally:
        released.set()


# Over HTTP


@contextmanager
def web_of(
    pages: dict[str, tuple[int, dict[str, str], bytes]],
    wait: Callable[[], object] = lambda: None,
    tls: ssl.SSLContext | None = None,
) -> Iterator[str]:
    """A web server with these pages: status, headers, body; it calls `wait` before it answers."""

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            wait()
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
        if tls is not None:
            web.socket = tls.wrap_socket(web.socket, server_side=True)
        thread = threading.Thread(target=web.serve_forever, kwargs={"poll_interval": 0.01})
        thread.start()
        try:
            yield f"{'http' if tls is None else 'https'}://127.0.0.1:{web.server_port}"
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


@pytest.fixture
def local_key(settings: Settings) -> Settings:
    """The server's settings, with a local key that needs no URL."""
    begin(settings.data)
    return settings


async def test_a_server_takes_its_keys_from_a_url_and_says_503_before_it_has_them(local_key: Settings) -> None:
    source, now = Source(), SystemClock().wall()
    pages: dict[str, tuple[int, dict[str, str], bytes]] = {}
    with web_of(pages) as url:
        chosen = Settings(port=0, data=local_key.data, jwks=f"{url}/jwks")
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


async def test_every_transport_says_try_later_until_the_source_was_asked_and_then_refuses(local_key: Settings) -> None:
    source, now = Source(), SystemClock().wall()
    pages = {"/jwks": (200, dict[str, str](), source.document)}
    with web_of(pages) as url:
        async with running_server(Settings(port=0, data=local_key.data, jwks=f"{url}/jwks")) as server:
            await server.register()
            refused = junk("first of all")
            assert await status_of(server, refused) == (401, "unauthenticated"), "asked at once, and it is not there"
            # From here on no fetch may begin for ten seconds.
            token = junk("second")
            for path in ("/ws/status", "/diagnoses/42/events", "/diagnoses/42/events?token="):
                in_query = path.endswith("=")
                headers = {} if in_query else {"Authorization": f"Bearer {token}"}
                answer = await server.http.get(path + token if in_query else path, headers=headers)
                assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
                assert 1 <= int(answer.headers["Retry-After"]) <= ASKED_AGAIN_SECONDS
            headers = {"Authorization": f"Bearer {token}", "Accept": "text/event-stream"}
            answer = await server.http.get("/diagnoses/42/events", headers=headers)
            retry = re.match(r"retry: (\d+)\n", answer.text)
            assert answer.status_code == 200
            assert retry is not None
            assert 1000 <= int(retry[1]) <= ASKED_AGAIN_SECONDS * 1000
            assert '"code":1013' in answer.text
            async with server.connect(sub=None, token=token) as client:
                frames, code, reason = await client.close_frames()
            assert (frames[0]["data"]["code"], code, reason) == ("quarantined", 1013, "try later")
            async with server.connect(sub=None, token=refused) as client:
                frames, code, reason = await client.close_frames()
            assert (frames[0]["data"]["code"], code, reason) == ("invalid_token", 1008, "invalid token")
            async with server.connect(sub=None, token=source.token("first", now)) as client:
                await client.until_live()
                for renewed, said in ((token, "quarantined"), (refused, "invalid_token")):
                    await client.say(type="auth", token=renewed)
                    assert (await client.next())["data"]["code"] == said
                await client.say(type="auth", token=source.token("first", now + 1))
                assert (await client.next())["type"] == "auth_ok", "the connection lives"


async def test_a_token_that_waits_for_its_key_in_band_holds_up_no_other(local_key: Settings) -> None:
    source, now, released = Source(), SystemClock().wall(), threading.Event()
    pages = {"/jwks": (200, dict[str, str](), source.document)}
    with web_of(pages, lambda: pages["/jwks"][0] == 200 or released.wait()) as url:
        async with running_server(Settings(port=0, data=local_key.data, jwks=f"{url}/jwks")) as server:
            await server.register()
            token = source.token("first", now)
            async with server.connect(sub=None, token=token) as one, server.connect(sub=None, token=token) as other:
                await one.until_live()
                await other.until_live()
                pages["/jwks"] = (500, {}, b"")
                await one.say(type="auth", token=junk("unknown"))
                await other.say(type="auth", token=source.token("first", now + 1))
                with trio.fail_after(5):
                    assert (await other.next())["type"] == "auth_ok"
                released.set()
                assert (await one.next())["data"]["code"] == "quarantined"
