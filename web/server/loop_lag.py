"""How late the event loop wakes its tasks: what everybody waits for who is ready to run."""

from __future__ import annotations

from typing import Final

import trio

from storage.histogram import SECONDS, Distribution, Histogram

LOOK_SECONDS: Final = 0.1
"""Between two looks. Reason: each takes some 30 microseconds, and ten a second are enough for a distribution."""


class LoopLag:
    """Measures while `run` runs. One per server."""

    def __init__(self) -> None:
        self._late = Histogram(SECONDS)

    async def run(self) -> None:
        """Sleep, and see how late it was woken; until cancelled."""
        while True:
            due_at = trio.current_time() + LOOK_SECONDS
            await trio.sleep_until(due_at)
            self._late.observe(max(0.0, trio.current_time() - due_at))

    def statistics(self) -> Distribution:
        """Seconds by which it was late."""
        return self._late.distribution()
