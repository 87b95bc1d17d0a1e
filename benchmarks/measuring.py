"""The situations in which a server is measured. Each gets a fresh server, so that none inherits another's memory."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final, Protocol

from benchmarks.disk import sync_p50_ms
from benchmarks.generator import Generator, Phase, plan_text
from benchmarks.processes import FILES_BESIDE, allow_files, cores, cpu_seconds, memory_bytes
from benchmarks.servers import BUILT, Running, running


@dataclass(frozen=True, slots=True, kw_only=True)
class Effort:
    """How long and with how many."""

    rounds: int
    seconds: float
    """Length of one measurement."""
    warm_up_seconds: float
    idle_connections: int
    idle_diagnoses: int = 200
    recovery_followers: int = 20
    """Of each of 500 diagnoses, when the server is killed."""


FULL: Final = Effort(rounds=3, seconds=3.0, warm_up_seconds=0.7, idle_connections=5000)
QUICK: Final = Effort(
    rounds=1, seconds=1.0, warm_up_seconds=0.3, idle_connections=1000, idle_diagnoses=100, recovery_followers=4
)

IN_FLIGHT: Final = 32
"""Subscribers that connect at the same time."""

SINGLE_RATE: Final = 100
"""Messages a second to one subscriber."""

SETTLE_SECONDS: Final = 0.5
"""After the last subscriber has connected, until a server that has sent its 101 has also noted the subscriber."""


CONNECTIONS_DEFAULT: Final = 10_000
"""Those that our server takes where nobody says otherwise."""


class Outcome(Protocol):
    """What is said of a measurement beside its figures."""

    faults: dict[str, int]
    """What must not happen, with how often it did."""
    busiest: float
    """Largest share of its core that the load generator used in a phase."""


@dataclass(slots=True)
class Alone:
    """The outcome of a measurement without a load generator."""

    faults: dict[str, int]
    busiest: float = 0.0


@dataclass(slots=True)
class Session:
    """A server with its subscribers, and what was measured so far."""

    server: Running
    generator: Generator
    effort: Effort
    before_bytes: int
    """Memory of the server before anybody connected."""
    faults: dict[str, int] = field(default_factory=dict)
    busiest: float = 0.0

    def seen(self, phase: Phase) -> Phase:
        """Note the faults of a phase."""
        for name, count in phase.faults.items():
            self.faults[name] = self.faults.get(name, 0) + count
        if phase.posted:
            self.busiest = max(self.busiest, phase.busy)
            if not phase.accepted:
                self.faults["nothing_accepted"] = 1
        return phase

    def publish(self, *, connections: int, outstanding: int = 0, rate: float = 0) -> Phase:
        """Warm up, then measure."""
        self.seen(
            self.generator.publish(
                self.effort.warm_up_seconds, connections=connections, outstanding=outstanding, rate=rate
            )
        )
        return self.measure(connections=connections, outstanding=outstanding, rate=rate)

    def measure(self, *, connections: int, outstanding: int = 0, rate: float = 0) -> Phase:
        """Measure what is warm."""
        return self.seen(
            self.generator.publish(self.effort.seconds, connections=connections, outstanding=outstanding, rate=rate)
        )


def room_for(connections: int) -> dict[str, str]:
    """The environment in which our server takes so many connections, and a few more.

    Raises:
        CannotRun: a process may not open so many files.
    """
    allow_files(connections)
    return {"AVICENNA_MAX_CONNECTIONS": str(max(CONNECTIONS_DEFAULT, connections + FILES_BESIDE))}


@contextmanager
def session(name: str, our_command: str, effort: Effort, diagnoses: int, each: int) -> Iterator[tuple[Session, Phase]]:
    """A fresh server with its subscribers connected, and how that went.

    Raises:
        CannotRun: a process may not open so many files.
    """
    server_core, generator_core = cores()
    settings = room_for(diagnoses * each)
    with (
        running(name, server_core, our_command, settings=settings) as server,
        tempfile.TemporaryDirectory() as directory,
    ):
        plan = Path(directory) / "plan"
        plan.write_text(plan_text(server.target, server.subscribers(diagnoses, each)))
        with Generator(BUILT / "load", plan, generator_core) as generator:
            opened = Session(server, generator, effort, before_bytes=memory_bytes(server.pid))
            connecting = opened.seen(generator.connect(IN_FLIGHT))
            opened.seen(generator.rest(SETTLE_SECONDS))
            yield opened, connecting


Measured = dict[str, float]
Situation = Callable[[str, str, Effort], tuple[Measured, Outcome]]


def fan_out(name: str, our_command: str, effort: Effort) -> tuple[Measured, Outcome]:
    """One diagnosis, 1000 subscribers: CPU with one message outstanding, then delay at 5 messages a second."""
    with session(name, our_command, effort, 1, 1000) as (opened, _):
        opened.seen(opened.generator.publish(effort.warm_up_seconds, connections=1, outstanding=1))
        before = cpu_seconds(opened.server.pid)
        flat_out = opened.measure(connections=1, outstanding=1)
        spent = cpu_seconds(opened.server.pid) - before
        paced = opened.measure(connections=4, rate=5)
        assert paced.delivery_ms is not None, "subscribers were owed messages"
        measured = {
            "cpu_seconds_per_100k": spent / max(flat_out.delivered, 1) * 100_000,
            "delivery_p50_ms": paced.delivery_ms.p50,
            "delivery_p99_ms": paced.delivery_ms.p99,
        }
        return measured, opened


def many_diagnoses(name: str, our_command: str, effort: Effort) -> tuple[Measured, Outcome]:
    """100 diagnoses with 10 subscribers each, 64 messages outstanding on 16 connections."""
    with session(name, our_command, effort, 100, 10) as (opened, _):
        phase = opened.publish(connections=16, outstanding=64)
        return {"deliveries_per_second": phase.delivered / phase.seconds}, opened


def idle(name: str, our_command: str, effort: Effort) -> tuple[Measured, Outcome]:
    """Thousands of subscribers over hundreds of diagnoses connect, and then nothing happens."""
    each = effort.idle_connections // effort.idle_diagnoses
    with session(name, our_command, effort, effort.idle_diagnoses, each) as (opened, connecting):
        grown = memory_bytes(opened.server.pid) - opened.before_bytes
        assert connecting.setup_ms is not None, "subscribers connected"
        measured = {
            "memory_kb_per_connection": grown / 1024 / max(connecting.opened, 1),
            "connects_per_second": connecting.opened / connecting.seconds,
            "setup_p50_ms": connecting.setup_ms.p50,
            "setup_p99_ms": connecting.setup_ms.p99,
        }
        return measured, opened


def one_subscriber(name: str, our_command: str, effort: Effort) -> tuple[Measured, Outcome]:
    """One subscriber: messages as fast as 16 connections can post them, then delay at 100 a second.

    For our server a sync of its disk is measured beside, at the same rate, while it has nothing to do.
    """
    with session(name, our_command, effort, 1, 1) as (opened, _):
        posting = opened.publish(connections=16)
        paced = opened.measure(connections=4, rate=SINGLE_RATE)
        assert paced.delivery_ms is not None, "the subscriber was owed messages"
        measured = {
            "posts_per_second": posting.accepted / posting.seconds,
            "single_delivery_p50_ms": paced.delivery_ms.p50,
            "single_delivery_p99_ms": paced.delivery_ms.p99,
        }
        if (data := opened.server.data) is not None:
            measured["sync_p50_ms"] = sync_p50_ms(data, effort.seconds, SINGLE_RATE, cores()[0])
            measured["single_above_sync_ms"] = paced.delivery_ms.p50 - measured["sync_p50_ms"]
        return measured, opened


SITUATIONS: Final[dict[str, Situation]] = {
    "fan-out": fan_out,
    "many-diagnoses": many_diagnoses,
    "idle": idle,
    "one-subscriber": one_subscriber,
}
