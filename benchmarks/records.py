"""What a run has measured, as JSON that also says on what machine, with which versions and by which command."""

from __future__ import annotations

import os
import platform
import re
import shutil
import sqlite3
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Final

import msgspec

from benchmarks.servers import NODE_PEERS, ROOT, WS

MEASURED: Final = ROOT / "docs" / "measured"
"""The runs that the documents show."""

TRIED: Final = ROOT / "build" / "measured"
"""Where short runs leave theirs."""

BUSY_LOAD: Final = 0.5
"""Tasks for each core that ran or waited in the minute before. From here on the machine was busy with other things."""

UNDER_LOAD: Final = "under load"
AT_REST: Final = "at rest"
"""The series of a soak, by minutes; that at rest has what is compared: after the first tenth, and at the end."""

OURS_BUILT_ON: Final = ("avicenna-live", "trio", "quart-trio", "hypercorn", "h11")
PEERS_BUILT_ON: Final = ("fastapi", "uvicorn", "uvloop", "websockets", "picows")


class Machine(msgspec.Struct, frozen=True, kw_only=True):
    """Where it was measured."""

    cpu: str
    """The model of its CPU."""
    cores: int
    kernel: str
    memory_gib: float
    load_before: float
    """Tasks that ran or waited, in the mean of the minute before the run."""

    @property
    def was_busy(self) -> bool:
        """Whether it did something else."""
        return self.load_before >= BUSY_LOAD * self.cores


class Point(msgspec.Struct, frozen=True):
    """What was measured at one size."""

    x: float
    """The size: followers, diagnoses, connections, offered publishes a second, or seconds."""
    values: dict[str, list[float]]
    """By figure, one a round."""


class Run(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One run of one benchmark."""

    benchmark: str
    command: str
    taken: str
    """The day, UTC."""
    machine: Machine
    versions: dict[str, str]
    rounds: dict[str, dict[str, list[float]]] = {}
    """By server, by figure, one a round; of a benchmark that has no sizes."""
    series: dict[str, list[Point]] = {}
    """By server, in order of size; of a benchmark that has sizes."""
    faults: list[str] = []


def load_now() -> float:
    """Tasks that run or wait, in the mean of the last minute."""
    return os.getloadavg()[0]


def this_machine(load_before: float) -> Machine:
    """What Linux says of it."""
    model = re.search(r"^model name\s*: (.*)$", Path("/proc/cpuinfo").read_text(), re.MULTILINE)
    return Machine(
        cpu=model[1].strip() if model else platform.machine(),
        cores=len(os.sched_getaffinity(0)),
        kernel=platform.release(),
        memory_gib=round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 2**30, 1),
        load_before=round(load_before, 2),
    )


def versions() -> dict[str, str]:
    """Of our server with what it stands on, and of the peers that are installed; `commit`: of this checkout."""
    found = {"commit": _commit(), "python": platform.python_version(), "sqlite": sqlite3.sqlite_version}
    found |= {name: version(name) for name in OURS_BUILT_ON}
    asking = f"from importlib.metadata import version\nfor name in {PEERS_BUILT_ON!r}: print(name, version(name))"
    python = ROOT / ".venv-bench" / "bin" / "python"
    if python.exists():
        said = subprocess.run([str(python), "-c", asking], check=True, capture_output=True, text=True, timeout=60)
        found |= dict(line.split() for line in said.stdout.splitlines())
    if node := shutil.which("node"):
        said = subprocess.run([node, "--version"], check=True, capture_output=True, text=True, timeout=60)
        found["node"] = said.stdout.strip().removeprefix("v")
    if (package := NODE_PEERS / "node_modules" / WS / "package.json").exists():
        found[WS] = msgspec.json.decode(package.read_bytes())["version"]
    return found


def _commit() -> str:
    """Of this checkout, with a `+` where files have changed since; `unknown`: it is none of git."""
    asking = ["git", "describe", "--always", "--dirty=+", "--exclude=*"]
    said = subprocess.run(asking, cwd=ROOT, check=False, capture_output=True, text=True, timeout=60)
    return said.stdout.strip() or "unknown"


def make_run(
    benchmark: str,
    target: str,
    argv: Sequence[str] | None,
    load_before: float,
    *,
    rounds: Mapping[str, Mapping[str, Sequence[float]]] | None = None,
    series: Mapping[str, Sequence[Point]] | None = None,
    faults: Sequence[str] = (),
) -> Run:
    """A run on this machine, today.

    Args:
        target: of make, which was asked with `argv` (`None`: those of the process).
        load_before: of `load_now`, before it began.
    """
    asked = " ".join(sys.argv[1:] if argv is None else argv)
    return Run(
        benchmark=benchmark,
        command=f'make {target} ARGS="{asked}"' if asked else f"make {target}",
        taken=time.strftime("%Y-%m-%d", time.gmtime()),
        machine=this_machine(load_before),
        versions=versions(),
        rounds={
            server: {name: _rounded(values) for name, values in found.items()}
            for server, found in (rounds or {}).items()
        },
        series={
            server: [
                Point(point.x, {name: _rounded(values) for name, values in point.values.items()}) for point in line
            ]
            for server, line in (series or {}).items()
        },
        faults=list(faults),
    )


def _rounded(values: Sequence[float]) -> list[float]:
    """Four digits are more than a measurement has."""
    return [float(f"{value:.4g}") for value in values]


def write(run: Run, directory: Path) -> Path:
    """Write a run where reports look for it; the path."""
    directory.mkdir(parents=True, exist_ok=True)
    path = directory / f"{run.benchmark}.json"
    path.write_bytes(msgspec.json.format(msgspec.json.encode(run), indent=1) + b"\n")
    return path


def read(path: Path) -> Run:
    """A run that was written.

    Raises:
        msgspec.ValidationError: the file is none.
    """
    return msgspec.json.decode(path.read_bytes(), type=Run)
