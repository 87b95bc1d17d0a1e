"""The token of a live connection: warned about, renewed, expired; and what a refusal of it does to the socket."""

from __future__ import annotations

import re
import time
from collections.abc import Awaitable, Callable, Sequence
from datetime import datetime

import jwt
import pytest
import trio

from storage.clock import SystemClock
from storage.records import CursorMove, Seq
from storage.sqlite.opening import open_store
from storage.sqlite.store import SqliteStore
from tests.identity.conftest import MovableClock
from tests.server.harness import Client, Frame, Server, running_server
from tests.server.test_streams import streamed
from web.identity.tokens import issue
from web.server.settings import DATABASE_FILE, Settings


def token(
    server: Server, sub: str = "amira", *, seconds: int = 600, ago: int = 0, scope: str = "", jti: str = "t"
) -> str:
    """A token that was issued some seconds ago and is good for some more."""
    return issue(server.key, sub=sub, scope=scope, ttl_seconds=seconds + ago, now=time.time() - ago, token_id=jti)


async def test_a_connection_is_warned_a_minute_before_its_token_expires_and_closed_after_it(
    server: Server, clock: MovableClock
) -> None:
    await server.register()
    async with server.connect(sub=None, token=token(server)) as client:
        connect = (await client.until_live())[0]
        clock.ahead_seconds = 545
        warning = await client.next()
        assert warning["type"] == "auth_expiring"
        assert warning["data"]["expires_at"] == connect["data"]["token_expires_at"]
        assert 50 <= warning["data"]["seconds_left"] <= 60
        clock.ahead_seconds = 605
        await server_says_pong(client)  # a token is good for 10 seconds longer
        clock.ahead_seconds = 611
        frames, code, reason = await client.close_frames()
    assert [frame["type"] for frame in frames] == ["bye"]
    assert frames[0]["data"] == {"code": 1008, "reason": "token expired", "retry_after_ms": None}
    assert (code, reason) == (1008, "token expired")


async def test_a_token_with_little_time_left_is_warned_about_right_after_live(server: Server) -> None:
    await server.register()
    for number in range(3):
        await server.publish(number)
    async with server.connect(sub=None, token=token(server, seconds=30)) as client:
        frames = [*await client.until_live(), await client.next()]
    assert [frame["type"] for frame in frames] == ["connect", *["feedback_update"] * 3, "live", "auth_expiring"]
    assert frames[-1]["data"]["seconds_left"] <= 30


async def test_a_newer_token_keeps_the_connection_open(server: Server, clock: MovableClock) -> None:
    await server.register()
    async with server.connect(sub=None, token=token(server)) as client:
        await client.until_live()
        clock.ahead_seconds = 550
        await client.next_of("auth_expiring")
        await client.say(type="auth", token=token(server, seconds=1200))
        accepted = await client.next()
        assert accepted["type"] == "auth_ok"
        assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", accepted["data"]["expires_at"])
        clock.ahead_seconds = 700
        await server_says_pong(client)
        clock.ahead_seconds = 1150
        assert (await client.next())["type"] == "auth_expiring"
        clock.ahead_seconds = 1220
        _, code, reason = await client.close_frames()
    assert (code, reason) == (1008, "token expired")


async def server_says_pong(client: Client) -> None:
    """The connection lives, and nothing else was sent."""
    await client.say(type="ping")
    assert (await client.next())["type"] == "pong"


@pytest.mark.parametrize(
    ("make", "code"),
    [
        (lambda server: "nonsense", "invalid_token"),
        (lambda server: token(server, "mallory"), "invalid_token"),
        (lambda server: token(server, ago=100, seconds=-60), "invalid_token"),
        (lambda server: token(server, jti="revoked"), "invalid_token"),
    ],
    ids=["nonsense", "another subject", "expired", "revoked"],
)
async def test_a_token_that_is_not_accepted_leaves_the_old_one_in_place(
    server: Server, clock: MovableClock, make: Callable[[Server], str], code: str
) -> None:
    await server.register()
    await revoke(server, jti="revoked")
    async with server.connect(sub=None, token=token(server)) as client:
        await client.until_live()
        await client.say(type="auth", token=make(server))
        answer = await client.next()
        assert (answer["type"], answer["data"]["code"]) == ("error", code)
        await server_says_pong(client)
        clock.ahead_seconds = 620
        _, close_code, reason = await client.close_frames()
    assert (close_code, reason) == (1008, "token expired")


