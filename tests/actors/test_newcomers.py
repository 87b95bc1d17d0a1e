"""Newcomers of one diagnosis are stored together: a publisher behind them waits for few commits."""

from __future__ import annotations

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.diagnosis import BATCH_SUBSCRIBERS_MAX
from actors.errors import DevicesExhausted
from actors.messages import Admission, Subscribe
from actors.resume import Resume, Wanted
from actors.roster import DEVICES_MAX
from storage.errors import Busy, NoSuchDiagnosis
from storage.records import Diagnosis
from tests.actors.world import DIAGNOSIS, Reader, World, settled_cursors, world

CROWD = 500


async def arrive(there: World, readers: list[Reader], outcomes: dict[Reader, object]) -> None:
    """Have all of them subscribe in this order, before the actor has a turn."""
    waits = [
        (reader, there.registry.tell(DIAGNOSIS, Subscribe(reader.subscriber, Wanted(), lambda _: None)))
        for reader in readers
    ]
    for reader, wait in waits:
        try:
            outcomes[reader] = await wait()
        except (Busy, DevicesExhausted, NoSuchDiagnosis) as refusal:
            outcomes[reader] = refusal


async def test_a_crowd_of_newcomers_is_stored_in_few_operations(autojump_clock: MockClock) -> None:
    async with world() as there:
        await there.publish()
        readers = [Reader(f"user-{number}") for number in range(CROWD)]
        before, outcomes = there.store.moves, dict[Reader, object]()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(arrive, there, readers, outcomes)
            await wait_all_tasks_blocked()
            await there.publish()
        assert there.store.moves - before <= CROWD / BATCH_SUBSCRIBERS_MAX + 2
        for reader in readers:
            reader.wake()
            assert reader.numbers == [1, 2]
        assert there.registry.connections == {DIAGNOSIS: CROWD}
        assert len(await there.store.inner.cursors(DIAGNOSIS)) == CROWD


async def test_two_connections_of_one_newcomer_are_admitted_one_after_the_other(autojump_clock: MockClock) -> None:
    async with world() as there:
        await there.publish()
        readers = [Reader("amira"), Reader("bo"), Reader("amira"), Reader("amira", "phone"), Reader("amira", "phone")]
        outcomes: dict[Reader, object] = {}
        await arrive(there, readers, outcomes)
        admissions = [outcomes[reader] for reader in readers]
        resumed = [one.plan.resume for one in admissions if isinstance(one, Admission)]
        assert resumed == [Resume.FRESH, Resume.FRESH, Resume.EXACT, Resume.FRESH, Resume.EXACT]
        assert [reader.subscriber.gone for reader in readers] == [False, False, False, True, False]


async def test_newcomers_of_one_user_that_arrive_together_make_no_more_than_a_hundred_devices(
    autojump_clock: MockClock,
) -> None:
    async with world() as there:
        readers = [Reader("amira", f"device-{number}") for number in range(DEVICES_MAX + 5)]
        outcomes: dict[Reader, object] = {}
        await arrive(there, readers, outcomes)
        refused = [reader for reader in readers if isinstance(outcomes[reader], DevicesExhausted)]
        assert refused == readers[DEVICES_MAX:]
        assert len(await there.store.inner.cursors(DIAGNOSIS)) == DEVICES_MAX
        for reader in readers[:10]:
            reader.leave()
        newer = [Reader("amira", f"newer-{number}") for number in range(10)]
        await arrive(there, newer, outcomes)
        assert not any(isinstance(outcomes[reader], DevicesExhausted) for reader in newer)
        known = {one.subscriber.device for one in await there.store.inner.cursors(DIAGNOSIS)}
        assert known == {reader.subscriber.id.device for reader in (*readers[10:DEVICES_MAX], *newer)}


async def test_a_refusal_of_the_store_is_the_answer_to_all_it_concerns_and_to_no_other(
    autojump_clock: MockClock,
) -> None:
    async with world() as there:
        known = Reader("known")
        await there.connect(known)
        known.leave()
        await settled_cursors(there.registry)
        there.store.fail("move_cursors", Busy("the disk is full"))
        readers = [Reader("bo"), Reader("known"), Reader("cyrus")]
        outcomes: dict[Reader, object] = {}
        await arrive(there, readers, outcomes)
        assert [isinstance(outcomes[reader], Busy) for reader in readers] == [True, False, True]
        await arrive(there, [Reader("bo")], outcomes)
        assert there.actor().restarts == 0


async def test_whoever_may_not_follow_is_refused_alone(autojump_clock: MockClock) -> None:
    class Refused(Exception):
        """What a judge answers."""

    def nobody(diagnosis: Diagnosis | None) -> Exception:
        return Refused()

    async with world() as there:
        readers = [Reader(f"user-{number}") for number in range(5)]
        judges = [None, nobody, None, nobody, None]
        waits = [
            there.registry.tell(DIAGNOSIS, Subscribe(reader.subscriber, Wanted(), judge or (lambda _: None)))
            for reader, judge in zip(readers, judges, strict=True)
        ]
        refused = []
        for wait in waits:
            try:
                await wait()
                refused.append(False)
            except Refused:
                refused.append(True)
        assert refused == [False, True, False, True, False]
        known = {one.subscriber.sub for one in await there.store.inner.cursors(DIAGNOSIS)}
        assert known == {"user-0", "user-2", "user-4"}
