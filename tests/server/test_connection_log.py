"""What the log says of connections: one line when each ends, however it ends, and sums of what is frequent."""

from __future__ import annotations

import hashlib
import json
import re
import socket
import struct
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
import trio
from trio.testing import MockClock

from actors.messages import Purge
from actors.transport import Ending
from storage.records import Act
from tests.actors.world import DIAGNOSIS, anybody
from tests.edge.pairs import Edge, edge
from tests.edge.raw import CLOSE, TEXT, RawClient, client_frame, upgraded
from tests.identity.conftest import MovableClock
from tests.logbook import Logbook
from tests.server.harness import Server, running_server
from tests.server.process import served
from tests.server.test_streams import streamed
from web.server.settings import Settings

FIELDS = ("diagnosis_id", "subject", "device", "close_code", "reason", "seconds", "events_sent", "acknowledged")


def ends(logbook: Logbook) -> list[dict[str, str]]:
    """The fields of the lines about ends."""
    lines = [line for line in logbook.lines if " ended: " in line and "avicenna.connections" in line]
    return [dict(re.findall(r'(\w+)=("(?:[^"\\]|\\.)*"|\S+)', line)) for line in lines]


async def the_end(logbook: Logbook) -> dict[str, str]:
    """The one line, once it is there."""
    with trio.fail_after(10):
        while not ends(logbook):
            await trio.sleep(0.01)
    (found,) = ends(logbook)
    assert list(found) == list(FIELDS)
    return found


async def follower(server: Server) -> RawClient:
    port = int(server.url.rpartition(":")[2])
    return await upgraded(port, "/ws/42?device=phone", f"Authorization: Bearer {server.token('amira')}")


async def close_1000(server: Server, client: RawClient) -> None:
    await client.leave(1000)


async def close_without_a_code(server: Server, client: RawClient) -> None:
    await client.send(client_frame(CLOSE))
    await client.rest()


async def end_of_the_socket(server: Server, client: RawClient) -> None:
    await client.stream.aclose()


async def reset(server: Server, client: RawClient) -> None:
    assert isinstance(client.stream, trio.SocketStream)
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.stream.aclose()


async def disconnected(server: Server, client: RawClient) -> None:
    path = "/actors/42/subscribers?sub=amira&device=phone"
    assert (await server.http.delete(path, headers=server.bearer("op", "operate"))).status_code == 200
    await client.rest()


async def revoked(server: Server, client: RawClient) -> None:
    await server.http.post("/revocations", json={"sub": "amira"}, headers=server.bearer("op", "operate"))
    await client.rest()


async def deleted(server: Server, client: RawClient) -> None:
    await server.http.delete("/diagnoses/42", headers=server.bearer("op", "operate"))
    await client.rest()


async def replaced(server: Server, client: RawClient) -> None:
    async with server.live(device="phone"):
        await client.rest()
        await client.stream.aclose()


async def drained(server: Server, client: RawClient) -> None:
    server.stop()
    await client.rest()


async def broken_frame(server: Server, client: RawClient) -> None:
    await client.send(client_frame(3))
    await client.rest()


async def bad_text(server: Server, client: RawClient) -> None:
    await client.send(client_frame(TEXT, b"\xff"))
    await client.rest()


async def too_big(server: Server, client: RawClient) -> None:
    await client.send(client_frame(TEXT, b"x" * 9000))
    await client.rest()


