"""What a log that was damaged after a kill is taken for: never for one that ends earlier."""

from __future__ import annotations

import os
import random
import shutil
import struct
from collections.abc import Callable
from pathlib import Path

import pytest
import trio

from storage.errors import Damaged, NewerVersion
from storage.records import Durability, NewEvent, Seq
from storage.sqlite import copies, wal
from tests.storage.test_faults import come_back, fill, opened

Damage = Callable[[bytearray], None]


def page_bytes(log: bytes | bytearray) -> int:
    return int(struct.unpack_from(">I", log, 8)[0])


def frame_at(log: bytes | bytearray, number: int) -> int:
    """Where a frame begins; negative: counted from the last one of the newest log in the file."""
    size = wal.FRAME.size + page_bytes(log)
    places = [at for at in range(wal.HEADER.size, len(log) - size + 1, size) if log[at + 8 : at + 16] == log[16:24]]
    return places[number]


def flip(log: bytearray, at: int) -> None:
    log[at] ^= 1


def empty(log: bytearray) -> None:
    log.clear()


def flip_header(log: bytearray) -> None:
    flip(log, 17)


def zero_header(log: bytearray) -> None:
    log[:32] = bytes(32)


def cut_header(log: bytearray) -> None:
    del log[31:]


def flip_first_page(log: bytearray) -> None:
    flip(log, frame_at(log, 0) + 100)


def flip_salt(log: bytearray) -> None:
    flip(log, frame_at(log, 2) + 9)


def flip_sums(log: bytearray) -> None:
    flip(log, frame_at(log, 1) + 20)


def flip_last_but_one(log: bytearray) -> None:
    flip(log, frame_at(log, -2) + 500)


def zero_tail(log: bytearray) -> None:
    at = frame_at(log, -3)
    log[at:] = bytes(len(log) - at)


def zero_page(log: bytearray) -> None:
    at = frame_at(log, 3) + wal.FRAME.size
    log[at : at + page_bytes(log)] = bytes(page_bytes(log))


def zero_frame(log: bytearray) -> None:
    at = frame_at(log, 2)
    log[at : at + wal.FRAME.size + page_bytes(log)] = bytes(wal.FRAME.size + page_bytes(log))


def make_sparse(log: bytearray) -> None:
    """As a log that was cut to nothing while a server went on writing to it."""
    at = frame_at(log, -2)
    log[:at] = bytes(at)


def torn_frame(log: bytearray) -> None:
    """As a process that is killed while it writes the last frame."""
    at = frame_at(log, -1)
    log[at + wal.FRAME.size :] = bytes(len(log) - at - wal.FRAME.size)


def short_frame(log: bytearray) -> None:
    """As one that is killed between the two writes of a frame."""
    del log[frame_at(log, -1) + wal.FRAME.size :]


def short_page(log: bytearray) -> None:
    """As one that is killed while the system copies its page: that goes in pages of the file."""
    at = frame_at(log, -1) + wal.FRAME.size
    del log[at + page_bytes(log) - at % page_bytes(log) :]
    assert len(log) % page_bytes(log) == 0


def cut_within_a_frame(log: bytearray) -> None:
    del log[frame_at(log, -4) + 701 :]


def append_bytes(log: bytearray) -> None:
    log += b"something else"


def insert_byte(log: bytearray) -> None:
    log.insert(frame_at(log, 1) + 300, 0)


def remove_byte(log: bytearray) -> None:
    del log[frame_at(log, -3) + 300]


def remove_sectors(log: bytearray) -> None:
    at = frame_at(log, -6) + 300
    log[at : at + 1024] = b""


def insert_sectors(log: bytearray) -> None:
    at = frame_at(log, -6)
    log[at:at] = bytes(3 * 512)


