"""Passivation: an actor that nobody needs leaves memory, and nothing is lost by it."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.messages import Publish
from actors.slot import ActorLimits, ActorState
from storage.errors import Busy
from storage.records import NewEvent
from tests.actors.world import Reader, World, anybody, world

IDLE_SECONDS = 300.0


async def test_an_actor_without_subscribers_and_mail_leaves_memory(autojump_clock: MockClock, small: World) -> None:
    await small.publish()
    assert small.actor().state is ActorState.RUNNING
    await trio.sleep(IDLE_SECONDS + 1)
    assert small.actor().state is ActorState.PASSIVE
    assert small.registry.statistics().actors == 0


async def test_the_next_message_wakes_it_and_its_incarnations_keep_counting(
    autojump_clock: MockClock, small: World
) -> None:
    for number in range(1, 4):
        assert (await small.publish()).seq == number
        await trio.sleep(IDLE_SECONDS + 1)
        assert small.actor().incarnation == number


async def test_an_actor_with_a_subscriber_stays(autojump_clock: MockClock, small: World) -> None:
    await small.connect(Reader())
    await trio.sleep(10 * IDLE_SECONDS)
    assert (small.actor().state, small.actor().incarnation) == (ActorState.RUNNING, 1)


async def test_an_actor_leaves_once_its_last_subscriber_has_left(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await small.connect(reader)
    reader.leave()
    await trio.sleep(IDLE_SECONDS + 1)
    assert small.registry.statistics().actors == 0


async def test_a_stopped_actor_keeps_its_subscribers_and_serves_them_when_woken(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await small.connect(reader)
    await small.registry.stop("d")
    assert small.actor().state is ActorState.PASSIVE
    assert (await small.publish()).clients_notified == 1
    assert (reader.numbers, reader.ending) == ([1], None)


async def test_a_stopped_actor_whose_subscribers_leave_is_forgotten(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await small.connect(reader)
    await small.registry.stop("d")
    reader.leave()
    assert small.registry.statistics().actors == 0


@pytest.mark.guarantee(10)
async def test_no_message_is_lost_however_close_to_the_moment_of_leaving_it_comes(autojump_clock: MockClock) -> None:
    async with world(ActorLimits(passivate_after_seconds=1.0)) as idle:
        seqs = []
        for step in range(-20, 21):
            seqs.append((await idle.publish()).seq)
            await trio.sleep(1.0 + step * 1e-9)
        assert seqs == list(range(1, 42))
        assert idle.actor().incarnation > 1


@pytest.mark.guarantee(10)
async def test_a_message_that_comes_in_the_same_instant_is_not_lost(autojump_clock: MockClock) -> None:
    """Publisher and actor wake at the same time, in an order Trio shuffles: all orders are met in fifty rounds."""
    async with world(ActorLimits(passivate_after_seconds=1.0)) as idle:
        for number in range(1, 51):
            assert (await idle.publish()).seq == number
            await trio.sleep_until(trio.current_time() + 1.0)


async def test_thousands_of_diagnoses_without_traffic_cost_no_task(autojump_clock: MockClock) -> None:
    names = [f"d{number}" for number in range(3000)]
    async with world(diagnoses=names) as many:
        idle_tasks = len(many.actors_nursery.child_tasks)
        for name in names:
            await many.publish(diagnosis_id=name)
        assert many.registry.statistics().actors == 3000
        await trio.sleep(IDLE_SECONDS + 1)
        assert many.registry.statistics().actors == 0
        assert len(many.actors_nursery.child_tasks) == idle_tasks


async def test_cursors_are_stored_before_a_stopped_actor_has_left(autojump_clock: MockClock, small: World) -> None:
    reader = Reader(device="phone")
    await small.connect(reader)
    await small.publish()
    small.acknowledge(reader, 1)
    await small.registry.stop("d")
    assert await small.cursor(reader) == 1


async def test_a_full_disk_delays_no_publisher_of_an_idle_actor(autojump_clock: MockClock, small: World) -> None:
    reader = Reader(device="phone")
    await small.connect(reader)
    await small.publish()
    small.acknowledge(reader, 1)
    small.store.fail("move_cursors", *[Busy("full")] * 1000)
    reader.leave()
    await trio.sleep(IDLE_SECONDS + 1)
    began = trio.current_time()
    await small.publish()
    assert trio.current_time() - began < 1


async def test_draining_finishes_what_is_in_the_mailbox_and_stores_all_cursors(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader(device="phone")
    await small.connect(reader)
    await small.publish()
    small.acknowledge(reader, 1)
    small.store.gate = trio.Event()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(small.publish)
        nursery.start_soon(small.publish)
        await wait_all_tasks_blocked()
        nursery.start_soon(small.registry.drain)
        await wait_all_tasks_blocked()
        small.store.gate.set()
    assert reader.numbers == [1, 2, 3]
    assert await small.cursor(reader) == 1


async def test_draining_survives_an_actor_that_refuses(autojump_clock: MockClock, small: World) -> None:
    small.store.fail("read_after", Busy("locked"))
    answer = small.registry.tell("d", Publish(NewEvent("feedback_update", b"x"), anybody))
    await small.registry.drain()
    with pytest.raises(Busy):
        await answer()
