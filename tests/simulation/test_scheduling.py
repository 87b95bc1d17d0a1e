"""What the simulation uses of Trio that Trio keeps to itself: another version may have changed it."""

from __future__ import annotations

import inspect
from random import Random

import trio
from trio._core import _run

from tests.simulation import scheduling


def test_trio_has_the_switch_and_the_generator() -> None:
    assert isinstance(_run._ALLOW_DETERMINISTIC_SCHEDULING, bool)
    assert isinstance(_run._r, Random)
    source = inspect.getsource(_run.unrolled_run)
    assert "batch.sort(key=lambda t: t._counter)" in source
    assert "_r.shuffle(batch)" in source


def order(seed: int) -> list[int]:
    found: list[int] = []

    async def note(number: int) -> None:
        await trio.sleep(1)
        found.append(number)

    async def main() -> None:
        async with trio.open_nursery() as nursery:
            for number in range(8):
                nursery.start_soon(note, number)

    scheduling.run(seed, main)
    return found


def test_a_seed_decides_the_order_of_tasks_and_nothing_of_it_stays() -> None:
    before = _run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r
    assert order(1) == order(1)
    assert len({tuple(order(seed)) for seed in range(20)}) > 5
    assert (_run._ALLOW_DETERMINISTIC_SCHEDULING, _run._r) == before
