"""Several processes beside one on the same cores: `make bench-workers`.

All processes of a server and the load generator share all cores of this machine: nothing is pinned, so what the
generator takes is missing to every server alike. Each figure of a server with workers stands beside that of one process
in the same round. `uvicorn --workers` is measured in what it can do: its processes do not know each other's followers,
so it has no deliveries.

Exit code: 0, 1 if a delivery was lost or repeated or a request refused, 2 if it could not be run. A target that is
missed is only said.
"""

from __future__ import annotations

import argparse
import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks import measuring, records
from benchmarks.generator import Generator, GeneratorError, plan_text
from benchmarks.measuring import Effort, Session, room_for
from benchmarks.processes import CannotRun, children_of, cpu_seconds, memory_bytes, words_of
from benchmarks.servers import (
    BUILT,
    FASTAPI,
    OF_OURS,
    OURS,
    THIS_CHECKOUT,
    UVICORN_WORKERS,
    Running,
    ServerFailed,
    running,
)

BENCHMARK: Final = "workers"

POSTS_TARGET: Final = 1.2
"""POSTs a second of two workers, of one process, on two cores."""

PARENT: Final = "parent"
STORE: Final = "store"
WORKER: Final = "worker"

ONE_PROCESS: Final = "one process"
PAPER_SERVER: Final = "2 workers"
"""Whose CPU figures the table on paper is made from."""

POSTING: Final = 64
"""Connections that post, each one message at a time."""

POST_DIAGNOSES: Final = 64
CONNECTING: Final = 2000
FANNED_OUT: Final = (20, 100)
"""Diagnoses, and subscribers of each."""

WORKERS_MODULE: Final = "web.server.workers"


@dataclass(frozen=True, slots=True)
class Server:
    """A server that is measured: its name in the run, what it is, and with how many processes that serve."""

    name: str
    kind: str
    workers: int

    @property
    def is_ours(self) -> bool:
        """Whether it is our server."""
        return self.kind in OF_OURS

    @property
    def settings(self) -> dict[str, str]:
        """Further variables of its environment."""
        return {"AVICENNA_WORKERS": str(self.workers)} if self.is_ours and self.workers > 1 else {}


def servers_for(cores: int) -> list[Server]:
    """What is measured on so many cores: 1 process, and 2, 4, 8 ... workers up to the number of cores."""
    counts = [count for count in (2, 4, 8, 16, 32, 64) if count <= max(2, cores)]
    return [
        Server(ONE_PROCESS, OURS, 1),
        *(Server(f"{count} workers", OURS, count) for count in counts),
        Server("fastapi, 1 process", FASTAPI, 1),
        *(Server(f"fastapi, {count} uvicorn workers", f"{UVICORN_WORKERS}{count}", count) for count in counts),
    ]


def processes_of(pid: int) -> dict[int, str]:
    """The processes of a server, and what each is: the parent, the store's, a worker's."""
    found = {pid: PARENT}
    for child in children_of(pid):
        with suppress(OSError):
            words = words_of(child)
            found[child] = (
                STORE if WORKERS_MODULE in words and words[words.index(WORKERS_MODULE) + 1] == STORE else WORKER
            )
    return found if len(found) > 1 else {pid: WORKER}


def spent(processes: Mapping[int, str]) -> dict[str, float]:
    """CPU seconds so far, by what a process is."""
    sums: dict[str, float] = defaultdict(float)
    for pid, what in processes.items():
        sums[what] += cpu_seconds(pid)
    return sums


@contextmanager
def opened(server: Server, our_command: str, effort: Effort, diagnoses: int, each: int) -> Iterator[Session]:
    """A fresh server, and a generator that has connected nobody yet."""
    settings = room_for(diagnoses * each) | server.settings
    with (
        running(server.kind, None, our_command, settings=settings) as started,
        tempfile.TemporaryDirectory() as directory,
    ):
        plan = Path(directory) / "plan"
        plan.write_text(plan_text(started.target, started.subscribers(diagnoses, each), patience_seconds=2))
        with Generator(BUILT / "load", plan, None) as generator:
            yield Session(started, generator, effort, before_bytes=memory_of(started))


def memory_of(started: Running) -> int:
    """Of all processes of a server, each byte counted once."""
    total = 0
    for pid in processes_of(started.pid):
        with suppress(OSError):  # it has just ended
            total += memory_bytes(pid)
    return total


