"""`backup` and `check` beside a server that lies: nothing outside `backups/` is touched, and nothing is left behind."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.cli.strangers import Stranger
from web import cli
from web.identity.keyring import load_or_create_key

CONTENT = b"what the server wrote"
DIGEST = hashlib.sha256(CONTENT).hexdigest()

Lie = Callable[[Path, Path], str]
"""Prepares what a server lies about, given `backups/` and a file that must stay as it is; the path it names."""


@pytest.fixture
def data(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    for name in ("CONFIG", "URL", "TOKEN", "DATA"):
        monkeypatch.delenv(f"AVICENNA_{name}", raising=False)
    monkeypatch.chdir(tmp_path)
    load_or_create_key(tmp_path / "data")
    (tmp_path / "data" / "listening.json").touch(mode=0o600)
    return tmp_path / "data"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    """A file outside `backups/`, whose content the server knows."""
    file = tmp_path / "victim"
    file.write_bytes(CONTENT)
    return file


def says(path: object, digest: object = DIGEST) -> tuple[int, object]:
    return 200, {"path": str(path) if isinstance(path, Path) else path, "bytes": len(CONTENT), "sha256": digest}


def backed_up(stranger: Stranger) -> int:
    return cli.main(["backup", "copy.db", "--url", stranger.url])


def an_absolute_path(backups: Path, victim: Path) -> str:
    return str(victim)


def a_way_up(backups: Path, victim: Path) -> str:
    return f"{backups}/../../{victim.name}"


def a_link(backups: Path, victim: Path) -> str:
    (backups / "link.db").symlink_to(victim)
    return str(backups / "link.db")


def a_directory_that_is_a_link(backups: Path, victim: Path) -> str:
    backups.rmdir()
    backups.symlink_to(victim.parent)
    return f"{backups}/{victim.name}"


def the_directory_above(backups: Path, victim: Path) -> str:
    return f"{backups}/.."


def the_key(backups: Path, victim: Path) -> str:
    return str(backups.parent / "jwt.key")


def a_pipe(backups: Path, victim: Path) -> str:
    os.mkfifo(backups / "pipe.db")
    return str(backups / "pipe.db")


def a_directory(backups: Path, victim: Path) -> str:
    (backups / "new.db").mkdir()
    return str(backups / "new.db")


def a_null_byte(backups: Path, victim: Path) -> str:
    return f"{backups}/a\0b"


@pytest.mark.parametrize(
    "lie",
    [
        an_absolute_path,
        a_way_up,
        a_link,
        a_directory_that_is_a_link,
        the_directory_above,
        the_key,
        a_pipe,
        a_directory,
        a_null_byte,
        lambda *_: "",
        lambda *_: "/",
    ],
)
def test_a_server_that_names_another_file_gets_nothing_read_or_deleted(
    lie: Lie, data: Path, victim: Path, stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    backups = data / "backups"
    backups.mkdir()
    (backups / "older.db").write_bytes(CONTENT)
    key = (data / "jwt.key").read_bytes()
    if lie is a_directory_that_is_a_link:
        (backups / "older.db").unlink()

    # The lie is prepared only now: it is not told from a real copy by being older than the question.
    stranger.answer = lambda: says(lie(backups, victim))
    assert backed_up(stranger) == 1
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.startswith("avicenna-live: ")
    assert printed.err.count("\n") == 1
    assert victim.read_bytes() == CONTENT
    assert (data / "jwt.key").read_bytes() == key
    assert not Path("copy.db").exists()
    if lie is not a_directory_that_is_a_link:
        assert (backups / "older.db").read_bytes() == CONTENT


def test_a_backup_that_was_there_before_is_not_taken_for_a_new_one(
    data: Path, stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    older = data / "backups" / "older.db"
    older.parent.mkdir()
    older.write_bytes(CONTENT)
    stranger.answer = lambda: says(older)
    assert backed_up(stranger) == 1
    assert "not a copy it has just made" in capsys.readouterr().err
    assert older.read_bytes() == CONTENT
    assert not Path("copy.db").exists()


def writes_a_copy(data: Path, digest: str = DIGEST) -> Callable[[], tuple[int, object]]:
    """A server that does what it says, as far as the file goes."""

    def answer() -> tuple[int, object]:
        made = data / "backups" / "made.db"
        made.parent.mkdir(exist_ok=True)
        made.write_bytes(CONTENT)
        return says(made, digest)

    return answer


def test_a_copy_is_moved_out_of_the_servers_directory(
    data: Path, stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.answer = writes_a_copy(data)
    assert cli.main(["backup", "copy.db", "--url", stranger.url, "--json"]) == 0
    assert json.loads(capsys.readouterr().out) == {"path": "copy.db", "bytes": len(CONTENT), "sha256": DIGEST}
    assert Path("copy.db").read_bytes() == CONTENT
    assert Path("copy.db").stat().st_mode & 0o777 == 0o600
    assert list((data / "backups").iterdir()) == []


def test_a_copy_that_is_not_what_the_server_says_leaves_nothing_behind(
    data: Path, stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.answer = writes_a_copy(data, "0" * 64)
    assert backed_up(stranger) == 1
    assert "is not what the server says" in capsys.readouterr().err
    assert not Path("copy.db").exists()
    assert list((data / "backups").iterdir()) == []


def test_a_copy_that_cannot_be_written_leaves_nothing_behind(
    data: Path, stranger: Stranger, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object) -> int:
        raise OSError(28, "No space left on device")

    stranger.answer = writes_a_copy(data)
    monkeypatch.setattr("web.commands.fetching.os.write", full)
    assert backed_up(stranger) == 1
    assert capsys.readouterr().err == "avicenna-live: cannot copy to copy.db: No space left on device\n"
    assert not Path("copy.db").exists()
    assert list((data / "backups").iterdir()) == []


@pytest.mark.parametrize("target", ["absent/copy.db", "data", "link.db"])
def test_a_copy_is_not_asked_for_where_it_could_not_be_put(target: str, data: Path, stranger: Stranger) -> None:
    Path("link.db").symlink_to("nowhere")
    assert cli.main(["backup", target, "--url", stranger.url]) == 1
    assert stranger.asked == []
    assert not Path("nowhere").exists()


@pytest.mark.parametrize("body", [[], {}, {"path": 1, "sha256": DIGEST}, {"path": "a"}, None, "text"])
def test_an_answer_that_is_none_is_one_line(
    body: object, data: Path, stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.answer = lambda: (200, body)
    assert backed_up(stranger) == 1
    assert cli.main(["check", "--url", stranger.url]) == 1
    assert capsys.readouterr().err.count("is it an avicenna-live server?\n") == 2
    assert not Path("copy.db").exists()


def test_a_server_of_another_directory_is_not_asked_for_a_copy_nobody_could_fetch(
    data: Path, stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.answer = lambda: (200, {"status": "ok"})
    assert cli.main(["backup", "copy.db", "--url", stranger.url, "--data", "absent"]) == 1
    assert stranger.asked == [("GET", "/healthz")]
    assert "there is no absent/listening.json: name the server's data directory with" in capsys.readouterr().err
    (data / "listening.json").unlink()
    assert cli.main(["backup", "copy.db", "--url", stranger.url]) == 1
    assert stranger.asked == [("GET", "/healthz")] * 2
    assert not Path("copy.db").exists()


def test_a_directory_that_cannot_be_looked_into_is_named_before_a_copy_is_made(
    data: Path, stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    (data / "backups").symlink_to(data)
    assert backed_up(stranger) == 1
    assert stranger.asked == []
    assert capsys.readouterr().err == "avicenna-live: cannot open data/backups: it is a symbolic link\n"


def test_a_copy_in_the_directory_of_another_server_is_named(
    data: Path, stranger: Stranger, capsys: pytest.CaptureFixture[str]
) -> None:
    stranger.answer = lambda: says("/elsewhere/backups/made.db")
    assert backed_up(stranger) == 1
    assert "the server wrote its copy to /elsewhere/backups/made.db: name its data dir" in capsys.readouterr().err


@pytest.mark.parametrize("argv", [["check"], ["backup", "copy.db"]], ids=" ".join)
@pytest.mark.parametrize("has_data", [True, False])
@pytest.mark.parametrize("by_variable", [True, False])
def test_a_url_where_nobody_answers_is_exit_code_3_whatever_lies_here(
    argv: list[str],
    has_data: bool,
    by_variable: bool,
    data: Path,
    unused_url: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if has_data:
        (data / "avicenna.db").touch()
    else:
        monkeypatch.setenv("AVICENNA_DATA", "absent")
    if by_variable:
        monkeypatch.setenv("AVICENNA_URL", unused_url)
    assert cli.main([*argv, *(() if by_variable else ("--url", unused_url))]) == 3
    assert capsys.readouterr().err == f"avicenna-live: cannot reach {unused_url}: Connection refused\n"
    assert not Path("copy.db").exists()
