"""Our server with a watch over the turns of its event loop: `python -m benchmarks.watched`.

A turn is one pass of the loop over every task that can run; meanwhile nobody else is served. A step is what one task
does of it, between two checkpoints.
"""

from __future__ import annotations

import argparse
import json
import os
import shlex
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Final, TextIO

import trio
from trio.abc import Instrument

from web.server import composition, settings

NOTED_SECONDS: Final = 0.01
"""Turns shorter than this are not noted. Reason: a line costs time, too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """A long turn."""

    began_at: float
    """Monotonic time, which all processes of a machine share."""
    seconds: float
    cpu_seconds: float
    """Of them, on the core: the rest the thread waited for the core, for the interpreter's lock, or was stopped."""
    step_seconds: float
    """Its longest step."""
    task: str
    """The name of the task whose step that was."""


class Watch(Instrument):
    """Notes long turns, one JSON line each."""

    def __init__(self, notes: TextIO) -> None:
        self._notes = notes
        self._turn_began = self._step_began = time.monotonic()
        self._cpu_began = time.thread_time()
        self._longest_step = 0.0
        self._longest_task = ""

    def after_io_wait(self, timeout: float) -> None:
        self._turn_began = time.monotonic()
        self._cpu_began = time.thread_time()
        self._longest_step = 0.0

    def before_task_step(self, task: trio.lowlevel.Task) -> None:
        self._step_began = time.monotonic()

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        seconds = time.monotonic() - self._step_began
        if seconds > self._longest_step:
            self._longest_step, self._longest_task = seconds, task.name

    def before_io_wait(self, timeout: float) -> None:
        seconds = time.monotonic() - self._turn_began
        if seconds >= NOTED_SECONDS:
            cpu_seconds = time.thread_time() - self._cpu_began
            turn = Turn(
                began_at=self._turn_began,
                seconds=seconds,
                cpu_seconds=cpu_seconds,
                step_seconds=self._longest_step,
                task=self._longest_task,
            )
            print(json.dumps(asdict(turn)), file=self._notes, flush=True)


def command(notes: Path) -> str:
    """What starts our server with its watch."""
    return shlex.join([sys.executable, "-m", "benchmarks.watched", "--turns", str(notes)])


def read_turns(notes: Path) -> list[Turn]:
    """What was noted so far."""
    lines: list[dict[str, Any]] = [json.loads(line) for line in notes.read_text().splitlines()]
    return [Turn(**line) for line in lines]


def main(argv: Sequence[str] | None = None) -> int:
    """Serve until a signal, as `avicenna-live serve` does."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.watched", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--turns", required=True, type=Path, metavar="FILE", help="where long turns are noted")
    parser.add_argument("--port", metavar="P")
    parser.add_argument("--data", metavar="DIR")
    options = parser.parse_args(argv)
    with options.turns.open("a") as notes:
        watch = Watch(notes)
        chosen = settings.load(os.environ, options={"port": options.port, "data": options.data})
        return composition.run(chosen, ready=lambda url: trio.lowlevel.add_instrument(watch))


if __name__ == "__main__":
    sys.exit(main())
