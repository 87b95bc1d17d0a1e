"""Damage of one diagnosis: found when it is read, or by the check of all, and dropped without taking a number back."""

from __future__ import annotations

import sqlite3
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
import trio

from storage.changes import EpochsRenewed
from storage.damage import Damage, Entry, checksum, drop_command, is_whole, judge
from storage.errors import NotDamaged, OutboxDamaged
from storage.records import (
    Appended,
    CursorMove,
    Epoch,
    Erasure,
    NewEvent,
    Seq,
    SubscriberId,
)
from storage.sqlite import integrity
from storage.sqlite.store import SqliteStore
from storage.store import Store
from tests.storage.conftest import Heard, ManualClock, damage, open_kind
from tests.storage.rows import TELLING
from tests.storage.test_contract import append, append_numbers, event, move, retained
from tests.storage.test_faults import change, come_back, fill, opened

PHONE = SubscriberId("amira", "phone")


@pytest.fixture(params=["sqlite", "memory"])
async def store(
    request: pytest.FixtureRequest, path: Path, clock: ManualClock, new_epoch: Callable[[], str]
) -> AsyncIterator[Store]:
    """An empty store of each kind whose disk can fail: what handles share is not on one disk."""
    async with open_kind(request.param, path, clock, new_epoch) as opened:
        yield opened


def whole(seq: int) -> Entry:
    """An event as it is stored."""
    return seq % 100, seq, 5.0, b"k", b"body", checksum(seq, 5.0, b"k", b"body")


def changed(seq: int) -> Entry:
    """One with another body."""
    return *whole(seq)[:4], b"bodx", whole(seq)[5]


def test_an_outbox_without_a_hole_is_not_damaged() -> None:
    assert judge((0, 0, 0), []) is None
    assert judge((5, 5, 5), []) is None
    assert judge((5, 2, 1), map(whole, (3, 4, 5))) is None
    assert judge((250, 150, 0), map(whole, range(151, 251))) is None


@pytest.mark.parametrize(
    ("numbers", "entries", "what", "left", "is_head_trusted"),
    [
        ((5, 0, 0), [*map(whole, (1, 2, 4, 5)), changed(3)], "event 3 fails its checksum", (3, 5), True),
        ((5, 0, 0), [*map(whole, (1, 2, 3, 4)), changed(5)], "event 5 fails its checksum", (5, 5), True),
        ((4, 0, 0), [*map(changed, (1, 2, 3)), whole(4)], "event 1 fails its checksum (and 2 more)", (3, 4), True),
        ((5, 0, 0), [*map(whole, (1, 2, 4, 5))], "its events are not 1 to 5 without a hole", (3, 5), True),
        ((5, 2, 0), [*map(whole, (1, 2, 3, 4, 5))], "its events are not 3 to 5 without a hole", (2, 5), True),
        ((5, 0, 0), [*map(whole, (3, 4, 5))], "its events are not 1 to 5 without a hole", (2, 5), True),
        ((3, 0, 0), [*map(whole, (1, 2, 3, 4, 5))], "its head 3 is below number 5, which was given", (0, 5), False),
        ((7, 0, 0), [*map(whole, (1, 2, 3, 4, 5))], "the event of its head 7 is missing", (0, 5), False),
        ((5, 0, 0), [*map(whole, (1, 2, 3, 4))], "the event of its head 5 is missing", (0, 4), False),
        ((5, 0, 0), [*map(whole, (1, 3, 4))], "the event of its head 5 is missing", (2, 4), False),
        ((5, 0, 0), [], "the event of its head 5 is missing", (0, 0), False),
        (integrity.NO_NUMBERS, [*map(whole, (1, 2))], "its numbers are missing or make no sense", (0, 2), False),
        ((5, 6, 0), [*map(whole, (1, 2))], "its numbers are missing or make no sense", (0, 2), False),
        ((5, 0, 1), [], "its numbers are missing or make no sense", (0, 0), False),
        ((500, 0, 0), [], "its numbers are missing or make no sense", (0, 0), False),
        ((-1, -1, -1), [], "its numbers are missing or make no sense", (0, 0), False),
        ((b"5", 0, 0), [], "its numbers are missing or make no sense", (0, 0), False),
        ((5.0, 0, 0), [], "its numbers are missing or make no sense", (0, 0), False),
    ],
)  # fmt: skip
def test_what_is_wrong_with_an_outbox_and_what_is_left(
    numbers: tuple[Any, ...], entries: list[Entry], what: str, left: tuple[int, int], is_head_trusted: bool
) -> None:
    found = judge(numbers, entries)
    assert found is not None
    assert (found.what, (found.floor, found.head), found.is_head_trusted) == (what, left, is_head_trusted)
    # What is left is an outbox again.
    kept = [entry for entry in entries if is_whole(entry) and found.floor < entry[1] <= found.head]
    assert judge((found.head, found.floor, found.purged), kept) is None


