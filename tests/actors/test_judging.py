"""A right is judged in the moment of the act: by a function of the message, in the stretch of its hand-over."""

from __future__ import annotations

from collections.abc import Sequence

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from actors.messages import Forget, Forgotten, Publish, Purge, Subscribe
from actors.resume import Wanted
from actors.transport import Ending
from actors.which import EVERYBODY, OfUser
from storage.errors import Busy
from storage.memory import MemoryStore
from storage.memory_engine import MemoryEngine
from storage.records import Act, CursorMove, Diagnosis, NewEvent, Seq, SubscriberId
from tests.actors.world import DIAGNOSIS, Bug, Denied, Reader, Right, World, WorldClock, anybody, world

FORGET = Act("op", "forget")


def publish(right: Right, body: bytes = b"x") -> Publish:
    return Publish(NewEvent("feedback_update", body), right.judge)


async def test_events_that_wait_in_a_mailbox_are_judged_when_they_are_handed_over(
    autojump_clock: MockClock, small: World
) -> None:
    kept, lost = Right(), Right()
    small.store.gate = trio.Event()
    first = small.registry.tell(DIAGNOSIS, publish(lost, b"first"))
    await wait_all_tasks_blocked()  # it is in the store, and the others wait behind it
    waiting = [small.registry.tell(DIAGNOSIS, publish(right, b"%d" % n)) for n, right in enumerate([kept, lost] * 3)]
    await wait_all_tasks_blocked()
    lost.is_there = False
    small.store.gate.set()
    assert (await first()).seq == 1
    seqs: list[int | None] = []
    for answer in waiting:
        try:
            seqs.append((await answer()).seq)
        except Denied:
            seqs.append(None)
    assert seqs == [2, None, 3, None, 4, None]
    assert await small.stored() == [(1, b"first"), (2, b"0"), (3, b"2"), (4, b"4")]


async def test_one_judge_of_several_events_is_asked_once_for_those_that_are_handed_over_together(
    autojump_clock: MockClock, small: World
) -> None:
    mine, theirs = Right(), Right()
    small.store.gate = trio.Event()
    answers = [small.registry.tell(DIAGNOSIS, publish(mine))]
    await wait_all_tasks_blocked()
    judge = mine.judge
    waiting = [Publish(NewEvent("feedback_update", b"x"), one) for one in (judge, judge, theirs.judge, judge)]
    answers += [small.registry.tell(DIAGNOSIS, one) for one in waiting]
    small.store.gate.set()
    assert [(await answer()).seq for answer in answers] == [1, 2, 3, 4, 5]
    assert (len(mine.asked), len(theirs.asked)) == (1 + 2, 1), "again after another sender"


async def test_a_publish_that_is_done_again_after_a_crash_is_judged_again(
    autojump_clock: MockClock, small: World
) -> None:
    right = Right()
    small.store.fail("append_nowait", Bug())
    answer = small.registry.tell(DIAGNOSIS, publish(right))
    with trio.fail_after(10):
        while not small.actor().restarts:
            await small.registry._slots[DIAGNOSIS].change()
    right.is_there = False
    with pytest.raises(Denied):
        await answer()
    assert len(right.asked) == 2
    assert await small.stored() == []


async def test_a_right_is_judged_by_the_diagnosis_as_it_is_registered_then(
    autojump_clock: MockClock, small: World
) -> None:
    right = Right()
    small.store.gate = trio.Event()
    answers = [small.registry.tell(DIAGNOSIS, publish(right))]
    await wait_all_tasks_blocked()
    answers.append(small.registry.tell(DIAGNOSIS, publish(right)))
    await small.store.inner.register(DIAGNOSIS, "bo", [])
    small.store.gate.set()
    for answer in answers:
        await answer()
    assert [one and one.owner for one in right.asked] == ["amira", "bo"]


class ForgetfulStore(MemoryStore):
    """Has nothing in memory until it was asked for."""

    has_looked = False
    failures: tuple[Exception, ...] = ()

    def known(self, diagnosis_id: str) -> Diagnosis | None:
        return super().known(diagnosis_id) if self.has_looked else None

    async def get(self, diagnosis_id: str) -> Diagnosis:
        await trio.lowlevel.checkpoint()
        if self.failures:
            failure, *rest = self.failures
            self.failures = tuple(rest)
            raise failure
        self.has_looked = True
        return await super().get(diagnosis_id)


async def test_what_is_not_in_memory_is_looked_up_before_it_is_judged(autojump_clock: MockClock) -> None:
    store, right = ForgetfulStore(MemoryEngine(clock=WorldClock(), new_epoch=lambda: "e")), Right()
    store.failures = (Busy("locked"),)
    async with world(store=store) as here:
        with pytest.raises(Busy):
            await here.registry.ask(DIAGNOSIS, publish(right))
        assert right.asked == []
        assert (await here.registry.ask(DIAGNOSIS, publish(right))).seq == 1
    assert [one and one.owner for one in right.asked] == ["amira"]


