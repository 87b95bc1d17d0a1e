"""What becomes of an actor whose outbox is damaged on the disk, loaded or not."""

from __future__ import annotations

import logging

import pytest
import trio

from actors.slot import ActorState
from actors.transport import Ending
from storage.errors import OutboxDamaged
from storage.memory import MemoryStore
from tests.actors.world import Reader, World, world

WHAT = "event 1 fails its checksum"


def inner(found: World) -> MemoryStore:
    assert isinstance(found.store.inner, MemoryStore)
    return found.store.inner


async def test_an_outbox_that_is_damaged_as_it_is_loaded_is_refused_and_crashes_nothing(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with world(diagnoses=("d", "other")) as found:
        await found.publish()
        await found.registry.stop("d")
        inner(found).damage("d", 1)
        with pytest.raises(OutboxDamaged, match=WHAT):
            await found.publish()
        with pytest.raises(OutboxDamaged, match=WHAT):
            await found.connect(Reader())
        actor = found.actor()
        assert (actor.state, actor.restarts, actor.window) == (ActorState.QUARANTINED, 0, None)
        assert actor.damage is not None
        assert actor.damage.what == WHAT
        assert found.registry.rest_seconds("d") > 0
        assert (await found.publish(diagnosis_id="other")).seq == 1
        assert found.actor("other").damage is None
    assert len([record for record in caplog.records if record.levelno >= logging.WARNING]) == 1


async def test_damage_that_is_found_while_the_actor_runs_from_memory_ends_its_followers(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world(diagnoses=("d", "other")) as found:
        followers, other = [Reader("amira", "phone"), Reader("basim")], Reader()
        for reader in followers:
            await found.connect(reader)
        await found.connect(other, diagnosis_id="other")
        await found.publish()
        inner(found).damage("d", 1)
        assert (await found.publish()).seq == 2  # nobody knows yet
        await inner(found).look_through()
        await trio.testing.wait_all_tasks_blocked()
        assert [reader.ending for reader in followers] == [Ending.QUARANTINED] * 2
        assert [reader.numbers for reader in followers] == [[1, 2]] * 2
        with pytest.raises(OutboxDamaged):
            await found.publish()
        with pytest.raises(OutboxDamaged):
            await found.settled()
        await found.publish(diagnosis_id="other")
        assert (other.numbers, other.ending) == ([1], None)


async def test_restarting_a_damaged_one_does_not_help_and_a_purge_does(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as found:
        await found.publish()
        inner(found).damage("d", 1)
        await inner(found).look_through()
        await found.registry.restart("d")
        with pytest.raises(OutboxDamaged):
            await found.settled()
        await inner(found).purge("d")
        assert (await found.publish()).seq == 2
        assert found.actor().state is ActorState.RUNNING


async def test_an_event_that_was_stored_before_the_damage_was_found_is_answered(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as found:
        await found.publish()
        inner(found).damage("d", 1)
        found.store.gate = trio.Event()
        seqs: list[int] = []

        async def publish() -> None:
            seqs.append((await found.publish()).seq)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish)
            await trio.testing.wait_all_tasks_blocked()
            await inner(found).look_through()
            found.store.gate.set()
        assert seqs == [2]
        with pytest.raises(OutboxDamaged):
            await found.publish()


async def test_a_head_that_has_gone_back_under_a_running_actor_gives_no_number_again(
    autojump_clock: trio.testing.MockClock,
) -> None:
    async with world() as found:
        reader = Reader()
        await found.connect(reader)
        for _ in range(3):
            await found.publish()
        inner(found).damage("d", head=1)
        with pytest.raises(OutboxDamaged, match="its head 1 is below number 3"):
            await found.publish()
        await trio.testing.wait_all_tasks_blocked()
        assert (reader.numbers, reader.ending) == ([1, 2, 3], Ending.QUARANTINED)