@pytest.mark.parametrize(("diagnosis_id", "option"), [("42", " 42"), ("-x", "=-x")])
def test_the_command_takes_every_id_for_an_id(diagnosis_id: str, option: str) -> None:
    assert drop_command(diagnosis_id) == f"avicenna-live check --drop-damaged{option}"


def test_a_number_that_was_told_is_never_above_a_trusted_head() -> None:
    found = judge((5, 5, 0), [], told=6)
    assert found == Damage(
        "its head 5 is below number 6, which was given", Seq(0), Seq(0), Seq(0), is_head_trusted=False
    )


@pytest.mark.parametrize(
    "damaged",
    [
        (2, 2, 5.0, b"k", b"body"),
        (1, 2, 5.0, b"k", b"body"),
        (2, 1, 5.0, b"k", b"body"),
        (1, 1, 5.5, b"k", b"body"),
        (1, 1, 5.0, b"x", b"body"),
        (1, 1, 5.0, b"k", b"bodx"),
        (1, None, 5.0, b"k", b"body"),
        (1, b"1", 5.0, b"k", b"body"),
        (1, 1, b"5.0", b"k", b"body"),
        (1, 1, 5.0, 7, b"body"),
        (1, 1, 5.0, b"k", None),
        (1, 1 << 70, 5.0, b"k", b"body"),
    ],
)
def test_an_entry_with_another_place_number_time_kind_body_or_type_is_not_whole(damaged: tuple[Any, ...]) -> None:
    crc = checksum(1, 5.0, b"k", b"body")
    assert is_whole((1, 1, 5.0, b"k", b"body", crc))
    assert not is_whole((*damaged, crc))


# Both stores


@pytest.mark.guarantee(6)
async def test_damage_is_found_when_it_is_read_and_concerns_its_diagnosis_alone(store: Store) -> None:
    told: list[str] = []
    store.on_damage(told.append)
    for name in ("d", "other"):
        await store.register(name, "amira", [])
        await append_numbers(store, 5, to=name)
    await damage(store, "d", 3)
    assert store.damaged == {}
    for _ in range(2):
        with pytest.raises(OutboxDamaged, match=r"diagnosis d: event 3 fails its checksum.*check --drop-damaged d$"):
            await store.read_after("d", Seq(4))
    assert [one.what for one in store.damaged.values()] == ["event 3 fails its checksum"]
    assert told == ["d"]
    assert isinstance((await append(store, event(6)))[0], OutboxDamaged)
    # Others, and all else of this one.
    assert isinstance((await append(store, event(6), to="other"))[0], Appended)
    assert [one.window.head for one in await store.outboxes()] == [5, 6]
    epoch = (await store.get("d")).epoch
    assert await store.move_cursors([CursorMove("d", PHONE, epoch, Seq(2), 5.0)]) == [2]
    assert await store.forget("d", [PHONE]) == 1
    assert (await store.forget_unseen(0.0)).next is None
    erased = await store.erase(Erasure("amira", "erased-1", ("amira",)))
    assert erased.owned == ("d", "other")
    assert not (await store.register("d", "basim", [])).created
    assert (await store.delete("d")).owner == "basim"
    assert store.damaged == {}
    assert (await store.register("d", "amira", [])).created
    assert isinstance((await append(store, event(1)))[0], Appended)
    assert await retained(store) == [1]


async def test_the_check_of_all_finds_what_nobody_has_read(store: Store) -> None:
    for name in ("a", "b", "c"):
        await store.register(name, "amira", [])
        await append_numbers(store, 3, to=name)
    await store.look_through()
    assert store.damaged == {}
    await damage(store, "b", 2)
    await damage(store, "c", head=2)
    await store.look_through()
    assert {name: one.what for name, one in store.damaged.items()} == {
        "b": "event 2 fails its checksum",
        "c": "its head 2 is below number 3, which was given",
    }