def posts(server: Server, our_command: str, effort: Effort) -> tuple[dict[str, float], Session]:
    """64 connections post to 64 diagnoses, each with one subscriber: CPU of each process for a POST.

    FastAPI has no subscribers then: those of another process would not get what is posted.
    """
    with opened(server, our_command, effort, POST_DIAGNOSES, 1) as session:
        if server.is_ours:
            session.seen(session.generator.connect(measuring.IN_FLIGHT))
        session.generator.publish(effort.warm_up_seconds, connections=POSTING)
        processes = processes_of(session.server.pid)
        before = spent(processes)
        phase = session.generator.publish(effort.seconds, connections=POSTING)
        if server.is_ours:
            session.seen(phase)
        after = spent(processes)
        accepted = max(phase.accepted, 1)
        found = {f"cpu_us_per_post_{what}": (after[what] - before[what]) / accepted * 1e6 for what in after}
        assert phase.post_ms is not None, "messages were posted"
        return {
            "posts_per_second": phase.accepted / phase.seconds,
            "post_p50_ms": phase.post_ms.p50,
            "post_p99_ms": phase.post_ms.p99,
            "generator_share": phase.busy,
            **found,
        }, session


def connects(server: Server, our_command: str, effort: Effort) -> tuple[dict[str, float], Session]:
    """2000 subscribers of 200 diagnoses connect, 32 at a time."""
    with opened(server, our_command, effort, CONNECTING // 10, 10) as session:
        processes = processes_of(session.server.pid)
        before = spent(processes)
        phase = session.seen(session.generator.connect(measuring.IN_FLIGHT))
        after = spent(processes)
        session.seen(session.generator.rest(measuring.SETTLE_SECONDS))
        found = {f"cpu_us_per_connect_{what}": (after[what] - before[what]) / phase.opened * 1e6 for what in after}
        return {
            "connects_per_second": phase.opened / phase.seconds,
            "memory_mib_at_start": session.before_bytes / 2**20,
            "memory_mib_with_2000": memory_of(session.server) / 2**20,
            **found,
        }, session


def deliveries(server: Server, our_command: str, effort: Effort) -> tuple[dict[str, float], Session]:
    """20 diagnoses with 100 subscribers each, 64 messages outstanding on 16 connections."""
    with opened(server, our_command, effort, *FANNED_OUT) as session:
        session.seen(session.generator.connect(measuring.IN_FLIGHT))
        session.seen(session.generator.rest(measuring.SETTLE_SECONDS))
        session.seen(session.generator.publish(effort.warm_up_seconds, connections=16, outstanding=64))
        processes = processes_of(session.server.pid)
        before = spent(processes)
        phase = session.seen(session.generator.publish(effort.seconds, connections=16, outstanding=64))
        after = spent(processes)
        found = {f"cpu_us_per_delivery_{what}": (after[what] - before[what]) / phase.delivered * 1e6 for what in after}
        return {"deliveries_per_second": phase.delivered / phase.seconds, **found}, session


def hot(server: Server, our_command: str, effort: Effort) -> tuple[dict[str, float], Session]:
    """One diagnosis with twice as many subscribers as are idle elsewhere: 10,000 of them, in a full run."""
    followers = 2 * effort.idle_connections
    with opened(server, our_command, effort, 1, followers) as session:
        session.seen(session.generator.connect(measuring.IN_FLIGHT))
        session.seen(session.generator.rest(measuring.SETTLE_SECONDS))
        processes = {pid: what for pid, what in processes_of(session.server.pid).items() if what == WORKER}
        before = {pid: cpu_seconds(pid) for pid in processes}
        phase = session.seen(session.generator.publish(effort.seconds, connections=1, outstanding=1))
        spent_by = [cpu_seconds(pid) - since for pid, since in before.items()]
        return {
            "hot_deliveries_per_second": phase.delivered / phase.seconds,
            "hot_followers": float(followers),
            "hot_share_of_the_laziest_worker": min(spent_by) / max(sum(spent_by), 0.01),
        }, session


SITUATIONS: Final = {"posts": posts, "connects": connects, "deliveries": deliveries, "hot": hot}


def is_measured(server: Server, situation: str) -> bool:
    """Whether a server can do what is measured."""
    return situation in ("posts", "connects") or server.is_ours or (situation == "deliveries" and server.workers == 1)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for, print the table, and write the run."""
    parser = argparse.ArgumentParser(prog="make bench-workers", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often everything is measured; default 3")
    parser.add_argument("--only", default=",".join(SITUATIONS), metavar="A,B", help=", ".join(SITUATIONS))
    parser.add_argument("--ours", action="store_true", help="only our server")
    parser.add_argument("--server-command", default=THIS_CHECKOUT, metavar="COMMAND", help="what starts our server")
    parser.add_argument("--into", type=Path, metavar="DIR", help="where the run is written; default: docs/measured")
    options = parser.parse_args(argv)
    chosen = options.only.split(",")
    if unknown := sorted(set(chosen) - set(SITUATIONS)):
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(SITUATIONS)}")
    load_before = records.load_now()
    effort = measuring.QUICK if options.quick else replace(measuring.FULL, rounds=3)
    rounds: dict[str, dict[str, list[float]]] = {}
    faults: list[str] = []
    servers = [one for one in servers_for(len(os.sched_getaffinity(0))) if one.is_ours or not options.ours]
    try:
        for turn in range(options.rounds or effort.rounds):
            for situation in chosen:
                for server in servers:
                    if not is_measured(server, situation):
                        continue
                    print(f"round {turn + 1}: {situation}: {server.name}", file=sys.stderr, flush=True)
                    measured, session = SITUATIONS[situation](server, options.server_command, effort)
                    for name, value in measured.items():
                        rounds.setdefault(server.name, {}).setdefault(name, []).append(value)
                    faults += [f"{server.name}, {situation}: {count} {name}" for name, count in session.faults.items()]
    except (CannotRun, GeneratorError, ServerFailed, OSError) as failure:
        print(table(rounds))
        print(f"benchmarks.workers: {failure}", file=sys.stderr)
        return 2
    run = records.make_run(BENCHMARK, "bench-workers", argv, load_before, rounds=rounds, faults=faults)
    print(table(run.rounds))
    if reached := ratio_of_posts(run.rounds):
        said = "reached" if reached >= POSTS_TARGET else "MISSED"
        print(f"POST/s of two workers, of one process: {reached:.2f}; the target is {POSTS_TARGET:g}: {said}")
    for fault in faults:
        print(f"FAULT: {fault}")
    print(f"written: {records.write(run, options.into or (records.TRIED if options.quick else records.MEASURED))}")
    return 1 if faults else 0


LABELS: Final = {
    "posts_per_second": "POST/s",
    "post_p50_ms": "POST p50, ms",
    "post_p99_ms": "POST p99, ms",
    "cpu_us_per_post_worker": "CPU of a POST, workers, us",
    "cpu_us_per_post_store": "of it the store's process, us",
    "cpu_us_per_post_parent": "the parent, us",
    "generator_share": "share of a core the generator took while it posted",
    "connects_per_second": "connects/s",
    "cpu_us_per_connect_worker": "CPU of a connect, workers, us",
    "cpu_us_per_connect_store": "the store's process, us",
    "memory_mib_at_start": "memory at the start, MiB",
    "memory_mib_with_2000": "memory with 2,000 connections, MiB",
    "deliveries_per_second": "deliveries/s",
    "cpu_us_per_delivery_worker": "CPU of a delivery, workers, us",
    "cpu_us_per_delivery_store": "the store's process, us",
    "hot_followers": "followers of one diagnosis",
    "hot_deliveries_per_second": "deliveries/s to them",
    "hot_share_of_the_laziest_worker": "of the CPU for that, the laziest worker's share",
}
"""What is shown, in this order."""


def ratio_of_posts(rounds: Mapping[str, Mapping[str, Sequence[float]]]) -> float | None:
    """POST/s of two workers as a multiple of one process's, the median over the rounds; `None`: not measured."""
    pairs = [rounds.get(name, {}).get("posts_per_second", ()) for name in (PAPER_SERVER, ONE_PROCESS)]
    ratios = [several / one for several, one in zip(*pairs, strict=True)]
    return median(ratios) if ratios else None


PAPER_CORES: Final = (2, 4, 8, 16, 32)

PAPER: Final = {"POST/s": "post", "connects/s": "connect", "deliveries/s": "delivery"}
"""Columns, and what the CPU figures call them."""


def on_paper(rounds: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """What so many cores would do by the CPU that was measured with two workers, and nothing else on the machine.

    All cores share the work of the workers and of the store's process, which has one core at most.
    """
    measured = rounds[PAPER_SERVER]
    lines = [f"| cores | {' | '.join(PAPER)} | bound by |", f"|---|{'---|' * (len(PAPER) + 1)}"]
    for cores in PAPER_CORES:
        cells, bound = [], []
        for title, what in PAPER.items():
            worker, store = (median(measured[f"cpu_us_per_{what}_{one}"]) for one in (WORKER, STORE))
            by_cores, by_store = cores * 1e6 / (worker + store), 1e6 / max(store, 0.001)
            cells.append(f"{_two_digits(min(by_cores, by_store)):,}")
            if by_store < by_cores:
                bound.append(title)
        lines.append(f"| {cores} | {' | '.join(cells)} | {_bound_by(bound)} |")
    return "\n".join(lines)


def _two_digits(value: float) -> int:
    return int(float(f"{value:.2g}"))


def _bound_by(bound: Sequence[str]) -> str:
    return f"the store's core: {', '.join(bound)}" if bound else "cores"


def table(rounds: Mapping[str, Mapping[str, Sequence[float]]]) -> str:
    """The medians, a column for each server."""
    names = list(rounds)
    lines = [f"| | {' | '.join(names)} |", f"|---|{'---|' * len(names)}"]
    for figure, label in LABELS.items():
        cells = [f"{median(rounds[name][figure]):,.4g}" if figure in rounds[name] else "" for name in names]
        if any(cells):
            lines.append(f"| {label} | {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
