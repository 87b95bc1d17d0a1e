"""Cancellation at every await: of the actor, its supervisor, a publisher, a connection, and the whole server.

Each scenario is run again and again, and interrupted one step later each time, until it ends before the
interruption comes. Afterwards nothing may have leaked, be lost, or have come twice.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence

import pytest
import trio
from trio.testing import MockClock

from actors.errors import Draining
from actors.messages import Forget, Forgotten, Purge
from actors.slot import ActorState
from actors.turns import ENDED_AT_ONCE_MAX
from actors.which import EVERYBODY
from storage.errors import Failed
from storage.memory import MemoryStore
from storage.memory_engine import MemoryEngine
from storage.records import Act, Purged, SubscriberId
from tests.actors.world import Reader, World, WorldClock, anybody, world

BODIES = (b"one", b"two", b"three")
STEPS_MAX = 500
"""No scenario here takes so many steps: one that does has got stuck in a loop."""


class AtStep(trio.abc.Instrument):
    """Calls `interrupt` when the tasks that `picked` picks have taken so many steps together."""

    def __init__(self, step: int, picked: Callable[[trio.lowlevel.Task], bool], interrupt: Callable[[], None]) -> None:
        self._left = step
        self._picked = picked
        self._interrupt = interrupt
        self.came = False

    def after_task_step(self, task: trio.lowlevel.Task) -> None:
        if not self.came and self._picked(task):
            self._left -= 1
            if self._left < 0:
                self.came = True
                self._interrupt()


async def at_every_step(scenario: Callable[[int], Awaitable[bool]]) -> None:
    """Run a scenario with the interruption at each step; it says whether the interruption came."""
    for step in range(STEPS_MAX):
        if not await scenario(step):
            assert step > 1, "the scenario was hardly interrupted at all"
            return
    raise AssertionError("the scenario never ended by itself")


def is_actor(task: trio.lowlevel.Task) -> bool:
    return task.name == "d"


async def publish_all(here: World, seqs: dict[bytes, int], refused: list[type[Exception]] | None = None) -> None:
    """Publish the bodies at the same time."""

    async def publish(body: bytes) -> None:
        try:
            seqs[body] = (await here.publish(body)).seq
        except (Draining, Failed) as refusal:
            assert refused is not None, "refused although the server goes on"
            refused.append(type(refusal))

    async with trio.open_nursery() as nursery:
        for body in BODIES:
            nursery.start_soon(publish, body)


@pytest.mark.guarantee(8)
@pytest.mark.parametrize("wish", ["restart", "stop"])
async def test_an_operator_may_interrupt_an_actor_at_any_await(autojump_clock: MockClock, wish: str) -> None:
    incarnations = []

    async def scenario(step: int) -> bool:
        async with world() as here, trio.open_nursery() as operators:
            act = here.registry.restart if wish == "restart" else here.registry.stop
            interrupt = AtStep(step, is_actor, lambda: operators.start_soon(act, "d"))
            trio.lowlevel.add_instrument(interrupt)
            early, late = Reader("early", "phone"), Reader("late")
            seqs: dict[bytes, int] = {}
            await here.connect(early)
            async with trio.open_nursery() as nursery:
                nursery.start_soon(publish_all, here, seqs)
                nursery.start_soon(here.connect, late)
            here.acknowledge(early, 3)
            await here.settled()
            trio.lowlevel.remove_instrument(interrupt)
            assert sorted(seqs.values()) == [1, 2, 3]
            assert await here.stored() == sorted((seq, body) for body, seq in seqs.items())
            assert early.numbers == [1, 2, 3]
            assert late.accounted == [1, 2, 3]
            assert (early.ending, late.ending) == (None, None)
            assert here.actor().connections == 2
            assert here.actor().restarts == 0
            await trio.sleep(2)
            assert await here.cursor(early) == 3
            early.leave()
            late.leave()
            await here.registry.stop("d")
            assert here.actor().state is ActorState.PASSIVE
            assert here.registry.statistics().actors == 0
            incarnations.append(here.actor().incarnation)
        return interrupt.came

    await at_every_step(scenario)
    assert max(incarnations) > 1


class LateStore(MemoryStore):
    """Carries out an operator's act some steps before it answers, as one does that waits for the disk."""

    async def purge(self, diagnosis_id: str, act: Act | None = None) -> Purged:
        purged = await super().purge(diagnosis_id, act)
        await trio.sleep(1)
        return purged

    async def forget(self, diagnosis_id: str, subscribers: Sequence[SubscriberId], act: Act | None = None) -> int:
        forgotten = await super().forget(diagnosis_id, subscribers, act)
        await trio.sleep(1)
        return forgotten


PURGE, FORGET = Act("op", "purge"), Act("op", "forget")