async def test_a_diagnosis_that_was_deleted_is_judged_as_such(autojump_clock: MockClock, small: World) -> None:
    right = Right(is_there=False)
    await small.publish()
    await small.store.inner.delete(DIAGNOSIS)
    with pytest.raises(Denied):
        await small.registry.ask(DIAGNOSIS, publish(right))
    assert right.asked == [None]


async def test_whoever_may_not_follow_becomes_not_known_and_takes_nothing_over(
    autojump_clock: MockClock, small: World
) -> None:
    right, older, newer = Right(is_there=False), Reader(device="phone"), Reader(device="phone")
    await small.connect(older)
    await small.publish()
    stranger = Reader("bo")
    for reader in (newer, stranger):
        with pytest.raises(Denied):
            message = Subscribe(reader.subscriber, Wanted(after=Seq(1)), right.judge)
            await small.registry.ask(DIAGNOSIS, message)
    assert older.ending is None
    assert [(one.subscriber, one.seq) for one in await small.store.inner.cursors(DIAGNOSIS)] == [
        (SubscriberId("amira", "phone"), 0)
    ]


async def test_an_operators_act_is_judged_and_leaves_no_row_if_it_is_refused(
    autojump_clock: MockClock, small: World
) -> None:
    right, reader = Right(is_there=False), Reader()
    await small.connect(reader)
    await small.publish()
    act = Act("op", "act")
    with pytest.raises(Denied):
        await small.registry.ask(DIAGNOSIS, Purge(act, right.judge))
    with pytest.raises(Denied):
        await small.registry.ask(DIAGNOSIS, Forget(EVERYBODY, act, right.judge))
    assert (await small.stored(), reader.ending) == ([(1, b"x")], None)
    assert list(await small.store.inner.audit()) == []


# Forgetting


class SlowStore(MemoryStore):
    """Hands the answer to `forget` over only when it is told to."""

    def __init__(self) -> None:
        super().__init__(MemoryEngine(clock=WorldClock(), new_epoch=lambda: "e"))
        self.gate = trio.Event()
        self.moved: list[CursorMove] = []
        self.acts: list[Act | None] = []

    async def forget(self, diagnosis_id: str, subscribers: Sequence[SubscriberId], act: Act | None = None) -> int:
        self.acts.append(act)
        dropped = await super().forget(diagnosis_id, subscribers, act)
        await self.gate.wait()
        return dropped

    async def move_cursors(self, moves: Sequence[CursorMove]) -> Sequence[Seq | None]:
        self.moved += moves
        return await super().move_cursors(moves)


async def test_whoever_is_forgotten_stays_forgotten_whatever_it_acknowledges_meanwhile(
    autojump_clock: MockClock,
) -> None:
    store = SlowStore()
    async with world(store=store) as here:
        reader, other = Reader(), Reader("bo")
        for one in (reader, other):
            await here.connect(one)
        await here.publish()
        store.moved.clear()

        answer = here.registry.tell(DIAGNOSIS, Forget(OfUser("amira"), FORGET, anybody))
        await wait_all_tasks_blocked()
        assert all(here.acknowledge(one, 1, answer=True) for one in (reader, other)), "both are still connected"
        await trio.sleep(5)
        assert [move.subscriber.sub for move in store.moved] == ["bo"]
        assert store.acts == [FORGET.adding(connections=1)]
        assert [row.what for row in await store.audit()] == ["forget"]
        before = reader.ending
        store.gate.set()
        assert await answer() == Forgotten(connections=1, cursors=1)
        assert (before, reader.ending) == (None, Ending.DISCONNECTED)
        await trio.sleep(5)
        assert [one.subscriber.sub for one in await store.cursors(DIAGNOSIS)] == ["bo"]


async def test_a_refused_act_leaves_everybody_connected_and_their_cursors_are_stored(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await small.connect(reader)
    await small.publish()
    small.store.fail("forget", Busy("the disk is full"))
    answer = small.registry.tell(DIAGNOSIS, Forget(EVERYBODY, FORGET, anybody))
    small.acknowledge(reader, 1)
    with pytest.raises(Busy):
        await answer()
    await trio.sleep(5)
    assert reader.ending is None
    assert await small.cursor(reader) == 1


async def test_who_waits_for_cursors_is_woken_if_the_last_of_them_is_forgotten(autojump_clock: MockClock) -> None:
    store = SlowStore()
    async with world(store=store) as here:
        reader = Reader()
        await here.connect(reader)
        await here.publish()
        answer = here.registry.tell(DIAGNOSIS, Forget(EVERYBODY, FORGET, anybody))
        await wait_all_tasks_blocked()
        here.acknowledge(reader, 1)
        with trio.fail_after(10):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(here.registry._keeper.flush)
                await wait_all_tasks_blocked()
                store.gate.set()
                await answer()
