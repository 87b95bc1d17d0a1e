"""Mutations of the written cases are answered alike, whichever way they go: a few hundred here, more by `make fuzz`."""

from __future__ import annotations

import itertools
import os
import time
from collections.abc import Iterator

from tests.differential.hunt import hunt, seed_of_now

MUTATIONS = 300
SECONDS_MAX = 10.0
"""For them, on a machine that is busy."""


def numbers() -> Iterator[int]:
    """As many as there are to be, for as long as they may take."""
    fuzz_seconds = os.environ.get("FUZZ_SECONDS")
    until = time.monotonic() + (SECONDS_MAX if fuzz_seconds is None else float(fuzz_seconds))
    count = itertools.count() if fuzz_seconds is not None else range(MUTATIONS)
    return itertools.takewhile(lambda number: time.monotonic() < until, count)


async def test_mutations_are_answered_alike() -> None:
    seed = int(os.environ.get("FUZZ_SEED", seed_of_now()))
    held, found = await hunt(seed, numbers())
    assert found is None, str(found)
    assert held
