"""`python -m tests.differential`: many mutations of the written cases against a server with and one without the short
way."""

from __future__ import annotations

import argparse
import sys
import time

import trio

from tests.differential.conversation import Steps
from tests.differential.hunt import differences_alone, hunt, seed_of_now
from tests.differential.mutations import mutation
from tests.differential.pair import without_the_short_way


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.differential", description=__doc__)
    parser.add_argument("--mutations", type=int, default=1000, help="how many (1000)")
    parser.add_argument("--seed", type=int, default=None, help="what they are made from (another each time)")
    parser.add_argument("--first", type=int, default=0, help="the number of the first one (0)")
    parser.add_argument("--only", type=int, default=None, help="this one alone")
    options = parser.parse_args()
    seed = seed_of_now() if options.seed is None else options.seed
    if options.only is not None:
        return _replay(mutation(seed, options.only))
    began = time.monotonic()
    numbers = range(options.first, options.first + options.mutations)
    count, found = trio.run(lambda: hunt(seed, numbers))
    seconds = time.monotonic() - began
    _say(f"seed {seed}: {count} mutations in {seconds:.0f} s, {'one differs' if found else 'none differs'}")
    if found:
        _say(str(found))
    return 1 if found else 0


def _replay(steps: Steps) -> int:
    for step in steps:
        _say(repr(step))
    differences = trio.run(lambda: differences_alone(steps, without_the_short_way))
    for difference in differences:
        _say(str(difference))
    return 1 if differences else 0


def _say(line: str) -> None:
    print(line, flush=True)  # noqa: T201 - a command


if __name__ == "__main__":
    sys.exit(main())