async def test_a_purge_repairs_what_is_damaged_unless_the_numbers_are(store: Store) -> None:
    for name in ("d", "e"):
        await store.register(name, "amira", [])
        await append_numbers(store, 5, to=name)
    await damage(store, "d", 3)
    await damage(store, "e", head=4)
    await store.look_through()
    purged = await store.purge("d")
    assert (purged.after.head, purged.after.floor, purged.after.purged) == (5, 5, 5)
    assert isinstance((await append(store, event(6)))[0], Appended)
    assert await retained(store) == [6]
    with pytest.raises(OutboxDamaged, match="its head 4 is below number 5"):
        await store.purge("e")
    assert list(store.damaged) == ["e"]


@pytest.mark.guarantee(2)
async def test_no_number_is_given_again_where_the_head_has_gone_back(store: Store) -> None:
    await store.register("d", "amira", [])
    await append_numbers(store, 5)
    await damage(store, "d", head=3)
    (outcome,) = await append(store, event(6))
    assert isinstance(outcome, OutboxDamaged)
    assert outcome.damage.what == "its head 3 is below number 5, which was given"
    assert list(store.damaged) == ["d"]


async def test_what_is_damaged_is_dropped_and_numbers_epoch_cursors_and_keys_stay(store: Store) -> None:
    await store.register("d", "amira", [])
    await append(store, *[event(number, f"key-{number}") for number in range(1, 7)])
    epoch = (await store.get("d")).epoch
    await store.move_cursors([CursorMove("d", PHONE, epoch, Seq(2), 5.0)])
    await damage(store, "d", 2, 4)

    dropped = await store.drop_damaged("d", TELLING)
    assert (dropped.damage, dropped.events) == ("event 2 fails its checksum (and 1 more)", 4)
    assert (dropped.after.epoch, dropped.after.head, dropped.after.floor) == (epoch, 6, 4)
    assert not dropped.is_renewed
    (row,) = await store.audit()
    assert (row.what, row.after) == (TELLING.what, repr(dropped))
    assert await retained(store) == [5, 6]
    assert (await store.get("d")).epoch == epoch
    assert [one.seq for one in await store.cursors("d")] == [2]
    (again,) = await append(store, event(3, "key-3"))
    assert isinstance(again, Appended)
    assert (again.seq, again.replayed) == (3, True)
    (new,) = await append(store, event(7))
    assert isinstance(new, Appended)
    assert new.seq == 7
    with pytest.raises(NotDamaged):
        await store.drop_damaged("d")


async def test_a_head_that_cannot_be_trusted_gets_a_new_epoch_which_is_told(store: Store) -> None:
    told = Heard()
    store.tell(told)
    await store.register("d", "amira", [])
    await append(store, *[event(number, f"key-{number}") for number in range(1, 6)])
    epoch = (await store.get("d")).epoch
    await damage(store, "d", 2, 5, head=3)
    dropped = await store.drop_damaged("d")
    assert dropped.is_renewed
    assert told[1:] == [EpochsRenewed(2, "d")]
    assert dropped.after.epoch == (await store.get("d")).epoch != epoch
    assert ((await store.read_after("d", Seq(0))).window) == dropped.after
    assert await retained(store) == [3, 4]
    # The key of an event that is gone makes a new one: its number may be another's now.
    (known, made) = await append(store, event(4, "key-4"), event(5, "key-5"))
    assert isinstance(known, Appended)
    assert isinstance(made, Appended)
    assert [(known.seq, known.replayed), (made.seq, made.replayed)] == [(4, True), (5, False)]
    assert (await store.idempotency_keys()).count == 5


@pytest.mark.guarantee(4)
async def test_a_cursor_of_an_epoch_that_has_ended_gives_way_to_a_lower_one_of_the_next(store: Store) -> None:
    """The higher one would skip events that its subscriber has never got."""
    await store.register("d", "amira", [])
    await append_numbers(store, 5)
    assert await move(store, PHONE, 5) == 5
    await damage(store, "d", 5, head=3)
    assert (await store.drop_damaged("d")).is_renewed
    assert await move(store, PHONE, 1) == 1
    (cursor,) = await store.cursors("d")
    assert (cursor.epoch, cursor.seq) == ((await store.get("d")).epoch, 1)