@pytest.mark.parametrize(
    ("end", "code", "reason"),
    [
        (close_1000, "1000", '"closed by the client"'),
        (close_without_a_code, "1005", '"closed by the client"'),
        (end_of_the_socket, "1006", '"the connection was lost"'),
        (reset, "1006", '"the connection was lost"'),
        (disconnected, "1008", '"disconnected by operator"'),
        (revoked, "1008", "revoked"),
        (deleted, "1008", '"diagnosis deleted"'),
        (replaced, "4000", "replaced"),
        (drained, "1012", "restart"),
        (broken_frame, "1002", '"protocol error"'),
        (bad_text, "1007", '"invalid text"'),
        (too_big, "1009", '"too big"'),
    ],
)
async def test_every_way_out_of_a_websocket_is_one_line(
    settings: Settings, logbook: Logbook, end: Callable[[Server, RawClient], Awaitable[None]], code: str, reason: str
) -> None:
    async with running_server(settings) as server:
        await server.register()
        client = await follower(server)
        await client.says("connect", "live")
        await server.publish(1)
        await client.says("feedback_update")
        await end(server, client)
        await client.stream.aclose()
        with trio.fail_after(10):
            while not ends(logbook):
                await trio.sleep(0.01)
    # The server has stopped: nothing more will be said.
    found, *newer = ends(logbook)
    assert len(newer) == (end is replaced)
    assert (found["diagnosis_id"], found["device"], found["subject"]) == ("42", "phone", "-")
    assert (found["close_code"], found["reason"]) == (code, reason)
    assert found["events_sent"] == "1"
    # Whoever takes over has acknowledged for both.
    assert found["acknowledged"] == ("1" if end is replaced else "0")
    assert 0 <= float(found["seconds"]) < 10


async def test_an_expired_token_is_one_line(settings: Settings, logbook: Logbook) -> None:
    clock = MovableClock()
    async with running_server(settings, clock) as server:
        await server.register()
        async with server.live(device="phone") as client:
            clock.ahead_seconds = 700
            await client.close_frames()
        found = await the_end(logbook)
    assert (found["close_code"], found["reason"]) == ("1008", '"token expired"')


async def test_a_refusal_is_one_line_with_the_id_of_its_request(server: Server, logbook: Logbook) -> None:
    await server.register()
    async with server.connect(43, sub="mallory", device="phone") as client:
        await client.close_frames()
    found = await the_end(logbook)
    assert (found["diagnosis_id"], found["device"], found["acknowledged"]) == ("43", "phone", "-")
    assert (found["close_code"], found["reason"]) == ("1008", '"access denied"')
    (opened, ended) = [line for line in logbook.lines if "GET /ws/43" in line or " ended: " in line]
    assert opened.rpartition("[")[2] == ended.rpartition("[")[2]


async def test_the_end_of_a_websocket_has_the_id_of_its_upgrade(server: Server, logbook: Logbook) -> None:
    await server.register()
    async with server.live(device="phone"):
        pass
    await the_end(logbook)
    (opened, ended) = [line for line in logbook.lines if "GET /ws/42" in line or " ended: " in line]
    assert re.fullmatch(r"[0-9a-f]{16}\]\n?", opened.rpartition("[")[2])
    assert opened.rpartition("[")[2] == ended.rpartition("[")[2]


async def test_a_diagnosis_or_device_that_is_no_name_is_not_in_the_line(server: Server, logbook: Logbook) -> None:
    async with server.connect("a%20b", device="x y") as client:
        await client.close_frames()
    found = await the_end(logbook)
    assert (found["diagnosis_id"], found["device"], found["reason"]) == ("-", "-", '"invalid field"')


async def test_the_line_says_how_far_a_client_has_acknowledged(server: Server, logbook: Logbook) -> None:
    await server.register()
    for number in range(3):
        await server.publish(number)
    async with server.connect(ack="app", start=2) as client:
        await client.until_live()
        await client.say(type="ack", seq=2)
        await client.next_of("acked")
    found = await the_end(logbook)
    assert (found["events_sent"], found["acknowledged"], found["device"]) == ("2", "2", "-")


async def test_the_end_of_an_event_stream_is_one_line_with_the_id_of_its_request(
    server: Server, logbook: Logbook
) -> None:
    await server.register()
    await server.publish(1)
    async with streamed(server, device="tab") as stream:
        await stream.until_live()
    found = await the_end(logbook)
    assert (found["diagnosis_id"], found["device"], found["close_code"]) == ("42", "tab", "-")
    assert (found["reason"], found["events_sent"]) == ('"its connection ended"', "1")
    (line,) = [one for one in logbook.lines if "event stream ended" in one]
    (request,) = [one for one in logbook.lines if "GET /diagnoses/42/events" in one]
    assert line.rpartition("[")[2] == request.rpartition("[")[2]


