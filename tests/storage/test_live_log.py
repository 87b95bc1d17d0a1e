"""A log that is cut under a store ends it before the next commit is answered; what SQLite does to its log does not."""

from __future__ import annotations

import os
import random
import resource
import sqlite3
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager
from pathlib import Path

import pytest
import trio

from storage.disk import database_files, files
from storage.errors import Busy, Damaged, Failed, StoreBroken
from storage.records import Appended, NewEvent, Seq
from storage.sqlite import copies, live_log, wal
from storage.sqlite.live_log import LiveLog
from storage.sqlite.schema import WAL_AUTOCHECKPOINT_PAGES, WAL_BYTES_KEPT, Opening, prepare
from tests.storage.test_faults import fill, opened

Cut = Callable[[Path], None]

CUT = "was cut or overwritten while the server used it"


def to_nothing(log: Path) -> None:
    os.truncate(log, 0)


def opened_for_writing(log: Path) -> None:
    log.open("wb").close()


def to_half(log: Path) -> None:
    os.truncate(log, log.stat().st_size // 2)


def within_the_last_frame(log: Path) -> None:
    os.truncate(log, log.stat().st_size - 4100)


def by_one_frame(log: Path) -> None:
    os.truncate(log, log.stat().st_size - wal.FRAME.size - 4096)


def to_one_frame(log: Path) -> None:
    os.truncate(log, wal.HEADER.size + wal.FRAME.size + 4096)


def head_zeroed(log: Path) -> None:
    with log.open("r+b") as file:
        file.write(bytes(4096))


def overwritten(log: Path) -> None:
    with log.open("r+b") as file:
        file.write(b"something else" * 1000)


CUTS = [
    to_nothing,
    opened_for_writing,
    to_half,
    within_the_last_frame,
    by_one_frame,
    to_one_frame,
    head_zeroed,
    overwritten,
]


async def judge_next_start(path: Path, new_epoch: Callable[[], str], before: str) -> None:
    """The next start is refused until somebody goes on without the newest events, under new epochs."""
    for boot in ("boot-1", "boot-2"):
        with pytest.raises(Damaged, match=r"its log .* was cut or overwritten while a server used it.*restore"):
            async with opened(path, new_epoch, boot=boot):
                pass
    assert copies.restore(path, path) is not None
    async with opened(path, new_epoch) as store:
        assert [one.epoch for one in await store.diagnoses() if one.epoch == before] == []
        assert await store.check() == []


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("commits", [0, 3])
@pytest.mark.parametrize("cut", CUTS)
async def test_a_log_that_is_cut_while_it_is_used_ends_the_store_before_the_next_commit_is_acknowledged(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None], cut: Cut, commits: int
) -> None:
    with pytest.raises(StoreBroken, match=CUT):
        async with opened(path, new_epoch) as store:
            await fill(store)
            epoch = (await store.get("d")).epoch
            for _ in range(commits):
                await store.append_nowait("d", [NewEvent("k", b"x" * 3000)]).wait()
            crashed()
            cut(database_files.wal_of(path))
            (outcome,) = await store.append_nowait("d", [NewEvent("k", b"")]).wait()
            assert isinstance(outcome, Failed)
            await trio.sleep_forever()
    assert path.read_bytes() == (tmp_path / "kept" / path.name).read_bytes(), "the hole was copied into the database"
    await judge_next_start(path, new_epoch, epoch)


@pytest.mark.parametrize("cut", CUTS)
async def test_a_log_that_was_cut_is_noticed_when_the_store_closes(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None], cut: Cut
) -> None:
    with pytest.raises(StoreBroken, match=CUT):
        async with opened(path, new_epoch) as store:
            await fill(store)
            epoch = (await store.get("d")).epoch
            crashed()
            cut(database_files.wal_of(path))
    assert path.read_bytes() == (tmp_path / "kept" / path.name).read_bytes(), "the hole was copied into the database"
    await judge_next_start(path, new_epoch, epoch)


@pytest.mark.parametrize("cut", [to_nothing, to_half, to_one_frame, overwritten])
async def test_what_is_read_from_a_log_that_was_cut_ends_the_store_and_is_never_given(
    path: Path, new_epoch: Callable[[], str], cut: Cut
) -> None:
    with pytest.raises(StoreBroken, match=CUT):
        async with opened(path, new_epoch) as store:
            await fill(store)
            for _ in range(3):
                await store.append_nowait("d", [NewEvent("k", b"x" * 60_000)]).wait()
            await store._committer.read(lambda db: db.execute("PRAGMA shrink_memory").fetchall())
            cut(database_files.wal_of(path))
            with pytest.raises(Failed):
                await store.read_after("d", Seq(0))
            await trio.sleep_forever()


