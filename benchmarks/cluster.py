"""Servers on NATS JetStream beside one on SQLite, in the same run: `make bench-cluster`.

Three NATS servers, the servers that are measured and the load share all cores of this machine. All write to the same
disk before they acknowledge (`sync_interval: always`, `durability = full`). Each figure of NATS stands beside that of
SQLite in the same round.

Exit code: 0, 1 if an event was lost or a request refused, 2 if it could not be run. A target that is missed is only
said.
"""

from __future__ import annotations

import argparse
import itertools
import secrets
import signal
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from typing import Final

import httpx
import trio
from trio_websocket import open_websocket_url

from benchmarks import measuring, records
from benchmarks.generator import Generator, GeneratorError, plan_text
from benchmarks.measuring import Effort
from benchmarks.processes import CannotRun, allow_files, cpu_seconds
from benchmarks.publishing import PublishingFailed
from benchmarks.recovery import BEFORE_EVENTS, DIAGNOSES, await_delivered, publish_to_all
from benchmarks.results import medians
from benchmarks.servers import BUILT, OURS, THIS_CHECKOUT, Running, ServerFailed, running, target_at
from storage.clock import SystemClock
from storage.names import new_id
from storage.records import Act, Appended, NewEvent
from storage.sqlite.opening import open_store
from storage.store import Store
from tests.cluster.clients import bearer
from tests.cluster.installation import CannotBegin, Installation, installed
from tests.cluster.nodes import Node, directory_with_key, start_node
from web.identity.keyring import load_key
from web.operating.audit_rows import AUDIT_ROWS
from web.server import nats_engine
from web.server.settings import load

BENCHMARK: Final = "cluster"

SQLITE: Final = "SQLite"
NATS: Final = "NATS"

AT_ONCE: Final = 64
"""Appends under way together, each of a diagnosis of its own; and connections that post."""

REGISTERED: Final = 10_000
"""Diagnoses of a server whose start is timed."""

RETURNING: Final = 5000
"""Followers of a server that is killed, or a fifth of them for a short round."""

NOTICE_SECONDS: Final = 0.1
"""For so long those who have lost their connection are counted, before they come back."""

PROXY_SECONDS: Final = 3.0
"""Until HAProxy has seen that a server has come or gone: it asks each second, and twice before it gives one up."""

RETURNED_SECONDS_MAX: Final = 120.0
"""Until all followers are back. Beyond: those that are not are a fault."""

BODY: Final = b'{"feedback_id":4711,"rating":5,"comment":"' + b"a" * 250 + b'"}'

Figures = dict[str, float]


@dataclass(frozen=True, slots=True)
class Aim:
    """What is aimed at for a figure, which is made of the medians of both."""

    label: str
    of: Callable[[Mapping[str, float], Mapping[str, float]], float]
    """The figure, of those of NATS and of SQLite."""
    limit: float
    is_least: bool = False

    def line(self, nats: Mapping[str, float], sqlite: Mapping[str, float]) -> str:
        """What came of it; nothing if it was not measured."""
        try:
            found = self.of(nats, sqlite)
        except KeyError:
            return ""
        met = found >= self.limit if self.is_least else found <= self.limit
        sign = ">=" if self.is_least else "<="
        return f"{self.label}: {found:.3g}, aimed at {sign} {self.limit:g}: {'met' if met else 'MISSED'}"


TARGETS: Final = (
    Aim("one append after another, p50 ms", lambda nats, _: nats["serial_p50_ms"], 3),
    Aim("appends/s, of SQLite's", lambda n, s: n["appends_per_second"] / s["appends_per_second"], 0.35, True),
    Aim("with keys, of without", lambda n, _: n["keyed_per_second"] / n["appends_per_second"], 0.75, True),
    Aim("CPU of a server for a POST, of SQLite's", lambda n, s: n["cpu_us_per_post"] / s["cpu_us_per_post"], 1.15),
    Aim("POST here to WebSocket there, p50 ms", lambda n, _: n["delivery_p50_ms"], 5),
    Aim(f"start with {REGISTERED:,} diagnoses, s", lambda n, _: n["start_seconds"], 3),
)

