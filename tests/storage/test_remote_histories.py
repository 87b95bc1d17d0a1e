"""Several nodes on one store in another process, which dies now and then: histories that are drawn from a seed.

Everything is in one Trio loop, on streams in memory, with a clock that jumps. Each node does what a server does: it
publishes by the right that it knows, follows the log, and ends what it must when it hears of a change. `SEEDS` of them
are played.
"""

from __future__ import annotations

import os
import random
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair

from storage.changes import Change, DiagnosisRegistered, Hears
from storage.errors import Busy, StorageError
from storage.memory import MemoryStore
from storage.memory_engine import MemoryEngine
from storage.news import News
from storage.records import Act, Appended, NewEvent, Registered, Seq
from storage.remote.client import RemoteStore, open_remote
from storage.remote.server import StoreServer
from storage.store import PendingAppend
from tests.storage.rows import AN_ACT, ROWS

SEEDS = int(os.environ.get("REMOTE_SEEDS", "8"))
NODES = ("one", "two", "three")
SECONDS = 12.0
"""Of one history, as its clock counts."""


class TrioClock:
    """The time of the loop."""

    def wall(self) -> float:
        return 1_000_000.0 + trio.current_time()

    def monotonic(self) -> float:
        return trio.current_time()


class Disk(MemoryStore):
    """A store whose disk takes a while for each batch of changes; what was not written, or told, is lost with it."""

    def __init__(self, world: World) -> None:
        super().__init__(world.engine, f"store-{world.deaths}")
        self._world = world
        self._put, self._take = trio.open_memory_channel[Callable[[], Awaitable[None]]](10_000)
        self._then: list[Callable[[], None]] = []
        """What is told once the batch is committed, in order."""

    def tell(self, hears: Hears, settled: Callable[[], Awaitable[None]] | None = None) -> None:
        super().tell(_AfterTheCommit(hears, self._then), settled)

    async def work(self) -> None:
        """Commit what comes, some of it together, and tell of it a while later; until cancelled."""
        chance = self._world.chance
        while True:
            batch = [await self._take.receive()]
            with suppress(trio.WouldBlock):
                while chance.random() < 0.7:
                    batch.append(self._take.receive_nowait())
            await trio.sleep(chance.choice((0.001, 0.03)))
            for write in batch:
                await write()
            await trio.sleep(chance.choice((0, 0.05)))
            while self._then:
                self._then.pop(0)()

    def append_nowait(
        self, diagnosis_id: str, events: Sequence[NewEvent], spans: Sequence[object] = ()
    ) -> PendingAppend:
        pending = PendingAppend()

        async def write() -> None:
            try:
                outcomes = MemoryStore.append_nowait(self, diagnosis_id, events).result()
                self._world.note_stored(events, outcomes)
                self._then.append(partial(pending.answer, outcomes))
            except StorageError as refusal:
                self._then.append(partial(pending.refuse, refusal))

        self._put.send_nowait(write)
        return pending

    async def register(
        self, diagnosis_id: str, owner: str, viewers: Sequence[str], act: Act | None = None
    ) -> Registered:
        found: list[Registered] = []

        async def write() -> None:
            # Noted before anybody is told of it.
            self._world.acts.append((self._world.deaths, self._world.head, int(owner)))
            found.append(await MemoryStore.register(self, diagnosis_id, owner, viewers, act))

        await self._written(write)
        return found[0]

    async def barrier(self) -> None:
        await self._written(trio.lowlevel.checkpoint)

    async def _written(self, write: Callable[[], Awaitable[None]]) -> None:
        written = trio.Event()

        async def then() -> None:
            await write()
            self._then.append(written.set)

        self._put.send_nowait(then)
        await written.wait()


class _AfterTheCommit:
    """Has somebody told in order with the answers."""

    def __init__(self, hears: Hears, then: list[Callable[[], None]]) -> None:
        self._hears, self._then = hears, then

    def changed(self, change: Change) -> None:
        self._then.append(partial(self._hears.changed, change))

    def grew(self, diagnosis_id: str, news: News) -> None:
        self._then.append(partial(self._hears.grew, diagnosis_id, news))

    def missed(self) -> None:
        self._then.append(self._hears.missed)


