"""`GET /metrics`: who may read it, what it says, and that Prometheus takes it."""

from __future__ import annotations

import dataclasses
import json
import re
import subprocess
from collections import Counter
from pathlib import Path

import httpx
import pytest
import trio

from actors.counts import RESTART_REASONS
from tests.programs import program
from tests.server.harness import Server, running_server
from tests.server.test_streams import streamed
from web.server.metrics import TABLE, metrics_page
from web.server.settings import Settings

ROOT = Path(__file__).parents[2]

SAMPLE = re.compile(r"(avicenna_[a-z_]+)(?:\{([^}]*)\})? (\S+)")


async def text_of(server: Server) -> str:
    answer = await server.http.get("/metrics", headers=server.bearer("op", "operate"))
    assert answer.status_code == 200
    return answer.text


async def figures(server: Server) -> dict[str, float]:
    """All samples, by name and label as they are shown."""
    found: dict[str, float] = {}
    for line in (await text_of(server)).splitlines():
        if not line.startswith("#"):
            sample = SAMPLE.fullmatch(line)
            assert sample is not None, line
            found[sample[1] + (f"{{{sample[2]}}}" if sample[2] else "")] = float(sample[3])
    return found


async def until(server: Server, name: str, value: float) -> None:
    """Wait until a figure is this."""
    with trio.fail_after(10):
        while (await figures(server))[name] != value:
            await trio.sleep(0.01)


# Who may


async def test_metrics_need_the_scope_operate(server: Server) -> None:
    assert (await server.http.get("/metrics")).status_code == 401
    for scope in ("", "monitor", "register", "broadcast"):
        assert (await server.http.get("/metrics", headers=server.bearer("amira", scope))).status_code == 403
    assert (await server.http.get("/metrics", headers=server.bearer("op", "operate"))).status_code == 200