async def test_a_log_that_begins_anew_many_times_is_taken_for_what_it_is(
    path: Path, new_epoch: Callable[[], str]
) -> None:
    chance, sent, log = random.Random(7), list[int](), database_files.wal_of(path)
    sizes_of_log = set[int]()
    async with opened(path, new_epoch) as store:
        await store.register("d", "amira", [])
        # Six logs and more, some of them longer than what is kept of them.
        while len(sent) * 90_000 < 12 * WAL_AUTOCHECKPOINT_PAGES * 4096:
            sizes = [chance.randrange(180_000) for _ in range(chance.choice([1, 2, 5, 90, 500]))]
            outcomes = await store.append_nowait("d", [NewEvent("k", os.urandom(size)) for size in sizes]).wait()
            assert all(isinstance(outcome, Appended) for outcome in outcomes)
            sent += sizes
            sizes_of_log.add(log.stat().st_size)
        assert [len(event.body) for event in (await store.read_after("d", Seq(0))).events] == sent[-100:]
        assert await store.check() == []
    assert max(sizes_of_log) > WAL_BYTES_KEPT in sizes_of_log


@contextmanager
def full_at(size: int) -> Iterator[None]:
    """No file of this process grows beyond that."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.guarantee(13)
async def test_what_a_commit_leaves_in_the_log_that_failed_is_not_taken_for_a_cut(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "is_full", lambda _: True)
    chance, log, failed = random.Random(8), database_files.wal_of(path), 0
    async with opened(path, new_epoch) as store:
        await fill(store, 0)
        acknowledged = 0
        for _ in range(300):
            # Somewhere in a frame of the commit: its header may be written, and its page not.
            with full_at(log.stat().st_size + chance.randrange(60_000)):
                for _ in range(chance.randrange(1, 3)):
                    (outcome,) = await store.append_nowait("d", [NewEvent("k", os.urandom(50_000))]).wait()
                    assert isinstance(outcome, Appended | Busy), outcome
                    acknowledged += isinstance(outcome, Appended)
                    failed += isinstance(outcome, Busy)
            for _ in range(chance.randrange(3)):
                (outcome,) = await store.append_nowait("d", [NewEvent("k", os.urandom(chance.randrange(9000)))]).wait()
                assert isinstance(outcome, Appended)
                acknowledged += 1
        assert failed > 100
        assert (await store.read_after("d", Seq(0))).window.head == acknowledged
        assert await store.check() == []
    async with opened(path, new_epoch) as store:
        assert (await store.read_after("d", Seq(0))).window.head == acknowledged


@pytest.fixture
def database(tmp_path: Path) -> Iterator[tuple[sqlite3.Connection, Path]]:
    """A connection that is set up as that of a store, and its log."""
    path = tmp_path / "one.db"
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        prepare(db, Opening(str(path), "full", "", lambda: "e", 0.0))
        db.execute("CREATE TABLE body (content)")
        db.execute("PRAGMA wal_checkpoint").fetchall()
        yield db, database_files.wal_of(path)


def commit(db: sqlite3.Connection, pages: int = 10) -> None:
    db.execute("INSERT INTO body VALUES (?)", (os.urandom(pages * 4096),))


@pytest.mark.parametrize("bytes_left", [0, 1, 10, 20, 24, 100, 4120, 4121, 3 * 4120])
def test_a_commit_that_is_cut_before_it_is_looked_at_is_missed_by_the_one_after_it_at_the_latest(
    database: tuple[sqlite3.Connection, Path], bytes_left: int
) -> None:
    db, log = database
    watched = LiveLog(db, log)
    with closing(watched):
        for _ in range(3):
            commit(db)
            assert watched.after_commit() is None
        end = log.stat().st_size
        commit(db)
        os.truncate(log, end + bytes_left)
        at_once = watched.after_commit()
        # Without a trace of it in the log it may as well not have changed anything.
        assert (at_once is None) == (bytes_left == 0)
        if at_once is None:
            commit(db)
        assert CUT in str(watched.after_commit())
        assert log.read_bytes().endswith(wal.CUT)


def test_a_hole_within_a_long_commit_is_seen(database: tuple[sqlite3.Connection, Path]) -> None:
    db, log = database
    watched = LiveLog(db, log)
    with closing(watched):
        commit(db)
        assert watched.after_commit() is None
        end = log.stat().st_size
        commit(db, 100)
        size = wal.FRAME.size + 4096
        with log.open("r+b") as file:
            file.seek(end + 2 * live_log.FRAMES_READ * size)
            file.write(bytes(size))
        assert CUT in str(watched.after_commit())


def test_a_log_that_was_put_back_from_a_copy_is_not_one_that_begins_anew(
    database: tuple[sqlite3.Connection, Path],
) -> None:
    db, log = database
    watched = LiveLog(db, log)
    with closing(watched):
        commit(db)
        assert watched.after_commit() is None
        copy = log.read_bytes()
        for _ in range(2):
            db.execute("PRAGMA wal_checkpoint").fetchall()
            commit(db)
            assert watched.after_commit() is None
        with log.open("r+b") as file:
            file.write(copy)
        assert CUT in str(watched.after_commit())


def test_a_log_that_cannot_be_read_is_a_fault(
    database: tuple[sqlite3.Connection, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    db, log = database
    watched = LiveLog(db, log)
    with closing(watched), monkeypatch.context() as patched:

        def fail(*_: object) -> bytes:
            raise OSError(5, "Input/output error")

        patched.setattr(os, "pread", fail)
        assert watched.look() == f"{log} cannot be read: Input/output error"
    assert not log.read_bytes().endswith(wal.CUT)
