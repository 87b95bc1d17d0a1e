"""The load generator (`native/load.c`) as an object: one process that holds the subscribers of one server."""

from __future__ import annotations

import select
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Final, Self

import msgspec

from benchmarks.processes import PRIORITY, settle_on

ANSWER_SECONDS_MAX: Final = 120.0
"""Longest wait for the answer to a command, beyond the time it takes by itself. The generator gives up before, when
nothing moves."""

PATIENCE_SECONDS: Final = 10
"""So long may nothing move until the generator gives up."""

PADDING_CHARACTERS: Final = 120
"""Brings the frame of a message to about 300 bytes."""


class GeneratorError(Exception):
    """The generator did not do what it was asked; its reason is on stderr."""


class Times(msgspec.Struct, frozen=True):
    """Percentiles of durations, in milliseconds."""

    count: int
    p50: float
    p99: float
    max: float


class Phase(msgspec.Struct, frozen=True, kw_only=True):
    """What happened during one command; `struct counters` in native/client.h says what each number counts."""

    seconds: float
    busy: float
    """Share of its core that the generator used."""
    opened: int
    failed: int
    closed: int
    goodbyes: int
    posted: int
    accepted: int
    refused: int
    expected: int
    delivered: int
    duplicates: int
    reordered: int
    seq_breaks: int
    gaps: int
    missed: int
    pings: int
    reopened: int
    setup_ms: Times | None = None
    delivery_ms: Times | None = None
    post_ms: Times | None = None

    @property
    def faults(self) -> dict[str, int]:
        """What must not happen, with how often it did."""
        found = {
            "lost": self.expected - self.delivered - self.missed,
            "duplicates": self.duplicates,
            "seq_breaks": self.seq_breaks,
            "gaps": self.gaps,
            "refused": self.refused,
            "closed": self.closed,
            "failed": self.failed,
        }
        return {name: count for name, count in found.items() if count}


@dataclass(frozen=True, slots=True, kw_only=True)
class Subscriber:
    """One subscriber of a plan."""

    diagnosis: str
    path: str
    token: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """Where a server takes subscribers and messages."""

    address: str
    port: int
    publish_port: int
    publish_path: str
    publish_token: str | None = None
    ready: str | None = None
    """What the frame contains that says a subscriber follows; `None`: the 101 says it."""


def plan_text(target: Target, subscribers: Sequence[Subscriber], patience_seconds: int = PATIENCE_SECONDS) -> str:
    """The plan that native/load.c reads."""
    lines = [
        f"subscribe {target.address} {target.port}",
        f"publish {target.address} {target.publish_port} {target.publish_path} {target.publish_token or '-'}",
        f"padding {PADDING_CHARACTERS}",
        f"patience {patience_seconds}",
    ]
    if target.ready is not None:
        lines.append(f"ready {target.ready}")
    lines += [f"subscriber {one.diagnosis} {one.path} {one.token or '-'}" for one in subscribers]
    return "\n".join((*lines, ""))


class Generator:
    """A running load generator; ended with the block."""

    def __init__(self, program: Path, plan: Path, core: int | None, priority: int = PRIORITY) -> None:
        """Start `program` on a core (`None`: on all), with the plan in a file that only we can read."""
        self._process = subprocess.Popen(
            [str(program), str(plan)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            preexec_fn=settle_on(core, priority),  # noqa: PLW1509 - we have one thread
            text=True,
        )

    @property
    def pid(self) -> int:
        """Of the process."""
        return self._process.pid

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._process.kill()
        self._process.communicate()

    def connect(self, in_flight: int, up_to: int = 0) -> Phase:
        """Connect the first subscribers of the plan (0: all) that are not connected, so many at a time."""
        return self._ask(f"connect {in_flight} {up_to}")

    def publish(self, seconds: float, *, connections: int, outstanding: int = 0, rate: float = 0) -> Phase:
        """Post for so long; then everything owed is waited for."""
        return self._ask(f"publish {seconds} {connections} {outstanding} {rate}", seconds)

    def rest(self, seconds: float) -> Phase:
        """Only answer the server's Pings."""
        return self._ask(f"rest {seconds}", seconds)

    def _ask(self, command: str, seconds: float = 0.0) -> Phase:
        assert self._process.stdin is not None, "a pipe was asked for"
        assert self._process.stdout is not None, "a pipe was asked for"
        try:
            print(command, file=self._process.stdin, flush=True)
        except BrokenPipeError:
            raise GeneratorError("the load generator has ended") from None
        wait_seconds = seconds + ANSWER_SECONDS_MAX
        if not select.select([self._process.stdout], [], [], wait_seconds)[0]:
            raise GeneratorError(f"no answer to {command!r} within {wait_seconds:g} s")
        line = self._process.stdout.readline()
        if not line:
            raise GeneratorError(f"the load generator ended at {command!r}")
        return msgspec.json.decode(line, type=Phase)
