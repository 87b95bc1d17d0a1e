"""Files of secrets: which bytes of them count, and how the local key comes to lie in the data directory."""

from __future__ import annotations

import errno
import os
import stat
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import trio

from storage.disk import files
from tests.server.harness import begin
from tests.server.process import run, served
from web import cli
from web.identity.keyring import load_keys, load_or_create_key
from web.identity.keys import KeySpec, KeyUnusable
from web.identity.tokens import issue
from web.server.settings import Settings

TEXT = "a secret that is text, and long enough"
SECRET = TEXT.encode()


@pytest.mark.parametrize(
    ("content", "oddity"),
    [
        (SECRET + b" ", "ends with blanks or newlines"),
        (SECRET + b"  \n", "ends with blanks or newlines"),
        (SECRET + b"\t\r\n", "ends with blanks or newlines"),
        (SECRET + b"\n\n", "ends with blanks or newlines"),
        ("\u06a9\u0644\u06cc\u062f".encode() * 8 + b"\n", "ends with blanks or newlines"),
        (b"\xef\xbb\xbf" + SECRET, "begins with a byte order mark"),
        (b"\xef\xbb\xbf" + SECRET + b"\n", "begins with a byte order mark"),
        (TEXT.encode("utf-16") + b"\n\0", "begins with a byte order mark"),
        (TEXT.encode("utf-16-le"), "is UTF-16"),
        (f"{TEXT}\n".encode("utf-16-be"), "is UTF-16"),
    ],
)
def test_a_secret_with_invisible_bytes_counts_byte_for_byte_and_is_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes, oddity: str
) -> None:
    configured, local = tmp_path / "configured", tmp_path / "jwt.key"
    for file in (configured, local):
        file.write_bytes(content)
        file.chmod(0o600)
    keys = load_keys(Settings(data=tmp_path, token_keys=(KeySpec("HS256", configured, "k"),)))
    assert [key.material for key in keys] == [content, content]
    assert [(record.levelname, record.getMessage()) for record in caplog.records] == [
        ("WARNING", f"the key file {file} {oddity}: it counts byte for byte as it stands")
        for file in (configured, local)
    ]


@pytest.mark.parametrize("content", [SECRET, SECRET + b"\n", SECRET + b"\r\n", b"\x00" * 31 + b"\n", b" " + SECRET])
def test_a_secret_without_any_is_not_warned_about(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, content: bytes
) -> None:
    file = tmp_path / "configured"
    file.write_bytes(content)
    file.chmod(0o600)
    load_keys(Settings(data=tmp_path / "data", token_keys=(KeySpec("HS256", file, "k"),)))
    assert caplog.records == []


async def test_a_server_verifies_with_every_byte_of_such_a_file(tmp_path: Path) -> None:
    key = tmp_path / "secret"
    key.write_bytes(b"\xef\xbb\xbf" + SECRET + b" \n")
    key.chmod(0o600)
    begin(tmp_path / "data")
    async with served(tmp_path / "data", AVICENNA_TOKEN_KEYS=f"HS256:{key}#k") as (process, server):
        token = issue(key.read_bytes(), sub="a", scope="", ttl_seconds=60, now=time.time(), token_id="t", kid="k")
        answer = await server.http.get("/ws/status", headers={"Authorization": f"Bearer {token}"})
        assert answer.status_code == 200
        assert await process.stop() == 0


# The local key


def test_the_local_key_is_private_and_nothing_else_is_left_behind(tmp_path: Path) -> None:
    key, is_made = load_or_create_key(tmp_path / "data")
    assert is_made
    assert [path.name for path in (tmp_path / "data").iterdir()] == ["jwt.key"]
    assert (tmp_path / "data" / "jwt.key").read_bytes() == key
    assert stat.S_IMODE((tmp_path / "data" / "jwt.key").stat().st_mode) == 0o600
    assert load_or_create_key(tmp_path / "data") == (key, False)


class Killed(BaseException):
    """Stands for SIGKILL."""


@pytest.mark.parametrize("call", ["write", "fsync", "link"])
def test_a_start_that_is_killed_while_it_makes_the_key_leaves_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def die(*_: Any, **__: Any) -> None:
        assert not (tmp_path / "jwt.key").exists()
        raise Killed

    with monkeypatch.context() as patched:
        if call == "write":
            patched.setattr(os, "fdopen", die)
        else:
            patched.setattr(os, call, die)
        with pytest.raises(Killed):
            load_or_create_key(tmp_path)
    assert not (tmp_path / "jwt.key").exists()
    assert load_or_create_key(tmp_path)[1]


