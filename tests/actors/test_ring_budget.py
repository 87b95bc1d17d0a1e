"""Events in memory have a budget: diagnoses that nobody follows leave first, the longest unused before all others."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.budget import (
    LARGE_LOADS_AT_ONCE_MAX,
    LOADS_AT_ONCE_MAX,
    LOOKED_AT_ONCE_MAX,
    SMALL_OUTBOX_BYTES_MAX,
    RingBudget,
)
from actors.messages import Inspect
from actors.slot import ActorLimits, ActorState
from storage.errors import Failed
from storage.records import Event, NewEvent, Seq, Slice, Window
from tests.actors.world import Bug, Reader, World, render, retire, world

BODY = b"x" * 10_000
TEXT_BYTES = 10_010
"""At most what an event with this body takes."""
NAMES = [f"d{number}" for number in range(10)]


async def load(there: World, name: str) -> Window:
    """Have a diagnosis in memory, as used now."""
    await trio.sleep(1)
    return await there.registry.ask(name, Inspect())


async def test_the_longest_unused_leave_until_the_rest_fits(autojump_clock: MockClock) -> None:
    limits = ActorLimits(ring_bytes_max=5 * 10_100, passivate_after_seconds=1e6)
    async with world(limits, diagnoses=NAMES) as there:
        for name in NAMES:
            await there.store.inner.append_nowait(name, [NewEvent("k", BODY)]).wait()
        reader = Reader()
        await there.connect(reader, diagnosis_id=NAMES[0])
        for name in NAMES[1:]:
            await load(there, name)
        await load(there, NAMES[1])
        await wait_all_tasks_blocked()
        running = [name for name in NAMES if there.actor(name).state is ActorState.RUNNING]
        assert running == [NAMES[0], NAMES[1], *NAMES[7:]]
        assert there.registry.statistics().ring_bytes <= limits.ring_bytes_max
        assert reader.ending is None
        assert (await there.publish(BODY, NAMES[2])).seq == 2


async def test_those_that_are_followed_stay_even_beyond_the_budget(autojump_clock: MockClock) -> None:
    async with world(ActorLimits(ring_bytes_max=1), diagnoses=NAMES) as there:
        for name in NAMES:
            await there.connect(Reader(), diagnosis_id=name)
            await there.publish(BODY, name)
        there.actors_nursery.start_soon(there.registry.keep_rings_small)
        await trio.sleep(3)
        assert all(there.actor(name).state is ActorState.RUNNING for name in NAMES)
        assert there.registry.statistics().ring_bytes > there.registry.statistics().ring_bytes_max
        there.actors_nursery.cancel_scope.cancel()


async def test_what_a_ring_lets_go_of_counts_no_more(autojump_clock: MockClock) -> None:
    async with world() as there:
        for number in range(250):
            await there.publish(b"y" * (number + 1))
        held = there.registry._slots["d"].roster.ring
        assert held is not None
        texts = [text for _, text in held.texts_after(held.floor, 1000)]
        assert there.registry.statistics().ring_bytes == sum(map(len, texts))


async def test_who_opens_diagnoses_and_leaves_at_once_never_has_more_in_memory_than_may_be(
    autojump_clock: MockClock,
) -> None:
    limits = ActorLimits(ring_bytes_max=3 * TEXT_BYTES, passivate_after_seconds=1e6)
    async with world(limits, diagnoses=NAMES) as there:
        for name in NAMES:
            await there.store.inner.append_nowait(name, [NewEvent("k", BODY)]).wait()
        for name in 3 * NAMES:
            reader = Reader()
            await there.connect(reader, diagnosis_id=name, peeks=True)
            assert reader.numbers == [1]
            reader.leave()
            assert there.registry.statistics().ring_bytes <= limits.ring_bytes_max


async def test_what_is_published_to_diagnoses_that_nobody_follows_stays_within_the_budget(
    autojump_clock: MockClock,
) -> None:
    limits = ActorLimits(ring_bytes_max=3 * TEXT_BYTES, passivate_after_seconds=1e6)
    async with world(limits, diagnoses=NAMES) as there:
        for number, name in enumerate(5 * NAMES):
            assert (await there.publish(BODY, name)).seq == number // len(NAMES) + 1
            await wait_all_tasks_blocked()
            assert there.registry.statistics().ring_bytes <= limits.ring_bytes_max


async def test_outboxes_are_loaded_a_few_at_a_time_and_fewer_of_the_large_ones(autojump_clock: MockClock) -> None:
    names = [f"d{number}" for number in range(2 * LOADS_AT_ONCE_MAX)]
    large = names[: 2 * LARGE_LOADS_AT_ONCE_MAX]
    async with world(diagnoses=names) as there:
        for name in large:
            for _ in range(4):
                await there.store.inner.append_nowait(name, [NewEvent("k", bytes(SMALL_OUTBOX_BYTES_MAX // 2))]).wait()
        under_way: Counter[int | None] = Counter()
        most: Counter[int | None] = Counter()
        read_after = there.store.inner.read_after

        async def slow(diagnosis_id: str, seq: Seq, limit: int, bytes_max: int | None) -> Slice:
            under_way[bytes_max] += 1
            most[bytes_max] = max(most[bytes_max], under_way[bytes_max])
            await trio.sleep(1)
            under_way[bytes_max] -= 1
            return await read_after(diagnosis_id, seq, limit, bytes_max)

        there.store.inner.read_after = slow  # type: ignore[assignment, method-assign]
        async with trio.open_nursery() as askers_nursery:
            for name in names:
                askers_nursery.start_soon(there.registry.ask, name, Inspect())
        assert most == {SMALL_OUTBOX_BYTES_MAX: LOADS_AT_ONCE_MAX, None: LARGE_LOADS_AT_ONCE_MAX}
        windows = [await there.registry.ask(name, Inspect()) for name in names]
        assert [window.head for window in windows] == [4 if name in large else 0 for name in names]


async def test_a_diagnosis_that_rests_after_crashes_lets_go_of_its_events_and_goes_on_resting(
    autojump_clock: MockClock,
) -> None:
    def broken(diagnosis_id: str, event: Event) -> bytes:
        if diagnosis_id == "d0" and event.body == b"crash":
            raise Bug
        return render(diagnosis_id, event)

    limits = ActorLimits(ring_bytes_max=TEXT_BYTES, restart_intensity_max=0, passivate_after_seconds=1e6)
    async with world(limits, diagnoses=NAMES, render=broken) as there:
        await there.publish(b"x" * 5_000, "d0")
        with pytest.raises(Failed):
            await there.publish(b"crash", "d0")
        await there.publish(BODY, "d1")
        assert there.registry.window("d0") is None
        assert there.actor("d0").state is ActorState.QUARANTINED
        assert there.registry.statistics().ring_bytes <= limits.ring_bytes_max


async def test_what_has_left_memory_counts_no_more_however_it_left(autojump_clock: MockClock) -> None:
    async with world(ActorLimits(passivate_after_seconds=5), diagnoses=NAMES) as there:
        for name in NAMES:
            await there.publish(BODY, name)
        readers = {name: Reader() for name in NAMES[:3]}
        for name, reader in readers.items():
            await there.connect(reader, diagnosis_id=name)
        await there.registry.stop(NAMES[0])
        await there.registry.stop(NAMES[3])
        for name in (NAMES[1], NAMES[4]):
            await there.store.inner.delete(name)
            await retire(there.registry, name)
        await there.registry.restart(NAMES[5])
        await wait_all_tasks_blocked()
        assert sorted(there.registry.loaded) == [NAMES[0], NAMES[2], *NAMES[5:]]
        assert 7 * len(BODY) <= there.registry.statistics().ring_bytes <= 7 * TEXT_BYTES
        for reader in readers.values():
            reader.leave()
        await trio.sleep(10)
        assert (there.registry.statistics().actors, there.registry.statistics().ring_bytes) == (0, 0)


@dataclass(eq=False)
class Held:
    """As much of a roster as the budget looks at."""

    is_busy: bool
    ring: SimpleNamespace | None = field(default_factory=lambda: SimpleNamespace(text_bytes=10))
    subscribers: tuple[object, ...] = ()


async def test_rings_whose_actors_have_work_are_passed_over_and_the_others_leave() -> None:
    asked: list[Held] = []

    def let_go(roster: Any) -> bool:
        asked.append(roster)
        if not roster.is_busy:
            roster.ring = None
        return not roster.is_busy

    budget = RingBudget(30, let_go)
    held: list[Any] = [Held(is_busy=number % 2 == 0) for number in range(8)]
    for roster in held:
        budget.count(roster)
    await budget.make_room()
    assert [one for one in held if one.ring] == [one for one in held if one.is_busy]
    assert budget.bytes == 40, "more than may be: all that are left have work"


async def test_however_many_rings_cannot_leave_the_search_for_room_ends(autojump_clock: MockClock) -> None:
    asked = 0

    def let_go(roster: Any) -> bool:
        nonlocal asked
        asked += 1
        return False

    budget = RingBudget(0, let_go)
    for _ in range(3 * LOOKED_AT_ONCE_MAX):
        busy: Any = Held(is_busy=True)
        budget.count(busy)
    await budget.make_room()
    assert asked == LOOKED_AT_ONCE_MAX
