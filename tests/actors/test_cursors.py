"""Acknowledgements: a number moved now, a row soon, and never a message."""

from __future__ import annotations

import logging

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.batching import BATCH_MAX, LINGER_SECONDS
from actors.errors import DevicesExhausted
from actors.resume import Resume, Wanted
from actors.roster import DEVICES_MAX, UNSEEN_SECONDS_MAX
from actors.transport import Ending
from storage.errors import Busy
from storage.records import Epoch, Seq
from tests.actors.world import Bug, Reader, World


async def following(small: World, *readers: Reader, events: int = 1) -> None:
    """Readers that have got some events."""
    for reader in readers:
        await small.connect(reader)
    for _ in range(events):
        await small.publish()


async def test_a_subscriber_is_known_from_its_first_admission_on(autojump_clock: MockClock, small: World) -> None:
    for _ in range(3):
        await small.publish()
    reader = Reader(device="phone")
    await small.connect(reader, Wanted(newest=1))
    assert await small.cursor(reader) == 2


async def test_ten_thousand_acknowledgements_cost_no_mail_and_few_commits(
    autojump_clock: MockClock, small: World
) -> None:
    readers = [Reader(f"user-{number}") for number in range(10_000)]
    await following(small, *readers)
    small.store.moves = 0
    for reader in readers:
        assert small.acknowledge(reader, 1)
    assert small.actor().mailbox.depth == 0
    await trio.sleep(2 * LINGER_SECONDS)
    assert small.store.moves == -(-10_000 // BATCH_MAX)
    assert {one.seq for one in await small.store.inner.cursors("d")} == {1}


async def test_an_acknowledgement_is_stored_within_a_second(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await following(small, reader)
    small.acknowledge(reader, 1)
    assert await small.cursor(reader) == 0
    await trio.sleep(LINGER_SECONDS + 0.01)
    assert await small.cursor(reader) == 1


async def test_a_disconnect_stores_the_cursor_at_once(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await following(small, reader)
    small.acknowledge(reader, 1)
    began = trio.current_time()
    reader.leave()
    await small.registry.drain()
    assert await small.cursor(reader) == 1
    assert trio.current_time() == began


async def test_a_receipt_after_the_goodbye_counts_although_the_events_have_left_memory(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await following(small, reader, events=3)
    reader.leave()
    await small.settled()
    roster = small.registry._slots["d"].roster
    assert small.registry._slots["d"].let_go_of_ring()
    small.registry.settle(reader.subscriber, "transport")
    await trio.sleep(2 * LINGER_SECONDS)
    assert (roster.ring, await small.cursor(reader)) == (None, 3)


async def test_who_asks_is_told_once_the_cursor_is_stored(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await following(small, reader, events=3)
    for seq in (1, 3, 2):
        assert small.acknowledge(reader, seq, answer=True)
    assert reader.acked == []
    await wait_all_tasks_blocked()
    assert reader.acked == [3]
    assert await small.cursor(reader) == 3


async def test_a_client_that_never_stops_acknowledging_is_still_answered(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await following(small, reader, events=50)
    for seq in range(1, 51):
        small.acknowledge(reader, seq, answer=True)
        await trio.lowlevel.checkpoint()
        await trio.lowlevel.checkpoint()
    assert len(reader.acked) > 5
    assert reader.acked == sorted(reader.acked)


async def test_a_number_above_the_position_is_not_acknowledged(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    reader.slow = True
    await following(small, reader, events=2)
    assert not small.acknowledge(reader, 1)
    reader.take()
    assert small.acknowledge(reader, 2)
    reader.leave()
    assert not small.acknowledge(reader, 2)


async def test_a_full_disk_delays_cursors_and_loses_none(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await following(small, reader)
    small.store.fail("move_cursors", Busy("full"), Busy("full"))
    small.acknowledge(reader, 1, answer=True)
    await trio.sleep(10)
    assert (reader.acked, await small.cursor(reader)) == ([1], 1)


async def test_a_crash_while_storing_cursors_loses_none_and_ends_nothing(
    autojump_clock: MockClock, small: World, caplog: pytest.LogCaptureFixture
) -> None:
    reader = Reader()
    await following(small, reader)
    with caplog.at_level(logging.ERROR):
        small.store.fail("move_cursors", Bug(), Bug())
        small.acknowledge(reader, 1, answer=True)
        await trio.sleep(10)
    assert (reader.acked, await small.cursor(reader)) == ([1], 1)
    assert "the cursor keeper crashed: Bug at" in caplog.text
    assert "secret-payload" not in caplog.text


async def test_a_position_of_its_own_wins_over_the_stored_cursor_and_acknowledges(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader(device="phone")
    await following(small, reader, events=9)
    small.acknowledge(reader, 2)
    reader.leave()
    again = Reader(device="phone")
    admission = await small.connect(again, Wanted(after=Seq(7)))
    assert (admission.plan.resume, again.numbers) == (Resume.EXACT, [8, 9])
    assert await small.cursor(again) == 7
    third = Reader(device="phone")
    admission = await small.connect(third, Wanted(after=Seq(4)))
    assert third.numbers == [5, 6, 7, 8, 9]
    assert await small.cursor(third) == 7


async def test_a_reset_acknowledges_nothing(autojump_clock: MockClock, small: World) -> None:
    reader = Reader(device="phone")
    await following(small, reader, events=9)
    small.acknowledge(reader, 5)
    reader.leave()
    again = Reader(device="phone")
    admission = await small.connect(again, Wanted(after=Seq(3), epoch=Epoch("another")))
    assert (admission.plan.resume, again.numbers) == (Resume.RESET, list(range(1, 10)))
    await trio.sleep(2 * LINGER_SECONDS)
    assert await small.cursor(again) == 5


async def test_unnamed_connections_of_one_user_share_a_cursor(autojump_clock: MockClock, small: World) -> None:
    one, two = Reader(), Reader()
    await following(small, one, two, events=3)
    small.acknowledge(one, 3)
    assert two.numbers == [1, 2, 3]
    one.leave()
    later = Reader()
    admission = await small.connect(later)
    assert (admission.plan.resume, later.numbers) == (Resume.EXACT, [])


async def test_a_named_device_has_one_connection(autojump_clock: MockClock, small: World) -> None:
    older, newer = Reader(device="phone"), Reader(device="phone")
    await following(small, older)
    await small.connect(newer)
    assert older.ending is Ending.REPLACED
    assert small.actor().connections == 1
    await small.publish()
    assert older.numbers == [1]
    assert newer.numbers == [1, 2]


async def test_a_further_device_makes_the_longest_unseen_absent_one_forgotten(
    autojump_clock: MockClock, small: World
) -> None:
    devices = [Reader(device=f"device-{number}") for number in range(DEVICES_MAX)]
    for device in devices:
        await small.connect(device)
        await trio.sleep(1)
    with pytest.raises(DevicesExhausted):
        await small.connect(Reader(device="one-too-many"))
    devices[7].leave()
    await trio.sleep(1)
    devices[3].leave()
    await small.connect(Reader(device="another"))
    known = {one.subscriber.device for one in await small.store.inner.cursors("d")}
    assert len(known) == DEVICES_MAX
    assert "device-7" not in known
    assert {"device-3", "another"} <= known


async def test_a_subscriber_unseen_for_thirty_days_is_forgotten(autojump_clock: MockClock, small: World) -> None:
    reader = Reader(device="phone")
    await following(small, reader)
    small.acknowledge(reader, 1)
    reader.leave()
    await trio.sleep(UNSEEN_SECONDS_MAX + 1)
    await small.publish()
    assert await small.store.inner.cursors("d") == []


async def test_a_subscriber_counts_as_seen_when_it_leaves(autojump_clock: MockClock, small: World) -> None:
    reader = Reader(device="phone")
    await following(small, reader)
    await trio.sleep(UNSEEN_SECONDS_MAX + 1)
    reader.leave()
    await trio.sleep(UNSEEN_SECONDS_MAX / 2)
    await small.publish()
    assert await small.cursor(reader) == 0