async def killed(
    path: Path,
    tmp_path: Path,
    new_epoch: Callable[[], str],
    crashed: Callable[[], None],
    damage: Damage,
    durability: Durability = "full",
) -> str:
    """A store whose process was killed, and whose log was damaged since; its epoch."""
    async with opened(path, new_epoch, durability=durability) as store:
        await fill(store)
        for number in range(5):
            await store.append_nowait("d", [NewEvent("k", b"more-%d" % number)]).wait()
        epoch = (await store.get("d")).epoch
        crashed()
    come_back(path, tmp_path)
    log = Path(f"{path}-wal")
    content = bytearray(log.read_bytes())
    damage(content)
    log.write_bytes(content)
    return epoch


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (empty, "is empty"),
        (cut_header, "is empty"),
        (flip_header, "invalid header"),
        (zero_header, "invalid header"),
        (make_sparse, "invalid header"),
        (flip_first_page, "damaged frame 1,"),
        (flip_sums, "damaged frame 2,"),
        (flip_salt, "damaged frame 3,"),
        (flip_last_but_one, "damaged frame"),
        (zero_tail, "is zero from frame"),
        (cut_within_a_frame, "ends within frame"),
        (append_bytes, "ends within frame"),
        (insert_byte, "has bytes too many or too few"),
        (remove_byte, "has bytes too many or too few"),
        (remove_sectors, "has bytes too many or too few"),
        (insert_sectors, "is zero from frame"),
    ],
)
async def test_damage_of_the_log_after_a_kill_is_refused_until_somebody_gives_the_newest_events_up(
    path: Path,
    tmp_path: Path,
    new_epoch: Callable[[], str],
    crashed: Callable[[], None],
    damage: Damage,
    said: str,
) -> None:
    before = await killed(path, tmp_path, new_epoch, crashed, damage)
    await judge_refusal(path, new_epoch, said, "boot-1")
    assert copies.restore(path, path) is not None
    async with opened(path, new_epoch) as store:
        assert [one.epoch for one in await store.diagnoses() if one.epoch == before] == []


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (empty, "is empty"),
        (flip_header, "invalid header"),
        (flip_first_page, "damaged frame 1,"),
        (flip_sums, "damaged frame 2,"),
        (flip_salt, "damaged frame 3,"),
        (zero_page, "damaged frame 4,"),
        (zero_frame, "damaged frame 3,"),
        (insert_byte, "has bytes too many or too few"),
        (remove_byte, "has bytes too many or too few"),
        (remove_sectors, "has bytes too many or too few"),
        (insert_sectors, "has bytes too many or too few"),
    ],
)
async def test_damage_of_a_log_that_was_synced_is_refused_after_a_stop_of_the_machine(
    path: Path,
    tmp_path: Path,
    new_epoch: Callable[[], str],
    crashed: Callable[[], None],
    damage: Damage,
    said: str,
) -> None:
    await killed(path, tmp_path, new_epoch, crashed, damage)
    await judge_refusal(path, new_epoch, said, "boot-2")


async def judge_refusal(path: Path, new_epoch: Callable[[], str], said: str, boot: str) -> None:
    """Each start is refused, and changes nothing."""
    found = {file: file.read_bytes() for file in path.parent.iterdir()}
    for _ in range(2):
        with pytest.raises(Damaged, match=f"log .*{said}.*Put it back.*avicenna-live restore"):
            async with opened(path, new_epoch, boot=boot):
                pass
    assert {file: file.read_bytes() for file in path.parent.iterdir()} == found, "something was changed"


async def test_where_the_setting_allows_it_an_empty_database_is_begun(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None]
) -> None:
    await killed(path, tmp_path, new_epoch, crashed, flip_first_page)
    async with opened(path, new_epoch, on_damage="set_aside") as store:
        assert await store.diagnoses() == []
    assert Path(f"{path}.damaged").exists()
    assert Path(f"{path}.damaged-wal").exists()


