"""What registries of several processes ask each other, and who keeps a device that connects twice."""

from __future__ import annotations

from collections.abc import Callable

import msgspec
import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.messages import DeliveryState, Trace
from actors.peers import QUESTIONS, Attached
from actors.transport import Ending
from actors.which import OfUser
from storage.bus import MemoryBus
from storage.records import Seq
from tests.actors.world import DIAGNOSIS, Reader, World, settled_cursors, two_worlds

TOPIC = f"diagnosis.{DIAGNOSIS}"


def bus_of(there: World) -> MemoryBus:
    bus = there.registry._peers._bus
    assert isinstance(bus, MemoryBus)
    return bus


def publish_as(other: World, sub: str | None, device: str, claim: int) -> None:
    """Tell that a connection was attached, as the process of `other` would."""
    note = Attached(DIAGNOSIS, sub, device, claim)
    bus_of(other).publish(TOPIC, msgspec.msgpack.encode(note))


async def test_a_device_has_one_connection_wherever_it_connects(autojump_clock: MockClock) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        readers = [Reader("amira", "phone") for _ in range(6)]
        bystanders = [Reader("amira", "tablet"), Reader("amira"), Reader("bo", "phone")]
        for bystander in bystanders:
            await one.connect(bystander)
        for number, reader in enumerate(readers):
            await (one, other)[number % 2].connect(reader)
        await wait_all_tasks_blocked()
        assert [reader.ending for reader in readers] == [Ending.REPLACED] * 5 + [None]
        assert [reader.ending for reader in bystanders] == [None] * 3


@pytest.mark.parametrize("theirs_is_higher", [True, False])
async def test_of_two_that_connect_at_once_exactly_one_stays(autojump_clock: MockClock, theirs_is_higher: bool) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        reader = Reader("amira", "phone")
        await one.connect(reader)
        claim = one.registry._peers._claims[reader.subscriber]
        publish_as(other, "amira", "phone", claim + 1 if theirs_is_higher else claim - 1)
        assert reader.ending is (Ending.REPLACED if theirs_is_higher else None)
        assert (reader.subscriber in one.registry._peers._claims) is not theirs_is_higher


async def test_where_both_claims_are_equal_the_name_of_the_process_decides(autojump_clock: MockClock) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        readers = [Reader("amira", "phone"), Reader("bo", "phone")]
        for there, reader in zip((one, other), readers, strict=True):
            await there.connect(reader)
        publish_as(other, "amira", "phone", one.registry._peers._claims[readers[0].subscriber])
        publish_as(one, "bo", "phone", other.registry._peers._claims[readers[1].subscriber])
        assert [reader.ending for reader in readers] == [Ending.REPLACED, None]


async def test_a_process_whose_clock_is_behind_still_gets_the_device_that_came_last(autojump_clock: MockClock) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        for there in (one, other):
            await there.settled()  # from now on it hears of what is attached elsewhere
        publish_as(one, "amira", "phone", 2**60)
        first, second = Reader("amira", "phone"), Reader("amira", "phone")
        await other.connect(second)
        assert other.registry._peers._claims[second.subscriber] == 2**60 + 1
        await one.connect(first)
        await wait_all_tasks_blocked()
        assert (first.ending, second.ending) == (None, Ending.REPLACED)


async def test_a_process_that_did_not_have_the_diagnosis_in_memory_gets_the_device_that_comes_then(
    autojump_clock: MockClock,
) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        await one.settled()
        publish_as(other, "amira", "phone", 2**60)
        first, second = Reader("amira", "phone"), Reader("amira", "phone")
        await one.connect(first)
        await other.connect(second)
        await wait_all_tasks_blocked()
        assert (first.ending, second.ending) == (Ending.REPLACED, None)


