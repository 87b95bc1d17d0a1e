"""Histories of several servers on one engine, which loses and delays what it tells them and reads old.

Here the engine is `MemoryEngine`; in `replicated.py` it is a simulated cluster of NATS servers.
Everybody asks any of the servers. A server dies, and another one begins in its place; the engine is away from one of
them for a while, and comes back.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from contextvars import ContextVar
from dataclasses import replace
from math import inf
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import trio

from storage.belief import Kept
from storage.bus import Bus, MemoryNetwork
from storage.clock import Clock
from storage.memory import MemoryStore
from storage.memory_engine import Faults, MemoryEngine
from storage.records import SubscriberId
from storage.store import Store
from tests.simulation.clients import Follower
from tests.simulation.history import History, Operation, drawn, plain, with_crowds, with_rare
from tests.simulation.operating import names
from tests.simulation.process import Crashing, Loads, Process
from tests.simulation.truth import Violation
from tests.simulation.world import LOOKS, World
from web.operating.audit_rows import AUDIT_ROWS
from web.server.settings import Settings

NODES: Final = 3

OPERATIONS_MAX: Final = 60

LOOK_SECONDS: Final = 20.0
"""Between two looks of the engine at what servers have missed: less than without a simulation, as idle time costs."""

HEARD_SECONDS: Final = 3.0
"""Within so long every server has heard of what another one has done."""

AT_ONCE_SECONDS: Final = 5.0
"""Connections of one device that are begun within this time are begun at once."""

NOT_HERE: Final = ("back up", "check", "evict under load")
"""What an engine in memory has not, or has no faults for."""

_SLOT: ContextVar[int] = ContextVar("slot")
"""Which of the servers is asked by what runs now."""


def drawn_for_nodes(seed: int, engine: str = "memory") -> History:
    """The history of a seed.

    Args:
        engine: `memory` or `nats`.
    """
    history = plain(seed)
    kept = [one for one in history.operations if one.kind not in NOT_HERE]
    history = with_rare(replace(history, operations=tuple(kept[:OPERATIONS_MAX]), nodes=NODES, engine=engine))
    return with_crowds(history) if engine == "nats" else history


class Reach:
    """What stands in the place of a disk: whether the engine is reached."""

    fault = None
    broke = has_lost = False
    database = None

    def __init__(self, process: Node) -> None:
        self.is_dead = False
        self.met: Any = None
        self._process = process
        self.back_at = -inf

    @property
    def answers(self) -> bool:
        return not self._is_away

    @property
    def _is_away(self) -> bool:
        store = self._process.store
        return store is not None and store.statistics().away_since is not None

    def hung_since(self, time: float) -> bool:
        return self._is_away or self.back_at >= time

    def had_trouble_since(self, time: float) -> bool:
        return self.hung_since(time) or self.is_dead

    async def answer(self) -> None:
        """It has no files."""
        await trio.lowlevel.checkpoint()

    def hang(self) -> None:
        """The engine is away."""
        if self._process.store is not None and self._process.is_serving:
            self._process.store.go_away()

    def thaw(self) -> None:
        """The engine is reached again."""
        if self._is_away and self._process.store is not None and not self.is_dead:
            self.back_at = trio.current_time()
            self._process.store.come_back()

    def forget_plans(self) -> None:
        self.thaw()

    def die_now(self, *, power_fails: bool) -> None:
        self.is_dead = True
        self._process.leave()

    def die_at_commit(self, moment: str, *, power_fails: bool) -> None:
        self._process.kill(power_fails=False)

    def put_into(self, directory: Path) -> None:
        directory.mkdir(mode=0o700)


class Node(Process):
    """One of several servers."""

    def __init__(self, *args: Any, engine: MemoryEngine, network: MemoryNetwork, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.store: MemoryStore | None = None
        self._engine_of_all, self._network = engine, network
        self.disk = cast("Any", Reach(self))

    @asynccontextmanager
    async def _engine(self, settings: Settings, clock: Clock) -> AsyncIterator[tuple[Store, Bus]]:
        name = f"node-{self.number}"
        self.store = MemoryStore(self._engine_of_all, name, self._time_of_engine())
        bus = self._network.join(name)
        try:
            yield cast("Store", Crashing(cast("Store", self.store), self._crashes, Loads(self.happens))), bus
        finally:
            self.leave()

    def _time_of_engine(self) -> Kept:
        """What a server that begins compares its wall clock with, as with that of NATS servers: nobody sets it."""
        return Kept(self._clock.wall() - self._clock.ahead, held=True)

    def leave(self) -> None:
        """The others hear nothing more of it."""
        if self.store is not None:
            store, self.store = self.store, None
            store.die()
            self._network.kill(f"node-{self.number}")


class NodesWorld(World):
    """Plays one history with several servers."""

    def __init__(self, history: History, directory: Path) -> None:
        super().__init__(history, directory)
        self.slots: dict[int, Process] = {}
        self._renewed: list[str] = []
        """Epochs that a renewal has ended; the servers hear of it by and by."""
        self.is_late = False
        """The history is over, and everything must have come everywhere."""

    @property
    def process(self) -> Process:
        """The server that is asked by what runs now."""
        return self.slots[_SLOT.get()]

    @process.setter
    def process(self, process: Process) -> None:
        self.slots[_SLOT.get()] = process

    @property
    def processes(self) -> list[Process]:
        return list(self.slots.values())

    def _made_process(self, data: Path, settings: dict[str, Any], before: Process | None) -> Process:
        if before is not None and not before.was_killed:
            data = self.directory / f"again-{self.run}"
            data.mkdir(mode=0o700)
        return self._made_node(data, Random(self.lots.getrandbits(32)), self._terms(settings))

    def _made_node(self, data: Path, lots: Random, terms: dict[str, Any]) -> Process:
        """A server on the engine."""
        raise NotImplementedError

    def _begin_engine(self) -> None:
        """Have the engine run."""
        raise NotImplementedError

    async def _begin(self) -> None:
        self._begin_engine()
        self.nursery.start_soon(self._end_with_history)
        for slot in range(NODES):
            _SLOT.set(slot)
            self._begin_process(None)
            await self.process.ready.wait()
            self.nursery.start_soon(self._keep_running)

    async def _at(self, slot: int, do: Callable[[], Awaitable[object]]) -> None:
        """Have one of the servers be asked."""
        _SLOT.set(slot)
        await do()

    async def _do(self, operation: Operation) -> None:
        _SLOT.set(operation.lot % NODES)
        await super()._do(operation)

    # What goes wrong

    async def do_kill(self, lots: Random) -> None:
        if self.process.is_serving:
            self.happens("a node dies")
        await super().do_kill(lots)

    async def do_kill_at_commit(self, lots: Random) -> None:
        await self.do_kill(lots)

    async def do_power_fails(self, lots: Random) -> None:
        await self.do_kill(lots)

    async def do_disk_hangs(self, lots: Random) -> None:
        await self._lose_engine(lots.choice((0.5, 4.0, 8.0, 12.0)))

    async def do_disk_full(self, lots: Random) -> None:
        await self._lose_engine(0.5)

    async def do_disk_fails(self, lots: Random) -> None:
        await self._lose_engine(2.0)

    async def _lose_engine(self, seconds: float) -> None:
        process = self.process
        if not process.is_serving:
            return
        self.happens("the engine is away")
        process.disk.hang()
        for one in self.subscribers.values():
            one.is_unsure = True  # where the engine is away, somebody goes on with what is known there
        await trio.sleep(seconds)
        process.disk.thaw()

    # What is known of the engine

    def _bar(self, sub: str, diagnosis_id: str | None, before: list[Follower], *, may_publish: bool) -> None:
        if all(process.disk.answers for process in self.processes):  # else one of them has not heard of it
            super()._bar(sub, diagnosis_id, before, may_publish=may_publish)

    def is_revoked(self, sub: str, token: Any) -> bool:
        return all(process.disk.answers for process in self.processes) and super().is_revoked(sub, token)

    def _ends(self, *epochs: str) -> None:
        if all(process.disk.answers for process in self.processes):
            super()._ends(*epochs)

    def _judge_devices(self) -> None:
        """Whoever connects to two servers at once may keep both connections (docs/decisions/0106)."""
        if "clock jumps" not in self.done:
            super()._judge_devices()

    def _is_judged_with(self, one: Follower, other: Follower) -> bool:
        return abs(one.admitted_at - other.admitted_at) > AT_ONCE_SECONDS

    def _judge_erasures(self) -> None:
        """What a connection elsewhere leaves is erased once that server has heard of the erasure."""
        if self.is_late:
            super()._judge_erasures()

    def _end_faults(self) -> None:
        """Nothing goes wrong in the engine any more."""
        raise NotImplementedError

    def _epochs(self) -> set[str]:
        """The epochs that there are."""
        return set(self._heads())

    async def _calm_down(self) -> None:
        self._end_faults()
        await trio.sleep(LOOK_SECONDS + 5)
        await super()._calm_down()
        self._ends(*(one for one in self._renewed if one not in self._epochs()))
        self.is_late = True

    async def _compare(self, diagnosis_id: str) -> None:
        for slot in self.slots:
            _SLOT.set(slot)
            await self._compare_here(diagnosis_id)

    async def _compare_here(self, diagnosis_id: str) -> None:
        for look in range(LOOKS):
            answer = await self.ask("GET", f"/diagnoses/{diagnosis_id}/position", ("auditor", "operate"))
            if answer.status == 404 and "begin anew" in self.done:
                return
            if answer.status != 200:
                raise Violation(f"{diagnosis_id} cannot be read in the end: {answer.status} {answer.body!r}")
            told, (epoch, head, events) = answer.json(), self._stored_log(diagnosis_id)
            floor = events[0][0] - 1 if events else head
            if told["floor"] == floor or look == LOOKS - 1:
                break
            await trio.sleep(HEARD_SECONDS)  # old events were dropped just now, and this server has not heard of it
        self.truth.begins_in(told["epoch"], None, f"position of {diagnosis_id}")
        if (told["epoch"], told["head"]) != (epoch, head):
            raise Violation(f"{diagnosis_id} is said to be at {told}, and is at {head} of {epoch}")
        self._judge_stored(diagnosis_id, told, events)

    def _stored_log(self, diagnosis_id: str) -> tuple[str, int, Sequence[tuple[int, bytes]]]:
        """What the engine has of a diagnosis: its epoch, its head, and number and body of each event."""
        raise NotImplementedError

    async def _judge_what_is_left(self) -> None:
        await trio.sleep(LOOK_SECONDS)
        for slot in self.slots:
            _SLOT.set(slot)
            await super()._judge_what_is_left()


class MemoryWorld(NodesWorld):
    """Plays one history with several servers on an engine in memory."""

    def __init__(self, history: History, directory: Path) -> None:
        super().__init__(history, directory)
        lots = Random(history.seed)
        self.faults = Faults(
            live_lost=lots.choice((0.0, 0.3)),
            live_late_seconds=lots.choice((0.0, 0.3)),
            reads_old=lots.choice((0, 5)),
            random=Random(history.seed),
        )
        self.engine = MemoryEngine(
            clock=self.clock,
            new_epoch=lambda: f"epoch-{next(self._ids)}",
            rows=AUDIT_ROWS,
            shared=True,
            faults=self.faults,
            look_seconds=LOOK_SECONDS,
        )

    def _made_node(self, data: Path, lots: Random, terms: dict[str, Any]) -> Process:
        return Node(data, self.clock, lots, self._ids, engine=self.engine, network=self.network, **terms)

    def _begin_engine(self) -> None:
        self.network = MemoryNetwork(self.nursery)
        self.nursery.start_soon(self.engine.run)

    async def do_restore(self, lots: Random) -> None:
        """Whoever has restored the engine begins all numbering anew, while everybody follows."""
        self.done.add("restore")
        self.happens("restore")
        self._renewed += [one.diagnosis.epoch for one in self.engine.streams.values()]
        self.engine.renew_epochs()

    def _end_faults(self) -> None:
        self.faults.live_lost = self.faults.live_late_seconds = self.faults.reads_old = 0

    def _heads(self) -> dict[str, int]:
        return {one.diagnosis.epoch: one.head for one in self.engine.streams.values()}

    def _stored_cursor(self, one: Follower, process: Process) -> tuple[str, int] | None:
        stream = self.engine.streams.get(one.diagnosis_id)
        if not process.disk.answers or stream is None or stream.diagnosis.epoch != one.epoch:
            return None  # an epoch that has ended takes no cursor any more: whoever comes back begins anew
        found = stream.cursors.get(SubscriberId(one.sub, one.device))
        return None if found is None else (found.epoch, found.seq)

    def _rows(self) -> Counter[str]:
        return Counter(row.what for row in self.engine.audit)

    def _is_known(self, sub: str) -> bool:
        return any(one.sub == sub for stream in self.engine.streams.values() for one in stream.cursors)

    def _named(self, sub: str) -> list[str]:
        engine, found = self.engine, []
        for diagnosis_id, stream in engine.streams.items():
            found += [f"cursor of {diagnosis_id}" for one in stream.cursors if one.sub == sub]
            found += [f"viewer of {diagnosis_id}" for one in stream.diagnosis.viewers if one == sub]
        found += [f"access {one}" for one in engine.accesses if one.subscriber.sub == sub]
        found += [f"audit {one}" for one in engine.audit if any(names(value, sub) for value in vars_of(one))]
        return found

    def _stored_log(self, diagnosis_id: str) -> tuple[str, int, Sequence[tuple[int, bytes]]]:
        stream = self.engine.streams[diagnosis_id]
        return stream.diagnosis.epoch, stream.head, [(one.seq, one.body) for one in stream.events]


def vars_of(row: Any) -> list[object]:
    """The values of a row."""
    return [getattr(row, name) for name in row.__slots__]


__all__ = ["NODES", "MemoryWorld", "drawn", "drawn_for_nodes"]