async def test_a_database_of_a_newer_version_is_not_set_aside_for_its_log(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None]
) -> None:
    await killed(path, tmp_path, new_epoch, crashed, empty)
    content = bytearray(path.read_bytes())
    content[60:64] = (1000).to_bytes(4, "big")  # the user version, in SQLite's header
    path.write_bytes(content)
    with pytest.raises(NewerVersion):
        async with opened(path, new_epoch, on_damage="set_aside"):
            pass
    assert path.read_bytes() == content


@pytest.mark.parametrize("damage", [torn_frame, short_frame, short_page])
async def test_a_frame_that_a_kill_has_torn_is_no_damage(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None], damage: Damage
) -> None:
    epoch = await killed(path, tmp_path, new_epoch, crashed, damage)
    async with opened(path, new_epoch) as store:
        window = (await store.read_after("d", Seq(0))).window
        assert (window.epoch, window.head) == (epoch, 9)


@pytest.mark.parametrize(
    ("durability", "damage"),
    [
        ("full", zero_tail),
        ("full", flip_last_but_one),
        ("full", torn_frame),
        ("full", short_page),
        ("normal", zero_tail),
        ("normal", flip_first_page),
        ("normal", zero_frame),
        ("normal", cut_within_a_frame),
    ],
)
async def test_what_a_stop_of_the_machine_may_have_left_unwritten_is_no_damage(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None],
    durability: Durability, damage: Damage,
) -> None:  # fmt: skip
    epoch = await killed(path, tmp_path, new_epoch, crashed, damage, durability)
    async with opened(path, new_epoch, boot="boot-2", durability=durability) as store:
        left = [one.epoch for one in await store.diagnoses()]
        assert left == [epoch] if durability == "full" else epoch not in left
        if durability == "full":
            assert (await store.read_after("d", Seq(0))).window.head in (8, 9)


@pytest.mark.parametrize(
    ("durability", "damage"),
    [
        ("full", torn_frame),
        ("normal", zero_tail),
        ("normal", zero_frame),
        ("normal", cut_within_a_frame),
    ],
)
async def test_a_kill_after_such_a_stop_finds_no_damage_in_what_the_stop_has_left(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None],
    durability: Durability, damage: Damage,
) -> None:  # fmt: skip
    await killed(path, tmp_path, new_epoch, crashed, damage, durability)
    async with opened(path, new_epoch, boot="boot-2", durability=durability) as store:
        left = [one.epoch for one in await store.diagnoses()]
        crashed()
    come_back(path, tmp_path)
    async with opened(path, new_epoch, boot="boot-2", durability=durability) as store:
        assert [one.epoch for one in await store.diagnoses()] == left


async def test_a_log_that_is_written_again_from_its_start_holds_old_frames_behind_new_ones(
    path: Path, tmp_path: Path, new_epoch: Callable[[], str], crashed: Callable[[], None]
) -> None:
    chance, number = random.Random(6), 0
    log = Path(f"{path}-wal")
    async with opened(path, new_epoch) as store:
        await store.register("d", "amira", [])
        for _ in range(16):
            sizes = [chance.randrange(60_000) for _ in range(chance.randrange(1, 30))]
            await store.append_nowait("d", [NewEvent("k", os.urandom(size)) for size in sizes]).wait()
            number += len(sizes)
            crashed_at = tmp_path / "kept"
            crashed()
            assert wal.look_at(crashed_at / log.name, ended="kill").fault is None
            shutil.rmtree(crashed_at)


async def test_a_run_that_could_not_be_closed_in_order_leaves_word_in_the_place_of_its_log(
    path: Path, new_epoch: Callable[[], str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def fails(*_: object) -> bool:
        await trio.lowlevel.checkpoint()
        return False

    with monkeypatch.context() as patched:
        patched.setattr("storage.sqlite.opening._end_run", fails)
        async with opened(path, new_epoch) as store:
            await fill(store)
    assert Path(f"{path}-wal").read_bytes() == wal.CLOSED
    async with opened(path, new_epoch) as store:
        assert (await store.read_after("d", Seq(0))).window.head == 5
