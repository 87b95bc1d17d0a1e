"""Hold mutations against both servers, and make what differs as short as it gets."""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import AsyncIterator, Iterable, Iterator
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

LOOK_BACK: Final = 200
"""Mutations that are held again before one whose difference is not seen alone."""

SHORTER_TRIES_MAX: Final = 200
"""Attempts to make a conversation shorter."""

logger = logging.getLogger(__name__)


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

    What differs and does not differ again, neither alone nor behind the mutations before it, was the machine's doing: a
    commit that took longer than usual lets a server see two packets together. It is logged, and the hunt goes on.

    Returns: how many were held, and what was found.
    """
    rest, count = iter(numbers), 0
    while True:
        held, found = await _held(seed, rest, otherwise)
        count += len(held)
        if not found:
            return count, None
        again = Found(seed, held[-1], mutation(seed, held[-1]), found)
        if await differences_alone(again.steps, otherwise):
            return count, await _shortest(again, otherwise)
        if (await _held(seed, iter(held[-LOOK_BACK:]), otherwise))[1]:
            return count, again
        logger.warning("not seen again: %s", again)


async def _held(seed: int, numbers: Iterator[int], otherwise: Way) -> tuple[list[int], list[Difference]]:
    """The mutations that were held against two new servers, and what differed in the last one."""
    held: list[int] = []
    async with _new_pair(otherwise) as pair:
        for number in numbers:
            held.append(number)
            found = await pair.differences_of(f"mutation {number}", mutation(seed, number))
            if not found and len(held) % LOOK_EVERY == 0:
                found = await pair.differences_stored(f"mutations {held[-LOOK_EVERY]} to {number}")
            if found:
                return held, found
        return held, await pair.differences_stored("the last ones") + await pair.differences_shown("all")


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
