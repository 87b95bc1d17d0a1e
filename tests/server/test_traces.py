"""A request belongs to the trace that its `traceparent` names: its log lines say so, and so do its spans."""

from __future__ import annotations

import json
import logging
import sys
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import httpx
import pytest
import trio
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import NoOpTracerProvider, SpanKind, StatusCode

from storage.clock import SystemClock
from storage.sqlite.store import SqliteStore
from tests.logbook import PAYLOAD_MARKER, Logbook
from tests.server.harness import Server, open_socket, running_server
from tests.server.process import run, served
from tests.server.test_publish_sockets import update, upgrade
from web.contract.log_fields import current_request
from web.contract.trace_context import TraceContext, trace_context, trace_id_of, traced_id
from web.server.log_writer import LogWriter
from web.server.logs import Formatter
from web.server.settings import Settings, SettingsError
from web.server.spans import Spans
from web.server.tracing import open_spans

TRACE, PARENT = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
TRACEPARENT = f"00-{TRACE}-{PARENT}-01"


@pytest.mark.parametrize(
    ("given", "sampled"),
    [
        (TRACEPARENT, True),
        (f"00-{TRACE}-{PARENT}-00", False),
        (f"00-{TRACE}-{PARENT}-02", False),
        (f"00-{TRACE}-{PARENT}-ff", True),
        (f"01-{TRACE}-{PARENT}-01", True),
        (f"cc-{TRACE}-{PARENT}-01-what-comes-later", True),
        (f"cc-{TRACE}-{PARENT}-01-", True),
        (f"cc-{TRACE}-{PARENT}-01.what", None),
        (f"00-{TRACE}-{PARENT}-01-", None),
        (f"00-{TRACE}-{PARENT}-01-more", None),
        (f"ff-{TRACE}-{PARENT}-01", None),
        (f"00-{'0' * 32}-{PARENT}-01", None),
        (f"00-{TRACE}-{'0' * 16}-01", None),
        (f"00-{TRACE.upper()}-{PARENT}-01", None),
        (f"00-{TRACE[:-1]}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}-1", None),
        (f"0-{TRACE}-{PARENT}-01", None),
        (f"00-{TRACE}-{PARENT}", None),
        (f"00-{TRACE}-{PARENT[:-1]}g-01", None),
        (f" 00-{TRACE}-{PARENT}-01", None),
        ("00-" + "\u0661" * 32 + f"-{PARENT}-01", None),
        ("", None),
    ],
)
def test_a_traceparent_is_judged_as_the_recommendation_has_it(given: str, sampled: bool | None) -> None:
    expected = None if sampled is None else TraceContext(TRACE, PARENT, sampled)
    assert trace_context(given, []) == expected


def test_a_tracestate_goes_with_its_traceparent() -> None:
    found = trace_context(TRACEPARENT, ["congo=t61", "rojo=1"])
    assert found is not None
    assert found.state == "congo=t61,rojo=1"
    long = trace_context(TRACEPARENT, ["a=" + "x" * 9000])
    assert long is not None
    assert long.state == ""
    assert trace_context("", ["congo=t61"]) is None


def test_the_id_of_a_request_carries_its_trace_and_is_otherwise_like_another(tmp_path: Path) -> None:
    traced = traced_id("0123456789abcdef", TRACE)
    assert traced == "0123456789abcdef"
    assert (trace_id_of(traced), trace_id_of("0123456789abcdef"), trace_id_of(None)) == (TRACE, None, None)
    with (tmp_path / "log").open("wb") as file:
        writer = LogWriter(file.fileno(), str)
        outside = current_request.set(traced)
        for is_json in (True, False):
            writer.setFormatter(Formatter(json=is_json))
            writer.emit(logging.LogRecord("avicenna.server", logging.INFO, __file__, 1, "stopped", (), None))
            writer.flush()
        current_request.reset(outside)
    line, text = (tmp_path / "log").read_text().splitlines()
    found = json.loads(line)
    assert (found["request_id"], found["trace_id"]) == (traced, TRACE)
    assert text.endswith(f"stopped [{traced} {TRACE}]")


