"""`GET /publish`: one frame an event, answered in order; how it ends; what it may take (PROTOCOL section 7.15)."""

from __future__ import annotations

import json
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio

from storage.clock import SystemClock
from tests.contract import frame_complaint
from tests.edge.raw import BINARY, CLOSE, PING, PONG, TEXT, Got, RawClient, client_frame, upgraded
from tests.edge.violations import CONTINUATION
from tests.hanging import hangable_disk
from tests.server.harness import Server, running_server
from web.publishing.sender import MESSAGE_BYTES_MAX, WINDOW, WINDOW_BYTES_MAX
from web.server.settings import Settings


def update(number: int = 1, diagnosis_id: object = 42, **fields: object) -> dict[str, object]:
    """A frame that publishes a feedback update, under the number as its id."""
    common = {"type": "feedback_update", "diagnosis_id": diagnosis_id, "feedback_id": number, "rating": 5}
    return {"id": str(number), **common, **fields}


def frame_of(value: object) -> bytes:
    return client_frame(TEXT, json.dumps(value).encode())


class Line:
    """A client that publishes."""

    def __init__(self, raw: RawClient) -> None:
        self.raw = raw

    async def next(self) -> dict[str, Any]:
        """The next frame of the server, which is as documented."""
        got = await self.raw.next()
        assert got is not None, "the connection is over"
        return judged(got)

    async def say(self, *frames: object) -> None:
        """Send frames, in one write."""
        await self.raw.send(*map(frame_of, frames))

    async def asks(self, frame: object) -> dict[str, Any]:
        """Send a frame, and what comes next."""
        await self.say(frame)
        return await self.next()

    async def end(self) -> tuple[list[dict[str, Any]], int | None, str]:
        """What comes until the server closes, the code and the reason."""
        frames: list[Got] = []
        while (close := await self.raw.next()) is not None and close.opcode != CLOSE:
            frames.append(close)
        assert close is not None, "the connection is over without a Close"
        with suppress(trio.BrokenResourceError):  # the server may have left already
            await self.raw.send(client_frame(CLOSE, close.payload[:2]))
        assert await self.raw.rest() == []
        return [judged(one) for one in frames if one.opcode == TEXT], close.code, close.reason


def judged(got: Got) -> dict[str, Any]:
    frame = got.json
    assert (wrong := frame_complaint(frame, "publish")) is None, wrong
    return frame


@asynccontextmanager
async def upgrade(server: Server, sub: str | None, scope: str = "", *headers: str, **token: int) -> AsyncIterator[Line]:
    """A client whose upgrade was answered with 101; `None`: without a token."""
    bearer = [] if sub is None else [f"Authorization: Bearer {server.token(sub, scope, **token)}"]
    raw = await upgraded(int(server.url.rpartition(":")[2]), "/publish", *bearer, *headers)
    try:
        yield Line(raw)
    finally:
        await trio.aclose_forcefully(raw.stream)


@asynccontextmanager
async def opened(server: Server, sub: str = "amira", scope: str = "", **token: int) -> AsyncIterator[Line]:
    """A client that has seen `connect`."""
    async with upgrade(server, sub, scope, **token) as line:
        assert (await line.next())["type"] == "connect"
        yield line


@pytest.fixture
async def line(server: Server) -> AsyncIterator[Line]:
    """The owner of diagnosis 42 publishes."""
    await server.register()
    async with opened(server) as client:
        yield client


async def test_it_says_how_much_may_be_under_way(server: Server) -> None:
    async with upgrade(server, "amira") as line:
        greeting = await line.next()
    assert greeting["diagnosis_id"] is None
    assert greeting["data"].keys() == {"window", "message_bytes_max", "token_expires_at"}
    assert (greeting["data"]["window"], greeting["data"]["message_bytes_max"]) == (256, 65536)


