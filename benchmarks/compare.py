"""Two builds of our server in turns: what an operation costs one in CPU, as a multiple of what it costs the other.

`python -m benchmarks.compare --before COMMAND` (`make bench-compare BEFORE=COMMAND`). CPU seconds of the server's
process are compared, not times: a busy machine stretches times more than the work of a process. A pair is a measurement
of each build, one after the other, in changing order.
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Sequence
from statistics import mean, stdev
from typing import Final

from benchmarks import publishing
from benchmarks.measuring import QUICK, Effort, Session, session
from benchmarks.processes import cores, cpu_seconds
from benchmarks.servers import OURS, THIS_CHECKOUT, Running, running

# Student's t for a two-sided interval of 95 %, by degrees of freedom; beyond the last one the next lower is used.
T_95: Final = {
    1: 12.706, 2: 4.303, 3: 3.182, 4: 2.776, 5: 2.571, 6: 2.447, 7: 2.365, 8: 2.306, 9: 2.262, 10: 2.228,
    12: 2.179, 14: 2.145, 16: 2.120, 19: 2.093, 24: 2.064, 29: 2.045, 39: 2.023, 59: 2.001,
}  # fmt: skip


BULK_DIAGNOSES: Final = 100


def spent_by(server: Running, work: Callable[[], int]) -> float:
    """CPU seconds of the server for each of the operations that `work` did; it returns how many."""
    before = cpu_seconds(server.pid)
    done = work()
    return (cpu_seconds(server.pid) - before) / max(done, 1)


def spent_on(opened: Session, work: Callable[[], int]) -> float:
    """As `spent_by`, of the server of a session."""
    return spent_by(opened.server, work)


def delivery(command: str, effort: Effort) -> float:
    """One diagnosis, 1000 subscribers, one message outstanding."""
    with session(OURS, command, effort, 1, 1000) as (opened, _):
        opened.publish(connections=1, outstanding=1)
        return spent_on(opened, lambda: opened.measure(connections=1, outstanding=1).delivered)


def post(command: str, effort: Effort) -> float:
    """One subscriber, 16 connections that post."""
    with session(OURS, command, effort, 1, 1) as (opened, _):
        opened.publish(connections=16)
        return spent_on(opened, lambda: opened.measure(connections=16).accepted)


def spread(command: str, effort: Effort) -> float:
    """100 diagnoses with 10 subscribers each, 64 messages outstanding on 16 connections; of each delivery."""
    with session(OURS, command, effort, 100, 10) as (opened, _):
        opened.publish(connections=16, outstanding=64)
        return spent_on(opened, lambda: opened.measure(connections=16, outstanding=64).delivered)


def connect(command: str, effort: Effort) -> float:
    """1000 subscribers of 100 diagnoses connect, 32 at a time; the start of the server is a part of it for both."""
    with session(OURS, command, effort, 100, 10) as (opened, connecting):
        return cpu_seconds(opened.server.pid) / max(connecting.opened, 1)


def bulk(command: str, effort: Effort) -> float:
    """100 diagnoses without followers, requests of 1000 lines, two at a time; of each line."""
    server_core, generator_core = cores()
    with running(OURS, server_core, command) as server, publishing.on_core(generator_core):
        names = server.register(BULK_DIAGNOSES)
        publishing.bulk(server.target, names, effort.warm_up_seconds)
        return spent_by(server, lambda: publishing.bulk(server.target, names, effort.seconds).accepted)


def stream(command: str, effort: Effort) -> float:
    """One diagnosis with one subscriber, a WebSocket with 256 updates on their way; of each update."""
    with session(OURS, command, effort, 1, 1) as (opened, _), publishing.on_core(cores()[1]):
        done = publishing.stream(opened.server.target, "bench-0", effort.warm_up_seconds)
        first = done.accepted + done.refused + 1
        return spent_on(
            opened, lambda: publishing.stream(opened.server.target, "bench-0", effort.seconds, first).accepted
        )


OPERATIONS: Final = {
    "delivery": delivery,
    "spread": spread,
    "post": post,
    "connect": connect,
    "bulk": bulk,
    "stream": stream,
}


def interval(ratios: Sequence[float]) -> tuple[float, float, float]:
    """The mean of ratios, and the ends of its 95 % interval: Student's, of their logarithms; two ratios at least."""
    logarithms = [math.log(one) for one in ratios]
    free = len(logarithms) - 1
    t = T_95[max(one for one in T_95 if one <= free)]
    middle, half = mean(logarithms), t * stdev(logarithms) / math.sqrt(len(logarithms))
    return math.exp(middle), math.exp(middle - half), math.exp(middle + half)


def main(argv: Sequence[str] | None = None) -> int:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.compare", description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--before", required=True, metavar="COMMAND", help="what starts the other build")
    parser.add_argument("--after", default=THIS_CHECKOUT, metavar="COMMAND", help="default: this checkout's")
    parser.add_argument("--pairs", type=int, default=10, metavar="N", help="2 or more; default 10")
    parser.add_argument("--operations", default=",".join(OPERATIONS), metavar="A,B", help=", ".join(OPERATIONS))
    options = parser.parse_args(argv)
    print("| CPU of one | before, us | after, us | ratio | 95 % interval |\n|---|---|---|---|---|", flush=True)
    for name in options.operations.split(","):
        costs: dict[str, list[float]] = {"before": [], "after": []}
        for pair in range(options.pairs):
            for build in ("before", "after") if pair % 2 == 0 else ("after", "before"):
                print(f"{name}: pair {pair + 1}, {build}", file=sys.stderr, flush=True)
                costs[build].append(OPERATIONS[name](getattr(options, build), QUICK))
        ratio, low, high = interval([b / a for a, b in zip(costs["before"], costs["after"], strict=True)])
        before, after = (mean(costs[build]) * 1e6 for build in ("before", "after"))
        print(f"| {name} | {before:.1f} | {after:.1f} | {ratio:.3f} | {low:.3f} to {high:.3f} |", flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
