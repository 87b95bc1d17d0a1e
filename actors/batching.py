"""Storing what changes often, soon and together: the waiting that acknowledgements and the access trail share.

What is marked waits for company, a second at most, and is then stored in batches, one after the other. Whoever cannot
wait hurries it. What the store refuses for now is tried again.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Final, Generic, TypeVar

import trio

from storage.errors import Busy, Failed

LINGER_SECONDS: Final = 1.0
"""Longest time that something waits for company before it is stored."""

BATCH_MAX: Final = 256
"""Cursors, or rows, stored in one operation. Reason: they share a transaction with events. Beyond: the next one."""

RETRY_SECONDS: Final = 1.0
"""Wait after a refused write (disk full, queue full) before the next try."""

logger = logging.getLogger("avicenna.actors")

Item = TypeVar("Item")


class Batching(Generic[Item]):
    """Has its owner store, batch by batch, what waits there."""

    def __init__(
        self,
        what: str,
        next_batch: Callable[[], Sequence[Item]],
        store: Callable[[Sequence[Item]], Awaitable[None]],
    ) -> None:
        """Nothing is stored before `run`.

        Args:
            what: is stored, in the plural, for the log.
            next_batch: what is to be stored next, at most `BATCH_MAX`; empty: nothing, for now.
            store: stores a batch. If it raises, what it was given waits again, or is not worth it.
        """
        self._what = what
        self._next_batch = next_batch
        self._store = store
        self._marked = trio.Event()
        self._hurried = trio.Event()
        self._batch_over = trio.Event()

    def mark(self, *, hurry: bool = False) -> None:
        """Something waits: have it stored soon, or as soon as possible."""
        self._marked.set()
        if hurry:
            self._hurried.set()

    async def flush(self, is_waiting: Callable[[], bool]) -> None:
        """Wait until nothing waits any more of what `is_waiting` looks at."""
        while is_waiting():
            self.mark(hurry=True)
            await self._batch_over.wait()

    def look_again(self) -> None:
        """Less waits, if only because it was given up: have whoever flushes look again."""
        self._batch_over.set()
        self._batch_over = trio.Event()

    async def run(self) -> None:
        """Store until cancelled.

        Cancellation: what was not stored is lost; `flush` first.
        """
        self.mark()  # an earlier run may have crashed, and left something
        while True:
            await self._marked.wait()
            with trio.move_on_after(LINGER_SECONDS):
                await self._hurried.wait()
            self._marked, self._hurried = trio.Event(), trio.Event()
            while batch := self._next_batch():
                await self._store_one(batch)

    async def _store_one(self, batch: Sequence[Item]) -> None:
        try:
            await self._store(batch)
        except (Busy, Failed) as refusal:
            logger.warning("%d %s not stored, trying again: %s", len(batch), self._what, refusal)
            await trio.sleep(RETRY_SECONDS)
        finally:
            self.look_again()
