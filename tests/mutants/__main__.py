"""`make mutants`: plants bugs into a copy of the tree, one at a time, and says which of them nobody notices.

A bug is caught by the tests that its entry in `planted.py` names, or, where it names none, by the histories of
`tests/simulation`, within the seeds that every run of the tests plays.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from tests.mutants.planted import PLANTED, Planted
from tests.programs import ROOT
from tests.simulation.test_histories import BUDGET, NODES_BUDGET

COPIED = ("actors", "storage", "web", "tests", "docs")
SECONDS_MAX = 600.0
LINES_SHOWN = 40
SEEDS_WITHOUT_BUG = 4
"""Histories that are played without any bug first. All of the budget are played by every run of the tests."""

NATS_MUTANTS_BUDGET = 30
"""Seeds on NATS: more than every run of the tests plays, as these take longest."""


def main() -> int:
    """Plant the bugs whose names hold the words that the command line gives; 1: one was not caught."""
    parser = argparse.ArgumentParser(prog="make mutants")
    parser.add_argument("words", nargs="*", help="plant those whose description holds one of these; none: all")
    given = parser.parse_args()
    chosen = [one for one in PLANTED if not given.words or any(word in one.what for word in given.words)]
    if not chosen:
        parser.error(f"no description of a bug holds {' or '.join(given.words)}")
    with copied() as place:
        for test in sorted({test for one in chosen for test in one.tests}):
            if (without_bug := _tests(place, (test,))).returncode:
                shown = "\n".join(without_bug.stdout.splitlines()[-LINES_SHOWN:])
                raise SystemExit(f"{shown}\n{test} fails in a copy without any bug: nothing that it notices counts")
        for one in {(one.nodes, one.nats): one for one in chosen if not one.tests}.values():
            if _histories(place, one, SEEDS_WITHOUT_BUG).returncode:
                raise SystemExit("histories fail in a copy without any bug: nothing that they notice counts")
    missed = []
    for one in chosen:
        began = time.monotonic()
        by = caught_by(one)
        print(f"{by or 'NOT CAUGHT':40} {time.monotonic() - began:4.0f} s  {one.what}", flush=True)
        if by is None:
            missed.append(one)
    print(f"{len(chosen)} planted, {len(missed)} not caught")
    return int(bool(missed))


def caught_by(one: Planted) -> str | None:
    """What notices a bug: a seed, or tests; `None`: nothing does."""
    with copied() as place:
        plant(one, place)
        if one.tests:
            return "tests" if _tests(place, one.tests).returncode else None
        by_seed = _histories(place, one)
        if by_seed.returncode:
            found = [line for line in by_seed.stdout.splitlines() if line.startswith(("seed ", "too weak"))]
            return " ".join(found[0].split()[:2]) if found else "the simulation, which fails"
    return None


@contextmanager
def copied() -> Iterator[Path]:
    """A copy of the tree."""
    with tempfile.TemporaryDirectory(prefix="mutant-") as made:
        place = Path(made)
        for name in COPIED:
            shutil.copytree(ROOT / name, place / name, ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copy(ROOT / "pyproject.toml", place)
        yield place


def plant(one: Planted, place: Path) -> None:
    """Change the copy."""
    file = place / one.file
    source = file.read_text()
    if source.count(one.right) != 1:
        raise SystemExit(f"{one.what}: {one.file} does not hold the text once, mend tests/mutants/planted.py")
    file.write_text(source.replace(one.right, one.wrong))


def _histories(place: Path, one: Planted, seeds_max: int | None = None) -> subprocess.CompletedProcess[str]:
    """Play the first histories that should notice a bug with the server of the copy, until one fails."""
    budget, options = BUDGET, list[str]()
    if one.nodes:
        budget, options = NODES_BUDGET, ["--nodes"]
    elif one.nats:
        budget, options = NATS_MUTANTS_BUDGET, ["--nodes", "--engine", "nats"]
    seeds = min(budget, seeds_max or budget)
    return _run(place, "-m", "tests.simulation", f"0-{seeds - 1}", "--first", *options)


def _tests(place: Path, tests: Sequence[str]) -> subprocess.CompletedProcess[str]:
    return _run(place, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", *tests)


def _run(place: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    # Where `make nats-server` puts it: the copy has no .venv.
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "PYTHONPATH": str(place), "PYTHONDONTWRITEBYTECODE": "1"}
    return subprocess.run(
        [sys.executable, *arguments],
        cwd=place,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        timeout=SECONDS_MAX,
    )


if __name__ == "__main__":
    sys.exit(main())
