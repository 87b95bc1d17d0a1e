"""Following a diagnosis by Server-Sent Events: the same frames, resumed by `Last-Event-ID`."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlencode

import httpx
import pytest
import trio

from tests.server.harness import Server, running_server
from tests.server.test_broadcasts import assert_problem
from web.contract import wire
from web.following.streams import StreamTransport
from web.server.settings import Settings


@dataclass
class Message:
    """One message of a stream, as an EventSource would dispatch it."""

    event_id: str | None
    frame: dict[str, Any]

    @property
    def number(self) -> int:
        assert self.event_id is not None
        return int(self.event_id.rpartition(".")[2])


class Stream:
    """The client's end of a stream: a plain socket, with chunked coding (RFC 9112 section 7.1) taken off."""

    def __init__(self, socket: trio.SocketStream) -> None:
        self._socket = socket
        self._raw = b""
        self._text = b""
        self.headers: dict[str, str] = {}
        self.retry: str | None = None

    async def begin(self) -> None:
        """Read the head of the answer; it must be 200."""
        head = (await self._until(b"\r\n\r\n")).decode()
        assert head.startswith("HTTP/1.1 200 "), head
        self.headers = {
            name.lower(): value.strip() for name, _, value in (line.partition(":") for line in head.splitlines()[1:])
        }

    async def _until(self, end: bytes) -> bytes:
        while end not in self._raw:
            await self._receive()
        found, _, self._raw = self._raw.partition(end)
        return found

    async def _receive(self) -> None:
        with trio.fail_after(10):
            chunk = await self._socket.receive_some()
        assert chunk, "the server closed the connection within an answer"
        self._raw += chunk

    async def block(self) -> list[str]:
        """The lines up to the next empty one."""
        while b"\n\n" not in self._text:
            length = int(await self._until(b"\r\n"), 16)
            while len(self._raw) < length + 2:
                await self._receive()
            self._text += self._raw[:length]
            self._raw = self._raw[length + 2 :]
            if not length:
                raise EOFError
        block, _, self._text = self._text.partition(b"\n\n")
        return block.decode().split("\n")

    async def next(self) -> Message:
        """The next message; comments are skipped."""
        while True:
            fields = dict(line.split(": ", 1) for line in await self.block() if not line.startswith(":"))
            self.retry = fields.get("retry", self.retry)
            if "data" in fields:
                assert fields.keys() <= {"id", "data", "retry"}
                return Message(fields.get("id"), json.loads(fields["data"]))

    async def until_live(self) -> list[Message]:
        found = [await self.next()]
        while found[-1].frame["type"] != "live":
            found.append(await self.next())
        return found


@asynccontextmanager
async def streamed(
    server: Server, sub: str | None = "amira", last_event_id: str | None = None, path: str = "42", **query: str | int
) -> AsyncIterator[Stream]:
    headers = {"Host": "localhost"} | ({} if sub is None else server.bearer(sub))
    if last_event_id is not None:
        headers["Last-Event-ID"] = last_event_id
    head = [f"GET /diagnoses/{path}/events?{urlencode(query)} HTTP/1.1"]
    head += [f"{name}: {value}" for name, value in headers.items()]
    async with await connected(server) as socket:
        await socket.send_all("\r\n".join([*head, "", ""]).encode())
        stream = Stream(socket)
        await stream.begin()
        yield stream


async def connected(server: Server) -> trio.SocketStream:
    host, _, port = server.url.removeprefix("http://").partition(":")
    return await trio.open_tcp_stream(host, int(port))


def shape(messages: list[Message]) -> list[tuple[str, int]]:
    return [(one.frame["type"], one.number) for one in messages]


@pytest.mark.one_process("a receipt counts the connections of other workers as they told them last, a second ago")
async def test_a_stream_carries_the_frames_of_a_websocket_each_with_the_position_reached(server: Server) -> None:
    await server.register()
    await server.publish(1)
    await server.publish(2)
    async with streamed(server, device="browser") as stream, server.connect(device="phone") as client:
        assert stream.headers["content-type"] == "text/event-stream"
        assert stream.headers["cache-control"] == "no-store"
        assert stream.headers["x-accel-buffering"] == "no"
        messages = await stream.until_live()
        assert shape(messages) == [("connect", 0), ("feedback_update", 1), ("feedback_update", 2), ("live", 2)]
        frames = await client.until_live()
        assert (await server.publish(3)).json()["clients_notified"] == 2
        live = await stream.next()
        assert (live.number, live.frame) == (3, await client.next())
    # Each has a token of its own.
    own = {"device": "phone", "ack": "transport", "token_expires_at": frames[0]["data"]["token_expires_at"]}
    assert messages[0].frame["data"] | own == frames[0]["data"]
    assert [one.frame for one in messages[1:3]] == frames[1:3]
    epoch = frames[0]["data"]["epoch"]
    assert {str(one.event_id).rpartition(".")[0] for one in messages} == {epoch}


