"""Who followed which diagnosis when, on its way to the store: a row when a connection is attached, one when it leaves.

Kept here for at most a second and stored together, like cursors. A crash of the process loses the rows of that second.
"""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Sequence
from dataclasses import replace
from itertools import islice
from typing import Final, Literal

from actors.batching import BATCH_MAX, Batching
from actors.roster import Subscriber, Whose
from storage.clock import Clock
from storage.records import NewAccessRow, SubscriberId
from storage.store import TrailStore

WAITING_MAX: Final = 100_000
"""Rows that wait while the store takes none. Beyond: the oldest is lost, and the log says so."""

logger = logging.getLogger("avicenna.actors")


class AccessTrail:
    """Stores rows of the access trail. One per server."""

    def __init__(self, store: TrailStore, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: deque[NewAccessRow] = deque(maxlen=WAITING_MAX)
        self._lost = 0
        self._batching = Batching("rows of the access trail", self._next_batch, self._store_batch)

    def note(self, what: Literal["connect", "disconnect"], diagnosis_id: str, subscriber: Subscriber) -> None:
        """Have a row stored soon; never waits."""
        self._lost += len(self._waiting) == WAITING_MAX
        self._waiting.append(NewAccessRow(self._clock.wall(), what, diagnosis_id, subscriber.id))
        self._batching.mark()

    def rename(self, whose: Whose, stand_in: str) -> None:
        """A user is erased: in the rows that wait, `stand_in` takes the place of its name, as in those stored."""
        nobody = SubscriberId(stand_in, None)
        self._waiting = deque(
            (replace(row, subscriber=nobody) if whose.names(row.subscriber) else row for row in self._waiting),
            maxlen=WAITING_MAX,
        )

    async def flush(self) -> None:
        """Wait until every row noted so far is stored."""
        await self._batching.flush(lambda: bool(self._waiting))

    async def run(self) -> None:
        """Store rows until cancelled.

        Cancellation: rows that were not stored are lost; `flush` first.
        """
        await self._batching.run()

    def _next_batch(self) -> Sequence[NewAccessRow]:
        return tuple(islice(self._waiting, BATCH_MAX))

    async def _store_batch(self, rows: Sequence[NewAccessRow]) -> None:
        lost_before = self._lost
        await self._store.record_accesses(rows)
        # What was lost meanwhile was the oldest, and stands at the beginning of `rows`.
        for _ in range(len(rows) - min(len(rows), self._lost - lost_before)):
            self._waiting.popleft()
        if self._lost:
            logger.error("%d rows of the access trail were lost while the store took none", self._lost)
            self._lost = 0
