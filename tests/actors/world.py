"""Actors in a small world: a store that fails on command, readers that record what they get, and Trio's own clock."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import trio

from actors.diagnosis import Render
from actors.messages import Admission, Inspect, Publish, Receipt, Subscribe
from actors.reading import Live, RenderedEvent
from actors.registry import Registry
from actors.resume import Wanted
from actors.ring import Gap
from actors.roster import Subscriber
from actors.slot import ActorLimits
from actors.statistics import ActorStatistics
from actors.transport import Burst, Ending
from storage.bus import Bus, MemoryNetwork
from storage.changes import Change, EpochsRenewed
from storage.errors import StorageError
from storage.memory import MemoryStore
from storage.memory_engine import Faults, MemoryEngine
from storage.records import AcknowledgedBy, Appended, Diagnosis, Event, NewEvent, Seq, SubscriberId, Window
from storage.store import PendingAppend, Store

DIAGNOSIS = "d"
WALL_AT_START = 1_000_000.0


class WorldClock:
    """Trio's clock for both times: a test that jumps it moves the calendar too."""

    def wall(self) -> float:
        return WALL_AT_START + trio.current_time()

    def monotonic(self) -> float:
        return trio.current_time()


def anybody(diagnosis: Diagnosis | None) -> None:
    """Judges a message: everybody may."""


class Denied(Exception):
    """What somebody is told whose right is gone."""


class Right:
    """A right that somebody has until it is taken away."""

    def __init__(self, *, is_there: bool = True) -> None:
        self.is_there = is_there
        self.asked: list[Diagnosis | None] = []

    def judge(self, diagnosis: Diagnosis | None) -> Denied | None:
        self.asked.append(diagnosis)
        return None if self.is_there else Denied()


class Bug(Exception):
    """What a crash looks like; its text stands for a payload that must not reach a log."""

    def __init__(self) -> None:
        super().__init__("secret-payload")


@dataclass
class FaultyStore:
    """A store that does what the one inside does, except where it was told to fail."""

    inner: Store
    faults: dict[str, list[Exception]] = field(default_factory=dict)
    """Raised by the next calls of a method, one each."""
    poison: bytes | None = None
    """An event with this body crashes whoever appends it."""
    appends: int = 0
    moves: int = 0
    gate: trio.Event | None = None
    """While set to an event: outcomes of appends are held back until it is set."""

    def fail(self, method: str, *errors: Exception) -> None:
        """Have the next calls of `method` raise; `append_outcome`: the append is stored, the answer is not given."""
        self.faults.setdefault(method, []).extend(errors)

    def _maybe_fail(self, method: str) -> None:
        if self.faults.get(method):
            raise self.faults[method].pop(0)

    def append_nowait(
        self, diagnosis_id: str, events: Sequence[NewEvent], spans: Sequence[object] = ()
    ) -> PendingAppend:
        self._maybe_fail("append_nowait")
        if any(event.body == self.poison for event in events):
            raise Bug
        self.appends += 1
        return HeldAppend(self, self.inner.append_nowait(diagnosis_id, events, spans))

    async def move_cursors(self, moves: Sequence[Any]) -> Sequence[Seq | None]:
        self._maybe_fail("move_cursors")
        self.moves += 1
        return await self.inner.move_cursors(moves)

    def __getattr__(self, method: str) -> Any:
        call = getattr(self.inner, method)
        if not self.faults.get(method):
            return call

        async def failing(*args: Any, **kwargs: Any) -> Any:
            await trio.lowlevel.checkpoint()
            self._maybe_fail(method)

        return failing


class HeldAppend(PendingAppend):
    """An append whose outcome can be held back, or be a crash the first time it is asked for."""

    def __init__(self, store: FaultyStore, pending: PendingAppend) -> None:
        super().__init__()
        self._store = store
        self._pending = pending

    async def wait(self) -> Sequence[Appended | StorageError]:
        outcomes = await self._pending.wait()
        if self._store.gate is not None:
            await self._store.gate.wait()
        self._store._maybe_fail("append_outcome")
        self.answer(outcomes)
        return outcomes


class Reader:
    """One connection: takes what is due whenever it is told, unless it is slow, and records it."""

    def __init__(self, sub: str | None = "amira", device: str | None = None) -> None:
        self.subscriber = Subscriber(SubscriberId(sub, device), None, self)
        self.got: list[RenderedEvent | Gap | Live] = []
        self.acked: list[Seq] = []
        self.ending: Ending | None = None
        self.slow = False
        """A slow reader takes nothing by itself."""
        self.crashes = 0
        """So many times `feed` raises."""

    def feed(self, burst: Burst) -> bool:
        if self.crashes:
            self.crashes -= 1
            raise Bug
        self.wake()
        return True

    def wake(self) -> None:
        if not self.slow:
            self.take()

    def acknowledged(self, seq: Seq) -> None:
        self.acked.append(seq)

    def end(self, ending: Ending) -> None:
        assert self.ending is None, "ended twice"
        self.ending = ending

    def take(self) -> None:
        """Read everything that is due."""
        self.got.extend(self.subscriber.take(1000))

    def leave(self) -> None:
        """The connection is gone."""
        self.subscriber.detach()

    @property
    def numbers(self) -> list[int]:
        """The numbers of the events it got."""
        return [one.seq for one in self.got if isinstance(one, RenderedEvent)]

    @property
    def accounted(self) -> list[int]:
        """Every number it got or was told it cannot get, in the order it learned so."""
        found: list[int] = []
        for one in self.got:
            if isinstance(one, RenderedEvent):
                found.append(one.seq)
            elif isinstance(one, Gap):
                found.extend(range(one.first, one.last + 1))
        return found


