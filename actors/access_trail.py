"""Who followed which diagnosis when, on its way to the store: a row when a connection is attached, one when it leaves.

Kept here for at most a second and stored together, like cursors. A crash of the process loses the rows of that second.
"""

from __future__ import annotations

import logging
from collections import deque
from dataclasses import replace
from typing import Final, Literal

import trio

from actors.roster import Subscriber
from storage.clock import Clock
from storage.errors import Busy, Failed
from storage.records import NewAccessRow, SubscriberId
from storage.store import Store

LINGER_SECONDS: Final = 1.0
"""Longest time a row waits for company before it is stored."""

ROWS_MAX: Final = 256
"""Rows stored in one operation. Reason: they share a transaction with events. Beyond: the next one."""

WAITING_MAX: Final = 100_000
"""Rows that wait while the store takes none. Beyond: the oldest is lost, and the log says so."""

RETRY_SECONDS: Final = 1.0
"""Wait after a refused write (disk full, queue full) before the next try."""

logger = logging.getLogger("avicenna.actors")


class AccessTrail:
    """Stores rows of the access trail. One per server."""

    def __init__(self, store: Store, clock: Clock) -> None:
        self._store = store
        self._clock = clock
        self._waiting: deque[NewAccessRow] = deque(maxlen=WAITING_MAX)
        self._lost = 0
        self._marked = trio.Event()
        self._hurry = trio.Event()
        self._emptied = trio.Event()
        self._emptied.set()

    def note(self, what: Literal["connect", "disconnect"], diagnosis_id: str, subscriber: Subscriber) -> None:
        """Have a row stored soon; never waits."""
        self._lost += len(self._waiting) == WAITING_MAX
        self._waiting.append(NewAccessRow(self._clock.wall(), what, diagnosis_id, subscriber.id))
        if self._emptied.is_set():
            self._emptied = trio.Event()
        self._marked.set()

    def rename(self, sub: str, stand_in: str) -> None:
        """A user is erased: in the rows that wait, `stand_in` takes the place of its name, as in those stored."""
        nobody = SubscriberId(stand_in, None)
        self._waiting = deque(
            (replace(row, subscriber=nobody) if row.subscriber.sub == sub else row for row in self._waiting),
            maxlen=WAITING_MAX,
        )

    async def flush(self) -> None:
        """Wait until every row noted so far is stored."""
        self._hurry.set()
        await self._emptied.wait()

    async def run(self) -> None:
        """Store rows until cancelled.

        Cancellation: rows that were not stored are lost; `flush` first.
        """
        if self._waiting:
            self._marked.set()  # an earlier run has crashed, and left them
        while True:
            await self._marked.wait()
            with trio.move_on_after(LINGER_SECONDS):
                await self._hurry.wait()
            self._marked, self._hurry = trio.Event(), trio.Event()
            while self._waiting:
                await self._store_some()
            self._emptied.set()

    async def _store_some(self) -> None:
        rows = list(self._waiting)[:ROWS_MAX]
        lost_before = self._lost
        try:
            await self._store.record_accesses(rows)
        except (Busy, Failed) as refusal:
            logger.warning("%d rows of the access trail not stored, trying again: %s", len(self._waiting), refusal)
            await trio.sleep(RETRY_SECONDS)
            return
        # What was lost meanwhile was the oldest, and stands at the beginning of `rows`.
        for _ in range(len(rows) - min(len(rows), self._lost - lost_before)):
            self._waiting.popleft()
        if self._lost:
            logger.error("%d rows of the access trail were lost while the store took none", self._lost)
            self._lost = 0
