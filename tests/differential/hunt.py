"""Hold mutations against both servers, and make what differs as short as it gets."""

from __future__ import annotations

import tempfile
import time
from collections.abc import AsyncIterator, Iterable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Final

from tests.differential.conversation import Steps
from tests.differential.mutations import mutation, shorter
from tests.differential.pair import Difference, Pair, Way, running_pair, without_the_short_way
from tests.differential.people import TOKENS
from tests.differential.tables import TABLES

LOOK_EVERY: Final = 50
"""Mutations between two looks at the databases."""

SHORTER_TRIES_MAX: Final = 200
"""Attempts to make a conversation shorter."""


@dataclass(frozen=True)
class Found:
    """A mutation that the servers answer differently."""

    seed: int
    number: int
    steps: Steps
    differences: list[Difference]

    def __str__(self) -> str:
        shown = ", ".join(repr(step) for step in self.steps)
        for name, token in TOKENS.items():
            shown = shown.replace(token, name)
        return "\n".join(
            (
                f"mutation {self.number} of seed {self.seed} differs; to see it again:",
                f"  python -m tests.differential --seed {self.seed} --only {self.number}",
                f"  as short as it gets: ({shown},)",
                *map(str, self.differences),
            )
        )


async def hunt(
    seed: int, numbers: Iterable[int], *, otherwise: Way = without_the_short_way
) -> tuple[int, Found | None]:
    """Hold the mutations of these numbers against two servers until something differs.

    Returns: how many were held, and what was found.
    """
    held: list[int] = []
    found: list[Difference] = []
    async with _new_pair(otherwise) as pair:
        for number in numbers:
            held.append(number)
            found += await pair.differences_of(f"mutation {number}", mutation(seed, number))
            if not found and len(held) % LOOK_EVERY == 0:
                found += await pair.differences_stored(f"mutations {held[-LOOK_EVERY]} to {number}")
            if found:
                break
        if not found:
            found += await pair.differences_stored("the last ones") + await pair.differences_shown("all")
    if not found:
        return len(held), None
    return len(held), await _shortest(Found(seed, held[-1], mutation(seed, held[-1]), found), otherwise)


async def differences_alone(steps: Steps, otherwise: Way) -> list[Difference]:
    """What differs where two new servers hear nothing but this."""
    async with _new_pair(otherwise) as pair:
        return await _differences(pair, steps)


async def _differences(pair: Pair, steps: Steps) -> list[Difference]:
    return await pair.differences_of("alone", steps) + await pair.differences_stored("alone")


@asynccontextmanager
async def _new_pair(otherwise: Way) -> AsyncIterator[Pair]:
    with tempfile.TemporaryDirectory() as directory:
        async with running_pair(Path(directory), TABLES["plain"].settings, otherwise) as pair:
            yield pair


async def _shortest(found: Found, otherwise: Way) -> Found:
    """The same fault with less around it, as far as it shows in two new servers."""
    if not await differences_alone(found.steps, otherwise):
        return found  # it takes what came before
    tries = 0
    while True:
        # Servers that have answered differently once are not compared again.
        async with _new_pair(otherwise) as pair:
            for steps in shorter(found.steps):
                tries += 1
                if differences := await _differences(pair, steps):
                    found = replace(found, steps=steps, differences=differences)
                    break
                if tries >= SHORTER_TRIES_MAX:
                    return found
            else:
                return found


def seed_of_now() -> int:
    """A seed that is another each time."""
    return time.time_ns() % 1_000_000_000