class World:
    """One registry, its store, and how to talk to it."""

    def __init__(self, registry: Registry, store: FaultyStore, actors_nursery: trio.Nursery) -> None:
        self.registry = registry
        self.store = store
        self.actors_nursery = actors_nursery

    async def publish(self, body: bytes = b"x", diagnosis_id: str = DIAGNOSIS, key: str | None = None) -> Receipt:
        """Publish one event."""
        return await self.registry.ask(diagnosis_id, Publish(NewEvent("feedback_update", body, key, body), anybody))

    async def connect(
        self, reader: Reader, wanted: Wanted | None = None, diagnosis_id: str = DIAGNOSIS, *, peeks: bool = False
    ) -> Admission:
        """Attach a reader, which takes at once what is due."""
        message = Subscribe(reader.subscriber, wanted or Wanted(), anybody, peeks)
        admission = await self.registry.ask(diagnosis_id, message)
        reader.wake()
        return admission

    def acknowledge(self, reader: Reader, seq: int, by: AcknowledgedBy = "app", *, answer: bool = False) -> bool:
        """Acknowledge as this reader's client would."""
        return self.registry.acknowledge(reader.subscriber, Seq(seq), by, answer=answer)

    async def settled(self, diagnosis_id: str = DIAGNOSIS) -> Window:
        """Wait until everything that is in the mailbox now is done."""
        return await self.registry.ask(diagnosis_id, Inspect())

    def actor(self, diagnosis_id: str = DIAGNOSIS) -> ActorStatistics:
        """The actor as an operator sees it."""
        return self.registry.statistics_of(diagnosis_id)

    async def stored(self, diagnosis_id: str = DIAGNOSIS) -> list[tuple[int, bytes]]:
        """The retained events."""
        found = await self.store.inner.read_after(diagnosis_id, Seq(0))
        return [(event.seq, event.body) for event in found.events]

    async def cursor(self, reader: Reader, diagnosis_id: str = DIAGNOSIS) -> int | None:
        """The stored cursor of a reader's subscriber."""
        cursors = {one.subscriber: one.seq for one in await self.store.inner.cursors(diagnosis_id)}
        return cursors.get(reader.subscriber.id)


class Ears:
    """Hears for a registry what a store tells; of acts, only what no request can ask for."""

    def __init__(self, registry: Registry, actors_nursery: trio.Nursery) -> None:
        self.grew = registry.grew
        self._registry = registry
        self._actors_nursery = actors_nursery

    def changed(self, change: Change) -> None:
        if isinstance(change, EpochsRenewed):
            self._actors_nursery.start_soon(self._registry.renewed(change.diagnosis_id))

    def missed(self) -> None:
        """Acts are carried out by whoever asks for them."""


def memory_store() -> MemoryStore:
    """An empty store in memory."""
    names = iter(range(1, 1_000_000))
    return MemoryStore(MemoryEngine(clock=WorldClock(), new_epoch=lambda: f"epoch-{next(names)}"))


async def retire(registry: Registry, diagnosis_id: str = DIAGNOSIS) -> None:
    """Have an actor go whose diagnosis was deleted, and its connections end."""
    if (ending := registry.retire(diagnosis_id)) is not None:
        await ending()


async def settled_cursors(registry: Registry) -> None:
    """Wait until every cursor moved so far is stored."""
    await registry._keeper.flush()


def render(diagnosis_id: str, event: Event) -> bytes:
    """An event as its number and body."""
    return b"%d:%b" % (event.seq, event.body)


@asynccontextmanager
async def world(
    limits: ActorLimits | None = None,
    store: Store | None = None,
    diagnoses: Sequence[str] = (DIAGNOSIS,),
    jitter: Callable[[], float] = lambda: 1.0,
    render: Render = render,
    bus: Bus | None = None,
) -> AsyncIterator[World]:
    """A running registry with registered diagnoses; at the end nothing may be left behind."""
    faulty = FaultyStore(store or memory_store())
    for diagnosis_id in diagnoses:
        await faulty.inner.register(diagnosis_id, "amira", [])
    async with trio.open_nursery() as actors_nursery:
        registry = Registry(
            cast(Store, faulty),
            actors_nursery,
            render=render,
            clock=WorldClock(),
            jitter=jitter,
            limits=limits or ActorLimits(),
            bus=bus,
        )
        faulty.inner.tell(Ears(registry, actors_nursery))
        await actors_nursery.start(registry.run)
        actors_nursery.start_soon(registry.tell_peers)
        yield World(registry, faulty, actors_nursery)
        actors_nursery.cancel_scope.cancel()


@asynccontextmanager
async def two_worlds(faults: Faults | None = None, *, are_peers: bool = False) -> AsyncIterator[tuple[World, World]]:
    """Two registries, as of two processes, on handles of one engine, in which `d` is registered.

    Args:
        are_peers: they reach each other by a bus.
    """
    names = iter(range(1, 1_000_000))
    engine = MemoryEngine(
        clock=WorldClock(), new_epoch=lambda: f"epoch-{next(names)}", shared=True, faults=faults or Faults()
    )
    async with trio.open_nursery() as engine_nursery:
        network = MemoryNetwork(engine_nursery)
        buses = (network.join("one"), network.join("other")) if are_peers else (None, None)
        async with (
            world(store=MemoryStore(engine, "one"), bus=buses[0]) as one,
            world(store=MemoryStore(engine, "other"), diagnoses=(), bus=buses[1]) as other,
        ):
            engine_nursery.start_soon(engine.run)
            yield one, other
        engine_nursery.cancel_scope.cancel()


RESILIENT = ActorLimits(restart_intensity_max=10_000)
"""For tests that crash actors more often than an operator would tolerate."""