class World:
    """One history."""

    def __init__(self, seed: int) -> None:
        self.chance = random.Random(seed)
        self.engine = MemoryEngine(clock=TrioClock(), new_epoch=lambda: "epoch", rows=ROWS, shared=True)
        self.deaths = 0
        self.unconfirmed: list[str] = []
        self.acknowledged: dict[int, bytes] = {}
        """Numbers, and the update that each was the answer to."""
        self.stored: dict[int, tuple[int, bytes]] = {}
        """All that was ever stored: after how many deaths, and what."""
        self.acts: list[tuple[int, int, int]] = []
        """All that were ever committed: after how many deaths, the head, and the right."""
        self.certainly_not: list[bytes] = []
        """Updates of which a publisher was told that they are not stored, and did not try again."""
        self.bound: list[tuple[int, int]] = []
        """After each act that was answered: the head, and the number of the right that counts from there."""
        self._streams: Listener | None = None

    @property
    def head(self) -> int:
        return int(self.engine.streams["d"].head)

    def note_stored(self, events: Sequence[NewEvent], outcomes: Sequence[Appended | StorageError]) -> None:
        for event, outcome in zip(events, outcomes, strict=True):
            if isinstance(outcome, Appended) and not outcome.replayed:
                self.stored[outcome.seq] = self.deaths, event.body

    def rights_before(self, seq: int) -> list[int]:
        """The rights that the process of the store that has stored this had committed before."""
        deaths, _ = self.stored[seq]
        return [right for of, head, right in self.acts if of == deaths and head < seq]

    async def connect(self) -> trio.abc.Stream:
        await trio.sleep(self.chance.uniform(0, 0.01))
        if self._streams is None:
            raise ConnectionRefusedError
        return await self._streams.connect()

    async def keep_the_store(self) -> None:
        """Have a process of the store, and another one after each death; until cancelled."""
        while True:
            disk = Disk(self)
            server = StoreServer(disk, self.unconfirmed.append, NODES if self.deaths else ())
            with trio.move_on_after(self.chance.uniform(0.3, 3)):
                async with trio.open_nursery() as nursery:
                    self._streams = Listener()
                    nursery.start_soon(disk.work)
                    await server.run([self._streams])
            self._streams = None
            disk.die()
            self.deaths += 1
            await trio.sleep(self.chance.uniform(0, 0.3))


class Listener(trio.abc.Listener[trio.abc.Stream]):
    """Where nodes connect."""

    def __init__(self) -> None:
        self._put, self._take = trio.open_memory_channel[trio.abc.Stream](100)

    async def connect(self) -> trio.abc.Stream:
        mine, theirs = memory_stream_pair()
        self._put.send_nowait(theirs)
        return mine

    async def accept(self) -> trio.abc.Stream:
        return await self._take.receive()

    async def aclose(self) -> None:
        await self._take.aclose()


