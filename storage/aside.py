"""Work that may wait for the disk while the event loop goes on. A simulation, which has no thread, hands in its own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeVar

import trio

Answer = TypeVar("Answer")


class Aside(Protocol):
    """Carries out a function beside the event loop."""

    async def __call__(self, function: Callable[[], Answer], /) -> Answer:
        """What the function returns; raises what it raises.

        Cancellation: stops waiting; the function goes on.
        """


async def on_a_thread(function: Callable[[], Answer], /) -> Answer:
    """`Aside`, on a thread of its own."""
    return await trio.to_thread.run_sync(function, abandon_on_cancel=True)
