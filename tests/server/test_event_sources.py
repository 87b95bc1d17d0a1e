"""What a browser's `EventSource` gets: a stream in place of a passing failure, ids, and where it continues."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass
from typing import Any

import httpx
import pytest

from actors.errors import Crashed, Draining, MailboxFull, Quarantined
from actors.registry import Registry
from storage.errors import Busy, Failed
from storage.pending import Pending
from tests.identity.test_jwks import Source, web_of
from tests.server.harness import Server, begin, running_server
from tests.server.test_broadcasts import assert_problem
from tests.server.test_streams import shape, streamed
from web.server.settings import Settings

PATH = "/diagnoses/42/events"
BROWSER = {"Accept": "text/event-stream", "Cache-Control": "no-cache"}
PAGE = "https://page.example"


@dataclass
class Goodbye:
    """The one message of a stream that stands in place of a status."""

    fields: dict[str, str]
    frame: dict[str, Any]


def goodbye(answer: httpx.Response) -> Goodbye:
    """What such an answer says: `retry`, one `bye` 1013, and nothing else."""
    assert answer.status_code == 200, answer.text
    assert answer.headers["Content-Type"].startswith("text/event-stream")
    assert answer.headers["Cache-Control"] == "no-store"
    assert answer.headers["Content-Length"] == str(len(answer.content))
    block, end = answer.text.split("\n\n")
    assert end == ""
    fields = dict(line.split(": ", 1) for line in block.split("\n"))
    assert fields.keys() <= {"retry", "id", "data"}
    frame = json.loads(fields["data"])
    assert (frame["type"], frame["data"]["code"]) == ("bye", 1013)
    assert fields["retry"] == str(frame["data"]["retry_after_ms"])
    return Goodbye(fields, frame)


def failing(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    """Have every actor answer with this error."""

    def put(*_: object) -> Pending[object]:
        answer: Pending[object] = Pending()
        answer.refuse(error)
        return answer

    monkeypatch.setattr(Registry, "put", put)


PASSING = [
    (Quarantined(7.2), 503, "quarantined", "quarantined", 8000),
    (Draining(), 503, "draining", "restart", 1000),
    (MailboxFull(), 429, "mailbox_full", "try later", 1000),
    (Busy(), 503, "storage_unavailable", "try later", 1000),
    (Failed(), 503, "storage_unavailable", "try later", 1000),
    (Crashed(), 500, "internal_error", "try later", 1000),
]


@pytest.mark.parametrize(("error", "status", "code", "reason", "retry_ms"), PASSING)
async def test_a_passing_condition_is_a_stream_for_a_browser_and_a_status_for_others(
    error: Exception,
    status: int,
    code: str,
    reason: str,
    retry_ms: int,
    server: Server,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    await server.register()
    headers = server.bearer("amira")
    failing(monkeypatch, error)
    said = goodbye(await server.http.get(PATH, headers=headers | BROWSER))
    assert said.frame["diagnosis_id"] == 42
    assert said.frame["data"] == {"code": 1013, "reason": reason, "retry_after_ms": retry_ms}
    assert "id" not in said.fields
    for accept in ("*/*", "text/*", "application/json", "text/event-stream;q=0"):
        answer = await server.http.get(PATH, headers=headers | {"Accept": accept})
        assert_problem(answer, status, code)
    assert_problem(await server.http.get("/diagnoses/42/delivery?seq=1", headers=headers | BROWSER), status, code)


@pytest.mark.parametrize(
    "accept", ["Text/Event-Stream", "text/html, text/event-stream;q=0.1", "text/event-stream; a=b"]
)
async def test_any_spelling_of_accept_that_names_the_type_counts(
    accept: str, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register()
    failing(monkeypatch, Busy())
    goodbye(await server.http.get(PATH, headers=server.bearer("amira") | {"Accept": accept}))


@pytest.mark.parametrize(
    ("headers", "query", "repeated"),
    [
        ({"Last-Event-ID": "e.7"}, {}, "e.7"),
        ({}, {"lastEventId": "e.7"}, "e.7"),
        ({}, {"Last-Event-ID": "e.7"}, "e.7"),
        ({"Last-Event-ID": "e.7"}, {"lastEventId": "e.6"}, "e.7"),
        ({"Last-Event-ID": "nonsense"}, {}, None),
        ({}, {"lastEventId": "nonsense"}, None),
        ({"Last-Event-ID": "nonsense"}, {"lastEventId": "e.6"}, None),
        ({}, {"lastEventId": ["e.6", "e.7"]}, None),
        ({}, {"lastEventId": "e.6", "Last-Event-ID": "e.7"}, None),
        ({"Last-Event-ID": ""}, {"lastEventId": ""}, None),
    ],
)
async def test_such_a_stream_repeats_where_the_browser_was_if_that_can_be(
    headers: dict[str, str], query: dict[str, Any], repeated: str | None, settings: Settings
) -> None:
    # In front of the route: nothing of the request has been looked at.
    async with running_server(Settings(port=0, data=settings.data, address_requests_per_second=0.01)) as server:
        assert (await server.http.get("/healthz")).status_code == 200
        answer = await server.http.get(PATH, params=query, headers=BROWSER | headers)
        said = goodbye(answer)
        assert said.fields.get("id") == repeated
        assert said.frame["data"]["reason"] == "rate limited"
        assert 1000 <= said.frame["data"]["retry_after_ms"] <= 100_000
        assert_problem(await server.http.get(PATH), 429, "rate_limited")
        # A HEAD begins no stream, and is no EventSource's.
        assert (await server.http.head(PATH, headers=BROWSER)).status_code == 429


async def test_limits_of_a_user_are_passing_conditions_too(settings: Settings) -> None:
    limits = {"user_connections_max": 1, "user_requests_per_second": 2.0}
    async with running_server(Settings(port=0, data=settings.data, **limits)) as server:  # type: ignore[arg-type]
        await server.register()
        async with streamed(server) as stream:
            await stream.until_live()
            goodbye(await server.http.get(PATH, headers=server.bearer("amira") | BROWSER))
            said = goodbye(await server.http.get(PATH, headers=server.bearer("amira") | BROWSER))
            assert said.frame["data"]["reason"] == "rate limited"


async def test_keys_that_were_not_fetched_pass(settings: Settings) -> None:
    begin(settings.data)
    with web_of({}) as url:
        async with running_server(Settings(port=0, data=settings.data, jwks=f"{url}/jwks")) as server:
            await server.register()
            headers = {"Authorization": f"Bearer {Source().token('first', time.time())}"}
            said = goodbye(await server.http.get(PATH, headers=headers | BROWSER))
            assert said.frame["data"]["reason"] == "try later"
            assert_problem(await server.http.get(PATH, headers=headers), 503, "storage_unavailable")


async def test_a_final_refusal_keeps_its_status_so_that_the_browser_gives_up(server: Server) -> None:
    await server.register()
    get, amira = server.http.get, server.bearer("amira") | BROWSER
    assert_problem(await get(PATH, headers=BROWSER), 401, "unauthenticated")
    assert_problem(await get(PATH, headers=server.bearer("amira", ttl_seconds=-60) | BROWSER), 401, "token_expired")
    assert_problem(await get(PATH, headers=server.bearer("mallory") | BROWSER), 403, "forbidden")
    assert_problem(await get("/diagnoses/43/events", headers=server.bearer("m", "monitor") | BROWSER), 404, "not_found")
    assert_problem(await get(PATH, params={"start": "x"}, headers=amira), 422, "invalid_field")
    assert_problem(await get(PATH, headers=amira | {"Origin": PAGE}), 403, "origin_not_allowed")
    assert_problem(await server.http.post(PATH, headers=amira), 405, "method_not_allowed")


async def test_a_page_of_a_configured_origin_may_read_it(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    async with running_server(Settings(port=0, data=settings.data, allowed_origins=(PAGE,))) as server:
        await server.register()
        failing(monkeypatch, Busy())
        answer = await server.http.get(PATH, headers=server.bearer("amira") | BROWSER | {"Origin": PAGE})
        goodbye(answer)
        assert answer.headers["Access-Control-Allow-Origin"] == PAGE


@pytest.mark.parametrize("name", ["lastEventId", "Last-Event-ID"])
async def test_the_position_is_taken_from_the_query_as_from_the_header(server: Server, name: str) -> None:
    await server.register()
    for number in range(1, 6):
        await server.publish(number)
    async with streamed(server, start="new") as stream:
        epoch = (await stream.until_live())[0].frame["data"]["epoch"]
    asked: dict[str, Any] = {name: f"{epoch}.3", "after": 1}
    async with streamed(server, **asked) as stream:
        assert shape(await stream.until_live())[:2] == [("connect", 3), ("feedback_update", 4)]
    async with streamed(server, last_event_id=f"{epoch}.4", **asked) as stream:
        assert shape(await stream.until_live())[:2] == [("connect", 4), ("feedback_update", 5)]
    get, amira = server.http.get, server.bearer("amira")
    for wrong in ("3", "e.", f"e.{'9' * 16}"):
        assert_problem(await get(PATH, params={name: wrong}, headers=amira), 422, "invalid_field", name)
        beside = amira | {"Last-Event-ID": f"{epoch}.3"}
        assert_problem(await get(PATH, params={name: wrong}, headers=beside), 422, "invalid_field", name)
    repeated = {name: [f"{epoch}.3", f"{epoch}.4"]}
    assert_problem(await get(PATH, params=repeated, headers=amira), 422, "invalid_field", name)
    async with streamed(server, device="browser", **{name: f"{epoch}.2"}) as stream:
        await stream.until_live()
        answer = await get("/diagnoses/42/delivery?seq=2", headers=amira)
        (browser,) = [one for one in answer.json()["items"] if one["device"] == "browser"]
        assert (browser["cursor"], browser["acknowledged_by"]) == (2, "app")


async def test_a_position_is_named_in_one_way_in_the_query(server: Server) -> None:
    await server.register()
    amira = server.bearer("amira")
    for one, other in (("e.1", "e.2"), ("e.1", "e.1"), ("e.1", "nonsense")):
        both = {"lastEventId": one, "Last-Event-ID": other}
        for headers in (amira, amira | {"Last-Event-ID": "e.1"}):
            answer = await server.http.get(PATH, params=both, headers=headers)
            assert_problem(answer, 422, "invalid_field", "given once, as lastEventId or as Last-Event-ID")
    # An empty one names no position.
    async with streamed(server, **{"lastEventId": "", "Last-Event-ID": "e.0"}) as stream:
        assert (await stream.next()).frame["data"]["resume"] == "reset"


@pytest.mark.parametrize("ack", ["transport", "app"])
async def test_a_stream_says_app_whatever_acknowledgement_is_asked_for(server: Server, ack: str) -> None:
    await server.register()
    async with streamed(server, ack=ack) as stream:
        assert (await stream.next()).frame["data"]["ack"] == "app"
    get, amira = server.http.get, server.bearer("amira")
    assert_problem(await get(PATH, params={"ack": ack, "peek": "1"}, headers=amira), 422, "invalid_field", "ack")
    assert_problem(await get(PATH, params={"ack": f"{ack}x"}, headers=amira), 422, "invalid_field", "ack")


async def test_a_header_that_is_sent_twice_is_refused(server: Server) -> None:
    await server.register()
    headers = [*server.bearer("amira").items(), ("Last-Event-ID", "e.1"), ("Last-Event-ID", "e.2")]
    assert_problem(await server.http.get(PATH, headers=headers), 422, "invalid_field", "Last-Event-ID")


async def test_every_message_of_a_stream_has_the_position_reached_as_its_id(server: Server) -> None:
    await server.register(42, "amira", "bo")
    await server.publish(1)
    # Its token is about to expire: that is said right after `live`.
    short = server.token("bo", ttl_seconds=30)
    async with streamed(server, sub=None, token=short, device="browser") as stream:
        messages = await stream.until_live()
        messages.append(await stream.next())
        await server.publish(2)
        messages.append(await stream.next())
        await server.register(42, "amira")
        messages.append(await stream.next())
    epoch = messages[0].frame["data"]["epoch"]
    assert [(one.frame["type"], one.event_id) for one in messages] == [
        ("connect", f"{epoch}.0"),
        ("feedback_update", f"{epoch}.1"),
        ("live", f"{epoch}.1"),
        ("auth_expiring", f"{epoch}.1"),
        ("feedback_update", f"{epoch}.2"),
        ("bye", f"{epoch}.2"),
    ]
    assert stream.retry is None


async def test_a_silent_stream_gets_heartbeats_instead_of_comments(server: Server) -> None:
    await server.register()
    await server.publish(1)
    async with streamed(server, heartbeat=5) as stream, server.live(heartbeat=5) as client:
        messages = await stream.until_live()
        began_at = time.monotonic()
        lines = await stream.block()
        assert 4.9 <= time.monotonic() - began_at <= 9
        frame = json.loads(lines[1].removeprefix("data: "))
        assert lines[0] == f"id: {messages[-1].event_id}"
        assert (frame["type"], frame["data"], frame.keys() >= {"seq"}) == ("heartbeat", {"seq": 1}, False)
        assert (await client.next())["data"] == {"seq": 1}


@pytest.mark.parametrize("wrong", ["4", "301", "0", "-5", "5.0", "", "x", "05", "1e1", "9999999999999999999999"])
async def test_a_heartbeat_is_an_integer_from_5_to_300(server: Server, wrong: str) -> None:
    await server.register()
    answer = await server.http.get(PATH, params={"heartbeat": wrong}, headers=server.bearer("amira"))
    assert_problem(answer, 422, "invalid_field", "heartbeat")
    async with server.connect(heartbeat=wrong) as client:
        (error,), code, _ = await client.close_frames()
        assert (error["data"]["code"], code) == ("invalid_field", 1008)


async def test_a_stream_that_is_quarantined_is_told_when_to_come_back(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with running_server(Settings(port=0, data=settings.data, restart_intensity_max=0)) as server:
        await server.register()
        async with streamed(server) as stream, server.live() as client:
            await stream.until_live()
            monkeypatch.setattr("actors.diagnosis.DiagnosisActor._trace", lambda *_: 1 / 0)
            await server.publish(1)
            await server.http.get("/diagnoses/42/delivery?seq=1", headers=server.bearer("amira"))
            assert (await stream.next()).number == 1
            bye = await stream.next()
            assert (bye.frame["data"]["code"], bye.number) == (1013, 1)
            assert stream.retry == str(bye.frame["data"]["retry_after_ms"])
            assert 55_000 <= int(stream.retry) <= 65_000, "it rests for a minute, and clients spread over 5 s"
            frames, code, _ = await client.close_frames()
            assert code == 1013
            assert 55_000 <= frames[-1]["data"]["retry_after_ms"] <= 65_000
        said = goodbye(await server.http.get(PATH, headers=server.bearer("amira") | BROWSER))
        assert 50_000 <= said.frame["data"]["retry_after_ms"] <= 60_000


async def test_a_preflight_allows_what_polyfills_send(settings: Settings) -> None:
    async with running_server(Settings(port=0, data=settings.data, allowed_origins=(PAGE,))) as server:
        headers = {"Origin": PAGE, "Access-Control-Request-Method": "GET"}
        answer = await server.http.request("OPTIONS", PATH, headers=headers)
        allowed = answer.headers["Access-Control-Allow-Headers"].split(", ")
        assert {"Cache-Control", "X-Requested-With", "Last-Event-ID", "Authorization"} <= set(allowed)