def test_a_key_that_may_not_be_read_is_named_with_the_command_that_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    load_or_create_key(tmp_path)

    def forbid(*_: object, **__: object) -> None:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(Path, "open", forbid)
    with pytest.raises(KeyUnusable, match=f"cannot read {tmp_path}/jwt.key: Permission denied; .*chown {os.getuid()} "):
        load_keys(Settings(data=tmp_path))


def test_what_a_killed_start_left_behind_is_removed_by_the_next_and_nothing_else(tmp_path: Path) -> None:
    left = [tmp_path / f".jwt.key.{letter * 16}" for letter in "0f"]
    others = [tmp_path / name for name in (".jwt.key.bak", ".jwt.key", "jwt.key." + "0" * 16, ".jwtxkey." + "0" * 16)]
    for is_made in (True, False):
        for path in (*left, *others):
            path.write_bytes(b"x")
        assert load_or_create_key(tmp_path)[1] is is_made
        assert set(tmp_path.iterdir()) == {tmp_path / "jwt.key", *others}


def test_the_key_and_the_directory_are_on_disk_before_a_token_can_be_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    synced: list[str] = []

    def fsync(descriptor: int) -> None:
        path = Path(f"/proc/self/fd/{descriptor}").readlink()
        synced.append(str(path.relative_to(tmp_path)) if path.is_dir() else f"{path.stat().st_size} bytes")

    monkeypatch.setattr(os, "fsync", fsync)
    load_or_create_key(tmp_path / "new" / "data")
    assert set(synced[:2]) == {"new", "."}
    assert synced[2:] == ["32 bytes", "new/data"]


def test_a_file_system_without_hard_links_will_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def link(*_: Any, **__: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    monkeypatch.setattr(os, "link", link)
    key, is_made = load_or_create_key(tmp_path)
    assert is_made
    assert (tmp_path / "jwt.key").read_bytes() == key
    assert not files.put_in_place(tmp_path / "jwt.key", b"another")
    assert [path.name for path in tmp_path.iterdir()] == ["jwt.key"]
    assert load_or_create_key(tmp_path) == (key, False)


def test_a_key_that_cannot_be_made_is_named_as_it_would_be(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fsync(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(os, "fsync", fsync)
    with pytest.raises(OSError, match=r"No space left on device: '.*/jwt\.key'$"):
        load_or_create_key(tmp_path)
    assert list(tmp_path.iterdir()) == []


def test_starts_that_race_agree_on_one_key(tmp_path: Path) -> None:
    for round_number in range(20):
        directory, together = tmp_path / str(round_number), threading.Barrier(8)
        found: list[tuple[bytes, bool]] = []

        def start(directory: Path = directory, together: threading.Barrier = together) -> None:
            together.wait()
            found.append(load_or_create_key(directory))  # noqa: B023 - joined below

        threads = [threading.Thread(target=start) for _ in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert len({key for key, _ in found}) == 1
        assert [is_made for _, is_made in found].count(True) == 1
        assert len(found) == 8


@pytest.mark.parametrize(("content", "said"), [(b"", "is empty"), (b"short", "has 5 bytes"), (b"x" * 70_000, "large")])
async def test_a_local_key_that_is_none_is_named_and_the_command_that_helps_helps(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], content: bytes, said: str
) -> None:
    data = tmp_path / "my data"
    data.mkdir(mode=0o700)
    key = data / "jwt.key"
    key.write_bytes(content)
    code, _, stderr = await run("serve", "--port", "0", "--data", data)
    assert (code, stderr.count("\n")) == (2, 1)
    assert f"cannot start: {key} " in stderr
    assert said in stderr
    command = stderr.strip().partition("make a new one: ")[2]
    assert command == f"rm '{key}'"
    for arguments in (["token", "--sub", "a"], ["status"]):
        assert cli.main([*arguments, "--data", str(data)]) != 0
        assert str(key) in capsys.readouterr().err
    await trio.run_process(command, shell=True)
    async with served(data) as (process, _):
        assert await process.stop() == 0
    with pytest.raises(KeyUnusable):
        key.write_bytes(content)
        load_or_create_key(data)