async def test_a_frame_is_answered_as_a_request_would_be(server: Server, line: Line) -> None:
    async with server.live(42, "amira") as follower:
        answer = await line.asks(update(1, comment="slept well"))
        [event] = await follower.events(1)
    assert answer["type"] == "receipt"
    assert answer["id"] == "1"
    assert answer["diagnosis_id"] == 42
    requested = (await server.publish(2)).json()
    assert answer["receipt"] == requested | {
        "seq": 1,
        "clients_notified": 1,
        "subscribers": answer["receipt"]["subscribers"],
    }
    assert (event["seq"], event["data"]["comment"]) == (1, "slept well")


@pytest.mark.guarantee(2)
async def test_answers_come_in_the_order_of_the_frames_whatever_they_are(server: Server, line: Line) -> None:
    await server.register(43)
    frames = [update(n, 42 + n % 2) if n % 3 else update(n, rating=0) for n in range(1, 200)]
    await line.say(*frames)
    answers = [await line.next() for _ in frames]
    assert [one["id"] for one in answers] == [one["id"] for one in frames]
    assert [one["type"] for one in answers] == ["receipt" if n % 3 else "refused" for n in range(1, 200)]
    seqs = [
        one["receipt"]["seq"] for one in answers if one["type"] == "receipt" and one["receipt"]["diagnosis_id"] == 42
    ]
    assert seqs == list(range(1, len(seqs) + 1))


@pytest.mark.parametrize(
    "text",
    [
        '{"id":"a","type":"recommendation_update","diagnosis_id":42,"new_data":{"x":NaN}}',
        '{"id":"a","type":"recommendation_update","diagnosis_id":42,"new_data":{"x":1,"x":2}}',
        '{"id":"a","type":"recommendation_update","diagnosis_id":42,"diagnosis_id":43,"new_data":{}}',
        '{"id":"a","type":"recommendation_update","diagnosis_id":42,"new_data":{"x":1e400}}',
        '{"id":"a","type":"recommendation_update","diagnosis_id":42,"new_data":{"x":"\\ud800"}}',
        '{"id":"a","type":"recommendation_update","diagnosis_id":42,"new_data":{},"surprise":1}',
        '{"id":"a","type":"recommendation_update","diagnosis_id":42,"new_data":' + "[" * 70 + "]" * 70 + "}",
        '{"id":"a","type":"recommendation_update","diagnosis_id":42}',
        '{"id":"a","type":"recommendation_update","diagnosis_id":"%","new_data":{}}',
        '{"id":"a","type":"recommendation_update","diagnosis_id":44,"new_data":{}}',
    ],
)
async def test_what_a_request_refuses_a_frame_refuses_in_the_same_words(server: Server, line: Line, text: str) -> None:
    body = text.replace('"id":"a","type":"recommendation_update",', "")
    path = "/ws/broadcast-recommendation-update"
    headers = server.bearer("amira") | {"Content-Type": "application/json"}
    requested = (await server.http.post(path, content=body, headers=headers)).json()
    await line.raw.send(client_frame(TEXT, text.encode()))
    answer = await line.next()
    assert (answer["type"], answer["id"]) == ("refused", "a")
    detail = requested.pop("detail").replace("the body", "the frame")
    known = "type, idempotency_key, id, diagnosis_id"
    assert answer["problem"].pop("detail") == detail.replace("known are diagnosis_id", f"known are {known}")
    assert answer["problem"] == requested
    assert (await line.asks(update(2)))["receipt"]["seq"] == 1


@pytest.mark.parametrize("frame", [{"id": "a"}, {"id": "a", "type": "ping"}, {"id": "a", "type": "surprise"}])
async def test_a_frame_with_an_id_and_no_kind_of_update_is_refused(line: Line, frame: dict[str, object]) -> None:
    answer = await line.asks(frame)
    assert (answer["type"], answer["problem"]["code"], answer["diagnosis_id"]) == ("refused", "invalid_field", None)


