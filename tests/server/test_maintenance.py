"""Backup, check and restore, with and without a running server."""

from __future__ import annotations

import hashlib
import json
import shlex
import sqlite3
from contextlib import closing
from pathlib import Path

import pytest
import trio

from storage.disk import files
from tests.server.harness import Server, running_server
from tests.server.process import run, served
from web.server.composition import CONNECTIONS_SECONDS_MAX, serve
from web.server.settings import Settings


async def test_backup_and_check_answer_and_leave_a_row_each(server: Server) -> None:
    await server.register()
    await server.publish(1)
    headers = server.bearer("op", "operate")
    made = (await server.http.post("/backup", headers=headers)).json()
    content = Path(made["path"]).read_bytes()
    assert (len(content), hashlib.sha256(content).hexdigest()) == (made["bytes"], made["sha256"])
    assert Path(made["path"]).parent == server.data / "backups"
    assert (await server.http.post("/check", headers=headers)).json() == {"status": "ok", "problems": []}
    # The audit rows of these two acts are in the next copy, which nobody holds locked; so is that of the copy itself.
    copy = (await server.http.post("/backup", headers=headers)).json()
    with closing(sqlite3.connect(copy["path"])) as db:
        rows = db.execute("SELECT who, what FROM audit WHERE what LIKE 'database.%' ORDER BY number").fetchall()
    assert rows == [("op", "database.backup"), ("op", "database.check"), ("op", "database.backup")]
    assert (await server.http.post("/backup", headers=server.bearer("amira"))).status_code == 403
    assert (await server.http.post("/check")).status_code == 401


@pytest.mark.parametrize("act", ["backup", "check"])
async def test_a_drain_interrupts_a_copy_and_leaves_nothing_of_it(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, act: str
) -> None:
    monkeypatch.setattr("storage.sqlite.stepping.PAGES_PER_STEP", 4)
    monkeypatch.setattr("storage.sqlite.copying.PAUSE_SECONDS_MAX", 3600)
    monkeypatch.setattr("storage.sqlite.copying.PAUSE_SECONDS_MIN", 3600)
    answers = []
    async with running_server(settings) as server:
        await server.register()

        async def ask() -> None:
            answers.append(await server.http.post(f"/{act}", headers=server.bearer("op", "operate")))

        with trio.fail_after(CONNECTIONS_SECONDS_MAX - 1):
            async with trio.open_nursery() as nursery:
                nursery.start_soon(ask)
                while not (found := [*settings.data.rglob(".*.unfinished")]):
                    await trio.sleep(0.01)
                assert len(found) == 1
                # Others go on meanwhile.
                assert (await server.publish(1)).status_code == 200
                server.stop()
    assert (answers[0].status_code, answers[0].json()["code"]) == (503, "draining")
    assert [*settings.data.rglob("*check*"), *settings.data.rglob("*avicenna-*")] == []


