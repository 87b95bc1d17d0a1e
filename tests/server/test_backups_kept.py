"""`backups_kept`: old copies go, and nothing else in the directory."""

from __future__ import annotations

import os
from dataclasses import replace
from pathlib import Path

import pytest

from tests.server.harness import Server, running_server
from web.operating.backups import Backups
from web.server.settings import Settings, SettingsError

OLD = [f"avicenna-2026010{day}T000000Z-0123456{day}.db" for day in range(1, 6)]


def names(directory: Path) -> set[str]:
    return {one.name for one in directory.iterdir()}


async def copied(server: Server) -> str:
    answer = await server.http.post("/backup", headers=server.bearer("op", "operate"))
    assert answer.status_code == 200
    return Path(answer.json()["path"]).name


def strangers(directory: Path, outside: Path) -> set[str]:
    """What is not a copy that a backup made, though some of it looks like one."""
    directory.mkdir(parents=True, mode=0o700, exist_ok=True)
    outside.write_text("theirs")
    files = [
        "avicenna-1.db",
        "avicenna-20260101T000000Z-01234567.db.gz",
        "notes.txt",
        f"x{OLD[0]}",
        f".{OLD[0]}.unfinished",
    ]
    for name in files:
        (directory / name).write_text("theirs")
    (directory / "avicenna-20250101T000000Z-0000000a.db").symlink_to(outside)
    (directory / "avicenna-20250101T000000Z-0000000b.db").mkdir()
    os.mkfifo(directory / "avicenna-20250101T000000Z-0000000c.db")
    return names(directory)


async def test_the_newest_copies_stay(settings: Settings) -> None:
    directory = settings.data / "backups"
    async with running_server(replace(settings, backups_kept=3)) as server:
        theirs = strangers(directory, settings.data / "outside") - {f".{OLD[0]}.unfinished"}
        for name in OLD:
            (directory / name).write_text("ours")
        first = await copied(server)
        assert names(directory) >= theirs | {*OLD[3:], first}
        assert not names(directory) & {*OLD[:3]}
        second, third, fourth = [await copied(server) for _ in range(3)]
        assert names(directory) >= theirs | {second, third, fourth}
        assert not names(directory) & {*OLD, first}
    assert (settings.data / "outside").read_text() == "theirs"


async def test_without_the_setting_nothing_is_deleted(server: Server) -> None:
    directory = server.data / "backups"
    theirs = strangers(directory, server.data / "outside")
    made = {await copied(server) for _ in range(3)}
    assert names(directory) == theirs | made


def test_the_copy_that_was_made_just_now_stays_though_the_clock_went_back(tmp_path: Path) -> None:
    for name in OLD:
        (tmp_path / name).write_text("ours")
    Backups(tmp_path, 1).drop_old(OLD[0])
    assert names(tmp_path) == {OLD[0]}


def test_a_directory_that_is_a_link_is_not_looked_through(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    there = tmp_path / "there"
    there.mkdir()
    (there / OLD[0]).write_text("ours")
    (tmp_path / "backups").symlink_to(there)
    Backups(tmp_path / "backups", 1).drop_old("avicenna-20260109T000000Z-01234567.db")
    assert names(there) == {OLD[0]}
    assert "old backups were not deleted" in caplog.text


@pytest.mark.parametrize("kept", [0, -1])
def test_none_cannot_be_kept(kept: int) -> None:
    with pytest.raises(SettingsError, match="backups_kept must be an integer 1-100000 "):
        Settings(backups_kept=kept)