LABELS: Final = {
    "serial_p50_ms": "one append after another, p50, ms",
    "appends_per_second": "appends/s, 64 at once",
    "keyed_per_second": "the same with keys",
    "posts_per_second": "POST/s, 64 connections",
    "cpu_us_per_post": "CPU of the server for a POST, us",
    "servers_cpu_us_per_post": "CPU of the three NATS servers for it, us",
    "delivery_p50_ms": "POST at one server to WebSocket at another, p50, ms",
    "start_seconds": f"start of a server with {REGISTERED:,} diagnoses, s",
    "returned_seconds": f"{RETURNING:,} followers of a server that is killed are live at two others, s",
}
"""What is shown, in this order."""


def variables(its: Installation, name: str) -> dict[str, str]:
    """Those of a server on another installation of these NATS servers."""
    return dict(its.variables[0]) | {"AVICENNA_NATS_NAME": name}


@asynccontextmanager
async def opened(kind: str, its: Installation, directory: Path, name: str) -> AsyncIterator[Store]:
    """A store in which nothing is."""
    if kind == SQLITE:
        async with open_store(
            directory / f"{name}.db", clock=SystemClock(), new_epoch=new_id, rows=AUDIT_ROWS
        ) as store:
            yield store
    else:
        settings = load(variables(its, name))
        async with nats_engine.open_store(settings, SystemClock(), AUDIT_ROWS, name) as (shared, _):
            yield shared


async def appends(kind: str, its: Installation, directory: Path, seconds: float) -> Figures:
    """Appends to the store itself: one after another, and 64 at once, without keys and with them."""
    async with opened(kind, its, directory, f"s{secrets.token_hex(4)}") as store:
        for number in range(AT_ONCE):
            await store.register(f"d{number}", "amira", [])
        await rate(store, 0.3, AT_ONCE, has_keys=False)
        _, p50_ms = await rate(store, seconds, 1, has_keys=False)
        per_second, _ = await rate(store, seconds, AT_ONCE, has_keys=False)
        keyed, _ = await rate(store, seconds, AT_ONCE, has_keys=True)
    return {"serial_p50_ms": p50_ms, "appends_per_second": per_second, "keyed_per_second": keyed}


async def rate(store: Store, seconds: float, at_once: int, *, has_keys: bool) -> tuple[float, float]:
    """Appends a second, and the median of their times in milliseconds."""
    times: list[float] = []
    until = trio.current_time() + seconds

    async def append(number: int) -> None:
        for turn in itertools.count():
            if (began := trio.current_time()) >= until:
                return
            key = f"{number}-{turn}-{began:f}" if has_keys else None
            (outcome,) = await store.append_nowait(f"d{number}", [NewEvent("feedback", BODY, key, b"digest")]).wait()
            assert isinstance(outcome, Appended), outcome
            times.append(trio.current_time() - began)

    async with trio.open_nursery() as nursery:
        for number in range(at_once):
            nursery.start_soon(append, number)
    return len(times) / seconds, median(times) * 1000


def posts(kind: str, its: Installation, directory: Path, effort: Effort) -> tuple[Figures, dict[str, int]]:
    """64 connections post to 64 diagnoses with a follower each: what a POST costs."""
    name = f"p{secrets.token_hex(4)}"
    data = directory_with_key(directory / name) if kind == NATS else directory / name
    settings = variables(its, name) if kind == NATS else {}
    faults: dict[str, int] = {}
    with running(OURS, None, THIS_CHECKOUT, data=data, settings=settings) as server:
        plan = directory / f"{name}.plan"
        plan.write_text(plan_text(server.target, server.subscribers(AT_ONCE, 1)))
        with Generator(BUILT / "load", plan, None) as generator:
            generator.connect(measuring.IN_FLIGHT)
            generator.publish(effort.warm_up_seconds, connections=AT_ONCE)
            before, servers_before = cpu_seconds(server.pid), servers_spent(its)
            phase = generator.publish(effort.seconds, connections=AT_ONCE)
            accepted = max(phase.accepted, 1)
            found = {
                "posts_per_second": phase.accepted / phase.seconds,
                "cpu_us_per_post": (cpu_seconds(server.pid) - before) / accepted * 1e6,
            }
            if kind == NATS:
                found["servers_cpu_us_per_post"] = (servers_spent(its) - servers_before) / accepted * 1e6
            faults |= phase.faults
    return found, faults


def servers_spent(its: Installation) -> float:
    """CPU seconds of the NATS servers."""
    return sum(cpu_seconds(one.process.pid) for one in its.servers if one.process is not None)