async def test_a_newer_token_without_the_right_is_not_accepted(server: Server) -> None:
    await server.register()
    async with server.connect(sub=None, token=token(server, "watcher", scope="monitor")) as client:
        await client.until_live()
        await client.say(type="auth", token=token(server, "watcher"))
        assert (await client.next())["data"]["code"] == "access_denied"
        await client.say(type="auth", token=token(server, "watcher", scope="operate"))
        assert (await client.next())["type"] == "auth_ok"


async def test_the_rights_of_a_renewed_token_are_the_ones_that_count(server: Server) -> None:
    await server.register(42, "amira", "watcher")
    async with server.connect(sub=None, token=token(server, "watcher", scope="monitor")) as client:
        await client.until_live()
        await client.say(type="auth", token=token(server, "watcher"))
        await client.next_of("auth_ok")
        await server.register(42, "amira")
        _, code, reason = await client.close_frames()
    assert (code, reason) == (1008, "viewer removed")


async def test_a_removed_viewer_and_a_former_owner_lose_their_connections_and_others_do_not(server: Server) -> None:
    await server.register(42, "amira", "bo", "cyrus")
    async with (
        server.live(sub="amira") as owner,
        server.live(sub="bo") as viewer,
        server.live(sub="cyrus") as other,
    ):
        await server.register(42, "dara", "cyrus")
        for client in (owner, viewer):
            frames, code, reason = await client.close_frames()
            assert ([frame["type"] for frame in frames], code, reason) == (["bye"], 1008, "viewer removed")
        await server_says_pong(other)
    async with server.connect(sub="bo") as client:
        _, code, reason = await client.close_frames()
    assert (code, reason) == (1008, "access denied")


# Revocations


async def revoke(server: Server, **whom: str) -> Frame:
    answer = await server.http.post("/revocations", json=whom, headers=server.bearer("op", "operate"))
    assert answer.status_code == 201, answer.text
    made: Frame = answer.json()
    assert {name: made[name] for name in whom} == whom
    return made


async def test_revoking_a_subject_closes_its_sockets_and_refuses_its_tokens(server: Server) -> None:
    await server.register(1, "amira", "bo")
    await server.register(2)
    old = token(server, ago=5)
    async with (
        server.connect(1, sub=None, token=old) as first,
        server.connect(2, sub=None, token=old, device="phone") as second,
        server.live(1, "bo") as other,
    ):
        await first.until_live()
        await second.until_live()
        await revoke(server, sub="amira")
        for client in (first, second):
            frames, code, reason = await client.close_frames()
            assert ([frame["type"] for frame in frames], code, reason) == (["bye"], 1008, "revoked")
        await server_says_pong(other)
    answer = await server.http.get("/ws/status", headers={"Authorization": f"Bearer {old}"})
    assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
    async with server.connect(1, sub=None, token=old) as client:
        frames, code, reason = await client.close_frames()
    assert (frames[0]["data"]["code"], code, reason) == ("invalid_token", 1008, "revoked")


async def test_a_subject_revoked_while_away_cannot_resume_until_it_has_a_newer_token(
    server: Server, clock: MovableClock
) -> None:
    await server.register()
    old = token(server)
    async with server.connect(sub=None, token=old, device="phone") as client:
        await client.until_live()
        await server.publish(1)
        await client.events(1)
    await revoke(server, sub="amira")
    async with server.connect(sub=None, token=old, device="phone", after=1) as client:
        frames, code, reason = await client.close_frames()
    assert ([frame["type"] for frame in frames], code, reason) == (["error"], 1008, "revoked")
    clock.ahead_seconds = 11
    newer = issue(server.key, sub="amira", scope="", ttl_seconds=60, now=clock.wall(), token_id="n")
    async with server.connect(sub=None, token=newer, device="phone", after=1) as client:
        assert (await client.until_live())[0]["data"]["resume"] == "exact"


async def test_a_token_counts_as_old_until_both_clocks_must_be_past_the_revocation(
    server: Server, clock: MovableClock
) -> None:
    await server.register()
    made = await revoke(server, sub="amira")
    at, covers_until = (datetime.fromisoformat(made[name]).timestamp() for name in ("at", "covers_until"))
    assert covers_until - at == pytest.approx(10)
    second = int(at)
    clock.ahead_seconds = 2  # so that a token of the first second behind it is not of the future
    details = {}
    for ahead in (None, -60, 0, 1, 3, 8, 10, 11):
        extra = {} if ahead is None else {"iat": second + ahead}
        token = jwt.encode({"sub": "amira", "exp": second + 60, **extra}, server.key, "HS256")
        answer = await server.http.get("/ws/status", headers={"Authorization": f"Bearer {token}"})
        details[ahead] = answer.json().get("detail")
        async with server.connect(sub=None, token=token) as client:
            if answer.status_code == 200:
                await client.until_live()
            else:
                assert (answer.status_code, answer.json()["code"]) == (401, "unauthenticated")
                (error,), code, reason = await client.close_frames()
                assert error["data"] == {"code": "invalid_token", "detail": details[ahead]}
                assert (code, reason) == (1008, "revoked")
    old = "the token has been revoked"
    wait = f"issued within 10 s of a revocation: get a new one after {made['covers_until']} (with an iat after it)"
    assert details == {None: old, -60: old, 0: old, 1: wait, 3: wait, 8: wait, 10: wait, 11: None}