@pytest.mark.one_process("two servers of one process have no listener for operators")
async def test_the_listener_for_operators_asks_for_no_token_of_whoever_reads_metrics(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "operators.sock"
    async with running_server(dataclasses.replace(settings, operators_listen=f"unix:{path}")) as server:
        transport = httpx.AsyncHTTPTransport(uds=str(path))
        async with httpx.AsyncClient(transport=transport, base_url="http://live", timeout=10) as operators:
            assert "avicenna_events_total 0.0" in (await operators.get("/metrics")).text
            # Not even one that is wrong is looked at. Everything else asks for a token there, too.
            wrong = await operators.get("/metrics", headers={"Authorization": "Bearer nonsense"})
            assert wrong.status_code == 200
            assert (await operators.get("/actors")).status_code == 401
        assert (await server.http.get("/metrics")).status_code == 401


# What it says


@pytest.mark.by_workers
async def test_prometheus_finds_no_fault(server: Server) -> None:
    promtool = program("promtool")
    await server.register()
    async with server.live():
        await server.publish()
    text = await text_of(server)
    checked = await trio.run_process(
        [promtool, "check", "metrics"], stdin=text.encode(), check=False, capture_stdout=True, capture_stderr=True
    )
    assert (checked.returncode, checked.stdout, checked.stderr) == (0, b"", b"")


async def test_every_metric_of_the_table_is_shown_with_its_kind_and_nothing_else_is(server: Server) -> None:
    shown = set(re.findall(r"^# TYPE (\S+) (\S+)$", await text_of(server), re.MULTILINE))
    assert shown == {(one.shown, one.kind) for one in TABLE}
    assert max(Counter(one.shown for one in TABLE).values()) == 1


async def test_no_label_names_a_diagnosis_or_a_person(server: Server) -> None:
    await server.register("secret-diagnosis", "secret-person")
    async with server.live("secret-diagnosis", "secret-person"):
        await server.publish(1, "secret-diagnosis", "secret-person")
        assert "secret" not in await text_of(server)


@pytest.mark.one_process("each worker fans an event out to its own followers, and counts that")
async def test_what_is_published_and_delivered_is_counted(server: Server) -> None:
    await server.register()
    async with server.live() as one, server.live(sub="amira", device="phone") as other:
        for number in range(3):
            assert (await server.publish(number)).status_code == 200
        frames = [await client.events(3) for client in (one, other)]
        found = await figures(server)
        assert found["avicenna_events_total"] == 3
        assert found["avicenna_deliveries_total"] == 6
        assert found["avicenna_followers"] == 2
        assert found["avicenna_mailbox_wait_seconds_count"] == 3
        assert found["avicenna_fan_out_seconds_count"] == found["avicenna_commit_to_last_write_seconds_count"] == 3
        assert found["avicenna_commit_to_last_write_seconds_sum"] >= found["avicenna_fan_out_seconds_sum"]
        assert found["avicenna_delivered_bytes_total"] > found["avicenna_event_bytes_total"] > 0
        assert [len(some) for some in frames] == [3, 3]
    async with server.connect(peek=1) as late:
        await late.until_live()
        assert (await figures(server))["avicenna_deliveries_total"] == 9, "what is replayed is delivered, too"


async def test_an_event_stream_counts_what_it_writes(server: Server) -> None:
    await server.register()
    await server.publish()
    async with streamed(server) as stream:
        await stream.until_live()
        await server.publish(2)
        await until(server, "avicenna_deliveries_total", 2)


async def test_a_repeated_key_is_no_further_event(server: Server) -> None:
    await server.register()
    for _ in range(2):
        body = {"diagnosis_id": 42, "feedback_id": 1, "rating": 5}
        assert (await server.post("feedback", body, **{"Idempotency-Key": "once"})).status_code == 200
    assert (await figures(server))["avicenna_events_total"] == 1


async def test_a_gap_and_what_nobody_had_acknowledged_are_counted(server: Server) -> None:
    await server.register()
    async with server.connect(ack="app", device="phone") as client:
        await client.until_live()
        await server.publish(0)
        await client.say(type="ack", seq=(await client.events(1))[0]["seq"])
        await client.next_of("acked")
    for number in range(1, 103):
        assert (await server.publish(number)).status_code == 200
    found = await figures(server)
    assert found["avicenna_evicted_events_total"] == 3
    assert found["avicenna_evicted_unacknowledged_events_total"] == 2, "the first one was acknowledged"
    async with server.connect(ack="app", device="phone") as client:
        await client.until_live()
    found = await figures(server)
    assert (found["avicenna_gaps_total"], found["avicenna_gap_events_total"]) == (1, 2)
    assert found['avicenna_resumes_total{kind="fresh"}'] == found['avicenna_resumes_total{kind="partial"}'] == 1


async def test_tokens_that_are_not_accepted_are_counted_by_reason(server: Server) -> None:
    await server.http.get("/actors")
    await server.http.get("/actors", headers={"Authorization": "Bearer nonsense"})
    await server.http.get("/actors", headers=server.bearer("op", "operate", -3600))
    name = 'avicenna_refused_tokens_total{reason="%s"}'
    found = await figures(server)
    assert [found[name % reason] for reason in ("missing", "invalid", "expired", "revoked")] == [1, 1, 1, 0]


async def test_closes_are_counted_by_code_and_strange_codes_together(server: Server) -> None:
    await server.register()
    for code in (1000, 4567, 3999):
        async with server.live() as client:
            await client.connection.aclose(code)
    await until(server, "avicenna_websockets", 0)
    found = await figures(server)
    assert found['avicenna_closes_total{code="1000"}'] == 1
    assert found['avicenna_closes_total{code="other"}'] == 2


async def test_the_ends_of_event_streams_are_counted_by_code_too(server: Server) -> None:
    await server.register()
    async with streamed(server, device="a") as first, streamed(server, device="a"):
        while (await first.next()).frame["type"] != "bye":
            pass
        await until(server, 'avicenna_closes_total{code="4000"}', 1)
    await until(server, 'avicenna_closes_total{code="none"}', 1)


async def test_an_operators_restart_is_counted(server: Server) -> None:
    await server.register()
    async with server.live():
        answer = await server.http.post("/actors/42/restart", headers=server.bearer("op", "operate"))
        assert answer.status_code == 200
        assert (await figures(server))['avicenna_restarts_total{reason="operator"}'] == 1


async def test_commits_the_database_and_requests_are_shown(server: Server) -> None:
    await server.register()
    found = await figures(server)
    assert found["avicenna_commit_seconds_count"] == found["avicenna_commit_operations_count"] >= 1
    assert found["avicenna_diagnoses"] == 1
    assert found['avicenna_requests_total{way="long"}'] >= 1
    await until(server, "avicenna_mailbox_messages", 0)
    with trio.fail_after(10):
        while not (found := await figures(server))["avicenna_database_bytes"]:
            await trio.sleep(0.01)
        while not found["avicenna_loop_lag_seconds_count"]:
            found = await figures(server)


async def test_status_and_metrics_say_the_same(server: Server) -> None:
    await server.register()
    async with server.live():
        await server.publish()
        node = (await server.status())["node"]
        found = await figures(server)
    assert node["connections"] == found["avicenna_followers"] == 1
    assert node["ring_bytes"] == found["avicenna_ring_bytes"] > 0
    assert node["actors"] == found["avicenna_actors"] == 1


# The page, and what is deployed

DEPLOYED = sorted(path for path in (ROOT / "deploy").rglob("*") if path.suffix in (".json", ".yml"))


def names_in(text: str) -> set[str]:
    return set(re.findall(r"\bavicenna_[a-z_]+", text))


def names_shown() -> set[str]:
    """Every name that Prometheus knows of this server."""
    found: set[str] = set()
    for one in TABLE:
        ends = ("_bucket", "_sum", "_count") if one.kind == "histogram" else ("",)
        found |= {one.shown + end for end in ends}
    return found


@pytest.mark.parametrize("path", DEPLOYED, ids=[path.name for path in DEPLOYED])
def test_what_is_deployed_asks_for_metrics_that_exist(path: Path) -> None:
    assert names_in(path.read_text()) <= names_shown()


def test_the_dashboard_shows_every_metric_but_that_of_the_release() -> None:
    shown = names_in((ROOT / "deploy" / "grafana" / "avicenna-live.json").read_text())
    of_table = {one.shown for one in TABLE} - {"avicenna_build_info"}
    assert {one for one in of_table if not any(name.startswith(one) for name in shown)} == set()


@pytest.mark.parametrize("path", DEPLOYED, ids=[path.name for path in DEPLOYED])
def test_labels_and_values_that_are_asked_for_exist(path: Path) -> None:
    labels = {one.label for one in TABLE if one.label is not None} | {"instance", "le", "job"}
    text = path.read_text()
    grouped = {name for found in re.findall(r"by \(([a-z, ]+)\)", text) for name in found.split(", ")}
    selected = set(re.findall(r"[{,] ?([a-z]+)=~?\\?\"", text))
    assert grouped | selected <= labels
    assert set(re.findall(r"reason=\\?\"([a-z]+)", text)) <= set(RESTART_REASONS)


def test_dashboards_are_json_and_each_panel_has_a_place_of_its_own() -> None:
    dashboard = json.loads((ROOT / "deploy" / "grafana" / "avicenna-live.json").read_text())
    places = [(one["gridPos"]["x"], one["gridPos"]["y"]) for one in dashboard["panels"]]
    assert len(set(places)) == len(places) > 0
    assert len({one["id"] for one in dashboard["panels"]}) == len(places)


def test_prometheus_takes_the_alert_rules() -> None:
    rules = ROOT / "deploy" / "prometheus" / "alerts.yml"
    checked = subprocess.run([program("promtool"), "check", "rules", str(rules)], check=False, timeout=30)
    assert checked.returncode == 0


def test_alerts_fire_when_they_should_and_only_then() -> None:
    rules = ROOT / "deploy" / "prometheus" / "alerts_test.yml"
    checked = subprocess.run([program("promtool"), "test", "rules", str(rules)], check=False, timeout=30)
    assert checked.returncode == 0


def test_the_page_of_metrics_is_that_of_the_table() -> None:
    assert (ROOT / "docs" / "METRICS.md").read_text() == metrics_page(), "make metrics"


@pytest.mark.parametrize("one", TABLE, ids=[one.shown for one in TABLE])
def test_a_name_says_its_kind(one: object) -> None:
    shown = str(getattr(one, "shown", ""))
    assert re.fullmatch(r"avicenna_[a-z]+(_[a-z]+)*", shown)
    assert shown.endswith("_total") == (getattr(one, "kind", "") == "counter")