async def deliveries(urls: Sequence[str], key: bytes, count: int) -> Figures:
    """A POST at the first server to the WebSocket at the last one, one after another, with nothing else to do."""
    name = f"l{secrets.token_hex(4)}"
    async with httpx.AsyncClient(timeout=30) as http:
        registrar = bearer(key, "registrar", "register")
        (await http.put(f"{urls[0]}/diagnoses/{name}", json={"owner": "amira"}, headers=registrar)).raise_for_status()
        headers = bearer(key)
        extra = [(one.encode(), value.encode()) for one, value in headers.items()]
        url = f"{urls[-1].replace('http', 'ws', 1)}/ws/{name}"
        times: list[float] = []
        async with open_websocket_url(url, extra_headers=extra) as follower:
            while '"live"' not in str(await follower.get_message()):
                pass
            for number in range(count):
                body = {"diagnosis_id": name, "feedback_id": number, "rating": 5}
                began = trio.current_time()
                async with trio.open_nursery() as nursery:
                    posted = partial(http.post, f"{urls[0]}/ws/broadcast-feedback-update", json=body, headers=headers)
                    nursery.start_soon(posted)
                    await follower.get_message()
                    times.append(trio.current_time() - began)
                await trio.sleep(0.02)
    return {"delivery_p50_ms": median(times) * 1000}


async def register_many(its: Installation, name: str) -> None:
    """Register `REGISTERED` diagnoses, some at a time."""
    numbers = iter(range(REGISTERED))
    async with opened(NATS, its, Path(), name) as store, trio.open_nursery() as nursery:

        async def register() -> None:
            for number in numbers:
                await store.register(f"d{number}", "amira", [], Act("bench", "diagnosis.register", {}))

        for _ in range(16):
            nursery.start_soon(register)


def start(its: Installation, directory: Path) -> Figures:
    """How long a server with so many diagnoses takes until it listens."""
    name = f"m{secrets.token_hex(4)}"
    trio.run(register_many, its, name)
    data = directory_with_key(directory / name)
    began = time.monotonic()
    node = start_node(data, variables(its, name))
    try:
        node.wait()
        return {"start_seconds": time.monotonic() - began}
    finally:
        node.end()


@contextmanager
def alone(directory: Path) -> Iterator[tuple[Node, bytes]]:
    """One server on SQLite, and its key."""
    data = directory / f"one-{secrets.token_hex(4)}"
    data.mkdir(mode=0o700)
    node = start_node(data, {}, engine="sqlite")
    try:
        node.wait()
        key = load_key(data)
        assert key is not None, "a server that has started has a key"
        yield node, key
    finally:
        node.end()