@pytest.mark.parametrize("ahead", [1, 3, 8])
async def test_a_live_connection_whose_token_comes_from_a_clock_ahead_of_ours_ends_with_its_subject(
    server: Server, ahead: int
) -> None:
    await server.register()
    async with (
        server.connect(sub=None, token=token(server, ago=-ahead)) as client,
        server.live(sub="amira") as same,
    ):
        await client.until_live()
        await revoke(server, sub="amira")
        for one in (client, same):
            assert (await one.close_frames())[1:] == (1008, "revoked")


async def test_a_newer_token_that_is_revoked_is_told_when_the_next_one_will_do(
    server: Server, clock: MovableClock
) -> None:
    await server.register()
    made = await revoke(server, sub="amira")
    clock.ahead_seconds = 15
    async with server.connect(sub=None, token=token(server, ago=-15)) as client:
        await client.until_live()
        for ago, words in ((60, "the token has been revoked"), (-5, made["covers_until"])):
            await client.say(type="auth", token=token(server, ago=ago))
            refused = (await client.next())["data"]
            assert refused["code"] == "invalid_token"
            assert words in refused["detail"]
        await server_says_pong(client)


async def test_a_revocation_survives_a_restart_and_every_act_is_audited(settings: Settings) -> None:
    async with running_server(settings) as server:
        old = token(server)
        made = await revoke(server, sub="amira")
        assert (await server.http.get("/ws/status", headers={"Authorization": f"Bearer {old}"})).status_code == 401
    async with running_server(settings) as server:
        assert (await server.http.get("/ws/status", headers={"Authorization": f"Bearer {old}"})).status_code == 401
        await server.http.delete(f"/revocations/{made['id']}", headers=server.bearer("op2", "operate"))
        assert (await server.http.get("/ws/status", headers={"Authorization": f"Bearer {old}"})).status_code == 200
    async with open_store(settings.data / DATABASE_FILE, clock=SystemClock(), new_epoch=str) as store:
        assert [(row.who, row.what) for row in await store.audit()] == [
            ("op2", "revocation.lift"),
            ("op", "revocation.add"),
        ]


async def test_a_single_token_can_be_revoked_and_given_back(server: Server) -> None:
    await server.register()
    first, second = token(server, jti="one"), token(server, jti="two")
    async with server.connect(sub=None, token=first) as client, server.connect(sub=None, token=second) as other:
        await client.until_live()
        await other.until_live()
        made = await revoke(server, jti="one")
        assert (await client.close_frames())[1:] == (1008, "revoked")
        await server_says_pong(other)
    headers = server.bearer("op", "operate")
    assert (await server.http.get("/revocations", headers=headers)).json() == {"items": [made], "next": None}
    assert (await server.http.delete(f"/revocations/{made['id']}", headers=headers)).json() == made
    assert (await server.http.delete(f"/revocations/{made['id']}", headers=headers)).status_code == 404
    async with server.connect(sub=None, token=first) as client:
        await client.until_live()


async def test_revocations_are_listed_in_pages(server: Server) -> None:
    made = [await revoke(server, jti=f"t{number}") for number in range(3)]
    headers = server.bearer("op", "operate")
    first = (await server.http.get("/revocations?limit=2", headers=headers)).json()
    rest = (await server.http.get(f"/revocations?after={first['next']}", headers=headers)).json()
    assert first["items"] + rest["items"] == made
    assert rest["next"] is None
    assert (await server.http.get("/revocations?after=x", headers=headers)).status_code == 422


