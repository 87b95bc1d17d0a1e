"""A replica that answers a read may be behind: what this process itself has written it finds all the same."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio

from storage.jetstream.engine import Engine
from storage.jetstream.entries import Log
from storage.jetstream.store import JetStreamStore
from storage.records import NewAccessRow, NewEvent, Seq, SubscriberId, TrailFilter
from tests.simulation.nats import Cluster, Faults, Way
from tests.storage.conftest import ManualClock, open_node

LAG_SECONDS = 0.05

PHONE = SubscriberId("amira", "phone")


@asynccontextmanager
async def lagging(clock: ManualClock) -> AsyncIterator[JetStreamStore]:
    names = iter(f"epoch-{number}" for number in range(1, 100))
    cluster = Cluster(clock=clock, lots=Random(1), faults=Faults(lag_seconds=LAG_SECONDS))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.run)
        way = Way(cluster)
        async with open_node(
            cluster.addresses, "lagging", clock, lambda: next(names), replicas=3, dial=way.dial
        ) as store:
            yield store
        nursery.cancel_scope.cancel()


def access(at: float) -> NewAccessRow:
    return NewAccessRow(at, "connect", "d", PHONE)


async def test_rows_of_the_access_trail_are_found_with_their_names(
    clock: ManualClock, autojump_clock: trio.testing.MockClock
) -> None:
    async with lagging(clock) as store:
        for number in range(10):
            await store.record_accesses([access(float(number))])
            found = await store.accesses(wanted=TrailFilter(who="amira"))
            assert [one.at for one in found] == [float(one) for one in range(number, -1, -1)]
            assert {one.subscriber for one in found} == {PHONE}


async def test_evicted_events_are_not_there_again(clock: ManualClock, autojump_clock: trio.testing.MockClock) -> None:
    async with lagging(clock) as store:
        await store.register("d", "amira", [])
        for number in range(10):
            clock.now += 10
            await store.append_nowait("d", [NewEvent("kind", str(number).encode())]).wait()
            await store.evict(25)
            slice_ = await store.read_after("d", Seq(0))
            assert slice_.window.floor == max(0, number - 2)
            assert [one.seq for one in slice_.events] == list(range(max(0, number - 2) + 1, number + 2))
            assert (await store.outboxes())[0].window == slice_.window


@pytest.mark.parametrize("rows", [1, 450])
async def test_an_erasure_counts_the_rows_it_takes_a_name_from(
    clock: ManualClock, autojump_clock: trio.testing.MockClock, rows: int
) -> None:
    async with lagging(clock) as store:
        await store.record_accesses([access(float(number)) for number in range(rows)])
        assert await store._trails.erase_names("amira") == rows
        assert [one.subscriber.sub for one in await store.accesses(limit=1)] == ["[erased]"]


async def test_a_log_is_not_read_again_before_one_of_its_events_can_be_old(
    clock: ManualClock, autojump_clock: trio.testing.MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with lagging(clock) as store:
        read, log = list[str](), Engine.log

        async def counted(self: Engine, diagnosis_id: str, epoch: str) -> Log:
            read.append(diagnosis_id)
            return await log(self, diagnosis_id, epoch)

        monkeypatch.setattr(Engine, "log", counted)
        await store.register("d", "amira", [])
        await store.append_nowait("d", [NewEvent("kind", b"x")]).wait()
        for _ in range(9):
            clock.now += 10
            assert not (await store.evict(100)).windows
        assert read == ["d"]
        clock.now += 20
        assert (await store.evict(100)).windows["d"].floor == 1
        clock.now -= 50  # what comes from now on seems older than it is
        await store.append_nowait("d", [NewEvent("kind", b"x")]).wait()
        read.clear()
        assert not (await store.evict(100)).windows
        assert read == ["d"]