@pytest.mark.parametrize(
    "text",
    [
        "hello",
        "[]",
        "{}",
        '{"type":"feedback_update","diagnosis_id":42,"feedback_id":1,"rating":5}',
        '{"id":7,"type":"feedback_update"}',
        '{"id":""}',
        '{"id":"' + "a" * 65 + '"}',
        '{"id":"a","id":"b"}',
        '{"id":"a","\\u0069d":"b"}',
        '{"id":"\\ud800"}',
        '{"id":"a",',
        '{"type":"ack","seq":1}',
        '{"type":"surprise"}',
    ],
)
async def test_a_frame_without_an_id_that_can_be_read_ends_the_connection(line: Line, text: str) -> None:
    await line.raw.send(
        frame_of(update(1)), frame_of(update(2)), client_frame(TEXT, text.encode()), frame_of(update(3))
    )
    frames, code, reason = await line.end()
    assert [one["type"] for one in frames] == ["receipt", "receipt", "error", "bye"]
    assert frames[2]["data"]["code"] == "bad_frame"
    assert frames[3]["data"] == {"code": 1008, "reason": "invalid field", "retry_after_ms": None}
    assert {one["diagnosis_id"] for one in frames[2:]} == {None}
    assert (code, reason) == (1008, "invalid field")


async def test_a_binary_message_has_no_id(line: Line) -> None:
    await line.raw.send(client_frame(BINARY, json.dumps(update()).encode()))
    frames, code, _ = await line.end()
    assert ([one["type"] for one in frames], code) == (["error", "bye"], 1008)


async def test_the_largest_frame_is_taken_and_a_larger_one_ends_the_connection(line: Line) -> None:
    room = MESSAGE_BYTES_MAX - len(json.dumps(update(1, comment="")))
    assert (await line.asks(update(1, comment="x" * room)))["receipt"]["seq"] == 1
    await line.say(update(2), update(3, comment="x" * (room + 1)))
    frames, code, reason = await line.end()
    assert [one["type"] for one in frames] == ["receipt"]
    assert (code, reason) == (1009, "")


@pytest.mark.parametrize("size", [1, 7, 600, 4000])
async def test_a_frame_in_parts_and_parts_of_a_frame_are_understood(line: Line, size: int) -> None:
    text = json.dumps(update(1, comment="slept ä well " * 100)).encode()
    parts = [text[at : at + size] for at in range(0, len(text), size)]
    if len(parts) < 50:
        pieces = [
            client_frame(TEXT if not n else CONTINUATION, part, fin=part is parts[-1]) for n, part in enumerate(parts)
        ]
        await line.raw.send(*pieces)
        assert (await line.next())["receipt"]["seq"] == 1
    whole = client_frame(TEXT, text) + client_frame(PING, b"x")
    for at in range(0, len(whole), size):
        await line.raw.send(whole[at : at + size])
    got = [await line.raw.next(), await line.raw.next()]
    assert {one.opcode for one in got if one is not None} == {PONG, TEXT}


async def test_a_text_that_is_no_utf_8_ends_the_connection_behind_its_receipts(line: Line) -> None:
    await line.raw.send(frame_of(update(1)), client_frame(TEXT, b'{"id":"\xff"}'))
    frames, code, _ = await line.end()
    assert ([one["type"] for one in frames], code) == (["receipt"], 1007)


async def test_a_client_that_closes_gets_the_receipts_due_first(line: Line) -> None:
    await line.raw.send(*(frame_of(update(n)) for n in range(100)), client_frame(CLOSE, (1000).to_bytes(2, "big")))
    frames, code, _ = await line.end()
    assert [one["id"] for one in frames] == [str(n) for n in range(100)]
    assert code == 1000


@pytest.mark.guarantee(9)
async def test_a_key_makes_one_event_also_on_another_connection(server: Server, line: Line) -> None:
    first = await line.asks(update(1, idempotency_key="k"))
    again = await line.asks(update(2, idempotency_key="k", feedback_id=1))
    other = await line.asks(update(3, idempotency_key="k"))
    async with opened(server) as second:
        later = await second.asks(update(1, idempotency_key="k"))
    posted = await server.post(
        "feedback", {"diagnosis_id": 42, "feedback_id": 1, "rating": 5}, **{"Idempotency-Key": "k"}
    )
    assert [one["receipt"]["seq"] for one in (first, again, later)] == [1, 1, 1] == [posted.json()["seq"]] * 3
    assert [one["receipt"]["replayed"] for one in (first, again, later)] == [False, True, True]
    assert (other["type"], other["problem"]["status"], other["problem"]["code"]) == ("refused", 409, "key_reused")