async def test_what_a_killed_backup_left_is_removed_by_the_next_start(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    left = [settings.data / "backups" / ".avicenna-1.db.unfinished", settings.data / ".check-1.db.unfinished"]
    (settings.data / "backups").mkdir(parents=True, mode=0o700)
    whole = settings.data / "backups" / "avicenna-2.db"
    for one in (*left, whole):
        one.write_bytes(b"some")
    async with running_server(settings):
        pass
    assert [one for one in (*left, whole) if one.exists()] == [whole]
    said = [record.getMessage() for record in caplog.records if "removed" in record.getMessage()]
    assert sorted(said) == sorted(f"removed {one}: the process that wrote it was killed" for one in left)


async def test_commands_work_beside_a_server_and_without_one(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data) as (process, server):
        at = ("--data", data, "--url", server.url)
        await server.register()
        first = (await server.publish(1)).json()
        assert await run("check", *at) == (0, "ok\n", "")
        assert (await run("backup", tmp_path / "copy.db", *at))[0] == 0
        assert list((data / "backups").iterdir()) == []
        code, _, said = await run("restore", tmp_path / "copy.db", "--data", data)
        assert code == 1
        assert "in use" in said
        await server.publish(2)
        assert await process.stop() == 0
    assert (tmp_path / "copy.db").stat().st_mode & 0o777 == 0o600
    assert await run("check", "--data", data) == (0, "ok\n", "")
    code, said, _ = await run("backup", tmp_path / "second.db", "--data", data, "--json")
    assert code == 0
    assert json.loads(said)["bytes"] == (tmp_path / "second.db").stat().st_size
    assert (await run("restore", tmp_path / "copy.db", "--data", data))[0] == 0
    async with served(data) as (process, server):
        async with server.connect(device="phone", after=2, epoch=first["epoch"]) as client:
            frames = await client.until_live()
        again = (await server.publish(3)).json()
        assert await process.stop() == 0
    assert frames[0]["data"]["resume"] == "reset"
    assert again["seq"] == 2
    assert again["epoch"] != first["epoch"]


async def test_a_command_without_a_database_makes_none(tmp_path: Path) -> None:
    code, _, said = await run("check", "--data", tmp_path)
    assert code == 1
    assert "no database" in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.guarantee(9)
async def test_an_idempotency_key_holds_across_kill_9_and_restart(tmp_path: Path) -> None:
    data, key = tmp_path / "data", {"Idempotency-Key": "k-1"}
    body = {"diagnosis_id": 42, "feedback_id": 1, "rating": 5}
    async with served(data) as (process, server):
        await server.register()
        first = (await server.post("feedback", body, **key)).json()
        await process.kill()
    async with served(data) as (process, server):
        second = (await server.post("feedback", body, **key)).json()
        other = await server.post("feedback", {**body, "rating": 4}, **key)
        assert await process.stop() == 0
    assert (first["seq"], first["replayed"], second["seq"], second["replayed"]) == (1, False, 1, True)
    assert (other.status_code, other.json()["code"]) == (409, "key_reused")


@pytest.mark.parametrize("file", ["avicenna.db", "avicenna.db-wal"])
async def test_a_server_whose_files_are_taken_away_ends_with_exit_code_1(tmp_path: Path, file: str) -> None:
    data = tmp_path / "data"
    async with served(data) as (process, server):
        await server.register()
        (data / file).rename(tmp_path / "elsewhere")
        with trio.fail_after(30):
            assert await process.process.wait() == 1


@pytest.mark.parametrize("is_empty", [True, False])
async def test_a_key_without_its_database_refuses_to_start_until_one_is_made_on_purpose(
    tmp_path: Path, is_empty: bool
) -> None:
    data = tmp_path / "my data"
    async with served(data) as (process, server):
        await server.register()
        assert await process.stop() == 0
    (data / "avicenna.db").rename(data / "avicenna.db.damaged")
    if is_empty:
        (data / "avicenna.db").touch(mode=0o600)
    code, _, said = await run("serve", "--port", "0", "--data", data)
    assert code == 2
    (line,) = said.splitlines()
    assert f"there is no database in {data}, though its key is there" in line
    assert f"avicenna-live restore FILE --data '{data}'" in line
    assert f"A former one is kept: {data / 'avicenna.db.damaged'}. " in line
    command = shlex.split(line[line.index("avicenna-live new-database") :])
    assert command[0] == "avicenna-live"
    assert files.size_of(data / "avicenna.db") == 0
    key = (data / "jwt.key").read_bytes()
    assert (await run(*command[1:])) == (0, f"made an empty database, {data / 'avicenna.db'}\n", "")
    code, _, said = await run(*command[1:])
    assert (code, "is there already" in said) == (1, True)
    async with served(data) as (process, server):
        assert (await server.status())["total_diagnoses"] == 0
        assert await process.stop() == 0
    assert (data / "jwt.key").read_bytes() == key


async def test_a_first_start_that_is_cut_off_before_its_key_is_there_is_gone_on_with(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    with monkeypatch.context() as patched:
        patched.setattr(
            "web.identity.keyring.secrets.token_bytes", lambda _: (_ for _ in ()).throw(OSError(28, "full"))
        )
        with pytest.RaisesGroup(OSError, flatten_subgroups=True, allow_unwrapped=True):
            await serve(settings, ready=lambda _: None, stopping=trio.Event())
    assert not (settings.data / "jwt.key").exists()
    assert files.size_of(settings.data / "avicenna.db") > 0
    async with running_server(settings) as server:
        assert (await server.register()).status_code == 201


async def test_a_database_that_must_exist_is_not_begun_in_an_empty_directory(tmp_path: Path) -> None:
    data = tmp_path / "data"
    config = tmp_path / "settings.toml"
    config.write_text("database_must_exist = true\n")
    variables = {"AVICENNA_DATABASE_MUST_EXIST": "true"}
    for _ in range(2):
        code, _, said = await run("serve", "--port", "0", "--data", data, **variables)
        assert (code, said.count("\n")) == (2, 1)
        assert f"there is no database in {data}, and database_must_exist is set" in said
        assert f"avicenna-live new-database --data {data}" in said
        data.mkdir(mode=0o700, exist_ok=True)
    assert (await run("token", "--sub", "a", "--data", data, **variables))[0] == 1
    assert list(data.iterdir()) == []
    assert (await run("new-database", "--data", data, **variables))[0] == 0
    assert (await run("token", "--sub", "a", "--data", data, **variables))[0] == 0
    async with served(data, "--config", str(config)) as (process, _):
        assert await process.stop() == 0