async def test_a_client_that_leaves_is_gone(server: Server) -> None:
    await server.register()
    async with streamed(server) as stream:
        await stream.until_live()
        assert (await server.status())["total_connections"] == 1
    await server.until_alone()


@pytest.mark.guarantee(4)
async def test_the_last_event_id_continues_exactly_there_and_wins_over_after(server: Server) -> None:
    await server.register()
    for number in range(1, 6):
        await server.publish(number)
    async with streamed(server, start="new") as stream:
        connect, live = await stream.until_live()
    assert connect.event_id == live.event_id
    epoch = connect.frame["data"]["epoch"]
    async with streamed(server, last_event_id=f"{epoch}.3", after=1, epoch="other") as stream:
        messages = await stream.until_live()
    assert messages[0].frame["data"]["resume"] == "exact"
    assert shape(messages) == [("connect", 3), ("feedback_update", 4), ("feedback_update", 5), ("live", 5)]
    async with streamed(server, after=4, epoch=epoch) as stream:
        assert shape(await stream.until_live()) == [("connect", 4), ("feedback_update", 5), ("live", 5)]
    async with streamed(server, last_event_id="another.epoch.3") as stream:
        messages = await stream.until_live()
    assert messages[0].frame["data"]["resume"] == "reset"
    assert messages[0].number == 0


async def test_a_gap_is_told_and_its_id_is_its_end(server: Server) -> None:
    await server.register()
    async with streamed(server) as stream:
        first = (await stream.until_live())[-1]
    for number in range(105):
        await server.publish(number)
    async with streamed(server, last_event_id=first.event_id) as stream:
        messages = await stream.until_live()
    assert shape(messages)[:3] == [("connect", 0), ("gap", 5), ("feedback_update", 6)]
    assert messages[1].frame["data"] == {"from": 1, "to": 5, "count": 5, "reason": "evicted"}


async def test_what_a_stream_was_sent_is_not_acknowledged_but_where_a_device_continues_is(server: Server) -> None:
    await server.register()

    async def cursors() -> dict[str | None, int]:
        actor = (await server.http.get("/actors/42", headers=server.bearer("op", "operate"))).json()
        return {one["device"]: one["cursor"] for one in actor["lag"]}

    for number in range(1, 4):
        await server.publish(number)
    async with streamed(server, device="browser") as named, streamed(server) as unnamed:
        last = (await named.until_live())[-1]
        await unnamed.until_live()
        assert await cursors() == {"browser": 0, None: 0}
    assert last.event_id is not None
    two = last.event_id.replace(".3", ".2")
    async with streamed(server, last_event_id=two, device="browser") as named:
        await named.until_live()
    async with streamed(server, last_event_id=two) as unnamed:
        await unnamed.until_live()
    assert await cursors() == {"browser": 2, None: 0}
    async with streamed(server, device="browser") as named:
        assert (await named.until_live())[0].number == 2


async def test_a_newer_stream_of_a_device_takes_over_and_the_older_one_ends(server: Server) -> None:
    await server.register()
    async with streamed(server, device="browser") as older:
        await older.until_live()
        async with server.connect(device="browser") as newer:
            await newer.until_live()
            bye = await older.next()
            assert (bye.frame["type"], bye.frame["data"]["code"], bye.number) == ("bye", 4000, 0)
            with pytest.raises(EOFError):
                await older.block()
            await server.publish(1)
            assert (await newer.next())["seq"] == 1


async def test_a_stopping_server_tells_a_browser_when_to_come_back(settings: Settings) -> None:
    async with running_server(settings) as server:
        await server.register()
        async with streamed(server) as stream:
            await stream.until_live()
            server.stop()
            bye = await stream.next()
    assert bye.frame["data"]["code"] == 1012
    assert stream.retry == str(bye.frame["data"]["retry_after_ms"])
    assert bye.number == 0


async def test_a_viewer_that_is_removed_loses_the_stream(server: Server) -> None:
    await server.register(42, "amira", "bo")
    async with streamed(server, sub="bo") as stream:
        await stream.until_live()
        await server.register(42, "amira")
        assert (await stream.next()).frame["data"]["reason"] == "viewer removed"


@pytest.mark.guarantee(8)
async def test_an_actor_restart_ends_no_stream_and_loses_and_repeats_nothing(server: Server) -> None:
    await server.register()
    async with streamed(server) as stream:
        await stream.until_live()
        for number in range(1, 4):
            await server.publish(number)
            await server.http.post("/actors/42/restart", headers=server.bearer("op", "operate"))
        assert [(await stream.next()).number for _ in range(3)] == [1, 2, 3]


