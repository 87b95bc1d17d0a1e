"""How costs grow: with followers, with diagnoses, with the offered load, with idle connections, and after `kill -9`.

`make bench-growth` writes one run for each of them; `make bench-report` draws them. Exit code: 0, 1 if a delivery was
lost or repeated or a request refused, 2 if it could not be run.
"""

from __future__ import annotations

import argparse
import os
import re
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks import measuring, records
from benchmarks.generator import GeneratorError
from benchmarks.measuring import Session, session
from benchmarks.processes import CannotRun, allow_files, cpu_seconds, memory_bytes
from benchmarks.publishing import PublishingFailed
from benchmarks.records import Point
from benchmarks.recovery import DIAGNOSES, recover
from benchmarks.servers import FASTAPI, LONG_WAY, LOOP, OF_OURS, OURS, THIS_CHECKOUT, ServerFailed, those_here

SERVERS: Final = (OURS, LONG_WAY, FASTAPI, LOOP)

Values = dict[str, float]
"""What was measured at one size, by figure."""

SATURATED_SHARE: Final = 0.95
"""A server that answers less than this share of what is offered is saturated."""

SATURATED_P99_MS: Final = 1000.0
"""So is one whose 99th percentile is longer."""

LOAD_DIAGNOSES: Final = 100
LOAD_CONNECTIONS: Final = 64
"""Enough that a message waits for a free one only where the server is behind; what it waits counts."""

KERNEL_CACHES: Final = (
    "TCP",
    "UNIX-STREAM",
    "sock_inode_cache",
    "filp",
    "dentry",
    "eventpoll_epi",
    "eventpoll_pwq",
    "skbuff_head_cache",
    "skbuff_small_head",
)
"""Where Linux keeps what belongs to an open socket that is watched (`/proc/slabinfo`)."""