async def test_a_stream_that_the_server_ends_says_why(server: Server, logbook: Logbook) -> None:
    await server.register()
    async with streamed(server, device="tab") as older:
        await older.until_live()
        async with streamed(server, device="tab") as newer:
            await newer.until_live()
            await older.next()
            found = await the_end(logbook)
    assert (found["close_code"], found["reason"]) == ("4000", "replaced")


async def test_a_request_for_a_stream_that_is_refused_has_no_line_but_its_own(server: Server, logbook: Logbook) -> None:
    await server.register()
    answer = await server.http.get("/diagnoses/42/events", headers=server.bearer("mallory"))
    assert answer.status_code == 403
    head = await server.http.head("/diagnoses/42/events", headers=server.bearer("amira"))
    assert head.status_code == 200
    assert ends(logbook) == []


@pytest.mark.one_process("each worker counts its own connections")
async def test_a_stream_that_says_only_when_to_come_back_has_a_line(settings: Settings, logbook: Logbook) -> None:
    limited = Settings(port=0, data=settings.data, user_connections_max=1)
    async with running_server(limited) as server:
        await server.register()
        headers = server.bearer("amira") | {"Accept": "text/event-stream"}
        async with server.live(device="phone"):
            answer = await server.http.get("/diagnoses/42/events?device=tab", headers=headers)
            assert (answer.status_code, b"1013" in answer.content) == (200, True)
            found = await the_end(logbook)
    assert (found["device"], found["close_code"], found["reason"]) == ("tab", "1013", '"rate limited"')


@pytest.mark.parametrize(
    ("setting", "shown"),
    [("no", "-"), ("digest", hashlib.sha256(b"amira").hexdigest()[:16]), ("plain", "amira")],
)
async def test_the_operator_decides_how_a_subject_is_shown(
    settings: Settings, logbook: Logbook, setting: str, shown: str
) -> None:
    chosen = Settings(port=0, data=settings.data, log_subjects=setting)  # type: ignore[arg-type]
    async with running_server(chosen) as server:
        await server.register()
        async with server.live():
            pass
        assert (await the_end(logbook))["subject"] == shown
    assert (setting == "plain") == ("amira" in "".join(logbook.lines))


async def test_a_subject_cannot_write_a_line_of_its_own(settings: Settings, logbook: Logbook) -> None:
    name = 'eve" code=1000 \u202ereason=none'
    chosen = Settings(port=0, data=settings.data, log_subjects="plain")
    async with running_server(chosen) as server:
        await server.register(42, name)
        async with server.live(sub=name):
            pass
        await the_end(logbook)
    (line,) = [one for one in logbook.lines if " ended: " in one]
    assert r'subject="eve\" code=1000 \u202ereason=none" device=' in line


async def test_json_lines_have_the_fields_beside_the_message(tmp_path: Path) -> None:
    mine = Logbook()
    async with served(tmp_path / "data", logbook=mine, AVICENNA_LOG_FORMAT="json") as (process, server):
        await server.register()
        async with server.live(device="phone") as client:
            await server.publish(1)
            await client.events(1)
        await process.stop()
    lines = [json.loads(line) for line in "".join(mine.lines).splitlines()]
    (end,) = [line for line in lines if line["logger"] == "avicenna.connections"]
    assert end["message"].startswith("WebSocket ended: diagnosis_id=42 subject=- device=phone close_code=1000 ")
    assert {name: end[name] for name in FIELDS if name not in ("seconds", "acknowledged")} == {
        "diagnosis_id": "42",
        "subject": None,
        "device": "phone",
        "close_code": 1000,
        "reason": "closed by the client",
        "events_sent": 1,
    }
    assert isinstance(end["seconds"], float)


# On socket pairs: what takes time


