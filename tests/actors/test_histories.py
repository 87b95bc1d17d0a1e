"""Random histories: whatever happens in whatever order, every number is received or named in a gap, once.

A machine of Hypothesis draws the steps and shrinks what fails; the actors run under Trio on a thread of
their own, on the store in memory and on SQLite.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import AsyncExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, TypeVar

import pytest
import trio
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule, run_state_machine_as_test

from actors.messages import Purge
from actors.resume import OLDEST, Resume, Wanted
from actors.slot import ActorLimits
from storage.records import OUTBOX_EVENTS_MAX, Act, Seq
from storage.sqlite.opening import open_store
from tests.actors.world import Bug, Reader, World, WorldClock, anybody, world

Answer = TypeVar("Answer")

USERS = st.sampled_from(["amira", "bo"])
DEVICES = st.sampled_from([None, "phone", "tablet"])
CRASHES = st.sampled_from(["append_nowait", "append_outcome", "read_after", "fan-out"])


UNHURRIED = ActorLimits(restart_intensity_max=10_000, restart_intensity_seconds=0.001)
"""No two crashes lie close together: the real clock rules here, and nobody wants to wait for a backoff."""


class TrioThread:
    """A world that runs on a thread of its own; `run` carries out one step there."""

    def __init__(self, directory: Path | None) -> None:
        self._directory = directory
        self._ready = threading.Event()
        self._stopping: trio.Event
        self._token: trio.lowlevel.TrioToken
        self.world: World
        self._thread = threading.Thread(target=trio.run, args=(self._main,), daemon=True)
        self._thread.start()
        assert self._ready.wait(30), "the world did not start"

    async def _main(self) -> None:
        self._token = trio.lowlevel.current_trio_token()
        self._stopping = trio.Event()
        epochs = iter(range(1, 1000))
        async with AsyncExitStack() as stack:
            store = None
            if self._directory is not None:
                path = self._directory / "avicenna.db"
                opening = open_store(
                    path, clock=WorldClock(), new_epoch=lambda: f"epoch-{next(epochs)}", durability="normal"
                )
                store = await stack.enter_async_context(opening)
            self.world = await stack.enter_async_context(world(UNHURRIED, store))
            self._ready.set()
            await self._stopping.wait()

    def run(self, step: Callable[[], Awaitable[Answer]]) -> Answer:
        async def bounded() -> Answer:
            with trio.fail_after(30):
                return await step()

        return trio.from_thread.run(bounded, trio_token=self._token)

    def stop(self) -> None:
        trio.from_thread.run_sync(self._stopping.set, trio_token=self._token)
        self._thread.join(30)
        assert not self._thread.is_alive(), "something was left running"


class Histories(RuleBasedStateMachine):
    """Publish, connect, read, acknowledge, vanish, crash, restart, passivate, purge, in any order."""

    sqlite = False

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory(prefix="histories-") if self.sqlite else None
        self.thread = TrioThread(Path(self.directory.name) if self.directory else None)
        self.world = self.thread.world
        self.head = 0
        self.readers: list[Reader] = []
        self.gone: list[Reader] = []
        self.starts: dict[Reader, int] = {}

    @rule(count=st.integers(1, 40))
    def publish(self, count: int) -> None:
        async def step() -> None:
            async with trio.open_nursery() as nursery:
                for _ in range(count):
                    nursery.start_soon(one)

        async def one() -> None:
            seqs.append((await self.world.publish()).seq)

        seqs: list[int] = []
        self.thread.run(step)
        assert sorted(seqs) == list(range(self.head + 1, self.head + count + 1))
        self.head += count

    @rule(
        sub=USERS,
        device=DEVICES,
        peeks=st.booleans(),
        after=st.none() | st.integers(0, 400),
        newest=st.sampled_from([OLDEST, 0, 3]),
    )
    def connect(self, sub: str, device: str | None, peeks: bool, after: int | None, newest: int) -> None:
        reader = Reader(sub, None if peeks else device)
        wanted = Wanted(None if after is None else Seq(after), None, newest)

        async def step() -> Any:
            return await self.world.connect(reader, wanted, peeks=peeks)

        plan = self.thread.run(step).plan
        assert (reader.subscriber.known is None) == peeks
        self.starts[reader] = plan.position
        self.readers.append(reader)
        if after is not None and after > self.head:
            assert plan.resume is Resume.RESET
        self._forget_ended()

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def acknowledge(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))
        seq = data.draw(st.integers(0, reader.subscriber.position))

        async def step() -> None:
            peeks = reader.subscriber.known is None
            assert self.world.acknowledge(reader, seq) is not peeks

        self.thread.run(step)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def slow_down_or_catch_up(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))

        async def step() -> None:
            reader.slow = not reader.slow
            reader.wake()

        self.thread.run(step)

    @precondition(lambda self: self.readers)
    @rule(data=st.data())
    def vanish(self, data: st.DataObject) -> None:
        reader = data.draw(st.sampled_from(self.readers))

        async def step() -> None:
            reader.leave()

        self.thread.run(step)
        self.readers.remove(reader)
        self.gone.append(reader)

    @rule(fault=CRASHES)
    def crash_with_the_next_event(self, fault: str) -> None:
        async def step() -> int:
            match fault:
                case "fan-out" if self.readers:
                    self.readers[0].crashes = 1
                case "fan-out":
                    return 0
                case "read_after":
                    self.world.store.fail("read_after", Bug())
                    await self.world.registry.restart("d")
                case _:
                    self.world.store.fail(fault, Bug())
            receipt = await self.world.publish()
            assert receipt.seq == self.head + 1
            return 1

        self.head += self.thread.run(step)

    @rule()
    def count_who_is_notified_and_who_is_online(self) -> None:
        following = {one.subscriber.id for one in self.readers if one.subscriber.known is not None}
        receipt = self.thread.run(self.world.publish)
        self.head += 1
        assert (receipt.clients_notified, receipt.online) == (len(self.readers), len(following))

    @rule()
    def restart(self) -> None:
        self.thread.run(lambda: self.world.registry.restart("d"))

    @rule()
    def passivate(self) -> None:
        self.thread.run(lambda: self.world.registry.stop("d"))

    @rule()
    def purge(self) -> None:
        self.thread.run(lambda: self.world.registry.ask("d", Purge(Act("op", "outbox.purge"), anybody)))

    def _forget_ended(self) -> None:
        """A named device that came again has taken over."""
        self.gone.extend(one for one in self.readers if one.ending is not None)
        self.readers = [one for one in self.readers if one.ending is None]

    @invariant()
    def the_newest_are_stored_under_consecutive_numbers(self) -> None:
        stored = [seq for seq, _ in self.thread.run(self.world.stored)]
        assert len(stored) <= OUTBOX_EVENTS_MAX
        assert stored == list(range(self.head - len(stored) + 1, self.head + 1))

    @invariant()
    def every_number_was_received_or_named_in_a_gap_once_and_in_order(self) -> None:
        self.thread.run(self.world.settled)
        for reader in self.readers + self.gone:
            accounted = reader.accounted
            start = self.starts[reader]
            assert accounted == list(range(start + 1, start + 1 + len(accounted)))
            assert Counter(type(one).__name__ for one in reader.got)["Live"] <= 1
        for reader in self.readers:
            if not reader.slow:
                assert self.starts[reader] + len(reader.accounted) == self.head

    def teardown(self) -> None:
        self.thread.stop()
        if self.directory is not None:
            self.directory.cleanup()


@pytest.mark.guarantee(2)
@pytest.mark.guarantee(3)
@pytest.mark.guarantee(4)
@pytest.mark.guarantee(5)
@pytest.mark.parametrize("kind", ["memory", "sqlite"])
def test_after_any_history_every_number_is_accounted_for(kind: str) -> None:
    machine = type("Histories", (Histories,), {"sqlite": kind == "sqlite"})
    examples = 60 if kind == "memory" else 25
    run_state_machine_as_test(
        machine,
        settings=settings(
            max_examples=examples,
            stateful_step_count=30,
            deadline=None,
            suppress_health_check=list(HealthCheck),
        ),
    )