async def test_a_right_that_is_missing_costs_its_frame_alone(server: Server, line: Line) -> None:
    await server.register(43, "bo")
    await line.say(update(1), update(2, 43), update(3, 44), update(4))
    answers = [await line.next() for _ in range(4)]
    assert [one["type"] for one in answers] == ["receipt", "refused", "refused", "receipt"]
    assert {one["problem"]["status"] for one in answers[1:3]} == {403}
    assert [one["diagnosis_id"] for one in answers] == [42, 43, 44, 42]
    async with opened(server, "clinic", "broadcast") as service:
        assert (await service.asks(update(1, 43)))["type"] == "receipt"
        assert (await service.asks(update(2, 44)))["problem"]["status"] == 404
    async with opened(server, "stranger") as stranger:
        assert (await stranger.asks(update(1)))["problem"]["status"] == 403


async def test_ping_and_auth_are_answered_as_those_of_a_follower(server: Server, line: Line) -> None:
    pong = await line.asks({"type": "ping", "data": {"n": 1}})
    assert (pong["type"], pong["data"], pong["diagnosis_id"]) == ("pong", {"n": 1}, None)
    assert (await line.asks({"type": "ping", "data": 1}))["data"]["code"] == "invalid_field"
    assert (await line.asks({"type": "auth", "token": "x"}))["data"]["code"] == "invalid_token"
    assert (await line.asks({"type": "auth", "token": server.token("bo")}))["data"]["code"] == "invalid_token"
    assert (await line.asks({"type": "auth", "token": server.token("amira")}))["type"] == "auth_ok"
    assert (await line.asks(update()))["type"] == "receipt"


async def test_pings_are_counted_and_updates_are_not(line: Line) -> None:
    await line.say(*(update(n) for n in range(250)))
    for _ in range(250):
        assert (await line.next())["type"] == "receipt"
    said = 0
    with trio.move_on_after(20):
        while not line.raw.ended:
            with trio.move_on_after(0.01):
                await line.raw.send(*[client_frame(PING)] * 50)
            said += 50
            with trio.move_on_after(0.02):
                if (got := await line.raw.next()) is not None and got.opcode == CLOSE:
                    assert (got.code, got.reason) == (1008, "rate limited")
                    return
    raise AssertionError(f"{said} Pings were taken")


async def test_without_a_token_it_is_refused_even_where_anybody_may_follow(settings: Settings) -> None:
    async with running_server(replace(settings, allow_anonymous=True)) as server, upgrade(server, None) as line:
        frames, code, reason = await line.end()
    assert ([one["data"]["code"] for one in frames], code, reason) == (["invalid_token"], 1008, "invalid token")
    assert frames[0]["diagnosis_id"] is None


async def test_a_foreign_page_is_refused(server: Server) -> None:
    async with upgrade(server, "amira", "", "Origin: https://evil.example") as line:
        frames, code, reason = await line.end()
    assert ([one["data"]["code"] for one in frames], code) == (["origin_not_allowed"], 1008)
    assert reason == "origin not allowed"


async def test_a_plain_request_is_answered_as_one_to_the_path_of_a_follower(server: Server) -> None:
    plain, follower = await server.http.get("/publish"), await server.http.get("/ws/42")
    assert plain.status_code == follower.status_code == 426
    assert plain.json() == follower.json()


async def test_it_counts_as_a_connection_and_not_as_a_follower(server: Server, line: Line) -> None:
    status = await server.status()
    assert (status["total_connections"], status["node"]["connections"]) == (0, 0)
    assert status["connections_open"] == 2


@pytest.mark.one_process("each worker counts its own connections")
async def test_it_counts_in_the_limits_of_connections(settings: Settings) -> None:
    async with running_server(replace(settings, user_connections_max=1)) as server:
        await server.register()
        async with opened(server) as first:
            assert (await first.asks(update()))["type"] == "receipt"
            async with upgrade(server, "amira") as beyond:
                frames, code, _ = await beyond.end()
            assert ([one["data"]["code"] for one in frames], code) == (["rate_limited"], 1008)
            await first.raw.leave()
        async with opened(server) as second:
            assert (await second.asks(update()))["receipt"]["seq"] == 2


