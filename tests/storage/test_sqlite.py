"""The SQLite store on a real file: what survives, who may open it, what others can read."""

from __future__ import annotations

import gc
import sqlite3
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
import trio
import trio.testing

from storage.changes import DiagnosisRegistered
from storage.errors import Failed, InUse, KeysExhausted, NewerVersion, NotOurs
from storage.records import Appended, CursorMove, Erasure, NewEvent, Seq, Slice, SubscriberId
from storage.sqlite import lookup
from storage.sqlite.committer import Committer
from storage.sqlite.opening import open_store
from storage.sqlite.schema import APPLICATION_ID, MIGRATIONS
from tests.storage.conftest import Heard, ManualClock
from tests.storage.rows import FAILING, ROWS

NewEpoch = Callable[[], str]


async def test_everything_is_there_again_after_a_restart(path: Path, clock: ManualClock, new_epoch: NewEpoch) -> None:
    phone = SubscriberId("amira", "phone")
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        made = (await store.register("d", "amira", ["bo"])).diagnosis
        await store.append_nowait("d", [NewEvent("k", b"%d" % number) for number in range(1, 121)]).wait()
        await store.move_cursors([CursorMove("d", phone, made.epoch, Seq(7), 5.0)])
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        assert await store.get("d") == made
        found = await store.read_after("d", Seq(0))
        assert (found.window.head, found.window.floor) == (120, 20)
        assert [event.body for event in found.events] == [b"%d" % number for number in range(21, 121)]
        assert [(one.subscriber, one.seq) for one in await store.cursors("d")] == [(phone, 7)]
        (outcome,) = await store.append_nowait("d", [NewEvent("k", b"next")]).wait()
    assert getattr(outcome, "seq", None) == 121


async def test_what_was_read_leaves_memory_with_its_reader(path: Path, clock: ManualClock, new_epoch: NewEpoch) -> None:
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        await store.register("d", "amira", [])
        await store.append_nowait("d", [NewEvent("k", b"body")]).wait()
        gc.collect()
        gc.disable()
        try:
            found = await store.read_after("d", Seq(0))
            del found
            await store.diagnoses()  # the thread of the database keeps what it did last
            assert not [one for one in gc.get_objects() if isinstance(one, Slice)], "only the collector would free it"
        finally:
            gc.enable()


async def test_an_act_is_told_also_if_whoever_asked_gave_up_waiting_for_the_disk(
    path: Path, clock: ManualClock, new_epoch: NewEpoch
) -> None:
    heard, goes_on = Heard(), threading.Event()
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store, trio.open_nursery() as nursery:
        store.tell(heard)
        nursery.start_soon(store._committer.read, lambda _: goes_on.wait(60))
        await trio.testing.wait_all_tasks_blocked()
        try:
            with pytest.raises(Failed):
                await store.patient(0.01).register("d", "amira", [])
            assert heard == []
        finally:
            goes_on.set()
        await store.barrier()
        assert heard == [DiagnosisRegistered(1, await store.get("d"))]


@pytest.mark.guarantee(12)
async def test_a_second_store_on_the_same_file_is_refused(path: Path, clock: ManualClock, new_epoch: NewEpoch) -> None:
    async with open_store(path, clock=clock, new_epoch=new_epoch):
        with pytest.raises(InUse, match="in use by another server"):
            async with open_store(path, clock=clock, new_epoch=new_epoch):
                pass
    async with open_store(path, clock=clock, new_epoch=new_epoch):
        pass


async def test_a_file_another_program_has_open_is_refused(path: Path, clock: ManualClock, new_epoch: NewEpoch) -> None:
    async with open_store(path, clock=clock, new_epoch=new_epoch):
        pass
    other = sqlite3.connect(path)
    other.execute("BEGIN IMMEDIATE")
    try:
        with pytest.raises(InUse):
            async with open_store(path, clock=clock, new_epoch=new_epoch):
                pass
    finally:
        other.close()


async def test_files_are_private_to_their_owner(path: Path, clock: ManualClock, new_epoch: NewEpoch) -> None:
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        await store.register("d", "amira", [])
        modes = {one.name: one.stat().st_mode & 0o777 for one in path.parent.iterdir()}
    assert modes == {"avicenna.db": 0o600, "avicenna.db-wal": 0o600, "avicenna.db.lock": 0o600}
    assert path.parent.stat().st_mode & 0o777 == 0o700


async def test_a_file_of_another_program_is_refused_and_left_as_it_is(
    path: Path, clock: ManualClock, new_epoch: NewEpoch
) -> None:
    path.parent.mkdir(parents=True)
    other = sqlite3.connect(path)
    other.execute("CREATE TABLE theirs (n)")
    other.close()
    with pytest.raises(NotOurs):
        async with open_store(path, clock=clock, new_epoch=new_epoch):
            pass
    other = sqlite3.connect(path)
    assert other.execute("SELECT name FROM sqlite_schema").fetchall() == [("theirs",)]
    other.close()


async def test_what_is_not_a_database_is_refused(path: Path, clock: ManualClock, new_epoch: NewEpoch) -> None:
    path.parent.mkdir(parents=True)
    path.write_bytes(b"this is a shopping list" * 500)
    with pytest.raises(NotOurs):
        async with open_store(path, clock=clock, new_epoch=new_epoch):
            pass


async def test_a_database_of_a_newer_version_is_refused(path: Path, clock: ManualClock, new_epoch: NewEpoch) -> None:
    async with open_store(path, clock=clock, new_epoch=new_epoch):
        pass
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA application_id").fetchone() == (APPLICATION_ID,)
    assert connection.execute("PRAGMA user_version").fetchone() == (len(MIGRATIONS),)
    connection.execute(f"PRAGMA user_version = {len(MIGRATIONS) + 1}")
    connection.close()
    with pytest.raises(NewerVersion, match="newer"):
        async with open_store(path, clock=clock, new_epoch=new_epoch):
            pass


