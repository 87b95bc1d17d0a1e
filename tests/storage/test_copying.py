"""Copies of a store that is in use: others go on, the copy is consistent, and nothing unfinished has a good name."""

from __future__ import annotations

import fcntl
import logging
import os
import re
import shutil
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path

import pytest
import trio
import trio.lowlevel

from storage.disk import files
from storage.disk.unfinished import SUFFIX, arriving, sweep
from storage.errors import CannotCopy
from storage.records import Appended, Backup, NewEvent, Seq
from storage.sqlite import copies, copying
from storage.sqlite.opening import open_store
from storage.sqlite.stepping import PAGES_PER_STEP, SteppedCopy
from storage.sqlite.store import SqliteStore
from tests.storage.conftest import ManualClock

BODY = bytes(20_000)
"""A hundred of them are some 500 pages, several steps of a copy."""


@asynccontextmanager
async def opened(path: Path, new_epoch: Callable[[], str]) -> AsyncIterator[SqliteStore]:
    async with open_store(path, clock=ManualClock(), new_epoch=new_epoch, boot="boot-1") as store:
        yield store


async def append(store: SqliteStore) -> int:
    (outcome,) = await store.append_nowait("d", [NewEvent("k", BODY)]).wait()
    assert isinstance(outcome, Appended)
    return outcome.seq


async def fill(store: SqliteStore) -> None:
    await store.register("d", "amira", [])
    for _ in range(100):
        await append(store)


def unfinished(path: Path) -> Path:
    return path.with_name(f".{path.name}{SUFFIX}")


async def begun(copy: Path) -> None:
    """Return once some of a copy is written."""
    with trio.fail_after(20):
        while not files.size_of(unfinished(copy)):
            await trio.lowlevel.checkpoint()


async def test_events_are_stored_while_a_copy_is_made_and_the_copy_has_them_without_a_hole(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, made = tmp_path / "backups" / "copy.db", list[Backup]()
    monkeypatch.setattr(copying, "PAUSE_SECONDS_MIN", 0.02)
    async with opened(path, new_epoch) as store:
        await fill(store)
        epoch = (await store.get("d")).epoch

        async def back_up() -> None:
            made.append(await store.backup(copy))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(back_up)
            await begun(copy)
            assert not copy.exists()
            during = await append(store)
            assert not copy.exists()
        assert await append(store) == during + 1
    assert made == [Backup(str(copy), *files.settle_copy(copy))]
    assert sorted(one.name for one in copy.parent.iterdir()) == ["copy.db"]
    async with opened(copy, new_epoch) as store:
        assert await store.check() == []
        window = (await store.read_after("d", Seq(0))).window
        assert window.head == during
        assert window.epoch != epoch


async def test_a_transaction_that_is_rolled_back_between_two_steps_leaves_the_copy_whole(tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None, check_same_thread=False)) as db:
        db.execute("PRAGMA locking_mode = EXCLUSIVE")
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA cache_size = 10")
        db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, body BLOB)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(n, bytes(4000)) for n in range(3 * PAGES_PER_STEP)])
        copy, steps = SteppedCopy(str(target)), 0
        while copy.step(db):
            steps += 1
            db.execute("BEGIN IMMEDIATE")
            db.execute("UPDATE t SET body = ?", (bytes([steps] * 4000),))
            db.execute("ROLLBACK" if steps == 2 else "COMMIT")
        copy.close(db)
        wanted = db.execute("SELECT n, body FROM t").fetchall()
    with closing(sqlite3.connect(target)) as made:
        assert made.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        assert made.execute("SELECT n, body FROM t").fetchall() == wanted
    assert steps > 4


async def test_transactions_that_are_rolled_back_for_ever_end_a_copy(tmp_path: Path) -> None:
    with closing(sqlite3.connect(tmp_path / "db", isolation_level=None, check_same_thread=False)) as db:
        db.execute("PRAGMA journal_mode = WAL")
        db.execute("PRAGMA cache_size = 10")
        db.execute("CREATE TABLE t (n INTEGER PRIMARY KEY, body BLOB)")
        db.executemany("INSERT INTO t VALUES (?, ?)", [(n, bytes(4000)) for n in range(3 * PAGES_PER_STEP)])
        copy = SteppedCopy(str(tmp_path / "copy.db"))
        with pytest.raises(sqlite3.OperationalError, match="rolled back"):
            while copy.step(db):
                db.execute("BEGIN IMMEDIATE")
                db.execute("UPDATE t SET body = randomblob(4000)")
                db.execute("ROLLBACK")
        copy.close(db)
        db.execute("DELETE FROM t")