async def test_a_silent_stream_gets_comments(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(wire, "PING_INTERVAL_SECONDS", 0.05)
    await server.register()
    async with streamed(server) as stream:
        await stream.until_live()
        assert await stream.block() == [":"]
        assert await stream.block() == [":"]
        await server.publish(1)
        assert (await stream.next()).number == 1


async def test_failures_are_http_statuses(server: Server) -> None:
    await server.register()
    get, amira = server.http.get, server.bearer("amira")
    path = "/diagnoses/42/events"
    assert_problem(await get(path), 401, "unauthenticated")
    assert_problem(await get(path, params={"token": "nonsense"}), 401, "unauthenticated")
    assert_problem(await get(path, headers=server.bearer("amira", ttl_seconds=-60)), 401, "token_expired")
    assert_problem(await get(path, headers=server.bearer("mallory")), 403, "forbidden")
    assert_problem(await get("/diagnoses/43/events", headers=amira), 403, "forbidden")
    assert_problem(await get("/diagnoses/43/events", headers=server.bearer("m", "monitor")), 404, "not_found")
    for name, value in (("device", "a b"), ("after", "-1"), ("epoch", ""), ("start", "middle"), ("ack", "never")):
        assert_problem(await get(path, params={name: value}, headers=amira), 422, "invalid_field", name)
    for wrong in ("3", "e.", "e.x", f"e.{'9' * 16}", "é.3"):
        bad = httpx.Headers({**amira, "Last-Event-ID": wrong}, encoding="utf-8")
        assert_problem(await get(path, headers=bad), 422, "invalid_field", "Last-Event-ID")
    assert (await server.status())["total_connections"] == 0


async def test_a_token_may_stand_in_the_query_where_the_operator_allows_it(server: Server, settings: Settings) -> None:
    await server.register()
    async with streamed(server, sub=None, token=server.token("amira")) as stream:
        await stream.until_live()
    strict = Settings(port=0, data=settings.data.with_name("strict"), query_tokens=False)
    async with running_server(strict) as other:
        await other.register()
        answer = await other.http.get("/diagnoses/42/events", params={"token": other.token("amira")})
        assert_problem(answer, 401, "unauthenticated")


async def test_the_anonymous_follow_where_the_operator_allows_it(settings: Settings) -> None:
    async with running_server(Settings(port=0, data=settings.data, allow_anonymous=True)) as server:
        await server.register()
        async with streamed(server, sub=None) as stream:
            assert (await stream.until_live())[0].frame["data"]["user_id"] is None


async def test_a_foreign_page_takes_nothing_over(settings: Settings) -> None:
    async with running_server(Settings(port=0, data=settings.data, allow_anonymous=True)) as server:
        await server.register()
        async with streamed(server, sub=None, device="kiosk") as stream:
            await stream.until_live()
            for headers in (
                {"Origin": "https://evil.example"},
                {"Sec-Fetch-Site": "cross-site"},
                {"Sec-Fetch-Site": "same-site"},
            ):
                answer = await server.http.get("/diagnoses/42/events?device=kiosk", headers=headers)
                assert_problem(answer, 403, "origin_not_allowed")
                answer = await server.http.request("OPTIONS", "/diagnoses/42/events", headers=headers)
                assert (answer.status_code, answer.headers["Allow"]) == (200, "GET, HEAD, OPTIONS"), "it asks for none"
            await server.publish(1)
            assert (await stream.next()).number == 1
        for headers in ({"Origin": server.url}, {"Sec-Fetch-Site": "same-origin"}, {"Sec-Fetch-Site": "none"}):
            answer = await server.http.head("/diagnoses/42/events", headers=headers)
            assert answer.status_code == 200


async def test_a_head_request_begins_no_stream(server: Server) -> None:
    await server.register()
    answer = await server.http.head("/diagnoses/42/events", headers=server.bearer("amira"))
    assert (answer.status_code, answer.headers["content-type"], answer.content) == (200, "text/event-stream", b"")
    assert (await server.status())["total_connections"] == 0


@pytest.mark.guarantee(7)
async def test_a_stream_that_is_not_read_delays_nobody_and_leaves_with_its_client(server: Server) -> None:
    await server.register()
    async with streamed(server, device="stuck") as stuck, server.live() as reader:
        await stuck.until_live()
        for number in range(150):
            assert (await server.publish(number, comment="x" * 30_000)).status_code == 200
            assert (await reader.next())["seq"] == number + 1
    await server.until_alone()


async def test_a_client_that_leaves_before_the_stream_begins_leaves_nothing(server: Server) -> None:
    await server.register()
    request = f"GET /diagnoses/42/events?token={server.token('amira')} HTTP/1.1\r\nHost: x\r\n\r\n".encode()
    for _ in range(30):
        async with await connected(server) as socket:
            await socket.send_all(request)
    await server.publish(1)
    await server.until_alone()


async def test_frames_that_wait_for_a_client_are_bounded() -> None:
    transport = StreamTransport()
    for _ in range(101):
        transport.say(b"{}")
    assert transport.overflowed
    assert len(transport.take_replies()) == 100
    assert await transport.woken(1)
    assert not await transport.woken(0.01)