async def test_old_events_are_evicted_by_no_age_that_is_damaged(store: Store, clock: ManualClock) -> None:
    for name in ("d", "other"):
        await store.register(name, "amira", [])
        await append_numbers(store, 5, to=name)
    clock.now += 100
    await append(store, event(6))
    await damage(store, "d", 5)
    evicted = await store.evict(50.0)
    assert list(evicted.windows) == ["other"]
    with pytest.raises(OutboxDamaged):
        await store.read_after("d", Seq(0))


async def test_an_eviction_that_takes_all_that_is_damaged_repairs(store: Store, clock: ManualClock) -> None:
    await store.register("d", "amira", [])
    await append_numbers(store, 5)
    clock.now += 100
    await append(store, event(6))
    await damage(store, "d", 2)
    await store.look_through()
    assert list(store.damaged) == ["d"]
    assert (await store.evict(50.0)).windows["d"].floor == 5
    assert store.damaged == {}
    assert await retained(store) == [6]


# SQLite


async def break_a_kind(store: SqliteStore, name: str) -> None:
    """Make the kind of an event a text that is none."""

    def work(db: sqlite3.Connection) -> None:
        db.execute("PRAGMA ignore_check_constraints = ON")
        db.execute(
            "UPDATE entry SET kind = CAST(x'ff' AS TEXT) WHERE dx = (SELECT dx FROM diagnosis WHERE public_id = ?)"
            " AND seq = 1",
            (name,),
        )

    await store._committer.read(work)


async def test_a_text_that_is_none_is_damage_of_its_diagnosis(path: Path, new_epoch: Callable[[], str]) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        await break_a_kind(store, "d")
        assert [one[:42] for one in await store.check()] == ["diagnosis d: event 1 fails its checksum; s"]
        with pytest.raises(OutboxDamaged, match="event 1 fails its checksum"):
            await store.read_after("d", Seq(0))


@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
async def test_a_start_after_a_kill_reads_no_event_and_owes_the_check_until_it_was_made(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, boot: str,
) -> None:  # fmt: skip
    async with opened(path, new_epoch) as store:
        await fill(store)
        crashed()
    come_back(path, tmp_path)
    structures: list[bool] = []
    judged: list[int] = []
    look, judge_some = integrity.structure, integrity.judge_some

    def watched_look(db: sqlite3.Connection, *, quick: bool) -> list[str]:
        structures.append(quick)
        return look(db, quick=quick)

    def watched_judge(db: sqlite3.Connection, after: int, *limits: Any) -> integrity.Judged:
        judged.append(after)
        return judge_some(db, after, *limits)

    monkeypatch.setattr(integrity, "structure", watched_look)
    monkeypatch.setattr(integrity, "judge_some", watched_judge)
    async with opened(path, new_epoch, boot=boot) as store:
        assert store.is_check_pending
        assert judged == []
        assert structures == ([] if boot == "boot-1" else [True])
        (said,) = [one.getMessage() for one in caplog.records if "was not closed in order" in one.getMessage()]
        why = "its process was killed" if boot == "boot-1" else "its pages were checked, and are whole"
        assert said.endswith(f" bytes) was not closed in order: {why}; its events are still to be checked")
        crashed()
    # Neither is an end in order a check, nor is a kill.
    async with opened(path, new_epoch, boot=boot) as store:
        assert store.is_check_pending
    come_back(path, tmp_path)
    async with opened(path, new_epoch, boot=boot) as store:
        assert store.is_check_pending
    async with opened(path, new_epoch, boot=boot) as store:
        await store.look_through()
    assert judged == [0, 1]
    assert caplog.messages[-1] == "the events of 1 diagnoses were checked: all are whole"
    async with opened(path, new_epoch, boot=boot) as store:
        assert not store.is_check_pending
        await store.look_through()
    assert len(judged) == 2


