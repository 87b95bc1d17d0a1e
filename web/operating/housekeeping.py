"""The task that drops old data: events, rows of both trails, keys, and subscribers that never came back.

The operator decides how long events and rows stay; the store decides what time it is.
"""

from __future__ import annotations

import logging
from typing import Final, Protocol

import trio

from actors.registry import Registry
from actors.roster import UNSEEN_SECONDS_MAX
from storage.clock import Clock
from storage.errors import Busy, Failed
from storage.records import DAY_SECONDS
from storage.store import StoreUpkeep

INTERVAL_SECONDS: Final = 60.0
"""Between two rounds: nothing is kept longer than it may be, plus this."""

logger = logging.getLogger("avicenna.server")


class Kept(Protocol):
    """The settings that say how long something stays (docs/SETTINGS.md); `None`: for ever."""

    @property
    def events_kept_days(self) -> float | None: ...

    @property
    def audit_kept_days(self) -> float | None: ...

    @property
    def access_trail_kept_days(self) -> float | None: ...


class Housekeeper:
    """Drops old data in rounds of bounded steps. One per server."""

    def __init__(self, kept: Kept, store: StoreUpkeep, registry: Registry, clock: Clock) -> None:
        self._store = store
        self._registry = registry
        self._clock = clock
        self._events_days = kept.events_kept_days
        self._audit_days = kept.audit_kept_days
        self._accesses_days = kept.access_trail_kept_days
        self._unseen_forgotten_at: float | None = None
        """When unseen subscribers were last forgotten, on the monotonic clock; `None`: it is due."""

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
        audit, accesses = _seconds(self._audit_days), _seconds(self._accesses_days)
        while await self._store.expire(audit_seconds=audit, accesses_seconds=accesses):
            pass
        events = _seconds(self._events_days)
        if events is not None:
            await self._evict(events)
        await self._forget_unseen()

    async def _evict(self, seconds: float) -> None:
        after: str | None = ""
        while after is not None:
            after = (await self._store.evict(seconds, after=after)).next

    async def _forget_unseen(self) -> None:
        """Once a day, and first after the clock is believed again: a connected subscriber counts as seen until then."""
        if self._store.clock_held_since is not None:
            self._unseen_forgotten_at = None
            return
        now = self._clock.monotonic()
        if self._unseen_forgotten_at is not None and now < self._unseen_forgotten_at + DAY_SECONDS:
            return
        in_memory = await self._registry.forget_unseen()
        after: str | None = ""
        while after is not None:
            after = (await self._store.forget_unseen(UNSEEN_SECONDS_MAX, spared=in_memory, after=after)).next
        self._unseen_forgotten_at = now


def _seconds(days: float | None) -> float | None:
    return None if days is None else days * DAY_SECONDS
