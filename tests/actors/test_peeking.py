"""Connections that peek: attached to a roster, and to no known subscriber."""

from __future__ import annotations

from trio.testing import MockClock

from actors.messages import Trace
from actors.resume import Resume, Wanted
from actors.transport import Ending
from actors.which import OfUser
from storage.records import Seq
from tests.actors.world import DIAGNOSIS, RESILIENT, Bug, Reader, world


async def test_a_peek_is_counted_as_a_connection_and_as_nobody_known(autojump_clock: MockClock) -> None:
    async with world() as small:
        peek = Reader()
        admission = await small.connect(peek, peeks=True)
        assert admission.plan.resume is Resume.FRESH
        receipt = await small.publish()
        assert (receipt.clients_notified, receipt.online, receipt.known) == (1, 0, 0)
        assert peek.numbers == [1]
        assert await small.registry.ask(DIAGNOSIS, Trace(Seq(1))) == ()
        assert not small.registry.is_connected(DIAGNOSIS, peek.subscriber.id)
        assert await small.store.inner.cursors(DIAGNOSIS) == []


async def test_a_peek_of_a_known_subscriber_reads_and_moves_no_cursor(autojump_clock: MockClock) -> None:
    async with world() as small:
        reader = Reader(device=None)
        await small.connect(reader)
        await small.publish()
        assert small.acknowledge(reader, 1, answer=True)
        await small.registry.stop(DIAGNOSIS)
        reader.leave()
        await small.settled()
        await small.publish()
        before = await small.store.inner.cursors(DIAGNOSIS)
        moves = small.store.moves
        peek = Reader()
        await small.connect(peek, Wanted(Seq(2)), peeks=True)
        assert not small.acknowledge(peek, 2, answer=True)
        peek.leave()
        await small.registry.drain()
        assert small.store.moves == moves
        assert await small.store.inner.cursors(DIAGNOSIS) == before


async def test_a_peek_is_asked_for_no_place_among_the_devices(autojump_clock: MockClock) -> None:
    async with world() as small:
        readers = [Reader(device=f"device-{number}") for number in range(100)]
        for reader in readers:
            await small.connect(reader)
        peek = Reader()
        await small.connect(peek, peeks=True)
        assert (await small.publish()).clients_notified == 101
        assert all(reader.ending is None for reader in readers)


async def test_a_peek_outlives_a_crash_and_every_number_reaches_it_once(autojump_clock: MockClock) -> None:
    async with world(RESILIENT) as small:
        peek = Reader()
        await small.connect(peek, peeks=True)
        await small.publish()
        small.store.fail("append_outcome", Bug())
        await small.publish()
        await small.publish()
        assert peek.numbers == [1, 2, 3]


async def test_who_is_ended_before_the_actor_answers_is_not_attached(autojump_clock: MockClock) -> None:
    async with world() as small:
        peek = Reader()
        peek.leave()
        await small.connect(peek, peeks=True)
        assert small.actor().connections == 0


async def test_a_connection_that_peeks_is_ended_by_the_name_of_its_user(autojump_clock: MockClock) -> None:
    async with world() as small:
        peek = Reader()
        await small.connect(peek, peeks=True)
        assert await small.registry.end_where(DIAGNOSIS, OfUser("amira"), Ending.DISCONNECTED) == 1
        assert peek.ending is Ending.DISCONNECTED
        assert small.actor().connections == 0