class Node:
    """What a server is to the store."""

    def __init__(self, world: World, store: RemoteStore, name: str) -> None:
        self.world, self.store, self.name = world, store, name
        self.right = 0
        """The number of the right that this node publishes by."""
        self.got: list[tuple[int, bytes]] = []
        self._looks = trio.Event()
        self._under_way = 0
        self._is_done = trio.Event()
        self._nursery: trio.Nursery | None = None
        self._right_at: dict[object, int] = {}
        """By update: the right when its answer came."""
        store.tell(self, self._settled)
        store.on_commit(self._answered)

    async def _settled(self) -> None:
        while self._under_way:
            await self._is_done.wait()

    def changed(self, change: Change) -> None:
        if isinstance(change, DiagnosisRegistered):
            self.right = max(self.right, int(change.diagnosis.owner))
            self._begin(self._end_some)

    def missed(self) -> None:
        self._begin(self._judge_anew)

    def grew(self, diagnosis_id: str, news: News) -> None:
        if news.window is None or not news.events or news.events[0].seq != self.position + 1:
            self._looks.set()
            return
        self.got += [(event.seq, event.body) for event in news.events]

    @property
    def position(self) -> int:
        return self.got[-1][0] if self.got else 0

    def _answered(self, spans: Sequence[Sequence[object]], since: float, error: str | None) -> None:
        self._right_at |= {span: self.right for some in spans for span in some}

    def _begin(self, work: Callable[[], Awaitable[None]]) -> None:
        self._under_way += 1

        async def carry_out() -> None:
            await work()
            self._under_way -= 1
            self._is_done.set()
            self._is_done = trio.Event()

        assert self._nursery is not None
        self._nursery.start_soon(carry_out)

    async def _end_some(self) -> None:
        await trio.sleep(self.world.chance.choice((0, 0, 0.2)))

    async def _judge_anew(self) -> None:
        while True:
            try:
                self.right = max(self.right, int((await self.store.get("d")).owner))
            except StorageError:
                await trio.sleep(0.1)
            else:
                return

    async def run(self) -> None:
        """Follow, publish and change rights; until cancelled."""
        async with trio.open_nursery() as self._nursery:
            self.store.follow("d")
            self._looks.set()
            self._nursery.start_soon(self._look)
            for number in range(3):
                self._nursery.start_soon(self._publish, number)
            self._nursery.start_soon(self._act)

    async def _look(self) -> None:
        while True:
            await self._looks.wait()
            self._looks = trio.Event()
            try:
                found = await self.store.read_after("d", Seq(self.position))
            except StorageError:
                self._looks.set()
                await trio.sleep(0.05)
                continue
            new = [(event.seq, event.body) for event in found.events if event.seq > self.position]
            assert not new or new[0][0] == self.position + 1, "no history has more than what is kept"
            self.got += new

    async def _publish(self, number: int) -> None:
        world, count = self.world, 0
        while True:
            await trio.sleep(world.chance.expovariate(2))
            count += 1
            update = f"{self.name}-{number}-{count}"
            key = update if world.chance.random() < 0.7 else None
            answered: Appended | StorageError | None = None
            while not isinstance(answered, Appended):
                try:
                    # No checkpoint: the right is judged as it is handed over.
                    body = f"{self.right} {update}".encode()
                    event = NewEvent("k", body, key, b"" if key is None else b"x")
                    pending = self.store.append_nowait("d", [event], (update,))
                    (answered,) = await pending.wait()
                except StorageError as refusal:
                    answered = refusal
                if key is None:
                    break
                await trio.sleep(0.01)
            if isinstance(answered, Appended):
                assert answered.seq not in world.acknowledged, "a number was given twice"
                # A repeated one was stored as it was tried first.
                world.acknowledged[answered.seq] = body if not answered.replayed else world.stored[answered.seq][1]
                assert world.acknowledged[answered.seq].endswith(f" {update}".encode()), "an answer to another update"
                if not answered.replayed:
                    known = self._right_at[update]
                    assert known >= max(world.rights_before(answered.seq), default=0), "an act is told before it binds"
            elif isinstance(answered, Busy):
                world.certainly_not.append(update.encode())

    async def _act(self) -> None:
        world = self.world
        while True:
            await trio.sleep(world.chance.expovariate(0.3))
            right = max([self.right, *(one for _, one in world.bound)]) + 1
            try:
                await self.store.register("d", str(right), (), AN_ACT)
            except StorageError:
                continue
            await self._settled()
            world.bound.append((world.head, right))


@pytest.mark.parametrize("seed", range(SEEDS))
async def test_nothing_is_lost_or_stored_by_a_right_that_was_taken_away(seed: int, autojump_clock: Any) -> None:
    world = World(seed)
    async with trio.open_nursery() as nursery:
        await MemoryStore(world.engine, "first").register("d", "0", ())
        nursery.start_soon(world.keep_the_store)
        async with (
            open_remote(world.connect, node="one", clock=TrioClock()) as one,
            open_remote(world.connect, node="two", clock=TrioClock()) as two,
            open_remote(world.connect, node="three", clock=TrioClock()) as three,
        ):
            nodes = [Node(world, store, name) for store, name in zip((one, two, three), NODES, strict=True)]
            with trio.move_on_after(SECONDS):
                async with trio.open_nursery() as running:
                    for node in nodes:
                        running.start_soon(node.run)
            log = {event.seq: event.body for event in world.engine.streams["d"].events}
            assert all(log[Seq(seq)] == body for seq, body in world.acknowledged.items() if seq in log)
            for node in nodes:
                got = dict(node.got)
                assert list(got) == list(range(1, node.position + 1))
                assert all(got[seq] == body for seq, body in world.acknowledged.items() if seq in got)
            for head, right in world.bound:
                late = [seq for seq, body in world.acknowledged.items() if seq > head and int(body.split()[0]) < right]
                assert not late, f"{late} were stored by a right that was gone since {head}"
            updates = [body.split()[1] for _, body in world.stored.values()]
            assert len(set(updates)) == len(updates), "one was stored twice"
            assert not set(world.certainly_not) & set(updates)
            assert world.deaths > 1
            assert world.unconfirmed == []
        nursery.cancel_scope.cancel()
