"""A log is taken up beside the database that it goes on from, and beside no other."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from storage.disk.database_files import wal_of
from storage.errors import CannotOpen, Damaged, ForeignLog
from storage.records import NewEvent, Seq
from storage.sqlite import copies, integrity, live_log, runs
from storage.sqlite import opening as sqlite
from storage.sqlite.store import SqliteStore
from storage.sqlite.wal import Mark
from tests.storage.test_faults import come_back, fill, opened

NewEpoch = Callable[[], str]


def keep(path: Path, name: str) -> Path:
    """A copy of a file of a store in use, made by another process: this one would drop the locks on it."""
    kept = path.parent.parent / name
    assert os.spawnlp(os.P_WAIT, "cp", "cp", str(path), str(kept)) == 0
    return kept


async def publish(store: SqliteStore, count: int = 3) -> None:
    for number in range(count):
        await store.append_nowait("d", [NewEvent("k", b"more-%d" % number + b"x" * 5000)]).wait()


async def head_of(path: Path, new_epoch: NewEpoch, boot: str = "boot-1") -> tuple[str, int]:
    """The epoch and the newest number that the next run finds, all of it whole."""
    async with opened(path, new_epoch, boot=boot) as store:
        window = (await store.read_after("d", Seq(0))).window
        assert await store.check() == []
    return window.epoch, window.head


async def is_refused(path: Path, new_epoch: NewEpoch, kind: type[CannotOpen], **options: Any) -> None:
    """A start is refused, and changes nothing."""
    found = {file: file.read_bytes() for file in path.parent.iterdir()}
    for _ in range(2):
        with pytest.raises(kind, match="is one of another time or database"):
            async with opened(path, new_epoch, **options):
                pass
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == found, "something was changed"


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("boot", ["boot-1", "boot-2"])
@pytest.mark.parametrize("runs_since", [0, 1, 2])
async def test_an_old_log_beside_a_database_that_was_closed_in_order_is_refused_and_changes_nothing(
    path: Path, new_epoch: NewEpoch, runs_since: int, boot: str
) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        log = keep(wal_of(path), "log")
        await publish(store)
    for _ in range(runs_since):
        async with opened(path, new_epoch) as store:
            await publish(store, 40)
    shutil.copy(log, wal_of(path))
    await is_refused(path, new_epoch, ForeignLog, boot=boot)
    # Nothing is damaged, and nothing is set aside.
    await is_refused(path, new_epoch, ForeignLog, boot=boot, on_damage="set_aside")
    wal_of(path).unlink()
    assert await head_of(path, new_epoch) == ("epoch-1", 8 + 40 * runs_since)


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("ended", ["in order", "killed"])
async def test_the_log_of_the_run_before_beside_the_database_of_a_killed_run_is_refused_and_changes_nothing(
    path: Path, tmp_path: Path, new_epoch: NewEpoch, crashed: Callable[[], None], ended: str
) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        log = keep(wal_of(path), "log")
        crashed()
    if ended == "killed":
        come_back(path, tmp_path)
    else:
        shutil.rmtree(tmp_path / "kept")
    async with opened(path, new_epoch) as store:
        await publish(store)
        crashed()
    come_back(path, tmp_path)
    own = keep(wal_of(path), "own")
    shutil.copy(log, wal_of(path))
    await is_refused(path, new_epoch, Damaged)
    shutil.copy(own, wal_of(path))
    assert await head_of(path, new_epoch) == ("epoch-1", 8)


async def test_a_restore_leaves_a_log_out_that_is_another_ones(
    path: Path, tmp_path: Path, new_epoch: NewEpoch, crashed: Callable[[], None]
) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        log = keep(wal_of(path), "log")
    async with opened(path, new_epoch) as store:
        await publish(store, 40)
    async with opened(path, new_epoch) as store:
        await publish(store)
        crashed()
    come_back(path, tmp_path)
    shutil.copy(log, wal_of(path))
    assert copies.restore(path, path) is not None
    epoch, head = await head_of(path, new_epoch)
    assert epoch != "epoch-1"
    assert head >= 45
    assert wal_of(path.with_name(f"{path.name}.replaced")).read_bytes() == log.read_bytes()


async def test_a_database_and_a_log_of_one_run_are_taken_together_only_if_nothing_between_them_is_missing(
    path: Path, new_epoch: NewEpoch, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_log, "WAL_AUTOCHECKPOINT_PAGES", 20)
    kept = list[tuple[Mark | None, int, Path, Path]]()
    async with opened(path, new_epoch) as store:
        await fill(store)
        for number in range(60):
            await publish(store, 1)
            mark = (await store._committer.read(runs.last_run)).log
            kept.append((mark, 6 + number, keep(path, f"database-{number}"), keep(wal_of(path), f"log-{number}")))
    assert len({mark for mark, *_ in kept}) > 5
    taken = refused = 0
    for number, (mark, _, database, _) in enumerate(kept[::3]):
        for other, (other_mark, head, _, log) in enumerate(kept[::3]):
            shutil.copy(database, path)
            shutil.copy(log, wal_of(path))
            if other_mark == mark and other >= number:
                assert await head_of(path, new_epoch) == ("epoch-1", head)
                taken += 1
            elif other_mark != mark:
                # The log of which the last page was just copied goes on from the database before that.
                try:
                    async with opened(path, new_epoch) as store:
                        found = (await store.read_after("d", Seq(0))).window.head
                        assert await store.check() == []
                    assert found == head
                    taken += 1
                except Damaged:
                    refused += 1
            wal_of(path).unlink(missing_ok=True)
    assert taken > 10
    assert refused > 100


@pytest.fixture
def killed_while_it_begins(monkeypatch: pytest.MonkeyPatch, crashed: Callable[[], None]) -> Callable[[], None]:
    """Has the next start be killed when it has stored that it runs, and has copied nothing into the database."""

    def arm() -> None:
        def die(*_: object) -> None:
            crashed()
            raise CannotOpen("killed")

        monkeypatch.setattr(runs, "keep_log", die)

    return arm


@pytest.mark.parametrize("times", [1, 2])
@pytest.mark.parametrize("over", ["nothing", "a clean end", "a kill", "a copy", "a broken store"])
async def test_a_start_that_is_killed_before_it_has_copied_anything_leaves_a_log_that_is_taken_up(
    path: Path, tmp_path: Path, new_epoch: NewEpoch, crashed: Callable[[], None], monkeypatch: pytest.MonkeyPatch,
    killed_while_it_begins: Callable[[], None], over: str, times: int,
) -> None:  # fmt: skip
    if over != "nothing":
        async with opened(path, new_epoch) as store:
            await fill(store)
            if over == "a kill":
                crashed()
        if over == "a kill":
            come_back(path, tmp_path)
        if over == "a copy":
            copies.restore(path, path)
        if over == "a broken store":
            with monkeypatch.context() as patched:
                patched.setattr(sqlite, "_end_run", ends_badly)
                async with opened(path, new_epoch):
                    pass
    with monkeypatch.context() as patched:
        for _ in range(times):
            killed_while_it_begins()
            with pytest.raises(CannotOpen, match="killed"):
                async with opened(path, new_epoch):
                    pass
            come_back(path, tmp_path)
            assert wal_of(path).stat().st_size > 4096
    monkeypatch.undo()
    async with opened(path, new_epoch) as store:
        heads = [(await store.read_after(one.diagnosis_id, Seq(0))).window.head for one in await store.diagnoses()]
        assert heads == ([] if over == "nothing" else [5])


async def ends_badly(*_: object) -> bool:
    return False


async def test_a_copy_that_is_put_beside_the_log_of_a_start_over_another_copy_is_refused(
    path: Path, tmp_path: Path, new_epoch: NewEpoch, killed_while_it_begins: Callable[[], None],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    made = [tmp_path / "1.db", tmp_path / "2.db"]
    async with opened(path, new_epoch) as store:
        await fill(store)
        for copy in made:
            await store.backup(copy)
            await publish(store)
    copies.restore(path, made[0])
    killed_while_it_begins()
    with pytest.raises(CannotOpen, match="killed"):
        async with opened(path, new_epoch):
            pass
    come_back(path, tmp_path)
    monkeypatch.undo()
    shutil.copy(made[1], path)
    await is_refused(path, new_epoch, ForeignLog)


@pytest.mark.parametrize("is_copied", [True, False])
async def test_a_store_that_is_killed_before_its_log_is_removed_leaves_one_that_is_taken_up(
    path: Path, tmp_path: Path, new_epoch: NewEpoch, crashed: Callable[[], None], monkeypatch: pytest.MonkeyPatch,
    is_copied: bool,
) -> None:  # fmt: skip
    leave = sqlite._leave

    async def leave_and_keep(*args: Any) -> None:
        crashed()
        await leave(*args)

    monkeypatch.setattr(sqlite, "_leave", leave_and_keep)
    async with opened(path, new_epoch) as store:
        await fill(store)
    monkeypatch.undo()
    if is_copied:
        shutil.copy(wal_of(tmp_path / "kept" / path.name), wal_of(path))
    else:
        come_back(path, tmp_path)
    assert await head_of(path, new_epoch) == ("epoch-1", 5)


async def test_a_start_that_finds_damaged_pages_changes_nothing(
    path: Path, tmp_path: Path, new_epoch: NewEpoch, crashed: Callable[[], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    async with opened(path, new_epoch) as store:
        await fill(store)
        crashed()
    come_back(path, tmp_path)
    monkeypatch.setattr(integrity, "structure", lambda *_, **__: ["a page"])
    found = {file: file.read_bytes() for file in path.parent.iterdir()}
    with pytest.raises(Damaged, match="a page"):
        async with opened(path, new_epoch, boot="boot-2"):
            pass
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == found