async def test_a_cancelled_server_still_stores_what_was_queued(
    path: Path, clock: ManualClock, new_epoch: NewEpoch
) -> None:
    with trio.CancelScope() as scope:
        async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
            await store.register("d", "amira", [])
            for number in range(300):
                store.append_nowait("d", [NewEvent("k", b"%d" % number)])
            scope.cancel()
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        assert (await store.read_after("d", Seq(0))).window.head == 300


async def test_how_many_keys_there_are_is_known_at_the_next_start_and_counted_where_it_never_was(
    path: Path, clock: ManualClock, new_epoch: NewEpoch
) -> None:
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        await store.register("d", "amira", [])
        await store.append_nowait("d", [NewEvent("k", b"", key) for key in ("a", "b", None, "a")]).wait()
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        assert (await store.idempotency_keys()).count == 2
    connection = sqlite3.connect(path)
    connection.execute("DELETE FROM meta WHERE key = 'idempotency_keys'")
    connection.commit()
    connection.close()
    async with open_store(path, clock=clock, new_epoch=new_epoch, keys_max=2) as store:
        assert (await store.idempotency_keys()).count == 2
        (refused,) = await store.append_nowait("d", [NewEvent("k", b"", "c")]).wait()
        assert isinstance(refused, KeysExhausted)


async def test_the_log_says_once_a_minute_that_keys_find_no_room(
    path: Path, clock: ManualClock, new_epoch: NewEpoch, caplog: pytest.LogCaptureFixture
) -> None:
    async with open_store(path, clock=clock, new_epoch=new_epoch, keys_max=1) as store:
        await store.register("d", "amira", [])
        for seconds in (0, 59, 1):
            clock.now += seconds
            await store.append_nowait("d", [NewEvent("k", b"", key) for key in ("a", "b", "c")]).wait()
    lines = [record.getMessage() for record in caplog.records if "idempotency_keys_max" in record.getMessage()]
    assert (
        lines
        == ["events with new keys are refused: 1 idempotency keys are stored already (setting idempotency_keys_max)"]
        * 2
    )


async def test_a_transaction_that_is_taken_back_takes_its_keys_out_of_their_number(
    path: Path, clock: ManualClock, new_epoch: NewEpoch
) -> None:
    async with open_store(path, clock=clock, new_epoch=new_epoch, rows=ROWS) as store:
        await store.register("d", "amira", [])
        appended = store.append_nowait("d", [NewEvent("k", b"", "a")])
        with pytest.raises(Failed):
            await store.delete("d", FAILING)
        assert isinstance((await appended.wait())[0], Appended)
        assert (await store.idempotency_keys()).count == 1


async def test_the_database_refuses_to_take_a_number_back(path: Path, clock: ManualClock, new_epoch: NewEpoch) -> None:
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        await store.register("d", "amira", [])
        await store.append_nowait("d", [NewEvent("k", b"")]).wait()
    connection = sqlite3.connect(path)
    with pytest.raises(sqlite3.IntegrityError, match="taken back"):
        connection.execute("UPDATE head SET last_seq = 0")
    with pytest.raises(sqlite3.IntegrityError, match="kept"):
        connection.execute("DELETE FROM head")
    with pytest.raises(sqlite3.IntegrityError, match="CHECK"):
        connection.execute("UPDATE entry SET slot = 5")
    connection.close()


async def test_whatever_is_looked_up_at_once_is_remembered(path: Path, clock: ManualClock, new_epoch: NewEpoch) -> None:
    names = [f"d-{number}" for number in range(200)]
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        for name in names:
            await store.register(name, "amira", [])
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        async with trio.open_nursery() as nursery:
            for name in names:
                nursery.start_soon(store.get, name)
        assert all(store.known(name) is not None for name in names)


async def test_what_is_looked_up_is_remembered_however_often_others_are_registered_meanwhile(
    path: Path, clock: ManualClock, new_epoch: NewEpoch
) -> None:
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        await store.register("d", "amira", [])
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store, trio.open_nursery() as nursery:

        async def register() -> None:
            while True:
                await store.register("other", "bo", [])

        for _ in range(8):
            nursery.start_soon(register)
        await store.register("another", "bo", [])
        await store.get("d")
        assert store.known("d") is not None
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("change", ["register", "delete", "erase"])
async def test_what_was_read_before_a_change_is_not_remembered_after_it(
    path: Path, clock: ManualClock, new_epoch: NewEpoch, monkeypatch: pytest.MonkeyPatch, change: str
) -> None:
    has_read, go_on, read = trio.Event(), trio.Event(), Committer.read

    async def late(committer: Committer, function: object, *args: object, **options: object) -> object:
        found: object = await read(committer, function, *args, **options)  # type: ignore[arg-type]
        if function is lookup.look_up and not has_read.is_set():
            has_read.set()
            await go_on.wait()
        return found

    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        await store.register("d", "amira", ["bo"])
    monkeypatch.setattr(Committer, "read", late)
    async with open_store(path, clock=clock, new_epoch=new_epoch) as store:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.look_up, "d")
            await has_read.wait()
            if change == "register":
                await store.register("d", "cyrus", [])
            elif change == "delete":
                await store.delete("d")
            else:
                await store.erase(Erasure("bo", "[erased]", ["bo"]))
            go_on.set()
        known = store.known("d")
        assert (known and known.owner) == {"register": "cyrus"}.get(change)
        assert store._known._looks == {}