async def cut_off(server: Edge, logbook: Logbook, why: str) -> None:
    with trio.fail_after(60):
        while server.hub.connections:
            await trio.sleep(1)
    stalled = [line for line in logbook.lines if "stalled peer cut off" in line]
    assert len(stalled) == 1
    assert why in stalled[0]
    (found,) = ends(logbook)
    assert found["device"] == "phone"


async def test_who_accepts_nothing_is_one_line_of_its_own_beside_its_end(
    autojump_clock: MockClock, logbook: Logbook
) -> None:
    async with edge() as server:
        _, follower = await server.follow(device="phone")
        await server.fill(follower)
        await cut_off(server, logbook, "it accepted no byte for 10 s")
        assert ends(logbook)[0]["close_code"] == "1006"


async def test_who_answers_no_ping_is_one_line_of_its_own_beside_its_end(
    autojump_clock: MockClock, logbook: Logbook
) -> None:
    async with edge() as server:
        client, _ = await server.follow(device="phone")

        async def read() -> None:
            await client.rest(120)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(read)
            await cut_off(server, logbook, "it answered no Ping for 10 s")


async def test_who_does_not_take_its_goodbye_is_one_line_of_its_own_beside_its_end(
    autojump_clock: MockClock, logbook: Logbook
) -> None:
    async with edge() as server:
        _, follower = await server.follow(device="phone")
        await server.fill(follower)
        follower.end(Ending.REVOKED)
        await cut_off(server, logbook, "it did not take its goodbye within 10 s")
        assert ends(logbook)[0]["close_code"] == "1008"


async def test_a_drain_that_cuts_everybody_off_still_says_how_each_ended(
    autojump_clock: MockClock, logbook: Logbook
) -> None:
    async with edge() as server:
        for number in range(3):
            await server.follow(device=f"device{number}")
        await server.world.registry.end_all()
        await server.hub.drain()
        assert [one["close_code"] for one in ends(logbook)] == ["1012"] * 3


async def test_the_gaps_of_a_connection_are_one_line_a_minute_with_their_sum(
    autojump_clock: MockClock, logbook: Logbook
) -> None:
    def told() -> list[str]:
        return [line.partition("told of gaps: ")[2].strip() for line in logbook.lines if "told of gaps" in line]

    async def purge(server: Edge, follower: object) -> None:
        await server.world.registry.ask(DIAGNOSIS, Purge(Act("op", "outbox.purge"), anybody))

    async with edge() as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.followers.log.run)
        _, stalled = await server.follow(device="phone", wanted=None)
        for _ in range(3):
            await server.fill(stalled)
            await server.publish(120)
            (client,) = server.clients
            with trio.move_on_after(0.3):
                while True:
                    await client.next()
        assert told() == []
        with trio.move_on_after(65):
            while (got := await client.next()) is not None:
                if got.opcode == 9:
                    await client.pong(got.payload)
        (line,) = told()
        gaps, lost = re.findall(r"gaps=(\d+) events_lost=(\d+)", line)[0]
        assert int(gaps) >= 3
        assert int(lost) >= 60
        await client.stream.aclose()
        await trio.sleep(1)
        (found,) = ends(logbook)
        assert int(found["events_sent"]) + int(lost) == server.world.registry.statistics_of(DIAGNOSIS).window.head  # type: ignore[union-attr]
        assert told() == [line]
        nursery.cancel_scope.cancel()


async def test_take_overs_within_a_minute_are_one_line_a_minute(autojump_clock: MockClock, logbook: Logbook) -> None:
    def sums() -> list[str]:
        return [line.rpartition("connections=")[2].strip() for line in logbook.lines if "replace each other" in line]

    async with edge() as server, trio.open_nursery() as nursery:
        nursery.start_soon(server.followers.log.run)
        for _ in range(11):
            await server.follow(device="phone")
            await trio.sleep(8)
        await trio.sleep(70)
        assert len([one for one in ends(logbook) if one["close_code"] == "4000"]) == 1
        assert sums() == ["7", "2"] or sum(map(int, sums())) == 9
        nursery.cancel_scope.cancel()