@dataclass
class There:
    """A server, and the spans that it has told of."""

    server: Server
    exporter: InMemorySpanExporter

    def named(self, name: str) -> list[ReadableSpan]:
        return [span for span in self.exporter.get_finished_spans() if span.name == name]


def parent_of(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


def trace_of(span: ReadableSpan) -> str:
    assert span.context is not None
    return f"{span.context.trace_id:032x}"


def id_of(span: ReadableSpan) -> int:
    assert span.context is not None
    found: int = span.context.span_id
    return found


def linked(span: ReadableSpan) -> set[int]:
    return {link.context.span_id for link in span.links}


@pytest.fixture
async def there(settings: Settings) -> AsyncIterator[There]:
    exporter = InMemorySpanExporter()
    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    async with running_server(settings, spans=Spans(provider, SystemClock())) as server:
        await server.register()
        exporter.clear()
        yield There(server, exporter)


class Lines(logging.Handler):
    """The lines of one part of the server, as JSON has them."""

    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(Formatter(json=True))
        self.lines: list[dict[str, object]] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(json.loads(self.format(record)))

    def of(self, logger: str) -> list[dict[str, object]]:
        return [line for line in self.lines if line["logger"] == f"avicenna.{logger}"]


@pytest.fixture
def log() -> Iterator[Lines]:
    lines = Lines()
    logging.getLogger().addHandler(lines)
    yield lines
    logging.getLogger().removeHandler(lines)


@pytest.mark.both_ways
async def test_the_lines_of_a_request_name_the_trace_that_it_belongs_to(server: Server, log: Lines) -> None:
    for given in (TRACEPARENT, f"00-{'0' * 32}-{PARENT}-01"):
        headers = server.bearer("amira") | {"traceparent": given, "tracestate": "congo=t61"}
        answer = await server.http.get("/diagnoses/42/position", headers=headers)
        assert answer.status_code == 403
    await server.http.get("/healthz", headers=[("traceparent", TRACEPARENT), ("traceparent", TRACEPARENT)])
    assert [line.get("trace_id") for line in log.of("access")] == [TRACE, None, None]


@pytest.mark.one_way
async def test_a_plain_request_with_a_trace_takes_the_short_way(server: Server) -> None:
    async def ways() -> dict[str, int]:
        found: dict[str, int] = (await server.status())["node"]["requests"]
        return found

    before = await ways()
    await server.http.get("/healthz", headers={"traceparent": TRACEPARENT, "tracestate": "congo=t61"})
    after = await ways()
    assert after["long"] == before["long"]


async def test_the_end_of_a_connection_names_the_trace_of_its_handshake(server: Server, log: Lines) -> None:
    await server.register()
    url = server.url.replace("http://", "ws://") + "/ws/42"
    headers = [*server.bearer("amira").items(), ("traceparent", TRACEPARENT)]
    async with open_socket(url, extra_headers=headers) as client:
        await client.until_live()
    await server.until_alone()
    assert [line.get("trace_id") for line in log.of("connections")] == [TRACE]


@pytest.mark.both_ways
async def test_a_publish_is_a_request_a_wait_in_a_mailbox_a_commit_and_a_fan_out(there: There, log: Lines) -> None:
    async with there.server.live() as client:
        there.exporter.clear()
        sent = {"traceparent": TRACEPARENT, "tracestate": "congo=t61"}
        body = {"diagnosis_id": 42, "feedback_id": 1, "rating": 5, "comment": PAYLOAD_MARKER}
        answer = await there.server.post("feedback", body, **sent)
        assert answer.status_code == 200
        await client.events(1)
    (request,) = there.named("POST /ws/broadcast-feedback-update")
    assert (trace_of(request), parent_of(request)) == (TRACE, int(PARENT, 16))
    assert request.kind is SpanKind.SERVER
    assert request.context is not None
    assert request.context.trace_state.to_header() == "congo=t61"
    assert dict(request.attributes or {}) == {
        "http.request.method": "POST",
        "http.route": "/ws/broadcast-feedback-update",
        "http.response.status_code": 200,
        "avicenna.request_id": answer.headers["x-request-id"],
        "avicenna.diagnosis_id": "42",
    }
    steps = [there.named(name) for name in ("mailbox", "commit", "fan-out")]
    assert [len(one) for one in steps] == [1, 1, 1]
    for (step,) in steps:
        assert (trace_of(step), parent_of(step)) == (TRACE, id_of(request))
    (mailbox,), (commit,), (fan_out,) = steps
    assert linked(commit) == {id_of(request)}
    assert dict(fan_out.attributes or {}) == {"avicenna.diagnosis_id": "42", "avicenna.connections": 1}
    starts = [one.start_time or 0 for one in (request, mailbox, commit, fan_out)]
    assert starts == sorted(starts)
    assert all((one.start_time or 0) <= (one.end_time or 0) for one in (request, mailbox, commit, fan_out))
    shown = json.dumps([dict(one.attributes or {}) for one in there.exporter.get_finished_spans()])
    assert not [secret for secret in ("amira", PAYLOAD_MARKER, "127.0.0.1", "Bearer") if secret in shown]
    assert log.of("access")[-1].get("trace_id") == TRACE


async def test_a_request_without_a_trace_begins_one_and_its_line_says_which(there: There, log: Lines) -> None:
    log.lines.clear()
    await there.server.http.get("/diagnoses/42/position", headers=there.server.bearer("eve"))
    (request,) = there.named("GET /diagnoses/{diagnosis_id}/position")
    assert parent_of(request) is None
    (line,) = [one for one in log.of("access") if one["event"] == "request"]
    assert line["trace_id"] == trace_of(request)
    attributes = dict(request.attributes or {})
    assert (attributes["http.response.status_code"], attributes["error.type"]) == (403, "forbidden")
    assert request.status.status_code is StatusCode.UNSET


@pytest.mark.sqlite_only("breaks what the committer does")
@pytest.mark.one_process("what fails in the store's process is answered 503")
async def test_a_failure_of_ours_is_an_error_of_its_span(there: There, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*args: object) -> object:
        raise RuntimeError("a bug")

    monkeypatch.setattr(SqliteStore, "append_nowait", fail)
    assert (await there.server.publish(1)).status_code == 500
    (request,) = there.named("POST /ws/broadcast-feedback-update")
    assert request.status.status_code is StatusCode.ERROR
    assert not there.named("commit")


async def test_a_commit_links_all_requests_that_it_covers(there: There) -> None:
    await there.server.register(43)
    for number in (42, 43):
        await there.server.publish(1, diagnosis_id=number)
    there.exporter.clear()
    numbers = range(8)
    async with trio.open_nursery() as nursery:
        for number in numbers:
            parent = f"00-{TRACE[:-1]}{number:x}-{PARENT}-01"
            nursery.start_soon(publish_with, there.server, 42 + number % 2, number, parent)
    requests = {id_of(one) for one in there.named("POST /ws/broadcast-feedback-update")}
    assert len(requests) == len(numbers)
    commits = there.named("commit")
    assert set().union(*map(linked, commits)) == requests
    assert sum(len(linked(one)) for one in commits) == len(requests), "each is committed once"
    assert all(parent_of(one) in linked(one) for one in commits)


async def publish_with(server: Server, diagnosis_id: int, number: int, traceparent: str) -> None:
    body = {"diagnosis_id": diagnosis_id, "feedback_id": number, "rating": 5}
    headers = server.bearer("amira") | {"traceparent": traceparent}
    async with httpx.AsyncClient(base_url=server.url) as http:
        answer = await http.post("/ws/broadcast-feedback-update", json=body, headers=headers)
    assert answer.status_code == 200


async def test_the_lines_of_a_bulk_request_share_its_span(there: There) -> None:
    lines = "".join(
        json.dumps({"type": "feedback_update", "diagnosis_id": 42, "feedback_id": number, "rating": 5}) + "\n"
        for number in range(20)
    )
    headers = there.server.bearer("amira") | {"Content-Type": "application/x-ndjson", "traceparent": TRACEPARENT}
    answer = await there.server.http.post("/ws/broadcast", content=lines, headers=headers)
    assert answer.text.count('"status":200') == 20, answer.text
    (request,) = there.named("POST /ws/broadcast")
    for name in ("mailbox", "commit", "fan-out"):
        spans = there.named(name)
        assert spans
        assert {parent_of(one) for one in spans} == {id_of(request)}
    assert {one for commit in there.named("commit") for one in linked(commit)} == {id_of(request)}


async def test_frames_of_a_websocket_that_publishes_belong_to_the_trace_of_its_handshake(there: There) -> None:
    async with upgrade(there.server, "amira", "", f"traceparent: {TRACEPARENT}") as line:
        assert (await line.next())["type"] == "connect"
        assert (await line.asks(update()))["type"] == "receipt"
    (handshake,) = there.named("GET /publish")
    assert trace_of(handshake) == TRACE
    for name in ("mailbox", "commit", "fan-out"):
        (span,) = there.named(name)
        assert (trace_of(span), parent_of(span)) == (TRACE, id_of(handshake))


async def test_what_is_plugged_into_an_sdk_and_fails_fails_no_request(settings: Settings, log: Lines) -> None:
    class Failing(SimpleSpanProcessor):
        def on_end(self, span: ReadableSpan) -> None:
            raise RuntimeError("a bug")

    provider = TracerProvider(shutdown_on_exit=False)
    provider.add_span_processor(Failing(InMemorySpanExporter()))
    async with running_server(settings, spans=Spans(provider, SystemClock())) as server:
        await server.register()
        for number in range(2):
            assert (await server.publish(number)).status_code == 200
    assert [line["event"] for line in log.lines if line["level"] == "error"] == ["tracing_failed"]


# Whether there are spans


def test_without_a_provider_there_are_no_spans() -> None:
    assert open_spans("auto", SystemClock()) is None
    assert open_spans("off", SystemClock()) is None


def test_a_server_without_the_extra_serves_without_spans(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "opentelemetry", None)
    assert open_spans("auto", SystemClock()) is None
    with pytest.raises(SettingsError, match="API is not installed: pip install opentelemetry-sdk"):
        open_spans("on", SystemClock())


async def test_spans_that_are_wanted_and_cannot_be_had_are_a_wrong_setting(tmp_path: Path) -> None:
    (tmp_path / "opentelemetry").mkdir()
    (tmp_path / "opentelemetry" / "__init__.py").write_text("raise ImportError\n")
    data = tmp_path / "data"
    code, _, said = await run("serve", "--data", data, "--port", "0", PYTHONPATH=str(tmp_path), AVICENNA_TRACING="on")
    assert (code, "OpenTelemetry API is not installed" in said) == (2, True), said


@pytest.mark.sqlite_only("starts a process, which makes its key")
async def test_the_sdk_is_configured_by_its_environment(tmp_path: Path) -> None:
    mine = Logbook()
    variables = {"AVICENNA_TRACING": "on", "OTEL_TRACES_EXPORTER": "console", "OTEL_METRICS_EXPORTER": "none"}
    variables |= {"OTEL_LOGS_EXPORTER": "none", "AVICENNA_LOG_FORMAT": "json"}
    async with served(tmp_path / "data", logbook=mine, **variables) as (process, server):
        answer = await server.register()
        assert await process.stop() == 0
    lines = [json.loads(line) for line in "".join(mine.lines).splitlines() if line.startswith('{"at"')]
    (found,) = [one for one in lines if one.get("request_id") == answer.headers["x-request-id"]]
    assert len(found["trace_id"]) == 32


async def test_a_server_without_spans_asks_nobody_about_them(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: list[str] = []

    def note(name: str) -> object:
        return lambda *args, **kwargs: called.append(name)

    for name in ("begin", "sender", "taken", "sent_out", "committed"):
        monkeypatch.setattr(Spans, name, note(name))
    async with running_server(replace(settings), spans=None) as server:
        await server.register()
        assert (await server.publish(1)).status_code == 200
    assert called == []


def test_a_provider_that_does_nothing_makes_no_trace() -> None:
    spans = Spans(NoOpTracerProvider(), SystemClock())
    assert spans.sender() is None