async def test_its_events_count_in_the_limit_of_events(settings: Settings) -> None:
    async with running_server(replace(settings, user_events_per_second=1)) as server:
        await server.register()
        async with opened(server) as line:
            await line.say(*(update(n) for n in range(5)))
            answers = [await line.next() for _ in range(5)]
        assert "rate_limited" in {one["problem"]["code"] for one in answers if one["type"] == "refused"}


# How it ends


@pytest.mark.guarantee(16)
async def test_a_revocation_ends_it_and_nothing_of_it_is_stored_after_that(server: Server, line: Line) -> None:
    assert (await line.asks(update(1)))["type"] == "receipt"
    revoked = await server.http.post("/revocations", json={"sub": "amira"}, headers=server.bearer("op", "operate"))
    assert revoked.status_code == 201
    await line.say(update(2))
    frames, code, reason = await line.end()
    assert [one["type"] for one in frames] == ["bye"]
    assert (code, reason) == (1008, "revoked")


async def test_an_erased_person_publishes_no_more(server: Server, line: Line) -> None:
    erased = await server.http.delete("/subjects/amira", headers=server.bearer("op", "operate"))
    assert erased.status_code == 200
    _, code, reason = await line.end()
    assert (code, reason) == (1008, "disconnected by operator")


async def test_a_token_that_ends_is_told_and_ends_it(tmp_path: Path) -> None:
    clock = JumpingClock()
    async with running_server(Settings(port=0, data=tmp_path / "data"), clock) as server:
        await server.register()
        async with opened(server, ttl_seconds=600) as line:
            clock.ahead = 580
            warned = await line.next()
            assert (warned["type"], warned["diagnosis_id"]) == ("auth_expiring", None)
            assert (await line.asks(update(1)))["type"] == "receipt"
            clock.ahead = 620
            frames, code, reason = await line.end()
            assert ([one["type"] for one in frames], code, reason) == (["bye"], 1008, "token expired")


class JumpingClock(SystemClock):
    """A wall clock that can be ahead."""

    def __init__(self) -> None:
        super().__init__()
        self.ahead = 0.0

    def wall(self) -> float:
        return super().wall() + self.ahead


@pytest.mark.guarantee(11)
async def test_a_drain_answers_what_is_due_and_says_when_to_come_back(settings: Settings) -> None:
    async with running_server(settings) as server:
        await server.register()
        async with opened(server) as line:
            await line.say(*(update(n) for n in range(200)))
            first = await line.next()
            server.stop()
            frames, code, reason = await line.end()
    *answers, bye = [first, *frames]
    assert [one["id"] for one in answers] == [str(n) for n in range(len(answers))]
    assert {one["type"] for one in answers} == {"receipt"}
    assert (bye["type"], bye["data"]["code"], code, reason) == ("bye", 1012, 1012, "restart")
    assert 0 <= bye["data"]["retry_after_ms"] <= 5000