def returns(its: Installation, directory: Path, followers: int) -> tuple[Figures, dict[str, int]]:
    """Kill the server that all followers are at, right after events: the time until they are live at two others.

    They come through the proxy both times; at first there is no other server. Whatever a follower has missed is sent
    before it is live. Nothing is measured where there is no proxy.
    """
    if its.proxy is None:
        return {}, {}
    for node in its.nodes[1:]:
        node.end()
    time.sleep(PROXY_SECONDS)
    prefix = f"r{secrets.token_hex(4)}"
    port = int(its.urls[0].rpartition(":")[2])
    data = its.nodes[0].data
    target = target_at(port, port, data)
    server = Running(its.nodes[0].process, target, data, data / "log")
    subscribers = server.subscribers(DIAGNOSES, followers // DIAGNOSES, prefix)
    names = list(dict.fromkeys(one.diagnosis for one in subscribers))
    plan = directory / f"{prefix}.plan"
    plan.write_text(plan_text(target, subscribers))
    with Generator(BUILT / "load", plan, None) as generator:
        generator.connect(measuring.IN_FLIGHT)
        for number in (1, 2):
            begin_node(its, number)
        time.sleep(PROXY_SECONDS)
        for number in range(BEFORE_EVENTS):
            publish_to_all(target, names, number + 1)
        delivered = await_delivered(generator, BEFORE_EVENTS * len(subscribers))
        publish_to_all(target, names, BEFORE_EVENTS + 1)
        killed_at = time.perf_counter()
        its.nodes[0].end(signal.SIGKILL)
        looked = generator.rest(NOTICE_SECONDS)
        ended = away = looked.closed
        delivered += looked.delivered
        seconds = 0.0
        while away and seconds < RETURNED_SECONDS_MAX:
            came = generator.connect(measuring.IN_FLIGHT)
            seconds = time.perf_counter() - killed_at
            looked = generator.rest(NOTICE_SECONDS)
            ended += came.closed + looked.closed
            away += came.closed + looked.closed - came.opened
            delivered += came.delivered + looked.delivered
        publish_to_all(target, names, BEFORE_EVENTS + 2)
        expected = (BEFORE_EVENTS + 2) * len(subscribers)
        delivered += await_delivered(generator, expected - delivered)
    begin_node(its, 0)
    faults = {
        "lost after kill -9": expected - delivered,
        "not ended by it": len(subscribers) - ended,
        "not back": away,
    }
    return {"returned_seconds": seconds}, {name: count for name, count in faults.items() if count}


def begin_node(its: Installation, number: int) -> None:
    """Start a server again, and wait until it serves."""
    its.start_node(number)
    its.nodes[number].wait()


def one_round(
    its: Installation, directory: Path, effort: Effort, say: Callable[[str], None]
) -> tuple[dict[str, Figures], list[str]]:
    """All figures of both, once, and what must not be."""
    found: dict[str, Figures] = {NATS: {}, SQLITE: {}}
    faults: list[str] = []
    for kind in (NATS, SQLITE):
        say(f"appends: {kind}")
        found[kind] |= trio.run(appends, kind, its, directory, effort.seconds)
    for kind in (NATS, SQLITE):
        say(f"posts: {kind}")
        figures, wrong = posts(kind, its, directory, effort)
        found[kind] |= figures
        faults += [f"{kind}: {count} {name}" for name, count in wrong.items()]
    say("deliveries")
    urls = [node.url for node in its.nodes]
    found[NATS] |= trio.run(deliveries, urls, its.key, 200)
    with alone(directory) as (node, key):
        found[SQLITE] |= trio.run(deliveries, [node.url], key, 200)
    say("start")
    found[NATS] |= start(its, directory)
    say("back after a kill")
    figures, wrong = returns(its, directory, RETURNING // 5 if effort is measuring.QUICK else RETURNING)
    found[NATS] |= figures
    faults += [f"{NATS}: {count} {name}" for name, count in wrong.items()]
    return found, faults


def judged(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What came of each aim that was measured, of the medians."""
    return [line for one in TARGETS if (line := one.line(found[NATS], found[SQLITE]))]


def table(found: Mapping[str, Mapping[str, float]]) -> str:
    """The medians, a column for each."""
    lines = [f"| | {NATS} | {SQLITE} |", "|---|---|---|"]
    for figure, label in LABELS.items():
        cells = [f"{found[kind][figure]:,.4g}" if figure in found[kind] else "" for kind in (NATS, SQLITE)]
        if any(cells):
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, print the table and the targets, and write the run."""
    parser = argparse.ArgumentParser(prog="make bench-cluster", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often everything is measured; default 3")
    parser.add_argument("--into", type=Path, metavar="DIR", help="where the run is written; default: docs/measured")
    options = parser.parse_args(argv)
    load_before = records.load_now()
    effort = measuring.QUICK if options.quick else measuring.FULL
    rounds: dict[str, dict[str, list[float]]] = {NATS: {}, SQLITE: {}}
    faults: list[str] = []
    try:
        allow_files(2 * RETURNING)  # of the proxy
        with (
            tempfile.TemporaryDirectory(prefix="avicenna-bench-", ignore_cleanup_errors=True) as directory,
            installed(Path(directory), secrets.token_bytes(32), sync="always") as its,
        ):
            for turn in range(options.rounds or effort.rounds):

                def say(what: str, turn: int = turn) -> None:
                    print(f"round {turn + 1}: {what}", file=sys.stderr, flush=True)

                found, wrong = one_round(its, Path(directory), effort, say)
                for kind, figures in found.items():
                    for name, value in figures.items():
                        rounds[kind].setdefault(name, []).append(value)
                faults += wrong
    except (CannotBegin, CannotRun, GeneratorError, PublishingFailed, ServerFailed, OSError) as failure:
        print(f"benchmarks.cluster: {failure}", file=sys.stderr)
        return 2
    run = records.make_run(BENCHMARK, "bench-cluster", argv, load_before, rounds=rounds, faults=faults)
    of_both = medians(rounds)
    print(table(of_both))
    print("\n".join(judged(of_both)))
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"written: {records.write(run, options.into or (records.TRIED if options.quick else records.MEASURED))}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
