"""Plays histories, and makes the shortest of one that fails."""

from __future__ import annotations

import shutil
import signal
import tempfile
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.simulation import scheduling
from tests.simulation.history import History, Operation
from tests.simulation.nodes import MemoryWorld
from tests.simulation.replicated import ReplicatedWorld
from tests.simulation.stage import DIRECTORY
from tests.simulation.truth import Violation
from tests.simulation.world import World, descriptors

PROCESSOR_SECONDS_MAX: Final = 30.0
"""A history that takes longer is one in which somebody goes round in circles, or all wait for nothing: no time passes
meanwhile."""

AGAIN_SECONDS: Final = 1.0
"""Processor time between two attempts to end it: whoever is interrupted may take that for something else."""


class Circles(BaseException):
    """Raised wherever the processor is, so that it is seen where that was."""


@dataclass(frozen=True)
class Played:
    """What came of a history."""

    violation: BaseException | None
    digest: str
    """The same for the same history, whenever and wherever it is played."""
    trace: tuple[str, ...]
    seen: Counter[str]
    steps: int


def play(history: History) -> Played:
    """Play a history once."""
    before = descriptors()
    directory = Path(tempfile.mkdtemp(prefix="sim-", dir=DIRECTORY if DIRECTORY.is_dir() else None))
    world = _world_of(history)(history, directory)
    violation: BaseException | None = None
    try:
        with _bounded():
            scheduling.run(history.seed, world.play)
    except (Exception, Circles) as failure:  # noqa: BLE001 - a fault of the server or of the simulation: both are to be looked at
        violation = failure
    finally:
        shutil.rmtree(directory, ignore_errors=True)
    if violation is None and not world.was_killed and (left := descriptors()) > before:
        violation = Violation(f"{left - before} files or sockets are left open")
    trace = tuple(line.replace(str(directory), "") for line in world.trace)
    world.trace[:] = trace
    return Played(violation, world.digest, trace, world.seen, world.steps)


def _world_of(history: History) -> type[World]:
    if history.nodes == 1:
        return World
    return ReplicatedWorld if history.engine == "nats" else MemoryWorld


@contextmanager
def _bounded() -> Iterator[None]:
    def end(number: int, frame: object) -> None:
        raise Circles(f"more than {PROCESSOR_SECONDS_MAX:g} s of processor time")

    before = signal.signal(signal.SIGPROF, end)
    signal.setitimer(signal.ITIMER_PROF, PROCESSOR_SECONDS_MAX, AGAIN_SECONDS)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_PROF, 0)
        signal.signal(signal.SIGPROF, before)


def shortest(history: History, *, tries_max: int = 400) -> History:
    """The same history without operations that it fails without, too."""
    kept: list[Operation] = list(history.operations)
    size, tries = max(1, len(kept) // 2), 0
    while size and tries < tries_max:
        at, has_shrunk = 0, False
        while at < len(kept) and tries < tries_max:
            fewer = kept[:at] + kept[at + size :]
            tries += 1
            if play(history.only(fewer)).violation is not None:
                kept, has_shrunk = fewer, True
            else:
                at += size
        if not has_shrunk or size > len(kept):
            size //= 2
    return history.only(kept)