@pytest.mark.sqlite_only("the disk is held up")
async def test_frames_that_wait_for_room_when_the_server_stops_are_told_that_it_stops(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = hangable_disk(monkeypatch)
    async with running_server(replace(settings, mailbox_messages_max=1)) as server:
        await server.register()
        assert (await server.publish(1)).status_code == 200
        async with opened(server) as line:
            with disk.hanging(), trio.fail_after(20):
                await line.say(*(update(n) for n in range(5)), {"type": "ping"})
                assert (await line.next())["type"] == "pong"
                server.stop()
                frames, code, reason = await line.end()
    codes = [one["problem"]["code"] for one in frames if one["type"] == "refused"]
    assert (len(codes), codes[0], codes[-1]) == (5, "storage_unavailable", "draining")
    assert set(codes) == {"storage_unavailable", "draining"}
    assert (code, reason) == (1012, "restart")


# How much it may take


async def test_a_full_mailbox_holds_the_connection_and_loses_nothing(settings: Settings) -> None:
    async with running_server(replace(settings, mailbox_messages_max=3)) as server:
        await server.register()
        async with opened(server) as line:
            await line.say(*(update(n) for n in range(250)))
            answers = [await line.next() for _ in range(250)]
    assert [one["receipt"]["seq"] for one in answers] == list(range(1, 251))


@pytest.mark.sqlite_only("the disk is held up")
async def test_a_mailbox_that_stays_full_is_told_after_a_while(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("web.publishing.sender.PAUSE_SECONDS_MAX", 0.2)
    disk = hangable_disk(monkeypatch)
    async with running_server(replace(settings, mailbox_messages_max=1)) as server:
        await server.register()
        assert (await server.publish(1)).status_code == 200
        async with opened(server) as line:
            with disk.hanging(), trio.fail_after(20):
                await line.say(*(update(n) for n in range(5)))
                answers = [await line.next() for _ in range(5)]
    codes = [one["problem"]["code"] if one["type"] == "refused" else "" for one in answers]
    assert codes[-1] == "mailbox_full"
    assert answers[-1]["problem"]["status"] == 429
    assert set(codes) == {"storage_unavailable", "mailbox_full"}


async def test_beyond_the_window_the_socket_is_not_read(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = hangable_disk(monkeypatch)
    async with running_server(replace(settings, storage_seconds_max=60)) as server:
        await server.register()
        assert (await server.publish(1)).status_code == 200
        async with opened(server) as line:
            frame = frame_of(update(1, comment="x" * 60_000))
            sent = 0
            with disk.hanging():
                with trio.move_on_after(1):
                    while True:
                        await line.raw.stream.send_all(frame)
                        sent += 1
                assert sent * len(frame) < 16 * 1024 * 1024, "the socket was read on and on"
                assert (await server.http.get("/healthz")).status_code == 200
            for _ in range(sent):
                assert (await line.next())["type"] == "receipt"
    assert WINDOW_BYTES_MAX < WINDOW * MESSAGE_BYTES_MAX


@pytest.mark.sqlite_only("the disk is held up")
async def test_a_disk_that_does_not_answer_is_told_of_each_frame(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = hangable_disk(monkeypatch)
    async with running_server(replace(settings, storage_seconds_max=0.5)) as server:
        await server.register()
        assert (await server.publish(1)).status_code == 200
        async with opened(server) as line:
            with disk.hanging(), trio.fail_after(8):  # less than 20 times half a second
                await line.say(*(update(n, idempotency_key=f"k{n}") for n in range(20)))
                answers = [await line.next() for _ in range(20)]
            assert {one["problem"]["code"] for one in answers} == {"storage_unavailable"}
            await line.say(*(update(n, idempotency_key=f"k{n}") for n in range(20)))
            again = [await line.next() for _ in range(20)]
            assert [one["receipt"]["seq"] for one in again] == list(range(2, 22))
            assert {one["receipt"]["replayed"] for one in again} == {True}


async def test_a_client_that_reads_no_receipts_is_cut_off_and_its_events_are_stored(server: Server, line: Line) -> None:
    some = [frame_of(update(n)) for n in range(500)]
    sent = 0
    while True:
        # It is full where nothing can be written for so long: what the server does not read, and what we do not.
        with trio.move_on_after(3) as patience:
            await line.raw.send(*some)
            sent += len(some)
        if patience.cancelled_caught:
            break
    with trio.fail_after(40):
        while not (await server.status())["node"]["aborted"]:
            await trio.sleep(0.1)
        while (await server.status())["connections_open"] > 1:
            await trio.sleep(0.1)
    assert (await server.publish(1)).json()["seq"] > WINDOW


async def test_a_client_that_ends_its_side_still_gets_the_receipts_due(line: Line) -> None:
    await line.say(*(update(n) for n in range(200)))
    line.raw.stream.socket.shutdown(socket.SHUT_WR)  # type: ignore[attr-defined]
    assert [judged(one)["id"] for one in await line.raw.rest()] == [str(n) for n in range(200)]
