"""The commands of an operator, each typed at a real server."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import trio

from tests.logbook import Logbook
from tests.server.harness import Server
from tests.server.process import COMMAND, run, served
from web.server.listening_file import LISTENING_FILE, NotListening, announced, listening_process


@pytest.fixture(autouse=True)
def _in_an_empty_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("CONFIG", "URL", "TOKEN", "DATA"):
        monkeypatch.delenv(f"AVICENNA_{name}", raising=False)
    monkeypatch.chdir(tmp_path)


async def said(server: Server, *arguments: str) -> str:
    """What a command prints that succeeds."""
    code, out, aside = await run(*arguments, "--url", server.url, "--data", server.data)
    assert code == 0, aside
    return out


async def told(server: Server, *arguments: str) -> Any:
    return json.loads(await said(server, *arguments, "--json"))


async def test_an_outbox_is_shown_without_its_payload_unless_that_is_asked_for(server: Server) -> None:
    await server.register()
    for number in range(1, 4):
        await server.publish(number, comment="slept well")
    shown = await said(server, "outbox", "42")
    assert [line.split()[0] for line in shown.splitlines()] == ["SEQ", "1", "2", "3"]
    assert "slept" not in shown
    assert "slept well" in await said(server, "outbox", "42", "--payload", "--after", "2")
    events = await told(server, "outbox", "42", "--after", "1", "--limit", "1")
    assert [(one["seq"], "data" in one) for one in events] == [(2, False)]
    assert await told(server, "outbox", "42", "--type", "recommendation_update") == []
    assert [row["after"]["first"] for row in await told(server, "audit", "--action", "outbox.read")] == [3]
    with_payload = await told(server, "outbox", "42", "--payload")
    assert [one["data"]["feedback_id"] for one in with_payload] == [1, 2, 3]


async def test_the_delivery_of_an_event_names_who_has_it(server: Server) -> None:
    await server.register(42, "amira", "farid")
    async with server.live(sub="farid", device="phone", ack="app") as client:
        await server.publish()
        await client.next_of("feedback_update")
        (pending,) = await told(server, "delivery", "42", "1")
        await client.say(type="ack", seq=1)
        await client.next_of("acked")
        (done,) = await told(server, "delivery", "42", "1", "--state", "acknowledged")
        text = await said(server, "delivery", "42", "1", "--user", "farid")
        assert await told(server, "delivery", "42", "1", "--user", "amira") == []
    assert (pending["state"], done["state"], done["acknowledged_by"]) == ("written", "acknowledged", "app")
    assert text.splitlines()[1].split()[:4] == ["farid", "phone", "yes", "acknowledged"]


async def test_a_purge_drops_what_is_retained(server: Server) -> None:
    await server.register()
    await server.publish()
    assert "nothing up to #1 is retained" in await said(server, "purge", "42", "--yes")
    assert await told(server, "outbox", "42") == []
    assert (await told(server, "purge", "42", "--yes"))["floor"] == 1


async def test_a_subscriber_is_disconnected_and_forgotten(server: Server) -> None:
    await server.register(42, "amira", "farid")
    async with server.live(sub="farid", device="phone") as client:
        done = await said(server, "disconnect", "42", "--sub", "farid", "--device", "phone")
        assert done == "diagnosis 42: 1 connections of farid (phone) ended\n"
        assert (await client.close_frames())[1:] == (1008, "disconnected by operator")
    assert await told(server, "disconnect", "42", "--anonymous") == {"disconnected": 0, "forgotten": 0}
    assert (await told(server, "disconnect", "42", "--sub", "farid", "--forget", "--yes"))["forgotten"] == 1


async def test_tokens_are_revoked_listed_and_accepted_again(server: Server) -> None:
    await server.register()
    assert (await told(server, "revoke", "--sub", "amira"))["id"] == 1
    assert (await said(server, "revoke", "--jti", "visit-7")).startswith("revocation 2: the token visit-7 is refused")
    headers = server.bearer("amira")
    assert (await server.http.get("/diagnoses/42/position", headers=headers)).status_code == 401
    assert [one["id"] for one in await told(server, "revocations")] == [1, 2]
    assert [one["id"] for one in await told(server, "revocations", "--jti", "visit-7")] == [2]
    assert [one["id"] for one in await told(server, "revocations", "--after", "1")] == [2]
    assert "amira" in await said(server, "revocations", "--sub", "amira")
    assert (await said(server, "revocations", "--lift", "1")).startswith("revocation 1 lifted")
    assert (await server.http.get("/diagnoses/42/position", headers=headers)).status_code == 200


async def test_a_person_is_erased(server: Server) -> None:
    await server.register(42, "amira", "farid")
    code, out, aside = await run("erase", "amira", "--yes", "--url", server.url, "--data", server.data)
    assert code == 0
    assert out.startswith("amira erased: 0 connections ended, 0 positions, 0 entries as a viewer, 1 audit rows")
    assert aside == "1 diagnoses still name it their owner: 42\n"
    assert (await told(server, "erase", "/C=DE/CN=Ann b", "--yes"))["owned_total"] == 0


async def test_a_server_is_drained(tmp_path: Path) -> None:
    async with served(tmp_path / "data") as (process, server):
        code, out, _ = await run("drain", "--yes")
        assert (code, out) == (0, f"the server at {server.url} is draining, and ends within 10 s\n")
        with trio.fail_after(15):
            assert await process.process.wait() == 0


async def test_a_server_is_told_to_reload(tmp_path: Path) -> None:
    logbook = Logbook()
    async with served(tmp_path / "data", logbook=logbook) as (process, _):
        code, out, _ = await run("reload")
        assert (code, out) == (0, f"process {process.process.pid} reloads: its log says what came of it\n")
        with trio.fail_after(15):
            while "keys read anew: 1" not in "".join(logbook.lines):
                await trio.sleep(0.01)
        code, out, _ = await run("reload", "--json")
        assert (code, json.loads(out)) == (0, {"status": "reloading", "pid": process.process.pid})
        assert await process.stop() == 0
    code, out, aside = await run("reload")
    assert (code, out, "no server runs on data" in aside) == (3, "", True)


@pytest.mark.parametrize("pid", ["no number", True, 0, 1, -5, None])
def test_a_file_that_names_no_process_has_nobody_told_to_reload(pid: object, tmp_path: Path) -> None:
    with announced(tmp_path, ["http://192.0.2.7:1"]):
        (tmp_path / LISTENING_FILE).write_text(json.dumps({"urls": ["http://192.0.2.7:1"], "pid": pid}))
        with pytest.raises(NotListening, match="which process"):
            listening_process(tmp_path)


def test_a_file_that_names_somebody_elses_process_has_nobody_told_to_reload(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with announced(tmp_path, ["http://192.0.2.7:1"]):
        assert listening_process(tmp_path) == os.getpid()
        monkeypatch.setattr("web.server.listening_file._owner_of", lambda process: os.geteuid() + 1)
        with pytest.raises(NotListening, match="another user's"):
            listening_process(tmp_path)


async def test_nothing_is_destroyed_where_nobody_can_be_asked(tmp_path: Path) -> None:
    async with served(tmp_path / "data") as (process, server):
        await server.register()
        await server.publish()
        for command in (
            ("purge", "42"),
            ("erase", "amira"),
            ("drain",),
            ("disconnect", "42", "--sub", "amira", "--forget"),
        ):
            code, out, aside = await run(*command)
            assert (code, out) == (2, ""), command
            assert "give --yes" in aside
        # Nothing but the registration was done.
        acts = (await server.http.get("/audit", headers=server.bearer("op", "operate"))).json()["items"]
        assert [one["action"] for one in acts] == ["diagnosis.register"]
        assert await process.stop() == 0


async def test_lists_are_filtered_and_go_on_where_they_ended(server: Server) -> None:
    for number in range(1, 6):
        await server.register(f"ward-{number}", "amira" if number % 2 else "bo", "farid")
    at = ("--url", server.url, "--data", server.data)
    code, out, aside = await run("actors", "list", "--limit", "2", "--json", *at)
    assert [one["diagnosis_id"] for one in json.loads(out)] == ["ward-1", "ward-2"]
    assert (code, aside) == (0, "there are more than these 2: raise --limit, or go on with --after ward-2\n")
    code, out, aside = await run("actors", "list", "--limit", "3", "--after", "ward-2", "--json", *at)
    assert [one["diagnosis_id"] for one in json.loads(out)] == ["ward-3", "ward-4", "ward-5"]
    assert (code, aside) == (0, "")
    assert [one["diagnosis_id"] for one in await told(server, "diagnoses", "list", "--owner", "bo")] == [
        "ward-2",
        "ward-4",
    ]
    assert len(await told(server, "diagnoses", "list", "--viewer", "farid", "--search", "WARD-5")) == 1
    assert await told(server, "actors", "list", "--state", "quarantined") == []
    assert await told(server, "actors", "list", "--damaged") == []
    assert len(await told(server, "actors", "list", "--search", "ward-", "--state", "passive")) == 5


async def test_a_body_comes_from_a_file_or_from_standard_input(server: Server, tmp_path: Path) -> None:
    await server.register()
    (tmp_path / "old.json").write_text('{"herb":"mint"}')
    at = ("--url", server.url, "--data", str(server.data))
    with trio.fail_after(60):
        code, _, aside = await run("publish", "recommendation", "42", "--new-data", f"@{tmp_path}/old.json", *at)
        assert code == 0, aside
        line = "printf '{\"dose\": 1.50}' | avicenna-live publish recommendation 42 --new-data - --old-data @old.json"
        await trio.run_process(["sh", "-c", f"{line} {' '.join(at)}"], capture_stdout=True, env=_with_command())
    first, second = await told(server, "outbox", "42", "--payload")
    assert first["data"]["new_data"] == {"herb": "mint"}
    assert (second["data"]["new_data"], second["data"]["old_data"]) == ({"dose": 1.5}, {"herb": "mint"})


def _with_command() -> dict[str, str]:
    return os.environ | {"PATH": f"{COMMAND.parent}:{os.environ['PATH']}"}


async def test_a_dry_run_of_a_restoration_changes_nothing(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data) as (process, server):
        await server.register()
        assert (await run("backup", "copy.db"))[0] == 0
        code, out, _ = await run("restore", "copy.db", "--dry-run")
        assert code == 0
        assert "copy.db can be restored as data/avicenna.db" in out
        assert "a server uses the database now: stop it first" in out
        assert (await server.http.get("/readyz")).status_code == 200
        assert await process.stop() == 0
    before = {one.name: (one.stat().st_size, one.stat().st_ino) for one in data.iterdir()}
    code, out, _ = await run("restore", "copy.db", "--dry-run")
    assert (code, "the former database would be data/avicenna.db.replaced." in out) == (0, True)
    assert "stop it first" not in out
    Path("broken.db").write_bytes(Path("copy.db").read_bytes()[:20_000])
    code, out, aside = await run("restore", "broken.db", "--dry-run")
    assert (code, out) == (1, "")
    assert "broken.db" in aside
    assert {one.name: (one.stat().st_size, one.stat().st_ino) for one in data.iterdir()} == before
    code, _, _ = await run("restore", "copy.db", "--dry-run", "--data", "nowhere")
    assert (code, Path("nowhere").exists()) == (0, False)
