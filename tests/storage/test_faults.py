"""What an operator sees when the disk, the file or the machine fails under a store."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
import sqlite3
import tempfile
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any, Self

import pytest
import trio

from storage.disk import database_files, files
from storage.disk.database_files import wal_of
from storage.errors import Busy, CannotCopy, CannotOpen, Damaged, Failed, InUse, NotADatabase, NotOurs, StoreBroken
from storage.records import Appended, Durability, NewEvent, Seq
from storage.sqlite import copies, opening, wal
from storage.sqlite.opening import LEAVE_SECONDS_MAX, DamagePolicy, open_store
from storage.sqlite.store import SqliteStore
from tests.storage.conftest import ManualClock


def come_back(path: Path, tmp_path: Path) -> None:
    """Put what `crashed` kept in place."""
    shutil.rmtree(path.parent)
    (tmp_path / "kept").rename(path.parent)


@asynccontextmanager
async def opened(
    path: Path,
    new_epoch: Callable[[], str],
    *,
    durability: Durability = "full",
    on_damage: DamagePolicy = "refuse",
    boot: str = "boot-1",
) -> AsyncIterator[SqliteStore]:
    async with open_store(
        path, clock=ManualClock(), new_epoch=new_epoch, durability=durability, on_damage=on_damage, boot=boot
    ) as store:
        yield store


async def fill(store: SqliteStore, count: int = 5) -> None:
    await store.register("d", "amira", [])
    await store.append_nowait("d", [NewEvent("k", b"body-%d" % number) for number in range(1, count + 1)]).wait()


def change(path: Path, statement: str) -> None:
    """Change a database nobody has open."""
    with closing(sqlite3.connect(path, isolation_level=None)) as db:
        db.execute(statement)


async def crash(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], keep: Callable[[], None], durability: Durability
) -> str:
    """A store with five events whose process was killed; its epoch."""
    async with opened(path, new_epoch, durability=durability) as store:
        await fill(store)
        epoch = (await store.get("d")).epoch
        keep()
    come_back(path, tmp_path)
    return epoch


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize(
    ("durability", "boot", "renewed"),
    [("full", "boot-1", False), ("full", "boot-2", False), ("normal", "boot-1", False), ("normal", "boot-2", True)],
)
async def test_epochs_are_renewed_only_where_acknowledged_numbers_may_be_lost(
    path: Path,
    tmp_path: Path,
    new_epoch: Callable[[], str],
    crashed: Callable[[], None],
    durability: Durability,
    boot: str,
    renewed: bool,
) -> None:
    before = await crash(path, tmp_path, new_epoch, crashed, durability)
    async with opened(path, new_epoch, boot=boot) as store:
        window = (await store.read_after("d", Seq(0))).window
        assert window.head == 5
        assert (window.epoch != before) == renewed
        assert [row.what for row in await store.audit()] == (["epochs.renew"] if renewed else [])


async def test_a_clean_end_keeps_epochs_across_a_restart_of_the_machine(
    path: Path, new_epoch: Callable[[], str]
) -> None:
    async with opened(path, new_epoch, durability="normal") as store:
        await fill(store)
        before = (await store.get("d")).epoch
    assert not Path(f"{path}-wal").exists()
    async with opened(path, new_epoch, boot="boot-2") as store:
        assert (await store.get("d")).epoch == before


async def test_a_log_that_was_taken_away_after_a_crash_is_missed(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None]
) -> None:
    before = await crash(path, tmp_path, new_epoch, crashed, "full")
    Path(f"{path}-wal").unlink()
    with pytest.raises(Damaged, match=r"log .* is missing"):
        async with opened(path, new_epoch):
            pass
    with pytest.raises(Damaged, match="avicenna-live restore"):  # and it is still missed the next time
        async with opened(path, new_epoch):
            pass
    assert copies.restore(path, path) is not None
    async with opened(path, new_epoch) as store:
        assert all(one.epoch != before for one in await store.diagnoses())


@pytest.mark.parametrize("file", ["avicenna.db", "avicenna.db-wal"])
async def test_a_file_that_is_moved_away_under_the_store_ends_it_unacknowledged(
    path: Path, new_epoch: Callable[[], str], file: str
) -> None:
    with pytest.raises(StoreBroken, match="deleted or moved away"):
        async with opened(path, new_epoch) as store:
            await fill(store)
            (path.parent / file).rename(path.parent / "elsewhere")
            (outcome,) = await store.append_nowait("d", [NewEvent("k", b"")]).wait()
            assert isinstance(outcome, Failed)
            await trio.sleep_forever()


async def test_a_file_that_is_moved_away_is_noticed_without_any_commit(
    path: Path, new_epoch: Callable[[], str]
) -> None:
    with pytest.raises(StoreBroken), trio.fail_after(20):
        async with opened(path, new_epoch):
            path.rename(path.parent / "elsewhere")
            await trio.sleep_forever()


async def test_files_that_cannot_be_looked_at_any_more_end_the_store_without_any_commit(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def forbidden(file: object) -> None:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))

    with pytest.raises(StoreBroken, match="cannot be looked at: Permission denied"), trio.fail_after(20):
        async with opened(path, new_epoch):
            monkeypatch.setattr(files, "size_of", forbidden)
            await trio.sleep_forever()


async def test_who_uses_a_store_that_has_broken_has_a_moment_to_leave_and_no_more(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(opening, "LEAVE_SECONDS_MAX", LEAVE_SECONDS_MAX)  # a usual one
    has_left = False
    with pytest.raises(StoreBroken), trio.fail_after(20):
        async with opened(path, new_epoch) as store:
            path.rename(path.parent / "elsewhere")
            await store.broke.wait()
            await trio.sleep(LEAVE_SECONDS_MAX / 2)
            (outcome,) = await store.append_nowait("d", [NewEvent("k", b"")]).wait()
            assert isinstance(outcome, Failed)
            has_left = True
            await trio.sleep_forever()
    assert has_left


@pytest.mark.parametrize("file", ["avicenna.db", "avicenna.db-wal"])
async def test_a_file_that_is_replaced_is_noticed(path: Path, new_epoch: Callable[[], str], file: str) -> None:
    with pytest.raises(StoreBroken, match="was replaced"), trio.fail_after(20):
        async with opened(path, new_epoch) as store:
            await fill(store)
            (path.parent / "other").write_bytes(b"")
            (path.parent / "other").rename(path.parent / file)
            await trio.sleep_forever()


async def test_an_event_that_is_missing_is_found_by_a_check(path: Path, new_epoch: Callable[[], str]) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
    change(path, "DELETE FROM entry WHERE seq = 3")
    async with opened(path, new_epoch) as store:
        (problem,) = await store.check()
        assert problem.startswith("diagnosis d: its events are not 1 to 5 without a hole; stop the server and run: ")


async def test_an_overwritten_header_is_refused_or_set_aside(path: Path, new_epoch: Callable[[], str]) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
    content = bytearray(path.read_bytes())
    content[:100] = b"x" * 100
    path.write_bytes(content)
    with pytest.raises(NotADatabase, match="avicenna-live restore FILE --data"):
        async with opened(path, new_epoch):
            pass
    async with opened(path, new_epoch, on_damage="set_aside") as store:
        assert await store.diagnoses() == []
    assert path.with_name("avicenna.db.damaged").read_bytes() == content


async def damage_a_page(path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None]) -> None:
    """A database of a process that was killed, with a page that makes no sense."""
    async with opened(path, new_epoch) as store:
        await fill(store, 100)
    async with opened(path, new_epoch):
        crashed()
    come_back(path, tmp_path)
    content = bytearray(path.read_bytes())
    place = content.index(b"body-50")
    start = place - place % 4096
    content[start : start + 64] = b"\xff" * 64
    path.write_bytes(content)
    Path(f"{path}-wal").write_bytes(wal.CLOSED)


@pytest.mark.parametrize("boot", ["boot-2", ""])
async def test_a_damaged_page_is_found_at_the_start_after_the_machine_has_stopped(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None], boot: str
) -> None:
    await damage_a_page(path, tmp_path, new_epoch, crashed)
    with pytest.raises(Damaged, match="is damaged"):
        async with opened(path, new_epoch, boot=boot):
            pass


async def test_a_damaged_page_that_is_met_ends_the_store_and_is_refused_at_the_next_start(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None]
) -> None:
    await damage_a_page(path, tmp_path, new_epoch, crashed)
    with pytest.raises(StoreBroken, match="SQLITE_CORRUPT"):
        async with opened(path, new_epoch) as store:
            with pytest.raises(Failed):
                await store.look_through()
            await trio.sleep_forever()
    with pytest.raises(Damaged, match="is damaged"):
        async with opened(path, new_epoch):
            pass
    async with opened(path, new_epoch, on_damage="set_aside") as store:
        assert await store.diagnoses() == []


async def test_a_disk_that_refuses_writes_ends_the_store(path: Path, new_epoch: Callable[[], str]) -> None:
    with pytest.raises(StoreBroken, match="SQLITE_READONLY"):
        async with opened(path, new_epoch) as store:
            await fill(store)
            await store._committer.read(lambda db: db.execute("PRAGMA query_only = ON").fetchall())
            (outcome,) = await store.append_nowait("d", [NewEvent("k", b"")]).wait()
            assert isinstance(outcome, Failed)
            await trio.sleep_forever()


@pytest.mark.guarantee(13)
async def test_a_full_disk_is_answered_and_nothing_acknowledged_is_lost(
    path: Path, new_epoch: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    def limit(db: sqlite3.Connection, pages: int) -> None:
        db.execute(f"PRAGMA max_page_count = {pages}").fetchall()

    async with opened(path, new_epoch) as store:
        await fill(store, 0)
        await store._committer.read(limit, 1)  # SQLite takes the current size for the least possible limit
        acknowledged, refused = 0, 0
        for _ in range(100):
            (outcome,) = await store.append_nowait("d", [NewEvent("k", b"x" * 2000)]).wait()
            acknowledged += isinstance(outcome, Appended)
            refused += isinstance(outcome, Busy | Failed)
        assert refused > 1
        # One line, however often it is refused.
        (line,) = [record for record in caplog.records if record.name == "avicenna.storage"]
        assert (line.levelname, line.getMessage()) == (
            "WARNING",
            "nothing is stored until further notice: the disk is full",
        )
        await store._committer.read(limit, 100_000)
        (after,) = await store.append_nowait("d", [NewEvent("k", b"after")]).wait()
        assert isinstance(after, Appended)
        assert after.seq == acknowledged + 1
        await store.append_nowait("d", [NewEvent("k", b"later")]).wait()
        _, line = [record for record in caplog.records if record.name == "avicenna.storage"]
        assert line.getMessage() == "what comes is stored again, after 0.0 s"
        assert len((await store.read_after("d", Seq(0))).events) == acknowledged + 2
        assert await store.check() == []


async def test_a_backup_is_private_whole_and_begins_new_epochs_where_it_is_restored(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str]
) -> None:
    copy = tmp_path / "backups" / "copy.db"
    async with opened(path, new_epoch) as store:
        await fill(store)
        before = (await store.get("d")).epoch
        made = await store.backup(copy)
        with pytest.raises(CannotCopy):
            await store.backup(copy)
        with pytest.raises(InUse):
            copies.restore(path, copy)
        await fill(store)
    assert made.size_bytes == copy.stat().st_size
    assert (copy.stat().st_mode & 0o777, copy.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    aside = copies.restore(path, copy)
    assert aside is not None
    assert aside.exists()
    async with opened(path, new_epoch) as store:
        window = (await store.read_after("d", Seq(0))).window
        assert window.head == 5
        assert window.epoch != before
        renewed = window.epoch
    async with opened(path, new_epoch) as store:
        assert (await store.get("d")).epoch == renewed


async def test_a_backup_that_is_damaged_or_not_ours_changes_nothing(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str]
) -> None:
    copy, foreign = tmp_path / "copy.db", tmp_path / "foreign.db"
    async with opened(path, new_epoch) as store:
        await fill(store)
        await store.backup(copy)
    change(copy, "DELETE FROM diagnosis")
    change(foreign, "CREATE TABLE theirs (n)")
    with pytest.raises(Damaged):
        copies.restore(path, copy)
    with pytest.raises(NotOurs):
        copies.restore(path, foreign)
    with pytest.raises(CannotCopy):
        copies.restore(path, tmp_path / "absent.db")
    assert sorted(one.name for one in path.parent.iterdir()) == ["avicenna.db", "avicenna.db.lock"]
    async with opened(path, new_epoch) as store:
        assert (await store.read_after("d", Seq(0))).window.head == 5


async def test_a_backup_with_a_damaged_diagnosis_is_restored_and_the_log_names_it(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], caplog: pytest.LogCaptureFixture
) -> None:
    copy = tmp_path / "copy.db"
    async with opened(path, new_epoch) as store:
        await fill(store)
        await store.backup(copy)
    change(copy, "UPDATE entry SET body = x'00' WHERE seq = 3")
    assert copies.restore(path, copy) is not None
    (said,) = [one.getMessage() for one in caplog.records if one.levelname == "WARNING"]
    assert said.startswith(f"{copy}: diagnosis d: event 3 fails its checksum; stop the server and run")
    async with opened(path, new_epoch) as store:
        assert store.is_check_pending
        assert (await store.drop_damaged("d")).after.floor == 3


@pytest.mark.parametrize("has_log", [False, True])
@pytest.mark.parametrize("has_links", [True, False])
async def test_a_restore_keeps_the_former_database_whole(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch, has_log: bool, has_links: bool,
) -> None:  # fmt: skip
    copy = tmp_path / "copy.db"
    async with opened(path, new_epoch) as store:
        await fill(store)
        await store.backup(copy)
        await fill(store)
        crashed()
    if has_log:
        come_back(path, tmp_path)
    assert wal_of(path).exists() is has_log

    def refuse(self: Path, target: Path) -> None:
        raise PermissionError(1, "Operation not permitted")

    if not has_links:
        monkeypatch.setattr(Path, "hardlink_to", refuse)
    aside = copies.restore(path, copy)
    assert aside is not None
    assert not wal_of(path).exists()
    monkeypatch.undo()
    for file, head in ((path, 5), (aside, 10)):
        async with opened(file, new_epoch) as store:
            assert (await store.read_after("d", Seq(0))).window.head == head
            assert await store.check() == []
    assert path.stat().st_nlink == aside.stat().st_nlink == 1


@pytest.mark.parametrize("has_links", [True, False])
@pytest.mark.parametrize("has_log", [False, True])
async def test_a_restore_has_no_moment_without_a_database(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch, has_log: bool,
    has_links: bool,
) -> None:  # fmt: skip
    copy, found = tmp_path / "copy.db", list[tuple[bool, bool]]()
    async with opened(path, new_epoch) as store:
        await fill(store)
        await store.backup(copy)
        await fill(store)
        crashed()
    if has_log:
        come_back(path, tmp_path)
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *_, **__: (_ for _ in ()).throw(PermissionError(1, "not permitted")))
    former = path.stat().st_ino

    def watch(name: str) -> None:
        act = getattr(Path, name)

        def watched(self: Path, *arguments: Any, **options: Any) -> Any:
            done = act(self, *arguments, **options)
            inode = os.stat(path).st_ino  # noqa: PTH116 - raises if there is none
            found.append((inode == former, wal_of(path).exists()))
            return done

        monkeypatch.setattr(Path, name, watched)

    for name in ("rename", "unlink", "hardlink_to", "replace"):
        watch(name)
    copies.restore(path, copy)
    assert {is_former for is_former, _ in found} == {True, False}
    # A log of the former database beside the new one would be taken for its own.
    assert (False, True) not in found


async def test_a_restore_that_is_killed_before_the_end_is_followed_by_the_name_of_the_log_it_took_away(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    copy = tmp_path / "copy.db"
    async with opened(path, new_epoch) as store:
        await fill(store)
        await store.backup(copy)
        crashed()
    come_back(path, tmp_path)

    def die(self: Path, target: Path) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Path, "rename", die)
    with pytest.raises(KeyboardInterrupt):
        copies.restore(path, copy)
    monkeypatch.undo()
    kept = wal_of(path.with_name(f"{path.name}.replaced"))
    with pytest.raises(Damaged, match=f"put it back: mv {kept} {wal_of(path)};"):
        async with opened(path, new_epoch):
            pass
    kept.rename(wal_of(path))
    async with opened(path, new_epoch) as store:
        assert (await store.read_after("d", Seq(0))).window.head == 5


@pytest.mark.parametrize("is_of_the_log", [True, False])
async def test_what_is_set_aside_has_no_moment_without_a_database(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch, is_of_the_log: bool,
) -> None:  # fmt: skip
    async with opened(path, new_epoch) as store:
        await fill(store)
        crashed()
    if is_of_the_log:
        come_back(path, tmp_path)
        wal_of(path).write_bytes(b"")
    else:
        path.write_bytes(b"x" * 5000)
    content, moments, killed = path.read_bytes(), 0, tmp_path / "killed"

    def watch(name: str) -> None:
        act = getattr(Path, name)

        def watched(self: Path, *arguments: Any, **options: Any) -> Any:
            nonlocal moments
            done = act(self, *arguments, **options)
            moments += 1
            if path.parent in (self.parent, self):
                assert os.spawnlp(os.P_WAIT, "cp", "cp", "-r", str(path.parent), str(killed / str(moments))) == 0
            return done

        monkeypatch.setattr(Path, name, watched)

    killed.mkdir()
    for name in ("rename", "unlink", "hardlink_to"):
        watch(name)
    async with opened(path, new_epoch, on_damage="set_aside") as store:
        await fill(store, 2)
    monkeypatch.undo()
    assert path.with_name("avicenna.db.damaged").read_bytes() == content
    left = sorted(killed.iterdir())
    assert len(left) > 3
    for directory in left:
        assert files.size_of(directory / path.name) > 4096
        # The next start goes on from each of them, and the damaged one is not lost.
        async with opened(directory / path.name, new_epoch, on_damage="set_aside") as store:
            assert len(await store.diagnoses()) in (0, 1)
        assert content in [one.read_bytes() for one in directory.glob("avicenna.db*")]


def test_a_pipe_is_no_backup(path: Path, tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(CannotCopy, match="pipe is no file"):
        copies.restore(path, tmp_path / "pipe")


async def test_a_link_to_nothing_is_named(path: Path, new_epoch: Callable[[], str]) -> None:
    path.parent.mkdir()
    path.symlink_to(path.parent / "elsewhere")
    with pytest.raises(CannotOpen, match="is a link to a file that is missing"):
        async with opened(path, new_epoch):
            pass


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES, errno.ESTALE])
async def test_files_that_cannot_be_looked_at_end_the_store_and_whoever_waits_is_told(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def fail(file: str) -> os.stat_result:
        raise OSError(number, os.strerror(number), file)

    with pytest.raises(StoreBroken, match=f"cannot be looked at: {os.strerror(number)}"):
        async with opened(path, new_epoch) as store:
            await fill(store)
            monkeypatch.setattr(database_files, "_status", fail)
            (outcome,) = await store.append_nowait("d", [NewEvent("k", b"")]).wait()
            assert isinstance(outcome, Failed)
            monkeypatch.undo()
            await trio.sleep_forever()


async def test_a_database_that_is_cut_while_it_is_used_ends_the_store(path: Path, new_epoch: Callable[[], str]) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
    with pytest.raises(StoreBroken, match=r"was cut from \d+ to 4096 bytes"), trio.fail_after(20):
        async with opened(path, new_epoch):
            os.truncate(path, 4096)
            await trio.sleep_forever()


async def test_a_directory_in_the_place_of_the_database_is_named(path: Path, new_epoch: Callable[[], str]) -> None:
    path.mkdir(parents=True)
    with pytest.raises(CannotOpen, match="is a directory, not a database"):
        async with opened(path, new_epoch):
            pass


async def test_a_lock_that_cannot_be_had_is_named(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr(fcntl, "flock", fail)
    with pytest.raises(CannotOpen, match="cannot be locked: No locks available"):
        async with opened(path, new_epoch):
            pass


def refusing(code: int, name: str) -> Callable[[sqlite3.Connection, object], int]:
    """An operation whose write fails."""

    def write(db: sqlite3.Connection, now: object) -> int:
        error = sqlite3.OperationalError("disk I/O error")
        error.sqlite_errorcode, error.sqlite_errorname = code, name
        raise error

    return write


async def test_a_quota_that_is_used_up_is_a_full_disk(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Full:
        """A file of somebody whose quota is used up."""

        def __enter__(self) -> Self:
            return self

        def __exit__(self, *_: object) -> None:
            return

        def write(self, data: bytes) -> None:
            raise OSError(errno.EDQUOT, os.strerror(errno.EDQUOT))

    refused = refusing(sqlite3.SQLITE_IOERR_WRITE, "SQLITE_IOERR_WRITE")
    async with opened(path, new_epoch) as store:
        await fill(store)
        monkeypatch.setattr(tempfile, "TemporaryFile", lambda **_: Full())
        with pytest.raises(Busy, match="the disk is full"):
            await store._change(refused)
        monkeypatch.undo()
        (outcome,) = await store.append_nowait("d", [NewEvent("k", b"")]).wait()
        assert isinstance(outcome, Appended)
    with pytest.raises(StoreBroken, match="SQLITE_IOERR_WRITE"):
        async with opened(path, new_epoch) as store:
            with pytest.raises(Failed):
                await store._change(refused)
            await trio.sleep_forever()


async def test_transactions_that_fail_are_not_commits_in_the_statistics(
    path: Path, new_epoch: Callable[[], str]
) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        before = store.statistics()
        for _ in range(3):
            with pytest.raises(Busy):
                await store._change(refusing(sqlite3.SQLITE_FULL, "SQLITE_FULL"))
        after = store.statistics()
        assert (after.commits, after.operations) == (before.commits, before.operations)


@pytest.mark.guarantee(6)
@pytest.mark.parametrize(
    ("statement", "said"),
    [
        ("UPDATE diagnosis SET public_id = CAST(x'64ff' AS TEXT) WHERE public_id = 'd'", ": its id cannot be read"),
        ("UPDATE diagnosis SET owner = CAST(x'ff' AS TEXT) WHERE public_id = 'd'", " d: its owner cannot be read"),
        ("UPDATE diagnosis SET epoch = CAST(x'ff' AS TEXT) WHERE public_id = 'd'", " d: its epoch cannot be read"),
        ("UPDATE viewer SET sub = CAST(x'ff' AS TEXT)", " d: its viewers cannot be read"),
    ],
)
async def test_a_registration_with_a_text_that_is_none_hides_no_other_and_a_check_names_it(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], statement: str, said: str,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    async with opened(path, new_epoch) as store:
        await fill(store)
        await store.register("d", "amira", ["vera"])
        await store.register("e", "amira", [])
    change(path, statement)
    async with opened(path, new_epoch) as store:
        assert len(await store.diagnoses()) == 2
        assert (await store.get("e")).owner == "amira"
        (outcome,) = await store.append_nowait("e", [NewEvent("k", b"")]).wait()
        assert isinstance(outcome, Appended)
        (problem,) = await store.check()
        assert said in problem
        assert "avicenna-live" in problem
        assert await store.check(tmp_path / "scratch") == [problem]
        await store.backup(tmp_path / "copy.db")
        if "add ID" in problem:
            await store.register("d", "amira", ["vera"])
            assert await store.check() == []
    copies.restore(path, tmp_path / "copy.db")
    assert [one.getMessage() for one in caplog.records] == [f"{tmp_path / 'copy.db'}: {problem}"]


@pytest.mark.parametrize("key", ["runs", "boot", "kept_time", "log"])
async def test_a_note_of_the_last_run_that_is_no_text_keeps_nothing_from_being_opened(
    path: Path, new_epoch: Callable[[], str], key: str
) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
    change(path, f"UPDATE meta SET value = CAST(x'ff' AS TEXT) WHERE key = '{key}'")
    async with opened(path, new_epoch) as store:
        assert (await store.read_after("d", Seq(0))).window.head == 5
        assert await store.check() == []


async def test_a_check_of_a_damaged_structure_names_what_helps(path: Path, new_epoch: Callable[[], str]) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
    with closing(sqlite3.connect(path)) as db:
        ((root,),) = db.execute("SELECT rootpage FROM sqlite_schema WHERE name = 'access'")
    content = bytearray(path.read_bytes())
    content[(root - 1) * 4096 : root * 4096] = bytes(4096)
    path.write_bytes(content)
    async with opened(path, new_epoch) as store:
        what, *more = await store.check()
    assert what == "the structure of the database is damaged; restore a backup: avicenna-live restore FILE"
    assert more


async def test_a_schema_that_is_no_text_is_refused_as_damage(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str]
) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        await store.backup(tmp_path / "copy.db")
    for file in (path, tmp_path / "copy.db"):
        content = file.read_bytes()
        place = content.index(b"CREATE INDEX viewer_by_sub") + len(b"CREATE INDEX v")
        file.write_bytes(content[:place] + b"\xff" + content[place + 1 :])
    with pytest.raises(Damaged, match=r"malformed database schema.*avicenna-live restore"):
        async with opened(path, new_epoch):
            pass
    with pytest.raises(NotADatabase, match="malformed database schema"):
        copies.restore(path, tmp_path / "copy.db")
