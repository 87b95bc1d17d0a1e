"""Events in memory have a budget: diagnoses that nobody follows leave first, the longest unused before all others."""

from __future__ import annotations

import trio
import trio.testing
from trio.testing import MockClock

from actors.messages import Inspect
from actors.supervisor import ActorState, Limits
from storage.records import NewEvent, Window
from tests.actors.world import Reader, World, world

BODY = b"x" * 10_000
NAMES = [f"d{number}" for number in range(10)]


async def load(there: World, name: str) -> Window:
    """Have a diagnosis in memory, as used now."""
    await trio.sleep(1)
    return await there.registry.ask(name, Inspect())


async def test_the_longest_unused_leave_until_the_rest_fits(autojump_clock: MockClock) -> None:
    limits = Limits(ring_bytes_max=5 * 10_100, passivate_after_seconds=1e6)
    async with world(limits, diagnoses=NAMES) as there:
        for name in NAMES:
            await there.store.inner.append_nowait(name, [NewEvent("k", BODY)]).wait()
        reader = Reader()
        await there.connect(reader, diagnosis_id=NAMES[0])
        for name in NAMES[1:]:
            await load(there, name)
        await load(there, NAMES[1])
        there.actors_nursery.start_soon(there.registry.keep_rings_small)
        await trio.sleep(2)
        running = [name for name in NAMES if there.actor(name).state is ActorState.RUNNING]
        assert running == [NAMES[0], NAMES[1], *NAMES[7:]]
        assert there.registry.ring_bytes(followed_only=False) <= limits.ring_bytes_max
        assert reader.ending is None
        assert (await there.publish(BODY, NAMES[2])).seq == 2
        there.actors_nursery.cancel_scope.cancel()


async def test_what_is_read_at_once_does_not_wait_for_the_next_look(autojump_clock: MockClock) -> None:
    limits = Limits(ring_bytes_max=2 * 10_100, passivate_after_seconds=1e6)
    async with world(limits, diagnoses=NAMES) as there:
        for name in NAMES:
            await there.store.inner.append_nowait(name, [NewEvent("k", BODY)]).wait()
        there.actors_nursery.start_soon(there.registry.keep_rings_small)
        began_at = trio.current_time()
        for name in NAMES:
            await there.registry.ask(name, Inspect())
            await trio.testing.wait_all_tasks_blocked()
            assert there.registry.ring_bytes(followed_only=False) <= limits.ring_bytes_max
        assert trio.current_time() == began_at
        there.actors_nursery.cancel_scope.cancel()


async def test_those_that_are_followed_stay_even_beyond_the_budget(autojump_clock: MockClock) -> None:
    async with world(Limits(ring_bytes_max=1), diagnoses=NAMES) as there:
        for name in NAMES:
            await there.connect(Reader(), diagnosis_id=name)
            await there.publish(BODY, name)
        there.actors_nursery.start_soon(there.registry.keep_rings_small)
        await trio.sleep(3)
        assert all(there.actor(name).state is ActorState.RUNNING for name in NAMES)
        assert there.registry.ring_bytes(followed_only=True) > there.registry.ring_bytes_max
        there.actors_nursery.cancel_scope.cancel()


async def test_what_a_ring_lets_go_of_counts_no_more(autojump_clock: MockClock) -> None:
    async with world() as there:
        for number in range(250):
            await there.publish(b"y" * (number + 1))
        held = there.registry._cells["d"].roster.ring
        assert held is not None
        frames = [frame for _, frame in held.frames_after(held.floor, 1000)]
        assert there.registry.ring_bytes(followed_only=False) == sum(map(len, frames))
