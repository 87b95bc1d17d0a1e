"""The task that lets go of what is old: events, rows of both trails, keys. The operator says how long they stay."""

from __future__ import annotations

import logging
from typing import Final

import trio

from actors.registry import Registry
from storage.clock import Clock
from storage.errors import Busy, Failed
from storage.store import Store
from web.settings import DAY_SECONDS, Settings

INTERVAL_SECONDS: Final = 60.0
"""Between two rounds: nothing is kept longer than it may be, plus this."""

logger = logging.getLogger("avicenna.server")


class Housekeeper:
    """Lets go, a bounded step of a round at a time. One per server."""

    def __init__(self, settings: Settings, store: Store, registry: Registry, clock: Clock) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock
        self._events_days = settings.events_kept_days
        self._audit_days = settings.audit_kept_days
        self._accesses_days = settings.access_trail_kept_days

    async def run(self) -> None:
        """Tidy up every `INTERVAL_SECONDS` until cancelled."""
        while True:
            try:
                await self.tidy()
            except (Busy, Failed) as refusal:
                logger.warning("old rows were not dropped, trying again in %.0f s: %s", INTERVAL_SECONDS, refusal)
            await trio.sleep(INTERVAL_SECONDS)

    async def tidy(self) -> None:
        """One round: everything that is too old now goes.

        Raises:
            Busy, Failed: the store refused; the next round continues.
        """
        audit_before, accesses_before = self._since(self._audit_days), self._since(self._accesses_days)
        while await self._store.expire(audit_before=audit_before, accesses_before=accesses_before):
            pass
        events_before = self._since(self._events_days)
        if events_before is not None:
            await self._evict(events_before)

    async def _evict(self, before: float) -> None:
        after: str | None = ""
        while after is not None:
            evicted = await self._store.evict_before(before, after=after)
            for diagnosis_id, window in evicted.windows.items():
                self._registry.evicted(diagnosis_id, window)
            after = evicted.next

    def _since(self, days: float | None) -> float | None:
        """What is older than this goes; `None`: nothing."""
        return None if days is None else self._clock.wall() - days * DAY_SECONDS
