"""The commands beside real servers: found by what a server says of itself, by a Unix socket, or not at all."""

from __future__ import annotations

import json
import os
import stat
from pathlib import Path

import pytest
import trio

from tests.server.process import COMMAND, run, served

EVERY_COMMAND = (
    ("diagnoses", "add", "7", "--owner", "o"),
    ("diagnoses", "list"),
    ("diagnoses", "remove", "7"),
    ("publish", "feedback", "42", "--feedback-id", "1", "--rating", "5"),
    ("tail", "42", "--count", "1"),
    ("actors", "list"),
    ("actors", "show", "42"),
    ("actors", "restart", "42"),
    ("actors", "stop", "42"),
    ("status",),
    ("check",),
    ("backup", "copy.db"),
)


@pytest.fixture(autouse=True)
def _in_an_empty_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONFIG", "URL", "TOKEN", "DATA"):
        monkeypatch.delenv(f"AVICENNA_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


async def test_every_command_finds_the_server_of_its_data_directory_and_may_do_its_work(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data) as (process, server):
        file = data / "listening.json"
        assert stat.S_IMODE(file.stat().st_mode) == 0o600
        assert json.loads(file.read_text())["urls"] == [server.url]
        await server.register()
        for command in EVERY_COMMAND:
            code, _, said = await run(*command)
            assert code == 0, (command, said)
        assert (await run("status", "--json", "--data", data))[0] == 0
        assert (await run("status", AVICENNA_DATA=str(data)))[0] == 0
        assert await process.stop() == 0
    assert not file.exists()


async def test_every_command_speaks_over_a_unix_socket(tmp_path: Path) -> None:
    socket, data = tmp_path / "live.sock", tmp_path / "data"
    async with served(data, AVICENNA_UNIX_SOCKET=str(socket)) as (_, server):
        await server.register()
        token = server.token("op", "operate")
        for command in EVERY_COMMAND:
            options = ("--url", f"unix:{socket}", "--data", data)
            code, _, said = await run(*command, *options, AVICENNA_TOKEN=token)
            assert code == 0, (command, said)
        assert json.loads((data / "listening.json").read_text())["urls"] == [server.url, f"unix:{socket}"]


@pytest.mark.one_process("of a killed parent the other processes close the database in order")
async def test_what_a_killed_server_left_behind_misleads_nobody(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data) as (process, server):
        await process.kill()
    left = (data / "listening.json").read_text()
    assert server.url in left
    async with served(tmp_path / "other", "--port", server.url.rpartition(":")[2]) as (_, other):
        assert other.url == server.url
        # The port is another server's now: the database is looked at here, and the other server is not asked.
        code, found, said = await run("check", "--data", data)
        assert (code, found) == (0, "ok\n")
        assert "was not closed in order" in said
    async with served(data) as (process, server):
        assert (await run("status", "--data", data))[0] == 0
        assert await process.stop() == 0
    assert not (data / "listening.json").exists()


async def test_a_server_that_is_named_is_asked_whatever_lies_here(tmp_path: Path) -> None:
    async with served(tmp_path / "data") as (process, server):
        await server.register()
        assert await process.stop() == 0
    async with served(tmp_path / "other") as (_, other):
        operator = {"AVICENNA_TOKEN": other.token("op", "operate")}
        assert (await run("check", "--url", other.url, **operator))[:2] == (0, "ok\n")
        # Its copy is not in the directory here: it is not fetched, and no other one is made in its place.
        code, _, said = await run("backup", "copy.db", "--url", other.url, **operator)
        assert code == 1
        assert "name the server's data directory with --data" in said
        assert not (tmp_path / "copy.db").exists()
        assert not (tmp_path / "other" / "backups").exists()
        code, _, said = await run("check", "--url", other.url)
        assert code == 4
        assert "the token was made with the key data/jwt.key" in said
        code, _, said = await run("tail", "42", "--url", other.url)
        assert code == 4
        assert "the connection ended: 1008 invalid token (the token was made with the key data/jwt.key" in said


async def test_a_server_that_does_not_say_where_it_listens_is_not_taken_for_another(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data) as (process, _):
        (data / "listening.json").unlink()
        for command in (("check",), ("backup", "copy.db")):
            code, _, said = await run(*command, "--data", data)
            assert code == 3
            assert f"another process uses the database, and there is no {data}/listening.json" in said
        assert await process.stop() == 0
    assert not (tmp_path / "copy.db").exists()


async def test_a_backup_leaves_nothing_in_the_servers_directory_when_it_fails(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data) as (process, server):
        at = ("--data", data, "--url", server.url)
        for target in ("absent/copy.db", "data"):
            assert (await run("backup", target, *at))[0] == 1
        assert not (data / "backups").exists()
        assert await process.stop() == 0


async def test_a_server_that_cannot_say_where_it_listens_serves_all_the_same(tmp_path: Path) -> None:
    data = tmp_path / "data"
    (data / "listening.json").mkdir(parents=True)
    async with served(data) as (process, server):
        assert (await server.register()).status_code == 201
        assert await process.stop() == 0


async def test_a_token_travels_in_a_pipe(tmp_path: Path) -> None:
    async with served(tmp_path / "data") as (_, server):
        await server.register()
        await server.publish()
        line = f"{COMMAND} token --sub amira | {COMMAND} tail 42 --count 1 --token-file -"
        with trio.fail_after(60):
            done = await trio.run_process(["sh", "-c", line], capture_stdout=True, env=os.environ)
    assert b"#1" in done.stdout
