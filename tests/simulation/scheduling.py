"""Runs a Trio program in which nothing is left to chance: the same seed runs the same tasks in the same order.

The only file that uses what Trio keeps to itself: the switch by which it orders the tasks that are ready by their age
before it shuffles them, and the generator that shuffles them. `test_scheduling.py` holds the versions to that.
What would run on a thread (the making of a copy) runs in its place. See docs/decisions/0150.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Iterator
from random import Random
from typing import Any, TypeVar
from unittest import mock

import trio
from trio._core import _run as trio_run
from trio.testing import MockClock

Answer = TypeVar("Answer")

_PRIVATE: Any = trio_run


@contextlib.contextmanager
def deterministic(seed: int) -> Iterator[None]:
    """Have Trio draw the order of tasks from this seed."""
    before = _PRIVATE._ALLOW_DETERMINISTIC_SCHEDULING, _PRIVATE._r
    _PRIVATE._ALLOW_DETERMINISTIC_SCHEDULING, _PRIVATE._r = True, Random(seed)
    try:
        with (
            mock.patch.object(trio.to_thread, "run_sync", _run_here),
            mock.patch.object(trio.from_thread, "check_cancelled", return_value=None),
        ):
            yield
    finally:
        _PRIVATE._ALLOW_DETERMINISTIC_SCHEDULING, _PRIVATE._r = before


async def _run_here(function: Callable[..., Answer], *args: object, **_: object) -> Answer:
    await trio.lowlevel.checkpoint()
    return function(*args)


def run(seed: int, main: Callable[[], Awaitable[Answer]]) -> Answer:
    """Run `main` with a clock that jumps to the next deadline as soon as nobody has anything to do."""
    with deterministic(seed):
        return trio.run(main, clock=MockClock(autojump_threshold=0))
