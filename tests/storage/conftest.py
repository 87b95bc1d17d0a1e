"""The stores the contract suite judges. A further store joins by a branch in `store`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from random import Random
from typing import Any, cast
from uuid import uuid4

import pytest
import trio

from storage.changes import Change
from storage.clock import Clock
from storage.jetstream.opening import open_jetstream
from storage.jetstream.store import JetStreamStore
from storage.memory import MemoryStore
from storage.memory_engine import Faults, MemoryEngine
from storage.nats.connection import Address, Connection, Dial
from storage.news import News
from storage.records import IDEMPOTENCY_KEYS_MAX, Seq, Slice
from storage.remote.client import open_remote
from storage.remote.server import StoreServer
from storage.sqlite import opening
from storage.sqlite.opening import open_store
from storage.sqlite.store import SqliteStore
from storage.store import Store
from tests.cluster.servers import NatsServer
from tests.simulation.nats import Cluster, Way
from tests.simulation.nats import Faults as NatsFaults
from tests.storage.rows import ROWS


@pytest.fixture(autouse=True)
def impatient_stores(monkeypatch: pytest.MonkeyPatch) -> None:
    """A store looks at its files more often than it would, and a broken one waits less for those who use it."""
    monkeypatch.setattr(opening, "WATCH_SECONDS", 0.1)
    monkeypatch.setattr(opening, "LEAVE_SECONDS_MAX", 0.3)


class ManualClock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.wrong_by = 0.0
        """So far is the wall clock ahead of where it should be."""

    def wall(self) -> float:
        return self.now + self.wrong_by

    def monotonic(self) -> float:
        return self.now


class Heard(list[Change]):
    """What a store has told."""

    def changed(self, change: Change) -> None:
        self.append(change)

    def grew(self, diagnosis_id: str, news: News) -> None:
        raise AssertionError("no log is followed")

    def missed(self) -> None:
        raise AssertionError("nothing is missed")


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def new_epoch() -> Callable[[], str]:
    """Epoch names that never repeat."""
    names = iter(f"epoch-{number}" for number in range(1, 1000))
    return lambda: next(names)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "avicenna.db"


class TwoHandles:
    """A store of which one handle writes, and another reads what every handle finds alike.

    What is promised to the handle that wrote alone is asked of it: that a read sees the write that was answered before.
    The other may find the log as it was some entries ago, but never with a hole, and never older than before. Only the
    handle itself can tell what it has found damaged, what it has in memory (`known`), and its time and figures.
    """

    READS = frozenset(
        {"get", "look_up", "diagnoses", "outboxes", "cursors", "cursor", "revocations", "audit", "accesses"}
    )

    def __init__(self, one: MemoryStore, other: MemoryStore) -> None:
        self.one, self.other = one, other
        self._latest: dict[str, Slice] = {}

    async def read_after(self, diagnosis_id: str, seq: Seq, limit: int = 100, bytes_max: int | None = None) -> Slice:
        """What the handle finds that did not write, once it finds what the other has written."""
        written = await self.one.read_after(diagnosis_id, seq, limit, bytes_max)
        while True:
            found = await self.other.read_after(diagnosis_id, seq, limit, bytes_max)
            window, first = found.window, max(seq, found.window.floor) + 1
            assert [one.seq for one in found.events] == list(range(first, first + len(found.events)))
            before = self._latest.get(diagnosis_id, found).window
            if before.epoch == window.epoch:
                assert (window.head, window.floor) >= (before.head, before.floor), "it has gone back"
            self._latest[diagnosis_id] = found
            if window == written.window:
                assert found == written
                return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self.other if name in self.READS else self.one, name)


SIMULATED = "jetstream in memory"

HARMLESS = NatsFaults(split=0.2, live_lost=0.3, refused=0.02, twice=0.1, short_pages=0.3, live_twice=0.1)
"""What is not to be noticed. Replicas that lag are in `test_lagging_replicas.py`: there nothing depends on the time."""

KINDS = [
    "sqlite",
    "memory",
    "two handles",
    "remote",
    SIMULATED,
    pytest.param("jetstream", marks=pytest.mark.cluster),
]


@pytest.fixture
def nats(request: pytest.FixtureRequest) -> Callable[[], Sequence[Address]]:
    """Where NATS servers listen, which are started by whoever asks first: one, or with `ALL_WAYS` three."""

    def asked() -> Sequence[Address]:
        servers: Sequence[NatsServer]
        if os.environ.get("ALL_WAYS"):
            servers = request.getfixturevalue("three_nats_servers")
        else:
            servers = [request.getfixturevalue("one_nats_server")]
        return [one.address for one in servers]

    return asked


@pytest.fixture(params=KINDS)
async def store(
    request: pytest.FixtureRequest,
    path: Path,
    clock: ManualClock,
    new_epoch: Callable[[], str],
    nats: Callable[[], Sequence[Address]],
) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    async with open_kind(request.param, path, clock, new_epoch, nats=nats) as opened:
        yield opened


@pytest.fixture(params=KINDS)
async def store_of_three_keys(
    request: pytest.FixtureRequest,
    path: Path,
    clock: ManualClock,
    new_epoch: Callable[[], str],
    nats: Callable[[], Sequence[Address]],
) -> AsyncIterator[Store]:
    """An empty store of each kind that holds three idempotency keys at most."""
    async with open_kind(request.param, path, clock, new_epoch, 3, nats=nats) as opened:
        yield opened


@asynccontextmanager
async def open_kind(
    kind: str,
    path: Path,
    clock: ManualClock,
    new_epoch: Callable[[], str],
    keys_max: int = IDEMPOTENCY_KEYS_MAX,
    *,
    nats: Callable[[], Sequence[Address]] | None = None,
) -> AsyncIterator[Store]:
    """An empty store of one kind.

    Args:
        nats: where the servers of a replicated one are; its installation gets a name of its own.
    """
    if kind == SIMULATED:
        cluster = Cluster(clock=clock, lots=Random(1), faults=replace(HARMLESS))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.run)
            way = Way(cluster)
            async with open_node(
                cluster.addresses, "simulated", clock, new_epoch, keys_max, replicas=3, dial=way.dial
            ) as node:
                yield node
            nursery.cancel_scope.cancel()
        return
    if kind == "jetstream":
        assert nats is not None, "it lives in a NATS server"
        servers, name = nats(), f"t{uuid4().hex[:20]}"
        async with open_node(servers, name, clock, new_epoch, keys_max, replicas=len(servers)) as node:
            yield node
        return
    if kind == "memory":
        yield MemoryStore(MemoryEngine(clock=clock, new_epoch=new_epoch, keys_max=keys_max, rows=ROWS))
        return
    if kind == "two handles":
        faults = Faults(live_lost=0.3, reads_old=5)
        engine = MemoryEngine(
            clock=clock, new_epoch=new_epoch, keys_max=keys_max, rows=ROWS, shared=True, faults=faults
        )
        yield cast(Store, TwoHandles(MemoryStore(engine, "one"), MemoryStore(engine, "other")))
        return
    async with open_store(path, clock=clock, new_epoch=new_epoch, keys_max=keys_max, rows=ROWS) as opened:
        if kind == "sqlite":
            yield opened
            return
        socket_path = path.with_name("store.sock")
        async with serving(opened, socket_path), open_remote(socket_path, node="one", clock=clock) as remote:
            yield remote


@asynccontextmanager
async def open_node(
    addresses: Sequence[Address],
    name: str,
    clock: Clock,
    new_epoch: Callable[[], str],
    keys_max: int = IDEMPOTENCY_KEYS_MAX,
    *,
    replicas: int = 1,
    dial: Dial = trio.open_tcp_stream,
) -> AsyncIterator[JetStreamStore]:
    """The store of an installation, as one process has it."""
    node = uuid4().hex
    connection = Connection(addresses, name=node, new_id=lambda: uuid4().hex, jitter=Random(node).random, dial=dial)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        async with open_jetstream(
            connection,
            name,
            node=node,
            clock=clock,
            new_epoch=new_epoch,
            new_id=lambda: uuid4().hex,
            jitter=Random(node).random,
            replicas=replicas,
            keys_max=keys_max,
            rows=ROWS,
        ) as opened:
            yield opened
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def serving(store: Store, path: Path) -> AsyncIterator[None]:
    """A store that other processes could ask: it listens at this path."""
    listening = trio.socket.socket(trio.socket.AF_UNIX)
    await listening.bind(str(path))
    listening.listen()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(StoreServer(store).run, [trio.SocketListener(listening)])
        yield
        nursery.cancel_scope.cancel()


async def damage(store: Store, diagnosis_id: str, *seqs: int, head: int | None = None) -> None:
    """Change what a store holds of a diagnosis, as a disk that fails: events of these numbers, or the head."""
    if isinstance(store, MemoryStore):
        store.damage(diagnosis_id, *seqs, head=head)
        return
    assert isinstance(store, SqliteStore)

    def change(db: sqlite3.Connection) -> None:
        (dx,) = db.execute(
            "SELECT dx FROM diagnosis WHERE public_id = ? AND deleted_at IS NULL", (diagnosis_id,)
        ).fetchone()
        for seq in seqs:
            db.execute("UPDATE entry SET body = CAST(body || 'x' AS BLOB) WHERE dx = ? AND seq = ?", (dx, seq))
        if head is not None:  # as a disk does it: past every rule
            db.execute("INSERT OR REPLACE INTO head SELECT dx, ?, floor, purged FROM head WHERE dx = ?", (head, dx))

    await store._committer.read(change)
    store._damage.is_check_pending = True


@pytest.fixture
def crashed(path: Path, tmp_path: Path) -> Callable[[], None]:
    """Makes the files of the store what a `kill -9` at this moment would have left, once it is closed."""
    kept = tmp_path / "kept"

    def keep() -> None:
        # `cp` runs in a process of its own: opening the database in this one would drop SQLite's locks.
        assert os.spawnlp(os.P_WAIT, "cp", "cp", "-r", str(path.parent), str(kept)) == 0

    return keep
