"""What an actor must let go of, whatever it is doing: events that grew old, people who are erased, the long unseen."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, cast

import pytest
import trio
from trio.testing import MockClock

from actors.access_trail import AccessTrail
from actors.messages import ForgetUnseen, Inspect, Subscribe, Trace
from actors.resume import Wanted
from actors.ring import Gap
from actors.roster import DEVICES_MAX, UNSEEN_SECONDS_MAX
from actors.which import OfErased, OfUser
from storage.changes import digest_of
from storage.errors import Busy
from storage.memory import MemoryStore
from storage.memory_engine import MemoryEngine
from storage.records import Act, Erased, Erasure, Seq, SubscriberId
from storage.store import Store
from tests.actors.world import (
    DIAGNOSIS,
    Denied,
    Reader,
    Right,
    World,
    WorldClock,
    anybody,
    memory_store,
    retire,
    world,
)

DAY = 86_400.0
STAND_IN = "[erased]"


class PausingStore:
    """A store that has carried out a call, or refuses it, and holds that back until the test lets it go."""

    def __init__(self) -> None:
        self.inner = memory_store()
        self._pauses: dict[str, tuple[trio.Event, trio.Event]] = {}
        self._refusals: dict[str, Exception] = {}

    def pause(self, method: str, refusal: Exception | None = None) -> tuple[trio.Event, trio.Event]:
        """Hold back the next answer of `method`: set once it is there, and to be set to let it go.

        Args:
            refusal: is the answer, and nothing is done; `None`: it is done.
        """
        self._pauses[method] = trio.Event(), trio.Event()
        if refusal is not None:
            self._refusals[method] = refusal
        return self._pauses[method]

    def __getattr__(self, method: str) -> Any:
        call = getattr(self.inner, method)
        if method not in self._pauses:
            return call

        async def paused(*args: Any, **kwargs: Any) -> Any:
            refusal = self._refusals.pop(method, None)
            answer = None if refusal is not None else await call(*args, **kwargs)
            if (pause := self._pauses.pop(method, None)) is not None:
                pause[0].set()
                await pause[1].wait()
            if refusal is not None:
                raise refusal
            return answer

        return paused


async def erase(there: World, store: MemoryStore, sub: str) -> int:
    """What the route does; how many cursors there were."""
    await there.registry.let_go_of(OfErased(digest_of(sub)), STAND_IN)
    there.registry.erase(OfUser(sub), STAND_IN)
    erasure = Erasure(sub, STAND_IN, [sub])
    erased: Erased = await store.erase(erasure, Act("op", "subject.erase"))
    return erased.cursors


async def names_stored(store: MemoryStore) -> list[str | None]:
    return [cursor.subscriber.sub for cursor in await store.cursors(DIAGNOSIS)]


async def names_known(there: World) -> list[str | None]:
    return [one.subscriber.sub for one in await there.registry.ask(DIAGNOSIS, Trace(Seq(1)))]


async def test_events_that_are_dropped_while_an_actor_loads_do_not_stay_in_its_memory(
    autojump_clock: MockClock,
) -> None:
    store = PausingStore()
    async with world(store=cast(Store, store)) as there:
        for _ in range(3):
            await there.publish()
        await there.registry.stop(DIAGNOSIS)
        await trio.sleep(2 * DAY)
        is_read, go_on = store.pause("read_after")
        answer = there.registry.tell(DIAGNOSIS, Inspect())
        await is_read.wait()
        evicted = await store.inner.evict(DAY)
        there.registry.evicted(DIAGNOSIS, evicted.windows[DIAGNOSIS])
        go_on.set()
        await answer()
        assert (await there.settled()).floor == 3
        reader = Reader()
        await there.publish()
        await there.connect(reader)
    assert reader.numbers == [4]


async def test_events_of_an_earlier_registration_say_nothing_about_the_new_one(
    small: World, autojump_clock: MockClock
) -> None:
    await small.publish()
    window = await small.settled()
    await small.store.inner.delete(DIAGNOSIS)
    await retire(small.registry)
    await small.store.inner.register(DIAGNOSIS, "amira", [])
    await small.publish()
    small.registry.evicted(DIAGNOSIS, replace(window, floor=window.head))
    assert (await small.settled()).floor == 0


async def test_a_person_erased_while_an_actor_loads_is_not_known_to_it(autojump_clock: MockClock) -> None:
    store = PausingStore()
    async with world(store=cast(Store, store)) as there:
        for reader in (Reader("bo"), Reader("bo", "phone"), Reader("amira")):
            await there.connect(reader)
            reader.leave()
        await there.registry.stop(DIAGNOSIS)
        assert there.registry.statistics().actors == 0
        is_read, go_on = store.pause("cursors")
        answer = there.registry.tell(DIAGNOSIS, Inspect())
        await is_read.wait()
        assert await erase(there, store.inner, "bo") == 2
        go_on.set()
        await answer()
        assert await names_known(there) == ["amira"]
        receipt = await there.publish()
        assert (receipt.known, receipt.at_risk) == (1, 0)
        back = Reader("bo")
        await there.connect(back)
        assert await names_known(there) == ["amira", "bo"]
    assert await names_stored(store.inner) == ["amira", "bo"]


async def test_receipts_count_nobody_who_was_erased(small: World, autojump_clock: MockClock) -> None:
    reader = Reader("bo")
    await small.connect(reader)
    reader.leave()
    for _ in range(81):
        receipt = await small.publish()
    assert (receipt.known, receipt.at_risk) == (1, 1)
    await erase(small, cast(MemoryStore, small.store.inner), "bo")
    receipt = await small.publish()
    assert (receipt.known, receipt.at_risk) == (0, 0)


async def test_whoever_is_admitted_during_its_erasure_is_in_memory_and_in_the_store_or_in_neither(
    autojump_clock: MockClock,
) -> None:
    store = PausingStore()
    async with world(store=cast(Store, store)) as there:
        await there.settled()
        is_stored, go_on = store.pause("move_cursors")
        reader = Reader("bo")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(there.connect, reader)
            await is_stored.wait()
            assert await erase(there, store.inner, "bo") == 1
            go_on.set()
        assert await names_known(there) == await names_stored(store.inner)
        await there.publish()
        assert there.acknowledge(reader, 1)
        await trio.sleep(5)
        assert await there.cursor(reader) == 1


async def test_whoever_may_follow_no_more_once_it_is_erased_is_admitted_nowhere(autojump_clock: MockClock) -> None:
    store, right = PausingStore(), Right()
    async with world(store=cast(Store, store)) as there:
        await there.settled()
        is_stored, go_on = store.pause("move_cursors")
        reader = Reader("bo")

        async def come() -> None:
            with pytest.raises(Denied):
                await there.registry.ask(DIAGNOSIS, Subscribe(reader.subscriber, Wanted(), right.judge))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(come)
            await is_stored.wait()
            right.is_there = False
            assert await erase(there, store.inner, "bo") == 1
            go_on.set()
        assert await names_known(there) == await names_stored(store.inner) == []


async def test_cursors_that_wait_for_the_disk_are_not_stored_after_their_person_is_erased(
    autojump_clock: MockClock,
) -> None:
    async with world() as there:
        await there.publish()
        reader = Reader("bo")
        await there.connect(reader)
        there.store.fail("move_cursors", *[Busy("full")] * 10)
        assert there.acknowledge(reader, 1)
        reader.leave()
        await there.registry.stop(DIAGNOSIS)
        assert there.registry.statistics().actors == 0
        store = cast(MemoryStore, there.store.inner)
        await erase(there, store, "bo")
        await trio.sleep(30)
        assert await names_stored(store) == []
        assert there.store.faults["move_cursors"], "nothing was left to store"


async def test_cursors_that_the_disk_refuses_after_their_person_was_erased_are_not_stored_later(
    autojump_clock: MockClock,
) -> None:
    store = PausingStore()
    async with world(store=cast(Store, store)) as there:
        await there.publish()
        reader = Reader("bo")
        await there.connect(reader)
        is_asked, go_on = store.pause("move_cursors", Busy("full"))
        assert there.acknowledge(reader, 1)
        reader.leave()
        await is_asked.wait()
        assert await erase(there, store.inner, "bo") == 1
        go_on.set()
        await trio.sleep(30)
        assert await names_stored(store.inner) == []


async def test_rows_of_the_access_trail_that_wait_lose_the_name_too(autojump_clock: MockClock) -> None:
    store = memory_store()
    trail = AccessTrail(store, WorldClock())
    for reader in (Reader("bo", "phone"), Reader("amira")):
        trail.note("connect", DIAGNOSIS, reader.subscriber)
    trail.rename(OfUser("bo"), STAND_IN)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(trail.run)
        await trail.flush()
        nursery.cancel_scope.cancel()
    found = [row.subscriber for row in await store.accesses()]
    assert found == [SubscriberId("amira", None), SubscriberId(STAND_IN, None)]


async def test_the_long_unseen_are_forgotten_while_others_follow_and_who_is_connected_is_seen(
    small: World, autojump_clock: MockClock
) -> None:
    here, gone = Reader("amira", "laptop"), Reader("amira", "lost-phone")
    await small.connect(here)
    await small.connect(gone)
    gone.leave()
    for _ in range(81):
        receipt = await small.publish()
    assert small.acknowledge(here, 81)
    assert (receipt.known, receipt.at_risk) == (2, 2)
    await trio.sleep(UNSEEN_SECONDS_MAX - 1)
    assert await small.registry.ask(DIAGNOSIS, ForgetUnseen()) == 0
    await trio.sleep(1)
    assert await small.registry.forget_unseen() == {DIAGNOSIS}
    receipt = await small.publish()
    assert (receipt.online, receipt.known, receipt.at_risk) == (1, 1, 0)
    await trio.sleep(5)
    (cursor,) = await small.store.inner.cursors(DIAGNOSIS)
    assert cursor.subscriber == here.subscriber.id
    assert cursor.seen_at >= small.store.inner.moment().wall - 10


async def test_a_day_on_which_the_disk_is_full_forgets_later(small: World, autojump_clock: MockClock) -> None:
    gone = Reader("bo")
    await small.connect(gone)
    gone.leave()
    await trio.sleep(5)
    await trio.sleep(UNSEEN_SECONDS_MAX)
    small.store.fail("forget", Busy("full"))
    await small.registry.forget_unseen()
    await small.settled()
    assert await small.cursor(gone) == 0
    await small.registry.stop(DIAGNOSIS)
    await small.settled()
    assert (await small.publish()).known == 0


async def test_the_device_that_is_forgotten_is_the_one_unseen_for_longest_whatever_the_clock_says(
    autojump_clock: MockClock,
) -> None:
    class Shifted(WorldClock):
        wrong_by = 0.0

        def wall(self) -> float:
            return super().wall() + self.wrong_by

    clock = Shifted()
    names = iter(range(1000))
    store = MemoryStore(MemoryEngine(clock=clock, new_epoch=lambda: f"epoch-{next(names)}"))
    async with world(store=store) as there:
        clock.wrong_by = 40 * DAY
        first = Reader("amira", "seen-first")
        await there.connect(first)
        first.leave()
        clock.wrong_by = 0.0
        for number in range(DEVICES_MAX):
            later = Reader("amira", f"seen-later-{number}")
            await there.connect(later)
            later.leave()
        devices = {cursor.subscriber.device for cursor in await store.cursors(DIAGNOSIS)}
    assert len(devices) == DEVICES_MAX
    assert "seen-first" not in devices


async def test_a_reader_is_told_a_gap_where_events_grew_old_before_it_read_them(
    small: World, autojump_clock: MockClock
) -> None:
    for _ in range(3):
        await small.publish()
    slow = Reader()
    slow.slow = True
    await small.registry.ask(DIAGNOSIS, Subscribe(slow.subscriber, Wanted(after=Seq(0)), anybody))
    await trio.sleep(2 * DAY)
    evicted = await small.store.inner.evict(DAY)
    small.registry.evicted(DIAGNOSIS, evicted.windows[DIAGNOSIS])
    await small.settled()
    slow.take()
    assert slow.got[0] == Gap(Seq(1), Seq(3), purged=False)
