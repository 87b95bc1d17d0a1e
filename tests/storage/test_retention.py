"""What every store must let go of, and what it must keep meanwhile."""

from __future__ import annotations

from dataclasses import replace

import pytest

from storage.records import AuditRow, Erased, Erasure, NewAccessRow, NewAuditRow, Seq, SubscriberId
from storage.store import Store
from tests.storage.conftest import ManualClock
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


def without_bo(row: AuditRow) -> AuditRow:
    return replace(
        row,
        who=row.who.replace("bo", "[erased]"),
        before=row.before and row.before.replace("bo", "[erased]"),
        after=row.after and row.after.replace("bo", "[erased]"),
    )


async def test_an_erased_person_is_nowhere_but_where_it_owns(store: Store) -> None:
    await store.register("a", "bo", [], lambda _: NewAuditRow("registrar", "diagnosis.register", "a", after="owner bo"))
    await store.register("b", "amira", ["cyrus", "bo", "dora"])
    await store.register("c", "bo", [])
    await store.delete("c", lambda _: NewAuditRow("bo", "diagnosis.delete", "c", before="owner bo"))
    await store.register("d", "amira", ["bo"])
    await append_numbers(store, 3)
    for subscriber in (BO, SubscriberId("bo", "phone"), PHONE, UNNAMED):
        await move(store, subscriber, 1)
    await store.record_accesses(
        [NewAccessRow(1.0, "connect", "d", SubscriberId("bo", "bos-phone")), NewAccessRow(1.0, "connect", "d", PHONE)]
    )
    assert (await store.get("d")).viewers == ("bo",)

    def act(erased: Erased) -> NewAuditRow:
        return NewAuditRow("op", "subject.erase", "[erased]", after=str(erased.cursors))

    erased = await store.erase(Erasure("bo", "[erased]", ["bo"], without_bo), act)
    assert (erased.cursors, erased.viewers, erased.audit_rows, erased.access_rows) == (2, 2, 2, 1)
    assert erased.owned == ("a",)
    assert [one.subscriber for one in await store.cursors("d")] == [UNNAMED, PHONE]
    assert (await store.get("b")).viewers == ("cyrus", "dora")
    assert (await store.get("d")).viewers == ()
    rows = await store.audit()
    assert [(row.who, row.what, row.after) for row in rows] == [
        ("op", "subject.erase", "2"),
        ("[erased]", "diagnosis.delete", None),
        ("registrar", "diagnosis.register", "owner [erased]"),
    ]
    assert "bo" not in str(list(rows)).replace("[erased]", "")
    assert [row.subscriber for row in await store.accesses()] == [PHONE, SubscriberId("[erased]", None)]
