"""The waiting that acknowledgements and the access trail share."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.batching import BATCH_MAX, LINGER_SECONDS, RETRY_SECONDS, Batching
from storage.errors import Busy


class Pile:
    """What waits to be stored, and when which of it was."""

    def __init__(self) -> None:
        self.waiting: list[int] = []
        self.stored: list[tuple[float, Sequence[int]]] = []
        self.refusals: list[Exception] = []
        self.batching = Batching("numbers", lambda: self.waiting[:BATCH_MAX], self._store)

    async def _store(self, batch: Sequence[int]) -> None:
        await trio.lowlevel.checkpoint()
        if self.refusals:
            raise self.refusals.pop()
        self.stored.append((trio.current_time(), batch))
        del self.waiting[: len(batch)]

    def is_waiting(self) -> bool:
        return bool(self.waiting)


@asynccontextmanager
async def pile_stored() -> AsyncIterator[tuple[Pile, Callable[[], float]]]:
    """A pile whose first, empty round is over, and the time since."""
    pile = Pile()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(pile.batching.run)
        await trio.sleep(2 * LINGER_SECONDS)
        began = trio.current_time()
        yield pile, lambda: trio.current_time() - began
        nursery.cancel_scope.cancel()


async def test_what_is_marked_waits_for_company_a_second_at_most(autojump_clock: MockClock) -> None:
    async with pile_stored() as (pile, passed):
        for number in (1, 2):
            pile.waiting.append(number)
            pile.batching.mark()
            await trio.sleep(LINGER_SECONDS / 4)
        await trio.sleep(LINGER_SECONDS)
        assert [batch for _, batch in pile.stored] == [[1, 2]]
        assert passed() == 1.5 * LINGER_SECONDS


async def test_who_hurries_waits_for_nobody(autojump_clock: MockClock) -> None:
    async with pile_stored() as (pile, passed):
        pile.waiting.append(1)
        pile.batching.mark()
        await wait_all_tasks_blocked()
        pile.batching.mark(hurry=True)
        await pile.batching.flush(pile.is_waiting)
        assert (passed(), len(pile.stored)) == (0, 1)


async def test_a_flush_stores_all_in_batches_and_returns_once_nothing_waits(autojump_clock: MockClock) -> None:
    async with pile_stored() as (pile, passed):
        pile.waiting.extend(range(BATCH_MAX + 1))
        await pile.batching.flush(pile.is_waiting)
        assert [len(batch) for _, batch in pile.stored] == [BATCH_MAX, 1]
        assert passed() == 0


async def test_what_is_refused_is_tried_again_after_a_while(autojump_clock: MockClock) -> None:
    async with pile_stored() as (pile, passed):
        pile.refusals.append(Busy("full"))
        pile.waiting.append(1)
        await pile.batching.flush(pile.is_waiting)
        assert [batch for _, batch in pile.stored] == [[1]]
        assert passed() == RETRY_SECONDS


async def test_a_flush_returns_when_what_it_waits_for_is_given_up(autojump_clock: MockClock) -> None:
    async with pile_stored() as (pile, _), trio.open_nursery() as nursery:
        pile.refusals.extend(Busy("full") for _ in range(100))
        pile.waiting.append(1)
        nursery.start_soon(pile.batching.flush, pile.is_waiting)
        await trio.sleep(RETRY_SECONDS / 2)
        pile.waiting.clear()
        pile.batching.look_again()
        await wait_all_tasks_blocked()
        assert not nursery.child_tasks
