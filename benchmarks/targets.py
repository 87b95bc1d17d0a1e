"""What our server aims at, each figure beside its peer's in the same round: `make bench-targets`.

Where our server has the setting `short_way`, it is measured with and without. Exit code: 0, 1 if a delivery was lost or
repeated or a request refused, 2 if it could not be run. A target that is missed is only said.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import measuring, records
from benchmarks.generator import GeneratorError
from benchmarks.measuring import Alone, Effort, Measured, Outcome, session
from benchmarks.processes import CannotRun, allow_files, cores
from benchmarks.publishing import NotServed, Published, PublishingFailed, bulk, on_core, stream
from benchmarks.recovery import DIAGNOSES, recovery
from benchmarks.results import markdown, targets
from benchmarks.servers import FASTAPI, LONG_WAY, LOOP, OURS, THIS_CHECKOUT, ServerFailed, running, those_here

BENCHMARK: Final = "targets"

BULK_DIAGNOSES: Final = 100


def bulk_events(name: str, our_command: str, effort: Effort) -> tuple[Measured, Outcome]:
    """100 diagnoses without followers: requests of 1000 lines, two at a time."""
    server_core, generator_core = cores()
    with running(name, server_core, our_command) as server, on_core(generator_core):
        names = server.register(BULK_DIAGNOSES)
        bulk(server.target, names, effort.warm_up_seconds)
        done = bulk(server.target, names, effort.seconds)
    return {"bulk_events_per_second": done.accepted / done.seconds}, Alone(_refused(done))


def stream_events(name: str, our_command: str, effort: Effort) -> tuple[Measured, Outcome]:
    """One diagnosis with one subscriber: one WebSocket that publishes, 256 updates on their way."""
    with session(name, our_command, effort, 1, 1) as (opened, _), on_core(cores()[1]):
        warm = stream(opened.server.target, "bench-0", effort.warm_up_seconds)
        first = warm.accepted + warm.refused + 1
        done = stream(opened.server.target, "bench-0", effort.seconds, first)
        seen = opened.generator.rest(measuring.SETTLE_SECONDS)
        faults = _refused(warm) | _refused(done)
        if lost := warm.accepted + done.accepted - seen.delivered - seen.missed:
            faults["lost"] = lost
        opened.faults |= faults
    return {"stream_events_per_second": done.accepted / done.seconds}, opened


def _refused(done: Published) -> dict[str, int]:
    return {"refused": done.refused} if done.refused else {}


@dataclass(frozen=True, slots=True)
class Aim:
    """A situation, and the peers that stand beside our server in it."""

    measure: measuring.Situation
    peers: tuple[str, ...] = ()


AIMS: Final = {
    "fan-out": Aim(measuring.fan_out, (FASTAPI, LOOP)),
    "many-diagnoses": Aim(measuring.many_diagnoses, (FASTAPI,)),
    "idle": Aim(measuring.idle, (FASTAPI,)),
    "one-subscriber": Aim(measuring.one_subscriber, (FASTAPI,)),
    "bulk": Aim(bulk_events),
    "stream": Aim(stream_events),
    "recovery": Aim(recovery),
}


def main(argv: Sequence[str] | None = None) -> int:
    """Measure what was asked for, print the table, and write the run."""
    parser = argparse.ArgumentParser(prog="make bench-targets", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--quick", action="store_true", help="one short round, and fewer followers")
    parser.add_argument("--rounds", type=int, metavar="N", help="how often everything is measured; default 3")
    parser.add_argument("--only", default=",".join(AIMS), metavar="A,B", help=", ".join(AIMS))
    parser.add_argument("--server-command", default=THIS_CHECKOUT, metavar="COMMAND", help="what starts our server")
    parser.add_argument("--into", type=Path, metavar="DIR", help="where the run is written; default: docs/measured")
    options = parser.parse_args(argv)
    chosen = options.only.split(",")
    if unknown := sorted(set(chosen) - set(AIMS)):
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(AIMS)}")
    load_before = records.load_now()
    effort = measuring.QUICK if options.quick else measuring.FULL
    ways = those_here([OURS, LONG_WAY])
    measurement = Measurement(options.server_command, effort)
    try:
        allow_files(max(effort.idle_connections, DIAGNOSES * effort.recovery_followers))
        for turn in range(options.rounds or effort.rounds):
            for situation in chosen:
                for server in (*ways, *AIMS[situation].peers):
                    print(f"round {turn + 1}: {situation}: {server}", file=sys.stderr, flush=True)
                    measurement.take(situation, server)
    except (CannotRun, GeneratorError, PublishingFailed, ServerFailed, OSError) as failure:
        print(f"benchmarks.targets: {failure}", file=sys.stderr)
        return 2
    print(markdown(targets(measurement.rounds, ways)))
    if options.quick:
        killed = DIAGNOSES * effort.recovery_followers
        print(f"A short round, of {effort.idle_connections} idle connections and {killed} followers at the kill.")
    for fault in measurement.faults:
        print(f"FAULT: {fault}")
    run = records.make_run(
        BENCHMARK, "bench-targets", argv, load_before, rounds=measurement.rounds, faults=measurement.faults
    )
    print(f"written: {records.write(run, options.into or (records.TRIED if options.quick else records.MEASURED))}")
    return 1 if measurement.faults else 0


class Measurement:
    """What has been measured so far."""

    def __init__(self, our_command: str, effort: Effort) -> None:
        self._our_command = our_command
        self._effort = effort
        self.rounds: dict[str, dict[str, list[float]]] = {}
        self.faults: list[str] = []

    def take(self, situation: str, server: str) -> None:
        """Measure one server in one situation."""
        try:
            measured, outcome = AIMS[situation].measure(server, self._our_command, self._effort)
        except NotServed as reason:
            print(f"{situation}: skipped: {reason}", file=sys.stderr, flush=True)
            return
        for name, value in measured.items():
            self.rounds.setdefault(server, {}).setdefault(name, []).append(value)
        self.faults += [f"{server}, {situation}: {count} {name}" for name, count in outcome.faults.items()]


if __name__ == "__main__":
    sys.exit(main())