ENDS: Final = 2
"""Both ends of a loopback connection are in this kernel."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Sizes:
    """How far, and how long at each size."""

    rounds: int
    effort: measuring.Effort
    followers: tuple[int, ...]
    diagnoses: tuple[int, ...]
    rates: tuple[float, ...]
    """Publishes a second; a server is offered no more than the first that saturates it."""
    idle: tuple[int, ...]
    rest_seconds: float
    """How long CPU time at rest is measured. Our server pings everybody once in 25 s."""
    recovery: tuple[int, ...]
    """Followers, in all."""


RATES: Final = (100, 200, 300, 500, 700, 1000, 1500, 2000, 3000, 4000, 5000, 7000, 10_000, 15_000, 20_000)

FULL: Final = Sizes(
    rounds=3,
    effort=measuring.FULL,
    followers=(1, 10, 100, 1000, 10_000),
    diagnoses=(1, 10, 100, 1000, 10_000),
    rates=RATES,
    idle=(1000, 5000, 10_000),
    rest_seconds=25.0,
    recovery=(1000, 5000, 10_000),
)
QUICK: Final = Sizes(
    rounds=1,
    effort=measuring.QUICK,
    followers=(1, 10, 100, 1000),
    diagnoses=(1, 10, 100, 1000),
    rates=RATES[::2],
    idle=(500, 1000),
    rest_seconds=3.0,
    recovery=(1000,),
)


class Growth:
    """What measures one server after the other; faults are kept."""

    def __init__(self, our_command: str, sizes: Sizes) -> None:
        self.our_command = our_command
        self.sizes = sizes
        self.faults: list[str] = []

    def _note(self, what: str, opened: Session) -> None:
        self.faults += [f"{what}: {count} {name}" for name, count in opened.faults.items()]

    def followers(self, server: str) -> Iterator[tuple[float, Values]]:
        """CPU of a delivery, by followers of one diagnosis: one message outstanding."""
        for count in self.sizes.followers:
            yield count, self._delivery(server, 1, count, connections=1, outstanding=1)

    def diagnoses(self, server: str) -> Iterator[tuple[float, Values]]:
        """CPU of a delivery, by diagnoses with one follower each: 64 messages outstanding on 16 connections."""
        for count in self.sizes.diagnoses:
            yield count, self._delivery(server, count, 1, connections=16, outstanding=64)

    def _delivery(self, server: str, diagnoses: int, each: int, *, connections: int, outstanding: int) -> Values:
        with session(server, self.our_command, self.sizes.effort, diagnoses, each) as (opened, _):
            warm_up_seconds = self.sizes.effort.warm_up_seconds
            opened.seen(opened.generator.publish(warm_up_seconds, connections=connections, outstanding=outstanding))
            before = cpu_seconds(opened.server.pid)
            phase = opened.measure(connections=connections, outstanding=outstanding)
            spent = cpu_seconds(opened.server.pid) - before
            self._note(f"{server}, {diagnoses} x {each}", opened)
        delivered = max(phase.delivered, 1)
        return {"cpu_us": spent / delivered * 1e6, "per_second": phase.delivered / phase.seconds}

    def load(self, server: str) -> Iterator[tuple[float, Values]]:
        """Time of a publish, by publishes offered a second, from the moment each was due; until saturation."""
        with session(server, self.our_command, self.sizes.effort, LOAD_DIAGNOSES, 1) as (opened, _):
            for rate in self.sizes.rates:
                phase = opened.publish(connections=LOAD_CONNECTIONS, rate=rate)
                if phase.post_ms is None:
                    break
                answered = phase.accepted / phase.seconds
                yield rate, {"answered": answered, "p50_ms": phase.post_ms.p50, "p99_ms": phase.post_ms.p99}
                if answered < SATURATED_SHARE * rate or phase.post_ms.p99 > SATURATED_P99_MS:
                    break
            self._note(f"{server}, load", opened)

    def idle(self, server: str) -> Iterator[tuple[float, Values]]:
        """Memory of process and kernel, and CPU at rest, by idle connections."""
        for count in self.sizes.idle:
            kernel_before = kernel_bytes()
            effort = self.sizes.effort
            with session(server, self.our_command, effort, effort.idle_diagnoses, count // effort.idle_diagnoses) as (
                opened,
                connecting,
            ):
                connected = max(connecting.opened, 1)
                values = {"process_kb": (memory_bytes(opened.server.pid) - opened.before_bytes) / 1024 / connected}
                if kernel_before is not None:
                    values["kernel_kb"] = ((kernel_bytes() or 0) - kernel_before) / ENDS / 1024 / connected
                before, began = cpu_seconds(opened.server.pid), time.perf_counter()
                opened.seen(opened.generator.rest(self.sizes.rest_seconds))
                spent = (cpu_seconds(opened.server.pid) - before) / (time.perf_counter() - began)
                values["cpu_us_per_second"] = spent / connected * 1e6
                self._note(f"{server}, {count} idle", opened)
            yield count, values

    def recovery(self, server: str) -> Iterator[tuple[float, Values]]:
        """Seconds from `kill -9`, by followers, until the server listens and until all are live again."""
        if server not in OF_OURS:
            return
        for count in self.sizes.recovery:
            found = recover(server, self.our_command, DIAGNOSES, count // DIAGNOSES)
            half = next(seconds for live, seconds in found.live if live * 2 >= count)
            yield count, {"listening_s": found.listening_seconds, "half_s": half, "all_s": found.seconds}
            if found.lost:
                self.faults.append(f"{server}, {count} followers after kill -9: {found.lost} lost")


def kernel_bytes() -> int | None:
    """Memory of the kernel for open sockets and what is under way on them; `None`: only root may know.

    The caches of `KERNEL_CACHES`, objects in use times their size, and the buffers of TCP (`/proc/net/sockstat`).
    """
    with suppress(OSError):
        slabs = Path("/proc/slabinfo").read_text()
        found = re.findall(r"^(\S+) +(\d+) +\d+ +(\d+) ", slabs, re.MULTILINE)
        objects = sum(int(count) * int(size) for name, count, size in found if name in KERNEL_CACHES)
        buffers = re.search(r"^TCP:.* mem (\d+)", Path("/proc/net/sockstat").read_text(), re.MULTILINE)
        return objects + (int(buffers[1]) if buffers else 0) * os.sysconf("SC_PAGE_SIZE")
    return None


KINDS: Final[dict[str, Callable[[Growth, str], Iterator[tuple[float, Values]]]]] = {
    "followers": Growth.followers,
    "diagnoses": Growth.diagnoses,
    "load": Growth.load,
    "idle": Growth.idle,
    "recovery": Growth.recovery,
}


def measure(growth: Growth, kind: str, servers: Sequence[str], rounds: int) -> dict[str, list[Point]]:
    """All rounds of one kind: servers take turns within each. Progress goes to stderr."""
    found: dict[str, dict[float, dict[str, list[float]]]] = {}
    for turn in range(rounds):
        for server in servers:
            for x, values in KINDS[kind](growth, server):
                told = ", ".join(f"{name} {value:.4g}" for name, value in values.items())
                print(f"round {turn + 1}: {kind}: {server}: {x:g}: {told}", file=sys.stderr, flush=True)
                point = found.setdefault(server, {}).setdefault(x, {})
                for name, value in values.items():
                    point.setdefault(name, []).append(value)
    return {server: [Point(x, points[x]) for x in sorted(points)] for server, points in found.items()}


def table(series: dict[str, list[Point]]) -> str:
    """Medians, a row for each server and size, as Markdown."""
    names = list(dict.fromkeys(name for line in series.values() for point in line for name in point.values))
    rows = [
        f"| {server} | {point.x:,g} | "
        + " | ".join(f"{median(point.values[name]):.4g}" if name in point.values else "" for name in names)
        + " |"
        for server, line in series.items()
        for point in line
    ]
    return "\n".join([f"| server | size | {' | '.join(names)} |", "|" + "---|" * (len(names) + 2), *rows])


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for; print and write each kind as soon as it is there."""
    parser = argparse.ArgumentParser(prog="make bench-growth", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round, up to 1,000 of everything")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often everything is measured; default 3")
    parser.add_argument("--only", default=",".join(KINDS), metavar="A,B", help=", ".join(KINDS))
    parser.add_argument("--servers", default=",".join(SERVERS), metavar="A,B", help=", ".join(SERVERS))
    parser.add_argument("--server-command", default=THIS_CHECKOUT, metavar="COMMAND", help="what starts our server")
    parser.add_argument("--into", type=Path, metavar="DIR", help="where the runs are written; default: docs/measured")
    options = parser.parse_args(argv)
    kinds, named = options.only.split(","), options.servers.split(",")
    for option, given, known in (("--only", kinds, tuple(KINDS)), ("--servers", named, SERVERS)):
        if unknown := sorted(set(given) - set(known)):
            parser.error(f"{option}: {unknown[0]!r} is none of {', '.join(known)}")
    sizes = QUICK if options.quick else FULL
    servers, faults = those_here(named), []
    into = options.into or (records.TRIED if options.quick else records.MEASURED)
    load_before = records.load_now()
    try:
        allow_files(max(*sizes.followers, *sizes.diagnoses, *sizes.idle, *sizes.recovery))
        for kind in kinds:
            growth = Growth(options.server_command, sizes)
            series = measure(growth, kind, servers, options.rounds or sizes.rounds)
            run = records.make_run(
                f"growth-{kind}", "bench-growth", argv, load_before, series=series, faults=growth.faults
            )
            print(f"{table(series)}\nwritten: {records.write(run, into)}\n", flush=True)
            faults += growth.faults
    except (CannotRun, GeneratorError, PublishingFailed, ServerFailed, OSError) as failure:
        print(f"benchmarks.growth: {failure}", file=sys.stderr)
        return 2
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