@pytest.mark.parametrize("is_check", [False, True], ids=["backup", "check"])
async def test_a_copy_that_is_cancelled_leaves_nothing_and_the_store_goes_on(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch, is_check: bool
) -> None:
    copy = path.parent / "copy.db"
    monkeypatch.setattr(copying, "PAUSE_SECONDS_MAX", 60)
    monkeypatch.setattr(copying, "PAUSE_SECONDS_MIN", 60)
    async with opened(path, new_epoch) as store:
        await fill(store)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(store.check if is_check else store.backup, copy)
            await begun(copy)
            nursery.cancel_scope.cancel()
        assert not any(copy.name in one.name for one in path.parent.iterdir())
        assert await append(store) == 101
        monkeypatch.setattr(copying, "PAUSE_SECONDS_MIN", 0)
        monkeypatch.setattr(copying, "PAUSE_SECONDS_MAX", 0)
        await store.backup(copy)
    assert copy.exists()


@pytest.mark.parametrize("is_late", [False, True], ids=["while it is made", "while it is checked"])
@pytest.mark.parametrize("is_check", [False, True], ids=["backup", "check"])
@pytest.mark.parametrize(
    "harm",
    [
        lambda copy: shutil.rmtree(copy.parent),
        lambda copy: copy.unlink(),
        lambda copy: os.truncate(copy, 4096),
        lambda copy: Path(shutil.copy(copy, copy.parent / "other")).rename(copy),
    ],
    ids=["directory removed", "removed", "cut", "replaced"],
)
async def test_a_copy_that_somebody_takes_away_or_cuts_is_not_taken_for_a_damaged_database(
    path: Path,
    new_epoch: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
    harm: Callable[[Path], object],
    is_check: bool,
    is_late: bool,
) -> None:
    copy = path.parent / "copies" / "copy.db"
    connect = copies.connect
    are_harmed: list[Path] = []

    def connect_late(to: Path) -> sqlite3.Connection:
        harm(to)
        return connect(to)

    async def pause(began: float) -> None:
        if not are_harmed:
            are_harmed.append(unfinished(copy))
            harm(unfinished(copy))

    if is_late:
        monkeypatch.setattr(copies, "connect", connect_late)
    else:
        monkeypatch.setattr(copying, "pause_after", pause)
    async with opened(path, new_epoch) as store:
        await fill(store)

        with pytest.raises(CannotCopy) as refused:
            await (store.check if is_check else store.backup)(copy)
        assert "damaged" not in str(refused.value)
        assert copy.name in str(refused.value)
        assert await store.check() == []
        assert await append(store) == 101
    assert not any(copy.name in str(one) for one in path.parent.rglob("*"))


async def test_a_long_statement_on_a_copy_is_interrupted_when_it_is_not_wanted_any_more(tmp_path: Path) -> None:
    endless = "WITH RECURSIVE n(i) AS (VALUES(1) UNION ALL SELECT i + 1 FROM n) SELECT count(*) FROM n"
    started = trio.Event()
    outcomes: list[str] = []

    def look(copy: sqlite3.Connection) -> None:
        trio.from_thread.run_sync(started.set)
        try:
            copy.execute(endless)
        except sqlite3.OperationalError as error:
            outcomes.append(str(error))

    with trio.fail_after(20), closing(copies.connect(tmp_path / "copy.db")) as copy:
        async with trio.open_nursery() as nursery:
            nursery.start_soon(copying._interruptible, copy, look)
            await started.wait()
            nursery.cancel_scope.cancel()
    assert outcomes == ["interrupted"]


