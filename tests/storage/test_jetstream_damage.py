"""Damage of one diagnosis in streams: all processes refuse it until it is dropped, and then its numbers go on."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from random import Random

import pytest
import trio

from storage.changes import EventsEvicted
from storage.errors import NotDamaged, NotSupported, OutboxDamaged
from storage.jetstream.entries import HEADER
from storage.jetstream.store import JetStreamStore
from storage.nats.wire import Outgoing
from storage.records import Act, Appended, Dropped, Seq, Window
from tests.simulation.nats import Cluster, Way
from tests.storage.conftest import Heard, ManualClock, open_node
from tests.storage.test_contract import append, append_numbers, event

AN_ACT = Act("operator", "outbox.drop_damaged")


@pytest.fixture
async def pair(
    clock: ManualClock, new_epoch: Callable[[], str], autojump_clock: trio.testing.MockClock
) -> AsyncIterator[tuple[JetStreamStore, JetStreamStore]]:
    """An installation as two processes have it; `d` and `e` have events 1 to 5."""
    cluster = Cluster(clock=clock, lots=Random(1))
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.run)

        @asynccontextmanager
        async def opened() -> AsyncIterator[JetStreamStore]:
            way = Way(cluster)
            async with open_node(cluster.addresses, "damaged", clock, new_epoch, replicas=3, dial=way.dial) as store:
                yield store

        async with opened() as one, opened() as other:
            for diagnosis_id in "de":
                await one.register(diagnosis_id, "amira", [])
                await append_numbers(one, 5, to=diagnosis_id)
            yield one, other
        nursery.cancel_scope.cancel()


async def numbers(store: JetStreamStore, diagnosis_id: str) -> list[int]:
    return [one.seq for one in (await store.read_after(diagnosis_id, Seq(0))).events]


async def lose(store: JetStreamStore, *seqs: int) -> None:
    """Have the servers lose events of `d`, as a disk that fails."""
    layout, jetstream = store.engine.layout, store.engine.jetstream
    found = await jetstream.direct(layout.main, {"seq": 1, "next_by_subj": layout.log("d"), "batch": 200})
    for one in found:
        if int(one.headers[HEADER].split(" ")[0]) in seqs:
            await jetstream.api(f"STREAM.MSG.DELETE.{layout.main}", {"seq": one.pos})


async def refuses(store: JetStreamStore) -> bool:
    """Whether a process neither reads nor appends."""
    with pytest.raises(OutboxDamaged, match=r"cluster check --drop-damaged d$"):
        await store.read_after("d", Seq(0))
    (outcome,) = await append(store, event(99))
    return isinstance(outcome, OutboxDamaged) and list(store.damaged) == ["d"]


async def until_repaired(store: JetStreamStore) -> None:
    """Wait until a process has heard that the damage was dropped."""
    with trio.fail_after(10):
        while store.damaged:
            await trio.sleep(0.01)


async def append_at_each(pair: tuple[JetStreamStore, JetStreamStore], first: int) -> None:
    """Append an event to `d` at one process after the other: they get the numbers from this one on."""
    for number, store in enumerate(pair, start=first):
        (outcome,) = await append(store, event(number))
        assert isinstance(outcome, Appended)
        assert outcome.seq == number


async def test_both_refuse_it_until_one_drops_what_is_damaged(pair: tuple[JetStreamStore, JetStreamStore]) -> None:
    one, other = pair
    heard = Heard()
    other.tell(heard)
    await lose(one, 2)
    for store in pair:
        assert await refuses(store)
        assert await numbers(store, "e") == [1, 2, 3, 4, 5], "no other diagnosis suffers"
    epoch = (await one.get("d")).epoch

    dropped = await one.drop_damaged("d", AN_ACT)
    left = Window(epoch, Seq(5), Seq(2), Seq(0))
    assert dropped == Dropped("d", "its events are not 1 to 5 without a hole", 1, left, is_renewed=False)
    await until_repaired(other)
    assert [type(change) for change in heard] == [EventsEvicted]
    for store in pair:
        assert (await store.read_after("d", Seq(0))).window == left
        assert await numbers(store, "d") == [3, 4, 5]
        assert await store.check() == []
    await append_at_each(pair, 6)
    (row,) = [one for one in await one.audit(limit=3) if one.what == AN_ACT.what]
    assert (row.who, row.target) == ("operator", "d")
    with pytest.raises(NotDamaged):
        await one.drop_damaged("d")


async def test_where_all_is_damaged_but_the_head_the_numbers_go_on(pair: tuple[JetStreamStore, JetStreamStore]) -> None:
    one, other = pair
    await change_body(one, 5)
    for store in pair:
        assert await refuses(store)
    dropped = await one.drop_damaged("d", AN_ACT)
    assert (dropped.damage, dropped.events) == ("event 5 fails its checksum", 5)
    assert (dropped.after.head, dropped.after.floor) == (5, 5)
    await until_repaired(other)
    await append_at_each(pair, 6)
    assert await numbers(other, "d") == [6, 7]


async def change_body(store: JetStreamStore, seq: int) -> None:
    """Have the servers say other things of the newest event of `d`, whose number this is, than were stored."""
    layout, jetstream = store.engine.layout, store.engine.jetstream
    newest = await jetstream.last(layout.main, layout.log("d"))
    assert newest is not None
    said = newest.headers[HEADER].split(" ")
    assert int(said[0]) == seq
    await jetstream.api(f"STREAM.MSG.DELETE.{layout.main}", {"seq": newest.pos})
    await jetstream.store([Outgoing(layout.log("d"), b"other", {HEADER: newest.headers[HEADER]})])


async def test_what_is_no_entry_at_the_end_wants_its_diagnosis_deleted(
    pair: tuple[JetStreamStore, JetStreamStore],
) -> None:
    one, other = pair
    layout = one.engine.layout
    await one.engine.jetstream.store([Outgoing(layout.log("d"), b"what is this?")])
    with pytest.raises(OutboxDamaged, match="an entry cannot be read"):
        await one.read_after("d", Seq(0))
    with pytest.raises(NotSupported, match="its head cannot be trusted"):
        await one.drop_damaged("d", AN_ACT)
    assert await numbers(one, "e") == [1, 2, 3, 4, 5]
    await one.delete("d", AN_ACT)
    for store in pair:
        await store.register("d", "bo", [])
    await append_at_each(pair, 1)
    assert await numbers(other, "d") == [1, 2]


async def test_what_was_dropped_and_not_told_is_told_by_who_finds_nothing_to_drop(
    pair: tuple[JetStreamStore, JetStreamStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    await lose(one, 2)
    assert await refuses(other)
    with monkeypatch.context() as cut_off:

        async def never(_: object) -> None:
            raise KeyboardInterrupt

        cut_off.setattr(one, "_tell_evicted", never)
        with pytest.raises(KeyboardInterrupt):
            await one.drop_damaged("d", AN_ACT)
    assert await refuses(other)
    with pytest.raises(NotDamaged):
        await one.drop_damaged("d", AN_ACT)
    await until_repaired(other)
    (outcome,) = await append(other, event(6))
    assert isinstance(outcome, Appended)