async def test_a_check_that_has_found_damage_is_made_again_by_the_next_run(
    path: Path,
    tmp_path: Path,
    new_epoch: Callable[[], str],
    crashed: Callable[[], None],
    caplog: pytest.LogCaptureFixture,
) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        crashed()
    come_back(path, tmp_path)
    async with opened(path, new_epoch) as store:
        await damage(store, "d", 1)
        await store.look_through()
        assert caplog.messages[-1] == "the events of 1 diagnoses were checked: damaged: 1"
        assert sum(one.startswith("diagnosis d: event 1 fails") for one in caplog.messages) == 1
    async with opened(path, new_epoch) as store:
        assert store.is_check_pending
        await store.drop_damaged("d")
        await store.look_through()
    async with opened(path, new_epoch) as store:
        assert not store.is_check_pending


async def test_others_are_served_between_two_steps_of_the_check(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    steps = 0

    async def publish(store: SqliteStore) -> None:
        nonlocal steps
        while store.is_check_pending:
            assert isinstance((await append(store, event(1), to="d-1"))[0], Appended)
            steps += 1

    monkeypatch.setattr("storage.sqlite.store.LOOK_THROUGH_SECONDS", 0.0)  # one diagnosis a step
    async with opened(path, new_epoch) as store:
        for number in range(1, 21):
            await store.register(f"d-{number}", "amira", [])
            await append_numbers(store, 2, to=f"d-{number}")
        await damage(store, "d-20", 2)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(publish, store)
            await store.look_through()
        assert list(store.damaged) == ["d-20"]
    assert steps >= 10


async def test_what_is_repaired_while_a_step_looks_is_not_named(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        await damage(store, "d", 1)
        judge_some = integrity.judge_some

        def and_then_purged(db: sqlite3.Connection, *args: Any) -> integrity.Judged:
            found = judge_some(db, *args)
            if found.damaged:
                db.execute("DELETE FROM entry")
                db.execute("UPDATE head SET floor = last_seq")
                trio.from_thread.run_sync(store._damage.is_repaired, "d", trio_token=token)
            return found

        token = trio.lowlevel.current_trio_token()
        monkeypatch.setattr(integrity, "judge_some", and_then_purged)
        await store.look_through()
        assert store.damaged == {}


async def test_what_was_stored_before_an_append_has_met_damage_is_stored(
    path: Path, new_epoch: Callable[[], str]
) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store, 100)
        await store._committer.read(lambda db: db.execute("UPDATE entry SET seq = 1002 WHERE slot = 2").rowcount)
        first, second, third = await append(store, event(101), event(102, "key"), event(103))
        assert isinstance(first, Appended)
        assert first.seq == 101
        assert isinstance(second, OutboxDamaged)
        assert isinstance(third, OutboxDamaged)
        assert (await store.idempotency_keys()).count == 0
        assert list(store.damaged) == ["d"]
        assert [one.window.head for one in await store.outboxes()] == [101]


async def test_damage_that_an_append_has_met_is_known_whatever_else_was_refused_with_it(store: Store) -> None:
    await store.register("d", "amira", [])
    await append_numbers(store, 5)
    await damage(store, "d", head=3)
    first, _ = await append(store, event(4), NewEvent("\ud800", b""))
    assert isinstance(first, OutboxDamaged)
    assert list(store.damaged) == ["d"]


async def test_numbers_of_a_wrong_type_stop_nobody_else(path: Path, new_epoch: Callable[[], str]) -> None:
    async with opened(path, new_epoch) as store:
        for name in ("a", "d", "z"):
            await store.register(name, "amira", [])
            await append_numbers(store, 2, to=name)
        epochs = {one.diagnosis_id: one.epoch for one in await store.diagnoses()}
    change(path, "DROP TRIGGER head_is_never_deleted")
    change(path, "DELETE FROM head WHERE dx = 2")
    async with opened(path, new_epoch) as store:
        moves = [CursorMove(name, PHONE, Epoch(epochs[name]), Seq(1), 5.0) for name in epochs]
        assert await store.move_cursors(moves) == [1, None, 1]
        assert [one.window.head for one in await store.outboxes()] == [2, 0, 2]
        assert list((await store.evict(-10.0)).windows) == ["a", "z"]
        with pytest.raises(OutboxDamaged):
            await store.read_after("d", Seq(0), 0)
        (outcome,) = await append(store, NewEvent("k", b""), to="d")
        assert isinstance(outcome, OutboxDamaged)
        dropped = await store.drop_damaged("d")
        assert (dropped.after.head, dropped.after.floor, dropped.is_renewed) == (2, 0, True)
        assert await retained(store) == [1, 2]