async def test_a_check_beside_others_finds_what_a_check_alone_finds(path: Path, new_epoch: Callable[[], str]) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        assert await store.check(path.parent / "scratch.db") == []
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("UPDATE entry SET body = x'00' WHERE seq = 3")
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'idem')"
                   " WHERE name = 'audit_by_time'")  # fmt: skip
    async with opened(path, new_epoch) as store:
        alone, beside = await store.check(), await store.check(path.parent / "scratch.db")
    assert alone[-1].startswith("diagnosis d: event 3 fails its checksum")
    assert len(alone) > 1
    assert beside == alone
    assert sorted(one.name for one in path.parent.iterdir()) == ["avicenna.db", "avicenna.db.lock"]


async def test_a_damaged_database_has_no_backup_with_a_good_name(path: Path, new_epoch: Callable[[], str]) -> None:
    copy = path.parent / "copy.db"
    async with opened(path, new_epoch) as store:
        await fill(store)
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute("PRAGMA writable_schema = ON")
        db.execute("UPDATE sqlite_schema SET rootpage = (SELECT rootpage FROM sqlite_schema WHERE name = 'cursor')"
                   " WHERE name = 'idem'")  # fmt: skip
    async with opened(path, new_epoch) as store:
        with pytest.raises(CannotCopy, match="the database is damaged"):
            await store.backup(copy)
        assert await append(store) == 101
    assert sorted(one.name for one in path.parent.iterdir()) == ["avicenna.db", "avicenna.db.lock"]


async def test_a_copy_is_not_begun_where_it_would_fill_the_disk(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "room_beside", lambda _: copying.ROOM_BYTES_KEPT)
    async with opened(path, new_epoch) as store:
        await fill(store)
        for make in (store.backup, store.check):
            with pytest.raises(CannotCopy, match="has room for"):
                await make(path.parent / "copy.db")
    assert sorted(one.name for one in path.parent.iterdir()) == ["avicenna.db", "avicenna.db.lock"]


async def test_two_backups_at_once_are_made_one_after_the_other(path: Path, new_epoch: Callable[[], str]) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        async with trio.open_nursery() as nursery:
            for name in ("one.db", "two.db"):
                nursery.start_soon(store.backup, path.parent / name)
    for name in ("one.db", "two.db"):
        with closing(sqlite3.connect(path.parent / name)) as made:
            assert made.execute("SELECT last_seq FROM head").fetchall() == [(100,)]


def test_what_a_killed_process_left_is_swept_and_what_another_one_writes_is_not(tmp_path: Path) -> None:
    left = unfinished(tmp_path / "left.db")
    for one in (left, Path(f"{left}-journal"), Path(f"{left}-wal")):
        one.write_bytes(b"some")
    (tmp_path / "whole.db").write_bytes(b"whole")
    (tmp_path / f".link{SUFFIX}").symlink_to(tmp_path / "whole.db")
    (tmp_path / f".notes{SUFFIX}").write_bytes(b"somebody's own")
    with arriving(tmp_path / "busy.db") as busy:
        assert sweep(tmp_path, "*.db", "link") == [left]
        assert busy.path.exists()
        with pytest.raises(FileExistsError), arriving(tmp_path / "busy.db"):
            pass
    names = sorted(one.name for one in tmp_path.iterdir())
    assert names == [f".link{SUFFIX}", f".notes{SUFFIX}", "busy.db", "whole.db"]
    assert sweep(tmp_path / "absent", "*") == []


def test_what_a_killed_process_left_of_the_same_copy_is_begun_anew(tmp_path: Path) -> None:
    target = tmp_path / "copy.db"
    unfinished(target).write_bytes(b"some")
    Path(f"{unfinished(target)}-journal").write_bytes(b"some")
    with arriving(target) as into:
        assert files.size_of(into.path) == 0
        assert into.path.stat().st_mode & 0o777 == 0o600
        with into.path.open("rb") as other, pytest.raises(BlockingIOError):
            fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    assert [one.name for one in tmp_path.iterdir()] == ["copy.db"]


async def test_the_log_says_how_far_a_copy_is(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(copying, "PROGRESS_SECONDS", 0)
    async with opened(path, new_epoch) as store:
        await fill(store)
        await store.backup(path.parent / "copy.db")
        await store.check(path.parent / "scratch.db")
    lines = [record.getMessage() for record in caplog.records if record.name == "avicenna.storage.progress"]
    assert re.fullmatch(rf"backup copy\.db: {PAGES_PER_STEP} of \d+ pages are copied", lines[0])
    assert "check: the events of diagnoses up to key 0 are checked" in lines
