"""Supervision: a crash ends one incarnation, and nobody outside notices."""

from __future__ import annotations

import itertools
import logging

import pytest
import trio
import trio.lowlevel
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.errors import Crashed, Quarantined
from actors.intensity import BACKOFF_FIRST_SECONDS
from actors.messages import Envelope, Publish
from actors.slot import ActorLimits, ActorState
from actors.transport import Ending
from storage.errors import Busy, Failed, NoSuchDiagnosis
from storage.records import Appended, Epoch, NewEvent, Seq
from storage.store import PendingAppend
from tests.actors.world import RESILIENT, Bug, Reader, World, anybody, retire, world


async def test_a_publish_in_hand_at_a_crash_is_done_by_the_next_incarnation(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await small.connect(reader)
    small.store.fail("append_nowait", Bug())
    assert (await small.publish()).seq == 1
    assert (small.actor().incarnation, small.actor().restarts) == (2, 1)
    assert (reader.numbers, reader.ending) == ([1], None)


async def test_an_append_that_had_reached_the_store_is_not_repeated_after_a_crash(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await small.connect(reader)
    small.store.fail("append_outcome", Bug())
    receipt = await small.publish(b"once")
    assert (receipt.seq, receipt.clients_notified, receipt.replayed) == (1, 1, False)
    assert await small.stored() == [(1, b"once")]
    assert reader.numbers == [1]


@pytest.mark.guarantee(8)
async def test_a_crash_in_the_middle_of_a_fan_out_loses_and_repeats_nothing(
    autojump_clock: MockClock, small: World
) -> None:
    readers = [Reader(str(number)) for number in range(5)]
    for reader in readers:
        await small.connect(reader)
    readers[2].crashes = 1
    await small.publish()
    await small.publish()
    assert [reader.numbers for reader in readers] == [[1, 2]] * 5
    assert small.actor().restarts == 1


async def test_a_message_that_crashes_the_actor_twice_is_refused_and_its_neighbours_succeed(
    autojump_clock: MockClock, small: World
) -> None:
    small.store.gate = trio.Event()
    small.store.poison = b"poison"
    seqs: dict[bytes, int] = {}
    refused: list[bytes] = []

    async def publish(body: bytes) -> None:
        try:
            seqs[body] = (await small.publish(body)).seq
        except Crashed:
            refused.append(body)

    async with trio.open_nursery() as nursery:
        for body in (b"first", b"left", b"poison", b"right"):
            nursery.start_soon(publish, body)
            await wait_all_tasks_blocked()
        small.store.gate.set()
    assert refused == [b"poison"]
    assert seqs == {b"first": 1, b"left": 2, b"right": 3}
    assert small.actor().restarts == 2


async def test_the_first_restart_is_immediate_and_the_next_ones_back_off(
    autojump_clock: MockClock, small: World
) -> None:
    began = trio.current_time()
    small.store.fail("append_nowait", Bug())
    await small.publish()
    assert trio.current_time() == began
    small.store.fail("append_nowait", Bug())
    await small.publish()
    assert trio.current_time() == pytest.approx(began + BACKOFF_FIRST_SECONDS)


async def crash_until_quarantined(small: World) -> None:
    """Four crashes in a minute: more than the default intensity."""
    for _ in range(3):
        small.store.fail("append_nowait", Bug())
        await small.publish()
    small.store.fail("append_nowait", Bug())
    with pytest.raises(Quarantined):
        await small.publish()


async def test_too_many_crashes_quarantine_the_diagnosis_visibly(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await small.connect(reader)
    await crash_until_quarantined(small)
    assert reader.ending is Ending.QUARANTINED
    actor = small.actor()
    assert (actor.state, actor.restarts) == (ActorState.QUARANTINED, 4)
    assert actor.last_crash is not None
    assert actor.last_crash.error.startswith("Bug at ")
    with pytest.raises(Quarantined) as refusal:
        await small.publish()
    assert 0 < refusal.value.retry_after_seconds <= 60
    with pytest.raises(Quarantined):
        await small.connect(Reader())


async def test_a_quarantine_ends_by_itself_after_its_cool_off_and_is_remembered(
    autojump_clock: MockClock, small: World
) -> None:
    await crash_until_quarantined(small)
    await trio.sleep(60.1)
    assert (await small.publish()).seq == 4
    assert small.actor().restarts == 4


async def test_a_quarantine_is_released_by_an_operators_restart(autojump_clock: MockClock, small: World) -> None:
    await crash_until_quarantined(small)
    await small.registry.restart("d")
    assert (await small.publish()).seq == 4
    for _ in range(3):
        small.store.fail("append_nowait", Bug())
        await small.publish()
    assert small.actor().state is ActorState.RUNNING


async def test_an_operators_restarts_never_count_and_never_wait(autojump_clock: MockClock, small: World) -> None:
    began = trio.current_time()
    reader = Reader()
    await small.connect(reader)
    for number in range(1, 51):
        await small.registry.restart("d")
        assert (await small.publish()).seq == number
    assert small.actor().incarnation == 51
    assert small.actor().restarts == 0
    assert trio.current_time() == began
    assert reader.numbers == list(range(1, 51))


async def test_an_operators_restart_ends_the_wait_of_a_backoff(autojump_clock: MockClock, small: World) -> None:
    small.store.fail("append_nowait", Bug(), Bug())
    async with trio.open_nursery() as nursery:
        began = trio.current_time()

        async def publish() -> None:
            with pytest.raises(Crashed):
                await small.publish()

        nursery.start_soon(publish)
        await wait_all_tasks_blocked()
        assert small.actor().state is ActorState.RESTARTING
        await small.registry.restart("d")
        assert trio.current_time() == began


@pytest.mark.guarantee(6)
async def test_a_crash_touches_no_other_diagnosis(autojump_clock: MockClock) -> None:
    async with world(diagnoses=("d", "e")) as two:
        here, there = Reader(), Reader()
        await two.connect(here)
        await two.connect(there, diagnosis_id="e")
        await crash_until_quarantined(two)
        assert (await two.publish(diagnosis_id="e")).seq == 1
        assert (there.numbers, there.ending) == ([1], None)
        assert two.actor("e").incarnation == 1


async def test_many_quarantines_in_a_minute_escalate_until_they_are_over(autojump_clock: MockClock) -> None:
    names = [f"d{number}" for number in range(3)]
    limits = ActorLimits(restart_intensity_max=0, escalation_quarantines_max=2)
    async with world(limits, diagnoses=names) as many:
        for name in names:
            assert not many.registry.escalated
            many.store.fail("append_nowait", Bug())
            with pytest.raises(Quarantined):
                await many.publish(diagnosis_id=name)
        assert many.registry.escalated
        await trio.sleep(61)
        assert not many.registry.escalated


async def test_a_crash_is_logged_with_who_and_what_and_without_its_payload(
    autojump_clock: MockClock, small: World, caplog: pytest.LogCaptureFixture
) -> None:
    await small.connect(Reader())
    small.store.fail("append_nowait", Bug())
    with caplog.at_level(logging.ERROR):
        await small.publish(b"secret-payload")
    (line,) = [record.getMessage() for record in caplog.records]
    assert "diagnosis d: incarnation 1 crashed: Bug at _maybe_fail" in line
    assert line.endswith("in hand: Publish")
    assert "secret-payload" not in caplog.text


async def test_an_outbox_that_cannot_be_read_is_tried_again_while_somebody_follows(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await small.connect(reader)
    small.store.fail("read_after", Failed("the disk"), Failed("the disk"))
    await small.registry.restart("d")
    await trio.sleep(5)
    assert (await small.publish()).seq == 1
    assert (reader.numbers, reader.ending) == ([1], None)
    assert small.actor().restarts == 0


async def test_an_outbox_that_cannot_be_read_refuses_its_publisher_and_leaves_nothing_behind(
    autojump_clock: MockClock, small: World
) -> None:
    small.store.fail("read_after", Busy("locked"))
    with pytest.raises(Busy):
        await small.publish()
    assert small.registry.statistics().actors == 0
    assert (await small.publish()).seq == 1


async def test_nobody_is_told_that_a_stored_event_was_not_stored(autojump_clock: MockClock, small: World) -> None:
    """The append commits, the actor crashes, and its next incarnation cannot read the outbox."""
    await small.publish()
    small.store.fail("append_outcome", Bug())
    small.store.fail("read_after", Busy("locked"))
    assert (await small.publish()).seq == 2
    assert len(await small.stored()) == 2


async def test_a_deleted_diagnosis_ends_its_connections_and_answers_who_waits(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await small.connect(reader)
    small.store.gate = trio.Event()

    async def publish() -> None:
        with pytest.raises(NoSuchDiagnosis):
            await small.publish()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(publish)
        nursery.start_soon(publish)
        await wait_all_tasks_blocked()
        await small.store.inner.delete("d")
        await retire(small.registry)
        small.store.gate.set()
    assert reader.ending is Ending.DELETED
    assert small.registry.statistics().actors == 0
    with pytest.raises(NoSuchDiagnosis):
        await small.publish()


async def test_what_a_new_registration_has_stored_is_not_denied(autojump_clock: MockClock, small: World) -> None:
    await small.publish()  # the actor has loaded
    slot = small.registry._slots["d"]
    envelope = Envelope(Publish(NewEvent("k", b"{}"), anybody))
    envelope.pending = PendingAppend()
    envelope.pending.answer([Appended(Seq(1), 0.0, Epoch("of another registration"), replayed=False)])
    slot.in_hand.holding.append(envelope)
    await retire(small.registry)
    with pytest.raises(Failed, match="outcome"):
        await envelope.reply.wait()


@pytest.mark.guarantee(8)
async def test_fifty_crashes_under_load_lose_repeat_close_and_refuse_nothing(autojump_clock: MockClock) -> None:
    faults = itertools.cycle(["append_nowait", "append_outcome", "fan-out", "read_after", "cursors"])
    async with world(RESILIENT) as loaded:
        readers = [Reader(f"reader-{number}") for number in range(20)]
        for reader in readers:
            await loaded.connect(reader)
        seqs: list[int] = []
        done = False

        async def publish() -> None:
            while not done:
                seqs.append((await loaded.publish()).seq)
                await trio.sleep(0.001)

        async with trio.open_nursery() as publishers:
            for _ in range(4):
                publishers.start_soon(publish)
            for kill in range(1, 51):
                match next(faults):
                    case "fan-out":
                        readers[kill % 20].crashes = 1
                    case "read_after" | "cursors" as method:
                        # While it loads: the crash of a restart.
                        loaded.store.fail("read_after" if method == "cursors" else method, Bug())
                        await loaded.registry.restart("d")
                    case method:
                        loaded.store.fail(method, Bug())
                with trio.fail_after(600):
                    while loaded.actor().restarts < kill:
                        await trio.sleep(0.001)
                    await loaded.settled()
            done = True
        total = len(seqs)
        await loaded.settled()
    assert total > 50
    assert sorted(seqs) == list(range(1, total + 1))
    for reader in readers:
        assert reader.numbers == list(range(1, total + 1))
        assert reader.ending is None


async def test_the_isolation_of_one_that_crashes_in_a_loop_is_not_paid_by_the_others(
    autojump_clock: MockClock,
) -> None:
    """Under the jumping clock any wait would show: the others' publishes take no time at all."""
    async with world(diagnoses=("d", "e")) as two:
        began = trio.current_time()
        two.store.poison = b"poison"

        async def loop() -> None:
            while True:
                try:
                    await two.publish(b"poison", "d")
                except Crashed:
                    continue
                except Quarantined:
                    return

        async with trio.open_nursery() as nursery:
            nursery.start_soon(loop)
            waits = []
            for _ in range(100):
                before = trio.current_time()
                await two.publish(diagnosis_id="e")
                waits.append(trio.current_time() - before)
                await trio.sleep(0.01)
        assert max(waits) == 0
        assert trio.current_time() > began


@pytest.mark.parametrize("is_followed", [False, True])
async def test_a_stop_and_a_restart_together_leave_one_actor(
    autojump_clock: MockClock, small: World, is_followed: bool
) -> None:
    reader = Reader()
    await small.connect(reader)
    await small.publish()
    small.acknowledge(reader, 1)  # its cursor is still to be stored, and the stop waits for that
    if not is_followed:
        reader.leave()
    async with trio.open_nursery() as nursery:
        for act in (small.registry.stop, small.registry.restart, small.registry.stop, small.registry.restart):
            nursery.start_soon(act, "d")
    await small.publish()
    running = [task for task in small.actors_nursery.child_tasks if task.name == "d"]
    assert len(running) == 1
    assert [number for number, _ in await small.stored()] == [1, 2]
    assert reader.numbers == ([1, 2] if is_followed else [1])


async def test_a_restart_that_comes_while_a_stop_waits_is_carried_out(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await small.connect(reader)
    await small.publish()
    before = small.actor().incarnation
    async with trio.open_nursery() as nursery:
        small.acknowledge(reader, 1)
        nursery.start_soon(small.registry.stop, "d")
        await trio.lowlevel.checkpoint()
        await small.registry.restart("d")
    assert small.actor().incarnation > before


async def test_a_stop_right_after_a_wake_counts_and_the_mail_is_read_first(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await small.connect(reader)
    await small.registry.stop("d")
    assert small.actor().state is ActorState.PASSIVE
    receipt = small.registry.tell("d", Publish(NewEvent("k", b"x"), anybody))
    with trio.fail_after(1):
        await small.registry.stop("d")
    assert small.actor().state is ActorState.PASSIVE
    assert (await receipt()).seq == 1
    assert reader.numbers == [1]
    await small.publish()
    assert small.actor().state is ActorState.RUNNING, "it was to stop once"
