"""Histories of several servers on a simulated cluster of NATS servers: the product's own store and client on it.

Beside what happens to servers elsewhere, NATS servers die, freeze and are cut off, leaders change, answers are lost or
come twice, and a server of ours is cut off from all of them. What a server tells is compared with what the leader has.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from functools import partial
from math import inf
from pathlib import Path
from random import Random
from typing import Any, Final, cast

import msgspec
import trio

from storage.bus import Bus
from storage.clock import Clock
from storage.errors import Busy, Failed, StoreBroken
from storage.jetstream import acts
from storage.jetstream.bus import NatsBus
from storage.jetstream.combining import REQUESTS_MAX
from storage.jetstream.cursors import CursorSaid
from storage.jetstream.entries import ENDED, Entry, entry_of, epoch_of
from storage.jetstream.layout import Layout, version_and_generation
from storage.jetstream.opening import open_jetstream
from storage.jetstream.store import JetStreamStore
from storage.nats.connection import Connection
from storage.nats.wire import headers_of
from storage.records import SubscriberId
from storage.store import Store
from tests.simulation.clients import Follower
from tests.simulation.history import History
from tests.simulation.nats import Cluster, Faults, Way
from tests.simulation.nodes import NodesWorld, Reach
from tests.simulation.process import Crashing, Loads, Process, WallClock
from tests.simulation.stage import OTHER, QUIET, VICTIM
from tests.simulation.streams import Kept, Stream
from tests.simulation.tokens import Token
from web.operating.audit_rows import AUDIT_ROWS
from web.server.settings import Settings

NAME: Final = "simulated"

SETTLED_SECONDS: Final = 4.0
"""So long after the last trouble every server has heard of every act."""


class Untouched:
    """The clock of the NATS servers, which nobody sets."""

    def __init__(self, clock: WallClock) -> None:
        self._clock = clock

    def wall(self) -> float:
        return self._clock.wall() - self._clock.ahead

    def monotonic(self) -> float:
        return self._clock.monotonic()


class FarReach(Reach):
    """What stands in the place of a disk: whether the NATS servers are reached, and do what they should."""

    def __init__(self, process: ReplicatedNode) -> None:
        super().__init__(cast("Any", process))
        self._node = process
        self._is_lost = False

    @property
    def answers(self) -> bool:
        return not (self._is_lost or self._node.cluster.is_troubled)

    def hung_since(self, time: float) -> bool:
        return not self.answers or max(self.back_at, self._node.cluster.troubled_at) >= time

    def hang(self) -> None:
        """None of the NATS servers is reached, which is noticed by an end or by silence."""
        if self._node.is_serving and not self._is_lost:
            self._is_lost = True
            self._node.way.cut(is_silent=self._node.lots.random() < 0.5)

    def thaw(self) -> None:
        if self._is_lost and not self.is_dead:
            self._is_lost, self.back_at = False, trio.current_time()
            self._node.way.mend()


class ReplicatedNode(Process):
    """One of several servers on NATS."""

    def __init__(
        self, data: Path, clock: WallClock, lots: Random, *args: Any, cluster: Cluster, requests_max: int, **kwargs: Any
    ) -> None:
        super().__init__(data, clock, lots, *args, **kwargs)
        self.cluster, self.lots, self.requests_max = cluster, lots, requests_max
        self.way = Way(cluster)
        self.store: JetStreamStore | None = None
        self.disk = cast("Any", FarReach(self))

    @asynccontextmanager
    async def _engine(self, settings: Settings, clock: Clock) -> AsyncIterator[tuple[Store, Bus]]:
        name, new_id = f"node{self.number}", self._new_id
        connection = Connection(
            self.cluster.addresses, name=name, new_id=new_id, jitter=self.lots.random, dial=self.way.dial
        )
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            async with open_jetstream(
                connection,
                NAME,
                node=name,
                clock=clock,
                new_epoch=self._new_epoch,
                new_id=new_id,
                jitter=self.lots.random,
                keys_max=settings.idempotency_keys_max,
                rows=AUDIT_ROWS,
                compares_clocks=True,
            ) as store:
                self.store = store
                store._appending._combining.requests_max = self.requests_max
                bus = NatsBus(connection, Layout(NAME), name, nursery)
                nursery.start_soon(bus.run)
                yield cast("Store", Crashing(cast("Store", store), self._crashes, Loads(self.happens))), bus
            nursery.cancel_scope.cancel()
        if store.broke.is_set():
            raise StoreBroken(store.statistics().broken)

    def leave(self) -> None:
        """Nothing comes of it any more."""
        self.way.cut(is_silent=False)


class ReplicatedWorld(NodesWorld):
    """Plays one history with several servers on NATS."""

    def __init__(self, history: History, directory: Path) -> None:
        super().__init__(history, directory)
        lots = Random(f"nats {history.seed}")
        often = lots.choice((0.0, 0.0, 0.01))
        self.faults = Faults(
            late_seconds=lots.choice((0.0, 0.002, 0.05)),
            split=lots.choice((0.0, 0.1)),
            lag_seconds=lots.choice((0.0, 0.02, 0.5)),
            live_lost=lots.choice((0.0, 0.3)),
            live_late_seconds=lots.choice((0.0, 0.3)),
            live_twice=lots.choice((0.0, 0.1)),
            vanished=often,
            refused=often,
            unanswered=often,
            twice=lots.choice((0.0, 0.05)),
            short_pages=lots.choice((0.0, 0.2)),
        )
        self.cluster = Cluster(clock=Untouched(self.clock), lots=Random(history.seed), faults=self.faults)
        self.cluster.met = self.happens
        self.layout = Layout(NAME)
        self._requests_max = lots.choice((1, 1, REQUESTS_MAX))
        """The fewer are under way, the more go together."""

    def _made_node(self, data: Path, lots: Random, terms: dict[str, Any]) -> Process:
        terms["settings"] |= {"engine": "nats", "durability": "full", "isolated_seconds": 20.0}
        terms |= {"cluster": self.cluster, "requests_max": self._requests_max}
        return ReplicatedNode(data, self.clock, lots, self._ids, **terms)

    def _begin_engine(self) -> None:
        self.nursery.start_soon(self.cluster.run)

    def _process_died(self, process: Process) -> None:
        cast("ReplicatedNode", process).leave()
        super()._process_died(process)

    async def do_publish_everywhere(self, lots: Random) -> None:
        """Updates to every diagnosis in the same moment, new ones and repeated ones, at a server or at two."""
        slots = lots.choice(([0], [1], [2], [0, 1], [1, 2]))
        published = [one for one in self.truth.published.values() if one.key is not None and one.process]
        async with trio.open_nursery() as nursery:
            for slot in slots:
                for diagnosis_id in (VICTIM, OTHER, QUIET):
                    who = self._publisher(lots, diagnosis_id)
                    for _ in range(lots.choice((1, 1, 3))):
                        made = self._update(diagnosis_id, who[0], key=lots.random() < 0.5)
                        nursery.start_soon(self._at, slot, partial(self.publish, made, who))
                if published and lots.random() < 0.5:
                    nursery.start_soon(self._at, slot, partial(self._repeat, lots.choice(published)))

    # What goes wrong

    async def do_disk_full(self, lots: Random) -> None:
        self.cluster.elect()

    async def do_disk_fails(self, lots: Random) -> None:
        server = lots.choice([self.cluster.leader or self.cluster.servers[0], *self.cluster.servers])
        await self._with_trouble(
            lambda: lots.choice((self.cluster.end, self.cluster.freeze, self.cluster.cut))(server),
            lots.choice((0.5, 3.0, 8.0, 15.0)),
        )

    async def do_power_fails(self, lots: Random) -> None:
        if lots.random() < 0.5:
            await self.do_kill(lots)
            return

        def end_all() -> None:
            for server in self.cluster.servers:
                self.cluster.end(server)

        await self._with_trouble(end_all, lots.choice((0.5, 3.0, 8.0)))

    async def _with_trouble(self, begin: Callable[[], object], seconds: float) -> None:
        for one in self.subscribers.values():
            one.is_unsure = True  # where the engine is away, somebody goes on with what is known there
        begin()
        await trio.sleep(seconds)
        self.cluster.mend()

    async def do_restore(self, lots: Random) -> None:
        """Whoever has restored the streams has all epochs be others, while everybody follows."""
        process = cast("ReplicatedNode", self.process)
        if process.store is None or not process.is_serving:
            return
        self.done.add("restore")
        self.happens("restore")
        self._renewed += self._epochs()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._renew, process.store, nursery.cancel_scope)
            await process.ended.wait()  # a store that has died with its server answers nobody
            nursery.cancel_scope.cancel()

    async def _renew(self, store: JetStreamStore, whole: trio.CancelScope) -> None:
        with suppress(Busy, Failed):
            await store.renew("operator", "the streams were restored")
        whole.cancel()

    def _end_faults(self) -> None:
        self.faults.end()
        self.cluster.mend()

    # What takes a moment until every server has heard of it

    @property
    def _settled_since(self) -> float:
        """Since when nothing stands between any server and the NATS servers."""
        if not all(process.disk.answers for process in self.processes):
            return inf
        lately = [cast("FarReach", process.disk).back_at for process in self.processes]
        return max(self.cluster.troubled_at, *lately)

    def _is_heard_of(self, at: float) -> bool:
        return trio.current_time() - max(self._settled_since, at) > SETTLED_SECONDS

    async def _once_heard_of(self, do: Callable[[], object]) -> None:
        began = trio.current_time()
        while not self._is_heard_of(began):
            await trio.sleep(1)
        do()

    def _bar(self, sub: str, diagnosis_id: str | None, before: list[Follower], *, may_publish: bool) -> None:
        used = self._tokens.get(sub)

        def bar() -> None:
            if self._tokens.get(sub) is used:
                super(ReplicatedWorld, self)._bar(sub, diagnosis_id, before, may_publish=may_publish)

        self.nursery.start_soon(self._once_heard_of, bar)

    def is_revoked(self, sub: str, token: Token) -> bool:
        return self._is_heard_of(self.revoked_at.get(sub, inf)) and super().is_revoked(sub, token)

    def _ends(self, *epochs: str) -> None:
        self.nursery.start_soon(self._once_heard_of, lambda: super(ReplicatedWorld, self)._ends(*epochs))

    # What is known of the engine

    def _stream(self, name: str) -> Stream | None:
        """A stream as whoever leads has it, or may lead next."""
        leader = self.cluster.leader or max(self.cluster.servers, key=lambda one: -len(one.behind))
        return leader.streams.get(name)

    def _of(self, name: str, subject: str) -> Sequence[Kept]:
        stream = self._stream(name)
        return () if stream is None else stream.of(subject)

    def _registrations(self) -> Mapping[str, str]:
        """The epoch of each registered diagnosis."""
        installed = self._of(NAME, self.layout.version)
        generation = version_and_generation(installed[-1].data)[1] if installed else ""
        found = {}
        for one in self._of(NAME, self.layout.all_registrations):
            made = acts.made_of(one.data)
            if isinstance(made, acts.Registered):
                found[made.diagnosis.diagnosis_id] = epoch_of(made.diagnosis.epoch, generation)
        return found

    def _log(self, diagnosis_id: str, epoch: str) -> Sequence[Entry]:
        generation = epoch.partition("~")[2]
        found = [
            entry_of(one.pos, headers_of(one.head), one.data, generation=generation)
            for one in self._of(NAME, self.layout.log(diagnosis_id))
        ]
        return [one for one in found if one is not None and one.registration == epoch and one.kind != ENDED]

    def _heads(self) -> dict[str, int]:
        heads = {}
        for diagnosis_id, epoch in self._registrations().items():
            log = self._log(diagnosis_id, epoch)
            heads[epoch] = log[-1].seq if log else 0
        return heads

    def _stored_log(self, diagnosis_id: str) -> tuple[str, int, Sequence[tuple[int, bytes]]]:
        epoch = self._registrations()[diagnosis_id]
        log = self._log(diagnosis_id, epoch)
        return epoch, log[-1].seq if log else 0, [(one.seq, one.body) for one in log if one.is_event]

    def _cursors(self) -> Mapping[tuple[str, SubscriberId], CursorSaid]:
        found = {}
        for one in self._of(self.layout.cursors, self.layout.all_cursors):
            said = msgspec.json.decode(one.data, type=CursorSaid)
            found[one.subject.split(".")[1], SubscriberId(said.sub, said.device)] = said
        return found

    def _stored_cursor(self, one: Follower, process: Process) -> tuple[str, int] | None:
        if not process.disk.answers or self._registrations().get(one.diagnosis_id) != one.epoch:
            return None  # an epoch that has ended takes no cursor any more
        said = self._cursors().get((one.diagnosis_id, SubscriberId(one.sub, one.device)))
        return None if said is None else (said.epoch, said.seq)

    def _acts(self) -> Sequence[acts.ActSaid]:
        by_number: dict[str, acts.ActSaid] = {}
        for subject in (self.layout.all_acts, self.layout.all_rewritten):
            for one in self._of(NAME, subject):
                by_number[one.subject.rpartition(".")[2]] = acts.decoded(one.data)
        return list(by_number.values())

    def _rows(self) -> Counter[str]:
        return Counter(one.row.what for one in self._acts() if one.row is not None)

    def _is_known(self, sub: str) -> bool:
        return any(who.sub == sub for _, who in self._cursors())

    def _named(self, sub: str) -> list[str]:
        found = []
        for name in (self.layout.main, self.layout.cursors, self.layout.accesses):
            for one in self._of(name, ">"):
                is_revocation = one.subject.startswith(f"{NAME}.v.")  # it keeps tokens out that may live on
                if not is_revocation and f'"{sub}"' in one.data.decode().replace("\\", ""):
                    found.append(f"{one.subject} at {one.pos}: {one.data!r}")
        return found
