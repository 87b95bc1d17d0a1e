"""A server that is cut off from the others and from the engine lets its clients go: another one may serve them.

While the engine is away, connections stay, and whoever follows waits in silence. If all servers wait, nothing better is
to be had. But a server that hears neither the engine nor any other server may be the only one.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import Final

import trio

from actors.registry import Registry
from actors.roster import Subscriber
from actors.transport import Ending
from storage.bus import Bus
from storage.clock import Clock
from storage.store import StoreUpkeep
from web.operating.consequences import Connections

SPREAD_SECONDS: Final = 30
"""Within which clients are let go. Reason: so that they do not all come to the others at once."""

LOOK_SECONDS: Final = 1.0
"""Between two looks at whether this server is cut off, and between two shares of clients that are let go."""

logger = logging.getLogger("avicenna.server")


class Isolation:
    """Looks whether this server is cut off. One per server."""

    def __init__(
        self,
        store: StoreUpkeep,
        bus: Bus,
        registry: Registry,
        others: Sequence[Connections],
        clock: Clock,
        jitter: Callable[[], float],
        isolated_seconds: float,
    ) -> None:
        """Let the clients of this registry and of the others go after so many seconds; 0: never."""
        self._store = store
        self._bus = bus
        self._registry = registry
        self._others = others
        self._clock = clock
        self._jitter = jitter
        self._seconds = isolated_seconds
        self._heard_at: float | None = None
        """When another server was there last; `None`: this one is alone, and has nobody to let clients go to."""

    async def run(self) -> None:
        """Look until cancelled."""
        while True:
            if self._is_isolated():
                logger.warning("neither the engine nor another server is heard: letting clients go")
                await self._let_go()
            await trio.sleep(LOOK_SECONDS)

    def _is_isolated(self) -> bool:
        now, since = self._clock.monotonic(), self._store.statistics().away_since
        if self._bus.others():
            self._heard_at = now
        elif since is None:
            self._heard_at = None
        if since is None or self._heard_at is None or not self._seconds:
            return False
        return now - max(since, self._heard_at) >= self._seconds

    async def _let_go(self) -> None:
        for left in range(SPREAD_SECONDS, 0, -1):
            share = _Drawn(self._jitter, 1 / left)
            await self._registry.end_everywhere(share, Ending.STOPPING)
            for connections in self._others:
                await connections.end_where(lambda _: share.is_drawn(), Ending.STOPPING)  # noqa: B023 - at once
            await trio.sleep(LOOK_SECONDS)
            if not self._is_isolated():
                return


class _Drawn:
    """Some connections, by lot."""

    def __init__(self, jitter: Callable[[], float], share: float) -> None:
        self._jitter = jitter
        self._share = share

    def is_drawn(self) -> bool:
        return self._jitter() < self._share

    def picks(self, subscriber: Subscriber) -> bool:
        return self.is_drawn()