async def test_notes_of_an_unknown_kind_are_passed_over(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        reader = Reader("amira", "phone")
        await one.connect(reader)
        bus_of(other).publish(TOPIC, b"not a note")
        bus_of(other).publish(TOPIC, msgspec.msgpack.encode(["Greeting", DIAGNOSIS]))
        answers = await bus_of(other).ask(QUESTIONS, msgspec.msgpack.encode(["Greeting"]), 5)
        assert (answers, reader.ending) == ({"one": b""}, None)
        assert await other.registry.connections_everywhere() == ({DIAGNOSIS: 1}, (2, 2))


async def test_connections_are_counted_and_ended_wherever_they_are(autojump_clock: MockClock) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        readers = [Reader("amira"), Reader("amira", "phone"), Reader("bo")]
        for reader in readers:
            await one.connect(reader)
        own = Reader("amira")
        await other.connect(own)
        assert await other.registry.connections_everywhere() == ({DIAGNOSIS: 4}, (2, 2))
        assert await other.registry.count_elsewhere(DIAGNOSIS, OfUser("amira")) == 2
        phone = OfUser("amira", "phone")
        assert await other.registry.disconnect_elsewhere(DIAGNOSIS, phone, forget=False) == 1
        assert [reader.ending for reader in readers] == [None, Ending.DISCONNECTED, None]
        assert await other.registry.disconnect_elsewhere(DIAGNOSIS, OfUser("amira"), forget=True) == 1
        await settled_cursors(one.registry)
        assert (await one.cursor(readers[0]), await one.cursor(readers[2])) == (None, 0)
        assert own.ending is None


async def test_an_actor_is_restarted_and_stopped_wherever_it_is(autojump_clock: MockClock) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        reader = Reader()
        await one.connect(reader)
        await other.registry.restart(DIAGNOSIS)
        assert [there.actor().incarnation for there in (one, other)] == [2, 1]
        assert reader.ending is None
        reader.leave()
        await one.settled()
        await other.registry.stop(DIAGNOSIS)
        assert [there.registry.statistics().actors for there in (one, other)] == [0, 0]
        await other.registry.restart(DIAGNOSIS)
        assert [there.registry.statistics().actors for there in (one, other)] == [0, 1], (
            "where it is not in memory it is not woken"
        )


async def test_receipts_count_who_follows_elsewhere_as_that_process_last_told(autojump_clock: MockClock) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        readers = [Reader("amira"), Reader("amira"), Reader("bo"), Reader("cyrus")]
        for reader in readers[:3]:
            await one.connect(reader)
        receipt = await other.publish()
        assert (receipt.clients_notified, receipt.online) == (3, 2), "whoever loads a diagnosis asks who follows it"
        await other.connect(readers[3])
        readers[0].leave()
        readers[2].leave()
        await trio.sleep(1.1)
        for there in (one, other):
            receipt = await there.publish()
            assert (receipt.clients_notified, receipt.online) == (2, 2)
        bus_of(other)._network.kill("one")
        await trio.sleep(7)
        receipt = await other.publish()
        assert (receipt.clients_notified, receipt.online) == (1, 1)


async def test_nothing_is_kept_of_who_follows_elsewhere_once_nobody_does(autojump_clock: MockClock) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        reader = Reader()
        await one.connect(reader)
        await other.settled()
        await trio.sleep(2)  # all is told
        assert other.registry._peers._elsewhere.keys() == {DIAGNOSIS}
        reader.leave()
        await trio.sleep(3)
        assert other.registry._peers._elsewhere == {}
        assert (await other.publish()).clients_notified == 0


async def test_what_became_of_an_event_is_known_of_connections_elsewhere(autojump_clock: MockClock) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        written, slow, acknowledged, away = Reader("a"), Reader("b"), Reader("c"), Reader("d")
        slow.slow = True
        for reader in (written, slow, acknowledged, away):
            await one.connect(reader)
        away.leave()
        await one.publish()
        one.acknowledge(acknowledged, 1)
        await settled_cursors(one.registry)
        here = await other.registry.ask(DIAGNOSIS, Trace(Seq(1)))
        found = await other.registry.with_elsewhere(DIAGNOSIS, Seq(1), here)
        assert [(one.subscriber.sub, one.online, one.state) for one in found] == [
            ("a", True, DeliveryState.WRITTEN),
            ("b", True, DeliveryState.PENDING),
            ("c", True, DeliveryState.ACKNOWLEDGED),
            ("d", False, DeliveryState.PENDING),
        ]


@pytest.mark.parametrize(
    "ask",
    [
        lambda here: here.restart(DIAGNOSIS),
        lambda here: here.count_elsewhere(DIAGNOSIS, OfUser("amira")),
        lambda here: here.connections_everywhere(),
    ],
)
async def test_a_process_that_has_died_is_waited_for_no_longer_than_an_operator_may_wait(
    autojump_clock: MockClock, ask: Callable[[object], object]
) -> None:
    async with two_worlds(are_peers=True) as (one, other):
        await one.settled()
        bus_of(other)._network.kill("one")
        began = trio.current_time()
        await ask(other.registry)  # type: ignore[misc]
        assert trio.current_time() - began == 5.0
