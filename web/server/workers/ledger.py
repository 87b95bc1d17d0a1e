"""What the children of a parent have counted: as they told it last, and of those that ended, what stays. Pure."""

from __future__ import annotations

import logging
from dataclasses import replace

import msgspec

from storage.records import StoreStatistics
from web.server.seen import NO_PROCESSES, Seen, left_by, seen_of, store_statistics_of, together

logger = logging.getLogger("avicenna.server")


class Ledger:
    """The figures of one server. No counter of `together` goes down while the parent lives."""

    def __init__(self) -> None:
        """Nobody has told anything."""
        self._told: dict[object, Seen] = {}
        """By worker, in the order in which they began to tell."""
        self._left: Seen | None = None
        """What workers that ended have counted."""
        self._store: StoreStatistics | None = None
        """What the process of the store told last; that of one that ended, until the next one tells."""
        self._store_left: StoreStatistics | None = None
        self._storing: object = None
        """The process that told `_store`."""
        self._restarted = dict(NO_PROCESSES)

    def worker_told(self, worker: object, figures: bytes) -> None:
        """A worker has told what it sees."""
        try:
            self._told[worker] = seen_of(figures)
        except msgspec.DecodeError as error:
            logger.error("a process told figures that cannot be read: %s", error)

    def store_told(self, process: object, figures: bytes) -> None:
        """The process of the store has told what it has done."""
        try:
            told = store_statistics_of(figures)
        except msgspec.DecodeError as error:
            logger.error("a process told figures that cannot be read: %s", error)
            return
        if self._store is not None and self._storing is not process:
            self._store_left = self._with_left(left_by(self._store))
        self._store, self._storing = told, process

    def worker_ended(self, worker: object) -> None:
        """It tells nothing more."""
        if (told := self._told.pop(worker, None)) is not None:
            left = left_by(told)
            self._left = left if self._left is None else together([self._left, left])

    def restarted(self, kind: str) -> None:
        """A process of this kind has ended unasked, and another one follows."""
        self._restarted[kind] += 1

    def together(self) -> Seen | None:
        """What is seen of all; `None`: no worker has told anything."""
        parts: list[Seen] = [*(() if self._left is None else (self._left,)), *self._told.values()]
        if not parts:
            return None
        seen: Seen = together(parts)
        return replace(seen, store=self._store_as(seen), restarted_processes=dict(self._restarted))

    def _store_as(self, seen: Seen) -> StoreStatistics:
        """How the store is: as it says itself, and as workers see it that do not reach it."""
        views = [one.store for one in self._told.values()] or [seen.store]
        store = seen.store if self._store is None else self._with_left(self._store)
        waiting_seconds = max(store.waiting_seconds, *(one.waiting_seconds for one in views))
        return replace(store, waiting_seconds=waiting_seconds)

    def _with_left(self, store: StoreStatistics) -> StoreStatistics:
        return store if self._store_left is None else together([self._store_left, store])
