"""Acts that are finished whether or not their requester still waits, and how long a requester waits for the disk.

A disk may take seconds, or not answer at all. Then the requester is told that the outcome is unknown, and only the wait
ends. The act goes on, and its consequences follow when the commit comes back.
"""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from typing import Any, Final, TypeVar, cast

import trio

from actors.errors import ActorError
from actors.messages import Asks
from actors.registry import Registry
from actors.upkeep import describe
from storage.errors import Failed, StorageError
from storage.pending import Pending
from storage.store import Store

ANSWER_SECONDS_MAX: Final = 120.0
"""Longest wait for an answer while the disk works. Reason: an erasure has many steps. Beyond: unknown."""

LOOK_SECONDS: Final = 0.1
"""Between two looks at whether the disk keeps somebody waiting too long."""

logger = logging.getLogger("avicenna.server")

Answer = TypeVar("Answer")


class Unanswered(Failed):
    """The disk did not answer in time."""


class _Asked:
    """Whether somebody still waits for an act."""

    __slots__ = ("is_waiting",)

    def __init__(self) -> None:
        self.is_waiting = True


class Acts:
    """Carries out what requests have begun. One per server."""

    def __init__(
        self,
        store: Store,
        registry: Registry,
        acts_nursery: trio.Nursery,
        storage_seconds_max: float,
        *,
        refusals: type[Exception],
    ) -> None:
        """Work in this nursery.

        Args:
            store: waits as long as it takes.
            storage_seconds_max: longest time somebody waits while the disk does not answer.
            refusals: what an act may raise that is an answer to whoever asked, beside the errors of actors and stores.
        """
        self.store = store
        self._registry = registry
        self._refusals = refusals
        self._acts_nursery = acts_nursery
        self._seconds_max = storage_seconds_max
        self._waiting: dict[trio.CancelScope | Pending[Any], float] = {}
        """Since when each wait lasts; the longest first. A wait ends with its scope, or with an error as its answer."""
        self._under_way = 0
        self._ended = trio.Event()

    async def carry_through(self, act: Callable[[], Awaitable[Answer]]) -> Answer:
        """Do something in a task of its own, to its end; the answer of `act`, which waits for `store` of this object.

        Raises:
            Unanswered: the disk does not answer; the act goes on.
            Exception: what `act` raises.

        Cancellation: stops waiting; the act goes on.
        """
        reply: Pending[object] = Pending()
        asked = _Asked()
        self._under_way += 1
        self._acts_nursery.start_soon(self._run, act, reply, asked)
        try:
            return cast("Answer", await self._answer_of(reply))
        finally:
            asked.is_waiting = False

    async def ask(self, diagnosis_id: str, message: Asks[Answer]) -> Answer:
        """Ask the actor of a diagnosis, with patience. Raises as `Registry.ask`, or `Unanswered`."""
        return await self._answer_of(self._registry.put(diagnosis_id, message))

    async def _answer_of(self, reply: Pending[Answer]) -> Answer:
        """Wait as within `patience`, for an answer that nobody else waits for. Reason: a scope costs 10 us."""
        self._waiting[reply] = trio.current_time()
        try:
            return await reply.wait()
        finally:
            del self._waiting[reply]

    @contextmanager
    def patience(self) -> Iterator[None]:
        """Bound a wait for the disk, also for the operations of others that come first. Only the wait ends.

        Raises:
            Unanswered: the disk has answered nobody for as long as one may wait; what was waited for goes on.
        """
        with trio.CancelScope() as scope:
            self._waiting[scope] = trio.current_time()
            try:
                yield
            finally:
                del self._waiting[scope]
        if scope.cancelled_caught:
            raise _unanswered()

    async def watch(self) -> None:
        """End waits that have lasted too long; until cancelled."""
        while True:
            now = trio.current_time()
            # A mailbox may be long, and this process may have been paused: only the disk's own silence counts.
            is_silent = bool(self._waiting) and self.store.statistics().waiting_seconds >= self._seconds_max
            patience = self._seconds_max if is_silent else ANSWER_SECONDS_MAX
            for wait, began_at in list(self._waiting.items()):
                if now < began_at + patience:
                    break  # those behind have waited less
                if isinstance(wait, Pending):
                    wait.refuse(_unanswered())
                else:
                    wait.cancel()
            await trio.sleep(LOOK_SECONDS)

    async def settle(self) -> None:
        """Wait until no act is under way."""
        while self._under_way:
            await self._ended.wait()

    async def _run(self, act: Callable[[], Awaitable[object]], reply: Pending[object], asked: _Asked) -> None:
        try:
            reply.answer(await act())
        except (self._refusals, ActorError, StorageError) as refusal:
            reply.refuse(refusal)
        except Exception as error:  # noqa: BLE001 - the boundary of an act: its failure is told to who asked for it
            reply.refuse(error)
            if not asked.is_waiting:
                logger.error("an act failed unexpectedly, and nobody waited for it: %s", describe(error))
        except trio.Cancelled:
            reply.refuse(Failed("the server has stopped"))
            raise
        finally:
            self._under_way -= 1
            self._ended.set()
            self._ended = trio.Event()


def _unanswered() -> Unanswered:
    return Unanswered("the disk does not answer")
