"""What every store must let go of, and what it must keep meanwhile."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from storage.records import (
    Act,
    Appended,
    CursorMove,
    Erased,
    Erasure,
    NewAccessRow,
    NewAuditRow,
    NewEvent,
    Seq,
    SubscriberId,
    TrailFilter,
)
from storage.sqlite import retention
from storage.sqlite.opening import open_store
from storage.store import Store
from tests.storage.conftest import ManualClock
from tests.storage.rows import ROWS
from tests.storage.test_contract import ANONYMOUS, PHONE, UNNAMED, append, append_numbers, event, move, retained

BO = SubscriberId("bo", None)


@pytest.mark.guarantee(2)
async def test_events_of_an_age_are_evicted_and_numbers_go_on(store: Store, clock: ManualClock) -> None:
    await store.register("d", "amira", [])
    await append_numbers(store, 3)
    clock.now += 100
    await append_numbers(store, 2)
    evicted = await store.evict(50)
    window = evicted.windows["d"]
    assert (window.head, window.floor, window.purged) == (5, 3, 0)
    assert evicted.next is None
    assert await retained(store) == [4, 5]
    assert (await store.read_after("d", Seq(0))).window == window
    assert (await store.evict(50)).windows == {}
    clock.now += 1
    everything = await store.evict(0)
    assert (everything.windows["d"].head, everything.windows["d"].floor) == (5, 5)
    await append_numbers(store, 1)
    assert await retained(store) == [6]


async def test_an_eviction_leaves_keys_and_cursors(store: Store, clock: ManualClock) -> None:
    await store.register("d", "amira", [])
    await append(store, event(1, "k"))
    await move(store, PHONE, 1)
    clock.now += 1
    await store.evict(0)
    (again,) = await append(store, event(1, "k"))
    assert getattr(again, "replayed", None) is True
    assert [one.seq for one in await store.cursors("d")] == [1]


async def test_a_clock_that_was_set_back_keeps_nothing_longer_and_makes_no_hole(
    store: Store, clock: ManualClock
) -> None:
    await store.register("d", "amira", [])
    await append_numbers(store, 2)
    clock.now -= 1000
    await append_numbers(store, 1)
    clock.now += 5000
    await append_numbers(store, 1)
    evicted = await store.evict(4500)
    assert evicted.windows["d"].floor == 3
    assert await retained(store) == [4]


async def test_diagnoses_lose_old_events_page_by_page(store: Store, clock: ManualClock) -> None:
    for name in "abcde":
        await store.register(name, "amira", [])
        await append_numbers(store, 1, to=name)
    await store.delete("b")
    clock.now += 1
    seen: list[str] = []
    after: str | None = ""
    while after is not None:
        evicted = await store.evict(0, after=after, diagnoses=2)
        assert len(evicted.windows) <= 2
        seen.extend(evicted.windows)
        after = evicted.next
    assert seen == ["a", "c", "d", "e"]


async def test_the_access_trail_is_read_newest_first_in_pages(store: Store) -> None:
    rows = [
        NewAccessRow(1.0, "connect", "d", PHONE),
        NewAccessRow(2.0, "connect", "d", ANONYMOUS),
        NewAccessRow(3.0, "disconnect", "d", PHONE),
    ]
    await store.record_accesses(rows)
    found = await store.accesses(limit=2)
    assert [(row.at, row.what, row.diagnosis_id, row.subscriber) for row in found] == [
        (3.0, "disconnect", "d", PHONE),
        (2.0, "connect", "d", ANONYMOUS),
    ]
    assert [row.at for row in await store.accesses(before=found[-1].number)] == [1.0]


async def test_rows_and_keys_expire_a_bounded_number_at_a_time(store: Store, clock: ManualClock) -> None:
    await store.register("d", "amira", [])
    for number in range(5):
        await append(store, event(number, f"k{number}"))
        await store.record(NewAuditRow("op", f"act-{number}", "d"))
        await store.record_accesses([NewAccessRow(clock.now, "connect", "d", PHONE)])
    clock.now += 25 * 3600
    await store.record(NewAuditRow("op", "new", "d"))
    await store.record_accesses([NewAccessRow(clock.now, "connect", "d", PHONE)])
    assert await store.expire(limit=2) == 2
    dropped = [await store.expire(audit_seconds=3600, accesses_seconds=3600, limit=3) for _ in range(3)]
    assert dropped == [9, 4, 0]
    assert [row.what for row in await store.audit()] == ["new"]
    assert [row.at for row in await store.accesses()] == [clock.now]
    numbers = [row.number for row in await store.audit()]
    await store.record(NewAuditRow("op", "newest", "d"))
    assert [row.number for row in await store.audit()] > numbers


async def test_an_erased_person_is_nowhere_but_where_it_owns(store: Store) -> None:
    await store.register("a", "bo", [], Act("registrar", "diagnosis.register", {"after": "owner bo"}))
    await store.register("b", "amira", ["cyrus", "bo", "dora"])
    await store.register("c", "bo", [])
    await store.delete("c", Act("bo", "diagnosis.delete", {"before": "owner bo", "after": None}))
    await store.register("d", "amira", ["bo"])
    await append_numbers(store, 3)
    for subscriber in (BO, SubscriberId("bo", "phone"), PHONE, UNNAMED):
        await move(store, subscriber, 1)
    await store.record_accesses(
        [NewAccessRow(1.0, "connect", "d", SubscriberId("bo", "bos-phone")), NewAccessRow(1.0, "connect", "d", PHONE)]
    )
    assert (await store.get("d")).viewers == ("bo",)

    erased = await store.erase(Erasure("bo", "[erased]", ["bo"]), Act("op", "subject.erase"))
    assert (erased.cursors, erased.viewers, erased.audit_rows, erased.access_rows) == (2, 2, 2, 1)
    assert (erased.owned, erased.owned_total) == (("a",), 1)
    assert [one.subscriber for one in await store.cursors("d")] == [UNNAMED, PHONE]
    assert (await store.get("b")).viewers == ("cyrus", "dora")
    assert (await store.get("d")).viewers == ()
    rows = await store.audit()
    assert [(row.who, row.what, row.after) for row in rows] == [
        ("op", "subject.erase", repr(erased)),
        ("[erased]", "diagnosis.delete", None),
        ("registrar", "diagnosis.register", "owner [erased]"),
    ]
    assert "bo" not in str(list(rows)).replace("[erased]", "")
    assert [row.subscriber for row in await store.accesses()] == [PHONE, SubscriberId("[erased]", None)]


async def test_a_large_erasure_lets_others_go_on_and_its_row_gets_the_figures_of_all_steps(
    path: Path, clock: ManualClock, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ERASED_ROWS_MAX", 3)
    monkeypatch.setattr(retention, "WALKED_ROWS_MAX", 5)
    told: list[object] = []

    def noting(act: Act, answer: object) -> NewAuditRow:
        told.append(answer)
        return ROWS.row_of(act, answer)

    rows = replace(ROWS, row_of=noting)
    async with open_store(path, clock=clock, new_epoch=new_epoch, rows=rows) as store:
        await fill_with_bo(store, 10)
        told.clear()
        commits: list[int] = []
        async with trio.open_nursery() as nursery:

            async def others() -> None:
                while True:
                    (outcome,) = await store.append_nowait("d0", [NewEvent("k", b"x")]).wait()
                    assert isinstance(outcome, Appended)
                    commits.append(outcome.seq)
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(others)
            erased = await store.erase(Erasure("bo", "[erased]", ["bo"]), Act("op", "subject.erase"))
            nursery.cancel_scope.cancel()
        assert (erased.cursors, erased.viewers, erased.audit_rows, erased.access_rows) == (10, 10, 10, 10)
        assert (erased.owned, erased.owned_total) == (("its",), 1)
        assert len(commits) > 3
        assert isinstance(told[0], Erased)
        assert (told[0].cursors, told[-1]) == (3, erased)
        (row,) = [row for row in await store.audit() if row.what == "subject.erase"]
        assert row.after == repr(erased)
        await assert_gone(store)


async def test_an_erasure_that_was_cut_off_is_gone_on_with_by_a_repeat(
    path: Path, clock: ManualClock, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(retention, "ERASED_ROWS_MAX", 3)
    monkeypatch.setattr(retention, "WALKED_ROWS_MAX", 5)
    monkeypatch.setattr("storage.sqlite.store.ERASURE_PAUSE_SECONDS", 60)
    erasure = Erasure("bo", "[erased]", ["bo"])
    async with open_store(path, clock=clock, new_epoch=new_epoch, rows=ROWS) as store:
        await fill_with_bo(store, 10)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.erase, erasure, Act("op", "subject.erase"))
            await store.barrier()
            while len(await store.accesses(wanted=TrailFilter(who="bo"))) > 7:
                await trio.lowlevel.checkpoint()
            nursery.cancel_scope.cancel()
        assert [row.what for row in await store.audit(limit=1)] == ["subject.erase"]
    monkeypatch.setattr("storage.sqlite.store.ERASURE_PAUSE_SECONDS", 0)
    async with open_store(path, clock=clock, new_epoch=new_epoch, rows=ROWS) as store:
        erased = await store.erase(erasure)
        assert (erased.cursors, erased.viewers, erased.access_rows) == (7, 7, 7)
        await assert_gone(store)


async def fill_with_bo(store: Store, count: int) -> None:
    """Diagnoses with a person as viewer and follower, and as many rows of both trails."""
    for number in range(count):
        made = await store.register(f"d{number}", "amira", ["bo"], Act("bo", "test.act", {"after": None}))
        await store.move_cursors([CursorMove(f"d{number}", BO, made.diagnosis.epoch, Seq(0), 0.0)])
    await store.register("its", "bo", [])
    await store.register("was", "bo", [])
    await store.delete("was")
    await store.record_accesses([NewAccessRow(1.0, "connect", "d", BO)] * count)


async def assert_gone(store: Store) -> None:
    rows = [*await store.audit(), *await store.accesses()]
    assert "bo" not in str(rows)
    for number in range(10):
        assert (await store.get(f"d{number}")).viewers == ()
        assert await store.cursors(f"d{number}") == []
