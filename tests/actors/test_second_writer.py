"""Two processes on one store: what each makes of what the other writes, also where it hears of it late or never."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from random import Random
from typing import Any

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

import actors.roster
from actors.following import HEARD_IN_VAIN_MAX
from actors.messages import DeliveryState, Forget, Forgotten, Purge, Trace
from actors.reading import Live, RenderedEvent
from actors.resume import Resume, Wanted
from actors.ring import Gap
from actors.transport import Ending
from actors.which import EVERYBODY, OfUser
from storage.errors import Busy, Failed
from storage.memory import MemoryStore
from storage.memory_engine import LOOK_SECONDS, Faults
from storage.news import News
from storage.records import Act, CursorMove, Epoch, Seq, SubscriberId, Window
from tests.actors.world import DIAGNOSIS, Reader, World, anybody, retire, settled_cursors, two_worlds

DAY = 24 * 3600.0
DEAF = 1.0
"""The share of live copies that are lost where nothing is to be heard."""


def handle(there: World) -> MemoryStore:
    assert isinstance(there.store.inner, MemoryStore)
    return there.store.inner


async def publish(there: World, count: int) -> None:
    for _ in range(count):
        await there.publish()


async def purge(there: World) -> None:
    await there.registry.ask(DIAGNOSIS, Purge(Act("op", "outbox.purge"), anybody))


async def register_anew(there: World) -> None:
    await there.store.inner.delete(DIAGNOSIS)
    await there.store.inner.register(DIAGNOSIS, "amira", [])


# Heard of


async def test_what_is_posted_at_one_is_followed_at_both_in_order(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        readers = [Reader("amira"), Reader("bo")]
        await one.connect(readers[0])
        await other.connect(readers[1])
        for number in range(5):
            await (one, other)[number % 2].publish(b"%d" % number)
        await wait_all_tasks_blocked()
        bodies = [b"%d:%d" % (seq, seq - 1) for seq in range(1, 6)]
        for reader in readers:
            assert [got.text for got in reader.got if isinstance(got, RenderedEvent)] == bodies
        assert (one.store.appends, other.store.appends) == (3, 2)


async def test_a_purge_elsewhere_is_an_exact_gap_for_a_reader_that_lags(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        reader = Reader()
        await other.connect(reader)
        reader.slow = True
        await publish(one, 5)
        await wait_all_tasks_blocked()
        reader.slow = False
        await purge(one)
        await wait_all_tasks_blocked()
        assert [got for got in reader.got if isinstance(got, Gap)] == [Gap(Seq(1), Seq(5), purged=True)]
        await one.publish()
        await wait_all_tasks_blocked()
        assert reader.accounted == list(range(1, 7))


async def test_what_comes_while_the_actor_is_busy_takes_one_place_in_its_mailbox(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        reader = Reader()
        await other.connect(reader)
        other.store.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.publish)
            await wait_all_tasks_blocked()
            reads = count_reads(other)
            await publish(one, 50)
            assert other.registry._slots[DIAGNOSIS].mailbox._controls == 1
            other.store.gate.set()
        await wait_all_tasks_blocked()
        assert reader.numbers == list(range(1, 52))
        assert reads == [], "what was heard of without a hole is not read"


async def test_what_others_store_between_own_events_is_not_read(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        reader = Reader()
        await other.connect(reader)
        reads = count_reads(other)
        for held in (1, 2):
            other.store.gate = trio.Event()
            async with trio.open_nursery() as nursery:
                await publish(one, 2)
                nursery.start_soon(publish, other, 1)
                await wait_all_tasks_blocked()
                await publish(one, held)
                await wait_all_tasks_blocked()
                other.store.gate.set()
            await wait_all_tasks_blocked()
        assert (reader.numbers, reads) == (list(range(1, 10)), [])


async def test_nothing_is_told_to_a_process_where_nobody_follows_until_somebody_does(
    autojump_clock: MockClock,
) -> None:
    async with two_worlds() as (one, other):
        await publish(other, 1)
        assert not handle(other)._handle.follows(DIAGNOSIS)
        reads = count_reads(other)
        for count in (2, 1):
            await publish(one, count)
            await publish(other, 1)
        assert reads == [], "nobody reads what others have stored"
        assert other.registry.window(DIAGNOSIS) is None
        window = other.actor().window
        assert window is not None
        assert (window.head, window.floor) == (6, 0), "numbers are known by what was stored here"
        assert (await other.settled()).head == 6, "who asks gets what is stored"
        reader = Reader()
        await other.connect(reader, Wanted(after=Seq(0)))
        assert reader.numbers == list(range(1, 7))
        await publish(one, 1)
        await wait_all_tasks_blocked()
        assert reader.numbers == list(range(1, 8))


async def test_whoever_leaves_is_back_before_what_is_told_ends(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        reader = Reader()
        await other.connect(reader)
        reader.leave()
        for _ in range(HEARD_IN_VAIN_MAX - 1):
            await publish(one, 1)
            await wait_all_tasks_blocked()
        again = Reader()
        await other.connect(again)
        assert handle(other)._handle.follows(DIAGNOSIS)
        again.leave()
        for _ in range(HEARD_IN_VAIN_MAX):
            assert handle(other)._handle.follows(DIAGNOSIS)
            await publish(one, 1)
            await wait_all_tasks_blocked()
        assert not handle(other)._handle.follows(DIAGNOSIS)
        await publish(one, 3)
        third = Reader()
        await other.connect(third, Wanted(after=Seq(HEARD_IN_VAIN_MAX)))
        assert third.numbers == list(range(HEARD_IN_VAIN_MAX + 1, 2 * HEARD_IN_VAIN_MAX + 3))


async def test_who_follows_where_what_was_not_told_cannot_be_read_gets_it_later(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        known = Reader("bo", "phone")
        await other.connect(known)
        known.leave()
        for _ in range(HEARD_IN_VAIN_MAX):
            await publish(one, 1)
            await wait_all_tasks_blocked()
        await settled_cursors(other.registry)
        await publish(one, 2)
        other.store.fail("read_after", Busy("now"), Busy("now"))
        again = Reader("bo", "phone")
        await other.connect(again)
        await trio.sleep(1)
        assert again.numbers == list(range(1, HEARD_IN_VAIN_MAX + 3))


async def test_an_actor_that_leaves_memory_is_told_nothing(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        reader = Reader()
        await other.connect(reader)
        reader.leave()
        await other.registry.stop_here(DIAGNOSIS)
        assert not handle(other)._handle.follows(DIAGNOSIS)
        await other.connect(reader2 := Reader())
        assert handle(other)._handle.follows(DIAGNOSIS)
        await one.store.inner.delete(DIAGNOSIS)
        await retire(other.registry)
        assert (handle(other)._handle.follows(DIAGNOSIS), reader2.ending) == (False, Ending.DELETED)


def count_reads(there: World) -> list[float]:
    """When the log is read from now on."""
    reads: list[float] = []
    inner = there.store.inner.read_after

    async def read_after(*args: Any) -> Any:
        reads.append(trio.current_time())
        return await inner(*args)

    there.store.read_after = read_after  # type: ignore[attr-defined]
    return reads


class Oldest(Random):
    """Has a replica lag as far as it may."""

    def choice(self, seq: Any) -> Any:
        return seq[-1]


async def test_what_a_replica_does_not_have_yet_is_read_again_soon_and_then_less_often(
    autojump_clock: MockClock,
) -> None:
    faults = Faults(reads_old=5, random=Oldest(0))
    async with two_worlds(faults) as (one, other):
        reader = Reader()
        await other.connect(reader)
        await publish(one, 1)
        await wait_all_tasks_blocked()
        faults.live_lost = DEAF
        await publish(one, 1)
        began, reads = trio.current_time(), count_reads(other)
        # News with a hole come of a head that no replica has yet.
        epoch = (await one.settled()).epoch
        other.registry.grew(DIAGNOSIS, News(Window(epoch, Seq(3), Seq(0), Seq(0))))
        await trio.sleep(2.2)
        waits = [round(at - began, 2) for at in reads]
        assert waits == [0.0, 0.01, 0.03, 0.07, 0.15, 0.31, 0.63, 1.13, 1.63, 2.13]
        assert other.actor().mailbox.depth == 0
        await one.publish()
        faults.reads_old = 0
        await trio.sleep(0.5)
        assert reader.numbers == [1, 2, 3]
        del reads[:]
        await trio.sleep(10)
        assert reads == [], "nothing is missing any more"


async def test_a_publisher_does_not_wait_for_what_is_looked_for(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        reader = Reader()
        await other.connect(reader)
        epoch = (await one.settled()).epoch
        other.registry.grew(DIAGNOSIS, News(Window(epoch, Seq(9), Seq(0), Seq(0))))
        await trio.sleep(1)
        began = trio.current_time()
        assert (await other.publish()).seq == 1
        assert trio.current_time() == began
        assert reader.numbers == [1]


async def test_an_actor_that_looks_for_something_still_passivates_when_it_is_found(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        await other.settled()
        epoch = (await one.publish()).epoch
        other.registry.grew(DIAGNOSIS, News(Window(epoch, Seq(2), Seq(0), Seq(0))))
        await trio.sleep(1)
        assert other.registry.statistics().actors == 1
        await one.publish()
        await trio.sleep(301)
        assert (one.registry.statistics().actors, other.registry.statistics().actors) == (0, 0)
        assert not handle(other)._handle.follows(DIAGNOSIS), "nobody here wants to hear of it any more"


async def test_an_actor_that_looks_for_something_is_at_work_and_counts_what_it_finds(
    autojump_clock: MockClock,
) -> None:
    async with two_worlds(Faults(live_lost=DEAF)) as (one, other):
        await other.settled()
        inner, lets_go = other.store.inner.read_after, []

        async def read_after(*args: Any) -> Any:
            found = await inner(*args)
            lets_go.append(other.registry._slots[DIAGNOSIS].let_go_of_ring())
            return found

        other.store.read_after = read_after  # type: ignore[attr-defined]
        epoch = (await one.settled()).epoch
        other.registry.grew(DIAGNOSIS, News(Window(epoch, Seq(2), Seq(0), Seq(0))))
        await publish(one, 2)
        await trio.sleep(1)
        assert (set(lets_go), other.actor().restarts) == ({False}, 0)
        assert other.registry.statistics().ring_bytes == len(b"1:x2:x")


async def test_what_was_missed_is_made_up_for_within_a_minute(autojump_clock: MockClock) -> None:
    faults = Faults(live_lost=DEAF)
    async with two_worlds(faults) as (one, other):
        reader = Reader()
        await other.connect(reader)
        await publish(one, 3)
        await trio.sleep(1)
        assert reader.numbers == []
        await trio.sleep(LOOK_SECONDS)
        assert reader.numbers == [1, 2, 3]


async def test_while_the_store_is_away_nobody_is_ended_and_afterwards_everything_comes(
    autojump_clock: MockClock,
) -> None:
    async with two_worlds() as (one, other):
        reader, known = Reader(), Reader("bo", "phone")
        await other.connect(reader)
        await other.connect(known)
        known.leave()
        await settled_cursors(other.registry)
        handle(other).go_away()
        await publish(one, 3)
        other.registry.grew(DIAGNOSIS, News(None, is_whole=False))
        await trio.sleep(5)
        assert (reader.numbers, reader.ending, other.actor().restarts) == ([], None, 0)
        again = Reader("bo", "phone")
        assert (await other.connect(again)).plan.resume is Resume.EXACT, "it is known here"
        handle(other).come_back()
        await trio.sleep(1)
        assert reader.numbers == again.numbers == [1, 2, 3]


async def test_a_registration_that_is_gone_ends_its_followers_and_the_next_one_is_followed(
    autojump_clock: MockClock,
) -> None:
    async with two_worlds() as (one, other):
        old, new = Reader(), Reader()
        await other.connect(old)
        await publish(other, 2)
        await register_anew(one)
        await wait_all_tasks_blocked()
        assert (old.numbers, old.ending) == ([1, 2], Ending.DELETED)
        await other.connect(new)
        await one.registry.restart(DIAGNOSIS)
        await one.publish()
        await wait_all_tasks_blocked()
        assert (new.numbers, new.ending) == ([1], None)


async def test_late_news_of_a_registration_that_is_gone_end_nobody(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        old = await one.publish()
        await register_anew(one)
        reader = Reader()
        await other.connect(reader)
        other.registry.grew(DIAGNOSIS, News(Window(old.epoch, Seq(2), Seq(0), Seq(0))))
        await trio.sleep(0.05)
        await other.publish()
        reads = count_reads(other)
        await trio.sleep(60)
        assert (reader.numbers, reader.ending) == ([1], None)
        assert len(reads) < 10, "it is not looked for for ever"


# Renewed epochs


class Watched(Reader):
    """A connection whose end can be waited for."""

    def __init__(self, sub: str | None) -> None:
        super().__init__(sub)
        self.ended = trio.Event()

    def end(self, ending: Ending) -> None:
        super().end(ending)
        self.ended.set()


class Returning:
    """A client that comes back with its position whenever it is told to, to either of two processes."""

    def __init__(self, sub: str, worlds: tuple[World, World], draw: Random) -> None:
        self._worlds = worlds
        self._draw = draw
        self._reader = Watched(sub)
        self.epoch: Epoch | None = None
        self.resumed: list[Resume] = []
        self._seen: dict[Epoch | None, list[int]] = {}
        """Of each epoch, what former connections got or were told they cannot get."""

    @property
    def accounted(self) -> list[int]:
        """The numbers of this epoch that it got or was told it cannot get, in order."""
        return self._seen.get(self.epoch, []) + self._reader.accounted

    async def follow(self) -> None:
        """Follow until cancelled."""
        while True:
            position = Seq(self.accounted[-1]) if self.accounted else None
            self._seen[self.epoch] = self.accounted
            self._reader = Watched(self._reader.subscriber.id.sub)
            there = self._worlds[self._draw.randrange(2)]
            admission = await there.connect(self._reader, Wanted(position, self.epoch))
            self.epoch = admission.window.epoch
            self.resumed.append(admission.plan.resume)
            await self._reader.ended.wait()
            assert self._reader.ending is Ending.RENEWED
            assert self.accounted == list(range(1, len(self.accounted) + 1))


@pytest.mark.parametrize("seed", range(20))
async def test_whoever_follows_while_epochs_are_renewed_comes_back_and_misses_nothing_of_the_new_one(
    autojump_clock: MockClock, seed: int
) -> None:
    draw = Random(seed)
    faults = Faults(live_lost=0.3, live_late_seconds=0.05, reads_old=5, random=Random(seed))
    async with two_worlds(faults) as worlds, trio.open_nursery() as nursery:
        clients = [Returning(sub, worlds, draw) for sub in ("amira", "bo")]
        for client in clients:
            nursery.start_soon(client.follow)
        await wait_all_tasks_blocked()
        for number in range(3):
            if number:
                handle(worlds[0]).engine.renew_epochs()
            for _ in range(draw.randrange(6)):
                await worlds[draw.randrange(2)].publish()
                await trio.sleep(draw.random() * 0.02)
        await trio.sleep(2 * LOOK_SECONDS)
        window = handle(worlds[0]).engine.streams[DIAGNOSIS].window
        for client in clients:
            assert (client.epoch, client.accounted) == (window.epoch, list(range(1, window.head + 1)))
            assert client.resumed[0] is Resume.FRESH
            assert Resume.RESET in client.resumed
        assert [there.actor().restarts for there in worlds] == [0, 0]
        nursery.cancel_scope.cancel()


async def test_a_renewed_epoch_ends_those_of_one_diagnosis_and_a_deletion_is_none(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        await one.store.inner.register("e", "amira", [])
        readers = [Reader(), Reader()]
        await other.connect(readers[0])
        await other.connect(readers[1], diagnosis_id="e")
        await publish(one, 3)
        handle(one).damage(DIAGNOSIS, head=2)
        await handle(one).drop_damaged(DIAGNOSIS)
        await wait_all_tasks_blocked()
        assert [reader.ending for reader in readers] == [Ending.RENEWED, None]
        again = Reader()
        assert (await other.connect(again, Wanted(Seq(3), Epoch("epoch-1")))).plan.resume is Resume.RESET
        assert again.accounted == [1, 2, 3]
        await register_anew(one)
        await wait_all_tasks_blocked()
        assert again.ending is Ending.DELETED


async def test_an_actor_that_meets_the_other_epoch_first_takes_a_renewal_for_no_deletion(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_worlds() as (one, other):
        renewed = other.registry.renewed

        def only_marked(diagnosis_id: str | None) -> Callable[[], Awaitable[object]]:
            renewed(diagnosis_id)
            return trio.lowlevel.checkpoint

        monkeypatch.setattr(other.registry, "renewed", only_marked)
        reader = Reader()
        await other.connect(reader)
        await publish(one, 1)
        handle(one).engine.renew_epochs()
        await wait_all_tasks_blocked()
        assert (reader.numbers, reader.ending) == ([1], Ending.RENEWED)


async def test_a_renewed_epoch_ends_connections_although_the_outbox_cannot_be_read(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        reader = Reader()
        await other.connect(reader)
        other.store.fail("read_after", *[Busy("now")] * 10)
        began = trio.current_time()
        handle(one).engine.renew_epochs()
        await wait_all_tasks_blocked()
        assert (reader.ending, trio.current_time()) == (Ending.RENEWED, began)


# The faults of one that takes itself for the only writer


async def test_a_hole_that_was_purged_meanwhile_crashes_nothing(autojump_clock: MockClock) -> None:
    async with two_worlds(Faults(live_lost=DEAF)) as (one, other):
        reader = Reader()
        await other.connect(reader)
        await publish(one, 3)
        other.store.gate = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(other.publish)
            await wait_all_tasks_blocked()
            await purge(one)
            other.store.gate.set()
        assert other.actor().restarts == 0
        assert reader.got[1:] == [Gap(Seq(1), Seq(4), purged=True)]


@pytest.mark.parametrize("elsewhere", [0, 2])
async def test_a_publisher_meets_another_registration_than_the_one_in_memory(
    autojump_clock: MockClock, elsewhere: int
) -> None:
    async with two_worlds(Faults(live_lost=DEAF)) as (one, other):
        old, new = Reader(), Reader("bo")
        await other.connect(old)
        await publish(other, 1)
        await register_anew(one)
        await publish(one, elsewhere)
        receipt = await other.publish()
        assert (receipt.seq, receipt.clients_notified) == (elsewhere + 1, 0)
        assert receipt.epoch == (await one.settled()).epoch
        assert (old.numbers, old.ending) == ([1], Ending.DELETED)
        await other.connect(new)
        assert new.numbers == list(range(1, elsewhere + 2))
        assert other.actor().restarts == 0


async def test_whoever_comes_and_whoever_purges_meets_another_registration_than_the_one_in_memory(
    autojump_clock: MockClock,
) -> None:
    async with two_worlds(Faults(live_lost=DEAF)) as (one, other):
        for number in range(2):
            old, new = Reader("old"), Reader("new")
            await other.connect(old)
            await publish(other, 2)
            await register_anew(one)
            await publish(one, 1)
            if number:
                await purge(other)
                assert (await other.settled()).floor == 1
            plan = (await other.connect(new)).plan
            assert (plan.resume, old.ending) == (Resume.FRESH, Ending.DELETED)
            assert (new.accounted, new.ending) == ([] if number else [1], None)
            new.leave()


async def test_a_newcomer_whose_epoch_ends_as_its_start_is_stored_begins_in_the_next_one(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two_worlds() as (one, other):
        await publish(one, 1)
        await other.settled()
        store = handle(other)
        move = store.move_cursors

        async def renewed_meanwhile(moves: Sequence[CursorMove]) -> Sequence[Seq | None]:
            monkeypatch.undo()
            store.engine.renew_epochs()
            return await move(moves)

        monkeypatch.setattr(store, "move_cursors", renewed_meanwhile)
        reader = Reader()
        with trio.fail_after(60):
            admission = await other.connect(reader)
        assert admission.window.epoch == store.engine.streams[DIAGNOSIS].window.epoch
        assert (reader.accounted, reader.ending) == ([1], None)


async def test_a_restart_over_another_registration_ends_the_followers_of_the_former(autojump_clock: MockClock) -> None:
    async with two_worlds(Faults(live_lost=DEAF)) as (one, other):
        old = Reader()
        await other.connect(old)
        await register_anew(one)
        await other.registry.restart(DIAGNOSIS)
        await wait_all_tasks_blocked()
        assert old.ending is Ending.DELETED


async def test_a_device_that_comes_from_another_process_goes_on_where_it_was_there(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        await publish(one, 5)
        await other.settled()  # it is in memory, and knows nobody
        for seq in (2, 4):
            phone = Reader("amira", "phone")
            await one.connect(phone)
            one.acknowledge(phone, seq)
            phone.leave()
            await settled_cursors(one.registry)
            back = Reader("amira", "phone")
            plan = (await other.connect(back)).plan
            assert (plan.resume, plan.position) == (Resume.EXACT, seq)
            back.leave()
            await settled_cursors(other.registry)


async def test_a_device_that_was_forgotten_elsewhere_begins_anew(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        phone = Reader("amira", "phone")
        await other.connect(phone)
        phone.leave()
        await settled_cursors(other.registry)
        await one.registry.ask(DIAGNOSIS, Forget(EVERYBODY, Act("op", "x"), anybody))
        assert (await other.connect(Reader("amira", "phone"))).plan.resume is Resume.FRESH


async def test_a_cursor_that_was_read_before_its_user_was_erased_is_not_taken_over(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        await publish(one, 5)
        await other.settled()
        phone = Reader("amira", "phone")
        await one.connect(phone)
        one.acknowledge(phone, 2)
        phone.leave()
        await settled_cursors(one.registry)
        inner = other.store.inner.cursor

        async def cursor(*args: Any) -> Any:
            found = await inner(*args)
            other.registry.erase(OfUser("amira"), "[erased]")
            return found

        other.store.cursor = cursor  # type: ignore[attr-defined]
        assert (await other.connect(Reader("amira", "phone"))).plan.resume is Resume.FRESH


async def test_who_is_known_to_another_registration_is_not_taken_over_if_its_user_is_erased_meanwhile(
    autojump_clock: MockClock,
) -> None:
    async with two_worlds(Faults(live_lost=DEAF)) as (one, other):
        await other.connect(Reader("bo"))
        await register_anew(one)
        phone = Reader("amira", "phone")
        await one.connect(phone)
        phone.leave()
        await settled_cursors(one.registry)
        inner = other.store.inner.cursors

        async def cursors(*args: Any, **kwargs: Any) -> Any:
            found = await inner(*args, **kwargs)
            if found:
                await one.store.inner.forget(DIAGNOSIS, [phone.subscriber.id])
                other.registry.erase(OfUser("amira"), "[erased]")
            return found

        other.store.cursors = cursors  # type: ignore[attr-defined]
        await other.publish()
        assert await other.registry.ask(DIAGNOSIS, Trace(Seq(1))) == ()


async def test_a_client_that_has_seen_more_elsewhere_is_not_told_to_reload(autojump_clock: MockClock) -> None:
    async with two_worlds(Faults(live_lost=DEAF, reads_old=5, random=Oldest(0))) as (one, other):
        await other.settled()
        await publish(one, 9)
        epoch = (await one.settled()).epoch
        reader = Reader()
        plan = (await other.connect(reader, Wanted(Seq(8), epoch))).plan
        assert (plan.resume, plan.position) == (Resume.EXACT, 8)
        await register_anew(one)
        await publish(one, 1)
        epoch = (await one.settled()).epoch
        plan = (await other.connect(Reader("bo"), Wanted(Seq(1), epoch))).plan
        assert (plan.resume, plan.position) == (Resume.EXACT, 1)


async def test_devices_are_counted_as_all_processes_know_them(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(actors.roster, "DEVICES_MAX", 2)
    async with two_worlds() as (one, other):

        async def come_and_go(there: World, device: str) -> None:
            reader = Reader("amira", device)
            await there.connect(reader)
            reader.leave()
            await settled_cursors(there.registry)
            await trio.sleep(1)

        await come_and_go(one, "phone")
        await come_and_go(one, "tablet")
        await other.settled()
        await come_and_go(one, "phone")  # now the tablet is unseen for longer
        await come_and_go(other, "watch")
        assert {found.subscriber.device for found in await one.store.inner.cursors(DIAGNOSIS)} == {"phone", "watch"}
        await one.store.inner.forget(DIAGNOSIS, [SubscriberId("amira", "phone")])
        await come_and_go(other, "laptop")
        assert {found.subscriber.device for found in await one.store.inner.cursors(DIAGNOSIS)} == {"watch", "laptop"}


async def test_whoever_was_admitted_elsewhere_is_forgotten_with_the_others(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        await other.settled()
        reader = Reader("amira", "phone")
        await one.connect(reader)
        reader.leave()
        forget = Forget(OfUser("amira"), Act("op", "x"), anybody)
        assert await other.registry.ask(DIAGNOSIS, forget) == Forgotten(connections=0, cursors=1)
        assert await one.cursor(reader) is None


async def test_a_device_that_is_connected_elsewhere_is_not_unseen(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        here = Reader("amira", "phone")
        await other.connect(here)
        here.leave()
        await settled_cursors(other.registry)
        stays, moved = Reader("bo"), Reader("amira", "phone")
        await other.connect(stays)
        await one.connect(moved)
        for _ in range(40):
            await trio.sleep(DAY)
            for there in (one, other):
                await there.registry.forget_unseen()
                await there.settled()
                await settled_cursors(there.registry)
            assert await one.cursor(moved) is not None
        assert moved.subscriber.known is not None
        moved.leave()


async def test_after_a_restart_whoever_was_seen_elsewhere_is_not_unseen(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        await other.connect(Reader("bo"))
        phone = Reader("amira", "phone")
        await other.connect(phone)
        phone.leave()
        await settled_cursors(other.registry)
        for _ in range(2):
            await trio.sleep(20 * DAY)
            again = Reader("amira", "phone")
            await one.connect(again)
            again.leave()
            await settled_cursors(one.registry)
        await other.registry.restart(DIAGNOSIS)
        await other.settled()
        assert await one.cursor(again) is not None
        assert (await other.publish()).known == 2


async def test_a_cursor_that_was_moved_further_elsewhere_is_taken_over(autojump_clock: MockClock) -> None:
    async with two_worlds() as (one, other):
        readers = [Reader(), Reader()]
        for there, reader in zip((one, other), readers, strict=True):
            await there.connect(reader)
        await publish(one, 5)
        await wait_all_tasks_blocked()
        one.acknowledge(readers[0], 4)
        await settled_cursors(one.registry)
        other.acknowledge(readers[1], 2)
        await settled_cursors(other.registry)
        (delivery,) = await other.registry.ask(DIAGNOSIS, Trace(Seq(4)))
        assert (delivery.cursor, delivery.state) == (4, DeliveryState.ACKNOWLEDGED)


async def test_whoever_has_acknowledged_more_elsewhere_than_is_here_is_not_behind(autojump_clock: MockClock) -> None:
    async with two_worlds(Faults(live_lost=DEAF)) as (one, other):
        there, here = Reader(), Reader()
        await one.connect(there)
        await other.connect(here)
        await publish(one, 5)
        one.acknowledge(there, 5)
        await settled_cursors(one.registry)
        other.registry._keeper.seen(here.subscriber.known)  # type: ignore[arg-type]
        await settled_cursors(other.registry)
        (lag,) = other.actor().lag or ()
        assert (lag.cursor, lag.events, other.registry.unacknowledged(DIAGNOSIS)) == (5, 0, 0)
        handle(other).go_away()
        again = Reader()
        admission = await other.connect(again)
        plan = admission.plan
        assert (plan.resume, plan.position, plan.queued, plan.missed) == (Resume.EXACT, 5, 0, 0)
        assert (admission.window.head, again.got) == (5, [Live(Seq(5))]), (
            "the head is no lower than what was acknowledged"
        )
        handle(other).come_back()
        await publish(other, 1)
        assert (here.numbers, again.numbers) == ([1, 2, 3, 4, 5, 6], [6])


async def test_a_publisher_gets_its_receipt_even_if_what_lies_between_cannot_be_read(autojump_clock: MockClock) -> None:
    async with two_worlds(Faults(live_lost=DEAF)) as (one, other):
        reader = Reader()
        await other.connect(reader)
        await publish(one, 2)
        other.store.fail("read_after", Failed("the disk does not answer"))
        assert (await other.publish()).seq == 3
        await trio.sleep(2)
        assert (reader.numbers, reader.ending) == ([1, 2, 3], None)
        assert other.actor().restarts == 0


# All together


@pytest.mark.guarantee(3)
@pytest.mark.parametrize("seed", range(40))
async def test_every_number_arrives_once_and_in_order_whatever_is_lost_late_or_old(
    autojump_clock: MockClock, seed: int
) -> None:
    lots = Random(seed)
    faults = Faults(live_lost=0.3, live_late_seconds=lots.choice((0.0, 0.2)), reads_old=5, random=Random(seed))
    async with two_worlds(faults) as worlds:
        readers: list[tuple[Reader, World, int]] = []
        epoch: Epoch | None = None
        for _ in range(150):
            there = lots.choice(worlds)
            steps = ("publish", "connect", "leave", "restart", "purge", "anew", "wait")
            match lots.choices(steps, (8, 2, 1, 1, 0.3, 0.2, 2))[0]:
                case "publish":
                    epoch = (await there.publish()).epoch
                case "connect":
                    reader = Reader(f"user-{lots.randrange(5)}")
                    plan = (await there.connect(reader, Wanted(epoch=epoch))).plan
                    readers.append((reader, there, plan.position))
                case "leave" if readers:
                    reader, at, _ = lots.choice(readers)
                    if not reader.subscriber.gone:
                        at.acknowledge(reader, reader.subscriber.position)
                        reader.leave()
                case "restart":
                    await there.registry.restart(DIAGNOSIS)
                case "anew":
                    await register_anew(there)
                case "purge":
                    await purge(there)
                case _:
                    await trio.sleep(lots.random())
        await trio.sleep(LOOK_SECONDS + 2)
        head = (await worlds[0].settled()).head
        assert (await worlds[1].settled()).head == head
        for reader, _, start in readers:
            accounted = reader.accounted
            assert accounted == list(range(start + 1, start + 1 + len(accounted)))
            if not reader.subscriber.gone:
                assert start + len(accounted) == head
        assert [there.actor().restarts for there in worlds] == [0, 0]