@pytest.mark.parametrize(
    ("body", "words"),
    [
        ({}, "exactly one of sub and jti"),
        ({"sub": "a", "jti": "b"}, "exactly one of sub and jti"),
        ({"sub": ""}, "sub must be a string of 1-256 characters"),
        ({"jti": 7}, "jti must be a string of 1-256 characters"),
        ({"sub": "a", "reason": "x"}, "reason is not known"),
    ],
)
async def test_a_wrong_revocation_is_explained(server: Server, body: dict[str, object], words: str) -> None:
    answer = await server.http.post("/revocations", json=body, headers=server.bearer("op", "operate"))
    assert (answer.status_code, answer.json()["code"]) == (422, "invalid_field")
    assert words in answer.json()["detail"]


@pytest.mark.parametrize("scope", ["", "monitor", "broadcast", "register"])
async def test_only_operators_revoke(server: Server, scope: str) -> None:
    headers = server.bearer("someone", scope)
    answers = [
        await server.http.post("/revocations", json={"sub": "amira"}, headers=headers),
        await server.http.get("/revocations", headers=headers),
        await server.http.delete("/revocations/1", headers=headers),
    ]
    assert [answer.status_code for answer in answers] == [403, 403, 403]


@pytest.mark.parametrize("change", ["register", "delete", "revoke"])
async def test_whoever_lost_a_right_is_cut_off_even_if_the_one_who_took_it_has_left(
    server: Server, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    await server.register(42, "amira", "bo")
    committed, left = trio.Event(), trio.Event()
    changing: Callable[..., Awaitable[object]] = getattr(SqliteStore, change)

    async def slow(store: SqliteStore, *args: object, **options: object) -> object:
        changed = await changing(store, *args, **options)
        committed.set()
        await left.wait()
        return changed

    method, path, body = {
        "register": ("PUT", "/diagnoses/42", '{"owner": "amira"}'),
        "delete": ("DELETE", "/diagnoses/42", ""),
        "revoke": ("POST", "/revocations", '{"sub": "bo"}'),
    }[change]
    async with server.live(sub="bo") as client:
        monkeypatch.setattr(SqliteStore, change, slow)
        host, _, port = server.url.removeprefix("http://").partition(":")
        async with await trio.open_tcp_stream(host, int(port)) as asker:
            head = f"{method} {path} HTTP/1.1\r\nHost: {host}\r\nContent-Length: {len(body)}\r\n"
            head += (
                f"Content-Type: application/json\r\nAuthorization: {server.bearer('op', 'operate')['Authorization']}"
            )
            await asker.send_all(f"{head}\r\n\r\n{body}".encode())
            with trio.fail_after(10):
                await committed.wait()
        await trio.sleep(0.2)  # Long enough for the server to notice; were it not, the test would only show less.
        left.set()
        assert (await client.close_frames())[1] == 1008


@pytest.mark.one_process("it holds up the store of a server in its own process")
@pytest.mark.parametrize("change", ["register", "revoke"])
async def test_whoever_loses_a_right_while_its_start_is_stored_does_not_follow(
    server: Server, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    """It was judged before, and is attached when those who have lost the right have been ended."""
    await server.register(42, "amira", "bo")
    is_stored, go_on = trio.Event(), trio.Event()
    moving = SqliteStore.move_cursors

    async def held(store: SqliteStore, moves: Sequence[CursorMove]) -> Sequence[Seq | None]:
        stored = await moving(store, moves)
        is_stored.set()
        await go_on.wait()
        return stored

    async def follow() -> None:
        async with server.connect(sub="bo") as client:
            frames, code, _ = await client.close_frames()
        assert ([frame["type"] for frame in frames], code) == (["error"], 1008)

    monkeypatch.setattr(SqliteStore, "move_cursors", held)
    with trio.fail_after(20):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(follow)
            await is_stored.wait()
            if change == "register":
                await server.register(42, "amira")
            else:
                await revoke(server, sub="bo")
            go_on.set()


async def test_a_stream_is_warned_and_ended_when_its_token_expires(server: Server, clock: MovableClock) -> None:
    await server.register()
    async with streamed(server) as following:
        await following.until_live()
        clock.ahead_seconds = 545
        assert (await following.next()).frame["type"] == "auth_expiring"
        clock.ahead_seconds = 611
        goodbye = (await following.next()).frame
    assert goodbye["data"] == {"code": 1008, "reason": "token expired", "retry_after_ms": None}


async def test_a_revoked_subject_loses_its_stream_at_once(server: Server) -> None:
    await server.register()
    async with streamed(server) as following:
        await following.until_live()
        operator = server.bearer("op", "operate")
        assert (await server.http.post("/revocations", json={"sub": "amira"}, headers=operator)).status_code == 201
        assert (await following.next()).frame["data"]["reason"] == "revoked"
