"""An erasure on the replicated store is done in steps: cut off at any of them, it is finished by whoever repeats it."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager
from itertools import count
from random import Random
from typing import Any

import trio

from storage.errors import Busy, Failed
from storage.jetstream.store import JetStreamStore
from storage.records import Act, CursorMove, Erasure, NewAccessRow, NewEvent, Seq, SubscriberId
from tests.simulation.nats import Cluster, Way
from tests.storage.conftest import ManualClock, open_node

PHONE = SubscriberId("cyn", "phone")
ACT = Act("op", "subject.erase", {"after": None})
ERASURE = Erasure("cyn", "erased-1", ())


@asynccontextmanager
async def node(cluster: Cluster, clock: ManualClock, way: Way, names: Iterator[str]) -> AsyncIterator[JetStreamStore]:
    async with open_node(cluster.addresses, "erasing", clock, lambda: next(names), replicas=3, dial=way.dial) as store:
        yield store


async def furnish(store: JetStreamStore) -> None:
    """Have a person be named wherever somebody can be."""
    for number in range(3):
        diagnosis_id = f"d{number}"
        made = await store.register(diagnosis_id, "amira", ["cyn"], Act("cyn", "diagnosis.register", {"after": "cyn"}))
        await store.append_nowait(diagnosis_id, [NewEvent("kind", b"x")]).wait()
        await store.move_cursors([CursorMove(diagnosis_id, PHONE, made.diagnosis.epoch, Seq(1), 1.0)])
        await store.record_accesses([NewAccessRow(1.0, "connect", diagnosis_id, PHONE)])


def named(cluster: Cluster) -> list[str]:
    """Where the person is named in what the leader has."""
    assert cluster.leader is not None
    return [
        one.subject
        for stream in cluster.leader.streams.values()
        for one in stream.of(">")
        if b'"cyn"' in one.data.replace(b"\\", b"")
    ]


def cut_off_after(cluster: Cluster, way: Way, steps: int) -> Callable[[], bool]:
    """Cut the way after so many answers of the leader; whether that has happened."""
    left, answer = [steps], cluster._answer

    def answered(*arguments: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            way.cut(is_silent=False)
        answer(*arguments)

    cluster._answer = answered  # type: ignore[method-assign,assignment]
    return lambda: left[0] < 0


async def test_an_erasure_that_was_cut_off_at_any_step_is_finished_by_a_repetition(
    clock: ManualClock, autojump_clock: trio.testing.MockClock
) -> None:
    for steps in count():
        names = iter(f"epoch-{number}" for number in range(1, 100))
        cluster = Cluster(clock=clock, lots=Random(steps))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(cluster.run)
            way = Way(cluster)
            async with node(cluster, clock, way, names) as store:
                await furnish(store)
                assert named(cluster)
                is_cut = cut_off_after(cluster, way, steps)
                try:
                    await store.erase(ERASURE, ACT)
                except (Busy, Failed):
                    assert is_cut()
            async with node(cluster, clock, Way(cluster), names) as store:
                if is_cut():
                    await store.erase(ERASURE, ACT)
                rows = [one for one in await store.audit() if one.what == "subject.erase"]
                assert await store.check() == []
            nursery.cancel_scope.cancel()
        assert named(cluster) == []
        assert 1 <= len(rows) <= 1 + is_cut()
        if not is_cut():
            break
    assert steps > 20