@pytest.mark.parametrize("followers", [0, 2 * ENDED_AT_ONCE_MAX])
async def test_an_act_is_done_and_recorded_once_whenever_its_actor_is_restarted(
    autojump_clock: MockClock, followers: int
) -> None:
    async def scenario(step: int) -> bool:
        late = LateStore(MemoryEngine(clock=WorldClock(), new_epoch=lambda: "e"))
        async with world(store=late) as here, trio.open_nursery() as operators:
            reader = Reader()
            await here.connect(reader)
            reader.leave()
            for number in range(followers):
                await here.connect(Reader(f"user-{number}"))
            await here.publish()
            interrupt = AtStep(step, is_actor, lambda: operators.start_soon(here.registry.restart, "d"))
            trio.lowlevel.add_instrument(interrupt)
            assert (await here.registry.ask("d", Purge(PURGE, anybody))).floor == 1
            forget = Forget(EVERYBODY, FORGET, anybody)
            assert await here.registry.ask("d", forget) == Forgotten(followers, cursors=1 + followers)
            await here.settled()
            trio.lowlevel.remove_instrument(interrupt)
            assert [row.what for row in await late.audit()] == ["forget", "purge"]
        return interrupt.came

    await at_every_step(scenario)


async def test_a_server_may_be_cancelled_at_any_await_and_lies_to_nobody(autojump_clock: MockClock) -> None:
    async def scenario(step: int) -> bool:
        seqs: dict[bytes, int] = {}
        refused: list[type[Exception]] = []
        reader = Reader()
        # Clients are outside what is cancelled: they wait to be told what becomes of their requests.
        async with trio.open_nursery() as clients, world() as here:
            scope = here.actors_nursery.cancel_scope
            interrupt = AtStep(step, is_actor, scope.cancel)
            with trio.CancelScope(shield=True):
                await here.connect(reader)
                trio.lowlevel.add_instrument(interrupt)
                clients.start_soon(publish_all, here, seqs, refused)
                while len(seqs) + len(refused) < len(BODIES):
                    await trio.sleep(0.01)
                trio.lowlevel.remove_instrument(interrupt)
                stored = {body: seq for seq, body in await here.stored()}
        assert seqs.items() <= stored.items()
        assert reader.numbers == list(range(1, len(reader.numbers) + 1))
        assert set(reader.numbers) <= set(stored.values())
        # Whoever was told `Draining` was told that nothing was stored; an unknown outcome may be either.
        assert len(stored) <= len(seqs) + refused.count(Failed)
        return interrupt.came

    await at_every_step(scenario)


async def test_a_publisher_may_be_cancelled_at_any_await_and_its_event_is_stored_once_or_never(
    autojump_clock: MockClock,
) -> None:
    async def scenario(step: int) -> bool:
        async with world() as here:
            reader = Reader()
            await here.connect(reader)
            with trio.CancelScope() as scope:
                interrupt = AtStep(step, lambda task: is_actor(task) or task is publisher, scope.cancel)
                publisher = trio.lowlevel.current_task()
                trio.lowlevel.add_instrument(interrupt)
                await here.publish(b"cancelled")
            trio.lowlevel.remove_instrument(interrupt)
            after = await here.publish(b"after")
            assert reader.numbers == list(range(1, after.seq + 1))
            assert [body for _, body in await here.stored()] == [b"cancelled", b"after"][-after.seq :]
        return interrupt.came

    await at_every_step(scenario)


async def test_a_connection_may_be_cancelled_at_any_await_and_leaves_nothing_behind(
    autojump_clock: MockClock,
) -> None:
    async def scenario(step: int) -> bool:
        async with world() as here:
            reader, other = Reader("cancelled", "phone"), Reader("other")
            await here.connect(other)
            with trio.CancelScope() as scope:
                interrupt = AtStep(step, lambda task: is_actor(task) or task is connection, scope.cancel)
                connection = trio.lowlevel.current_task()
                trio.lowlevel.add_instrument(interrupt)
                try:
                    await here.connect(reader)
                finally:
                    reader.leave()
            trio.lowlevel.remove_instrument(interrupt)
            await here.publish()
            assert here.actor().connections == 1
            assert (reader.numbers, other.numbers) == ([], [1])
            again = Reader("cancelled", "phone")
            await here.connect(again)
            assert again.numbers == [1]
            assert reader.ending is None
        return interrupt.came

    await at_every_step(scenario)


async def test_an_interrupted_crash_still_ends_in_a_working_actor(autojump_clock: MockClock) -> None:
    """A restart that comes while the supervisor deals with a crash."""

    async def scenario(step: int) -> bool:
        async with world() as here, trio.open_nursery() as operators:
            reader = Reader()
            await here.connect(reader)
            here.store.fail("append_outcome", *_bugs(2))
            interrupt = AtStep(step, is_actor, lambda: operators.start_soon(here.registry.restart, "d"))
            trio.lowlevel.add_instrument(interrupt)
            seqs: dict[bytes, int] = {}
            await publish_all(here, seqs)
            await here.settled()
            trio.lowlevel.remove_instrument(interrupt)
            assert sorted(seqs.values()) == [1, 2, 3]
            assert reader.numbers == [1, 2, 3]
        return interrupt.came

    await at_every_step(scenario)


def _bugs(count: int) -> list[Exception]:
    return [RuntimeError("a bug") for _ in range(count)]
