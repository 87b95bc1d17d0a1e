"""`make simulate SEEDS=0-999`: plays histories, each with the server of this tree; says which seed fails, and how.

A seed that fails is shown with the shortest history that fails likewise, and the command that plays it again.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from itertools import islice
from typing import Final

from tests.simulation.history import History, drawn, plain
from tests.simulation.nodes import drawn_for_nodes
from tests.simulation.play import Played, play, shortest
from tests.simulation.rare import RARE, RARE_ON_NATS, RARE_WITH_NODES, SEEDS_ENOUGH, too_weak

TRACE_LINES: int = 40

SEEDS_MAX: Final = 1_000_000
"""Seeds of one command. Reason: their list lies in memory, and they take hours. Beyond: refused."""

_SEEDS: Final = re.compile(r"(?P<first>[0-9]{1,18})(-(?P<last>[0-9]{1,18}))?")


def report(history: History, played: Played) -> str:
    """What there is to know about a history that fails."""
    seed, options = history.seed, ""
    if history.nodes > 1:
        options = " ARGS='--nodes --engine nats'" if history.engine == "nats" else " ARGS=--nodes"
    elif history != drawn(seed):
        options = " ARGS=--plain"
    history = shortest(history)
    again = play(history)
    shown = again if again.violation is not None else played
    lines = [f"seed {seed} fails: {played.violation!r}", f"shortest history ({len(history.operations)} operations):"]
    lines += [f"  {one.pause:g} s, then {one.kind}" for one in history.operations]
    lines += [f"which fails: {shown.violation!r}", *shown.trace[-TRACE_LINES:]]
    if shown.violation is not None and not isinstance(shown.violation, AssertionError):
        lines += traceback.format_exception(shown.violation)
    return "\n".join((*lines, f"again: make simulate SEEDS={seed}{options}"))


def seeds_of(text: str) -> list[int]:
    """`7`, `0-99` or `3,8,20-30`.

    Raises:
        argparse.ArgumentTypeError: it names no seeds, or too many.
    """
    found: dict[int, None] = {}
    for part in text.split(","):
        if (one := _SEEDS.fullmatch(part)) is None:
            raise argparse.ArgumentTypeError(f"{text!r} must be numbers and ranges, as in 7, 0-99 or 3,8,20-30")
        first, last = int(one["first"]), int(one["last"] or one["first"])
        if last < first:
            raise argparse.ArgumentTypeError(f"the range {part} ends before it begins")
        if len(found) + last - first >= SEEDS_MAX:
            raise argparse.ArgumentTypeError(f"at most {SEEDS_MAX} seeds can be played at once")
        found |= dict.fromkeys(range(first, last + 1))
    return list(found)


def processes_of(text: str) -> int:
    """How many play.

    Raises:
        argparse.ArgumentTypeError: it is no number from 1 on.
    """
    if not text.isdecimal() or not int(text):
        raise argparse.ArgumentTypeError(f"{text!r} must be a number from 1 on")
    return int(text)


def main() -> int:
    """Play the histories that the command line names; 1: one of them fails, or they are too weak."""
    parser = argparse.ArgumentParser(prog="make simulate")
    parser.add_argument("seeds", type=seeds_of)
    parser.add_argument("--processes", type=processes_of, default=1)
    parser.add_argument("--nodes", action="store_true", help="histories of several servers on one engine")
    parser.add_argument("--engine", choices=("memory", "nats"), default="memory", help="which one, with --nodes")
    parser.add_argument("--plain", action="store_true", help="without the rare things that are put into a history")
    parser.add_argument("--trace", action="store_true", help="show the trace of each history")
    parser.add_argument("--first", action="store_true", help="end with the first seed that fails, as it is")
    given = parser.parse_args()
    if given.engine == "nats" and not given.nodes:
        parser.error("--engine nats is for histories of several servers: add --nodes")
    if given.plain and given.nodes:
        parser.error("--plain is for histories of one server")
    draw = partial(drawn_for_nodes, engine=given.engine) if given.nodes else plain if given.plain else drawn
    play_one = partial(_play, draw)
    seen: Counter[str] = Counter()
    steps, failed, began = 0, 0, time.monotonic()
    with ProcessPoolExecutor(given.processes) as pool:
        seeds = iter(given.seeds)
        while several := list(islice(seeds, (4 if given.first else 50) * given.processes)):
            for seed, played in zip(several, pool.map(play_one, several), strict=True):
                seen, steps = seen + played.seen, steps + played.steps
                if given.trace:
                    print("\n".join(played.trace), played.digest, sep="\n")
                if played.violation is not None and given.first:
                    print(f"seed {seed} fails: {played.violation!r}", flush=True)
                    pool.shutdown(wait=False, cancel_futures=True)
                    return 1
                if played.violation is not None:
                    failed += 1
                    print(report(draw(seed), played), flush=True)
    seconds = time.monotonic() - began
    print(
        f"{len(given.seeds)} seeds, {failed} fail; {steps} operations in {seconds:.0f} s, "
        f"{steps / seconds:.0f} operations a second"
    )
    print(", ".join(f"{what}: {times}" for what, times in sorted(seen.items())))
    rare = RARE if not given.nodes else RARE_WITH_NODES if given.engine == "memory" else RARE_ON_NATS
    is_judged = not failed and not given.plain and len(given.seeds) >= SEEDS_ENOUGH
    if is_judged and (missing := too_weak(seen, rare)):
        print(f"too weak: {', '.join(missing)} never happened")
        return 1
    return int(failed > 0)


def _play(draw: Callable[[int], History], seed: int) -> Played:
    return play(draw(seed))


if __name__ == "__main__":
    sys.exit(main())
