"""Publishing: stored first, then sent, then answered."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.diagnosis import BATCH_EVENTS_MAX, FANOUT_CHUNK
from actors.errors import MailboxFull
from actors.slot import ActorLimits
from storage.errors import Busy, KeyReused, NoSuchDiagnosis
from tests.actors.world import Reader, World, world


async def test_nothing_is_sent_and_nobody_is_answered_before_the_event_is_stored(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await small.connect(reader)
    small.store.gate = trio.Event()
    answered = trio.Event()

    async def publish() -> None:
        await small.publish()
        answered.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        await wait_all_tasks_blocked()
        assert reader.numbers == []
        assert not answered.is_set()
        small.store.gate.set()
    assert reader.numbers == [1]


async def test_a_receipt_tells_number_epoch_and_who_is_there(autojump_clock: MockClock, small: World) -> None:
    online, away = Reader(), Reader("bo", "phone")
    await small.connect(away)
    away.leave()
    await small.connect(online)
    receipt = await small.publish()
    assert (receipt.seq, receipt.epoch, receipt.clients_notified) == (1, "epoch-1", 1)
    assert (receipt.online, receipt.known, receipt.at_risk, receipt.replayed) == (1, 2, 0, False)


async def test_a_subscriber_more_than_80_behind_is_at_risk(autojump_clock: MockClock, small: World) -> None:
    away = Reader()
    await small.connect(away)
    away.leave()
    receipts = [await small.publish() for _ in range(82)]
    assert [receipt.at_risk for receipt in receipts[79:]] == [0, 1, 1]


async def test_publishes_that_wait_together_are_stored_in_one_append_and_keep_their_order(
    autojump_clock: MockClock, small: World
) -> None:
    small.store.gate = trio.Event()
    seqs: dict[int, int] = {}

    async def publish(number: int) -> None:
        seqs[number] = (await small.publish(b"%d" % number)).seq

    async with trio.open_nursery() as nursery:
        for number in range(1 + BATCH_EVENTS_MAX + 1):
            nursery.start_soon(publish, number)
            await wait_all_tasks_blocked()
        small.store.gate.set()
    assert small.store.appends == 3
    assert seqs == {number: number + 1 for number in range(66)}
    assert await small.stored() == [(number + 1, b"%d" % number) for number in range(66)]


async def test_who_is_answered_together_and_publishes_again_at_once_shares_the_next_append(
    autojump_clock: MockClock, small: World
) -> None:
    held = small.store.gate = trio.Event()

    async def publish(times: int) -> None:
        for _ in range(times):
            await small.publish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish, 1)
        await wait_all_tasks_blocked()
        for _ in range(4):
            nursery.start_soon(publish, 2)
        await wait_all_tasks_blocked()
        small.store.gate = trio.Event()
        held.set()
        await wait_all_tasks_blocked()
        assert small.store.appends == 2, "the four of them"
        nursery.start_soon(publish, 1)
        await wait_all_tasks_blocked()
        small.store.gate.set()
    assert len(await small.stored()) == 1 + 4 + 5
    assert small.store.appends == 3


async def test_a_full_mailbox_refuses_publishes_at_once_and_still_lets_subscribers_in(
    autojump_clock: MockClock,
) -> None:
    async with world(ActorLimits(mailbox_publishes_max=3)) as full, trio.open_nursery() as nursery:
        full.store.gate = trio.Event()
        nursery.start_soon(full.publish)
        await wait_all_tasks_blocked()
        for _ in range(3):
            nursery.start_soon(full.publish)
        await wait_all_tasks_blocked()
        with pytest.raises(MailboxFull):
            await full.publish()
        reader = Reader()
        nursery.start_soon(full.connect, reader)
        await wait_all_tasks_blocked()
        full.store.gate.set()
    assert full.actor().mailbox.peak == 3
    assert reader.numbers == [1, 2, 3, 4]


async def test_a_refusal_of_the_store_is_an_answer_and_no_crash(autojump_clock: MockClock, small: World) -> None:
    await small.publish(b"one", key="k")
    with pytest.raises(KeyReused):
        await small.publish(b"two", key="k")
    small.store.fail("append_nowait", Busy("the disk is full"))
    with pytest.raises(Busy):
        await small.publish()
    assert (await small.publish()).seq == 2
    assert (small.actor().incarnation, small.actor().restarts) == (1, 0)


async def test_a_replay_reaches_nobody_twice(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await small.connect(reader)
    first = await small.publish(b"one", key="k")
    again = await small.publish(b"one", key="k")
    assert (again.seq, again.replayed, again.clients_notified) == (first.seq, True, 0)
    assert reader.numbers == [1]


async def test_an_unknown_diagnosis_is_refused_and_leaves_nothing_behind(
    autojump_clock: MockClock, small: World
) -> None:
    with pytest.raises(NoSuchDiagnosis):
        await small.publish(diagnosis_id="unknown")
    assert small.registry.statistics().actors == 0


async def test_a_broadcast_to_ten_thousand_does_not_stop_the_others(autojump_clock: MockClock, small: World) -> None:
    readers = [Reader(device=None) for _ in range(10_000)]
    for reader in readers:
        await small.connect(reader)
    fed = longest = 0

    async def others() -> None:
        nonlocal fed, longest
        while True:
            await trio.lowlevel.checkpoint()
            now = sum(1 for reader in readers if reader.numbers)
            longest, fed = max(longest, now - fed), now

    async with trio.open_nursery() as nursery:
        nursery.start_soon(others)
        await small.publish()
        nursery.cancel_scope.cancel()
    assert all(reader.numbers == [1] for reader in readers)
    # Trio shuffles tasks that are ready together: up to two chunks may lie between two of our turns.
    assert longest <= 2 * FANOUT_CHUNK
