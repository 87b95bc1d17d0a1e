"""A diagnosis that is damaged on the disk: it alone is refused, and a command drops what is damaged."""

from __future__ import annotations

import json
import shutil
import sqlite3
from collections.abc import Awaitable, Callable
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import trio

from storage.sqlite import integrity, wal
from storage.sqlite.store import SqliteStore
from storage.store import Store
from tests.logbook import PAYLOAD_MARKER, Logbook
from tests.server.harness import Client, running_server
from tests.server.process import run, served
from tests.server.test_operators import get
from tests.storage.conftest import damage
from web.server.settings import Settings

DATABASE = "avicenna.db"


def comment(diagnosis_id: int, number: int) -> str:
    """The text of an event by which its bytes are found in the database."""
    return f"{PAYLOAD_MARKER}-{diagnosis_id}-{number}."


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data directory whose server was killed: events 1 to 6 of diagnosis 42 and 1 to 2 of 43, with a subscriber each.

    The events are in the database itself, not in its log.
    """
    data = tmp_path_factory.mktemp("kept") / "data"

    async def fill() -> None:
        async with served(data) as (process, server):
            for diagnosis_id, count in ((42, 6), (43, 2)):
                await server.register(diagnosis_id)
                for number in range(1, count + 1):
                    answer = await server.publish(number, diagnosis_id, comment=comment(diagnosis_id, number))
                    assert answer.status_code == 200
                async with server.live(diagnosis_id, device="phone", ack="app") as client:
                    await client.say(type="ack", seq=1)
                    await client.next_of("acked")
            assert await process.stop() == 0
        async with served(data) as (process, _):
            await process.kill()

    trio.run(fill)
    return data


@pytest.fixture
def killed(kept: Path, tmp_path: Path) -> Path:
    """A copy of it."""
    return Path(shutil.copytree(kept, tmp_path / "data"))


def flip(data: Path, diagnosis_id: int, number: int) -> None:
    """Flip one bit of the body of an event."""
    content = bytearray((data / DATABASE).read_bytes())
    content[content.index(comment(diagnosis_id, number).encode())] ^= 1
    (data / DATABASE).write_bytes(content)


async def eventually(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so."""
    with trio.fail_after(20):
        while not await is_so():
            await trio.sleep(0.02)


async def refused_client(client: Client) -> tuple[str, str, int, str]:
    """Code and detail of the `error`, code and reason of the close."""
    frames, code, reason = await client.close_frames()
    return frames[-1]["data"]["code"], frames[-1]["data"]["detail"], code, reason


@pytest.mark.guarantee(6)
async def test_after_a_kill_a_damaged_diagnosis_alone_is_refused_and_named(killed: Path) -> None:
    flip(killed, 42, 3)
    logbook = Logbook()
    problem = "diagnosis 42: event 3 fails its checksum; stop the server and run: avicenna-live check --drop-damaged 42"
    async with served(killed, logbook=logbook) as (process, server):
        async with server.live(43, device="phone") as other:
            for _ in range(2):
                refused = await server.publish(7, 42)
                assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
                assert refused.json()["detail"] == f"certainly not stored: {problem}"
                assert refused.headers["Retry-After"] == "60"
                async with server.connect(42, device="phone") as client:
                    assert await refused_client(client) == ("quarantined", problem, 1013, "quarantined")
            for path in ("/diagnoses/42/events", "/diagnoses/42/position"):
                answer = await server.http.get(path, headers=server.bearer("amira"))
                assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
                assert answer.json()["detail"] == problem
            stream = {**server.bearer("amira"), "Accept": "text/event-stream"}
            bye = (await server.http.get("/diagnoses/42/events", headers=stream)).text
            assert "retry: 60000" in bye
            assert '"code":1013,"reason":"try later"' in bye
            operator = server.bearer("op", "operate")
            restarted = await server.http.post("/actors/42/restart", headers=operator)
            assert (restarted.status_code, restarted.json()["detail"]) == (503, f"certainly not stored: {problem}")

            assert (await server.publish(3, 43)).json()["seq"] == 3
            assert (await other.next())["seq"] == 3
            assert (await server.http.get("/readyz")).status_code == 200

            actor = await get(server, "/actors/42")
            assert (actor["state"], actor["damage"]) == ("quarantined", "event 3 fails its checksum")
            assert (actor["head"], actor["floor"], actor["restarts"]) == (6, 3, 0)
            listed = (await get(server, "/actors"))["items"]
            assert [(one["diagnosis_id"], one["damage"], one["head"]) for one in listed] == [
                (42, "event 3 fails its checksum", 6),
                (43, None, 3),
            ]
            status = await server.status()
            assert status["damage_by_diagnosis"] == {"42": "event 3 fails its checksum"}
            assert status["total_diagnoses"] == 2
            mine = (await server.http.get("/ws/status", headers=server.bearer("basim"))).json()
            assert mine["damage_by_diagnosis"] == {}

            checked = await run("check", "--data", killed)
            assert checked[:2] == (1, f"{problem}\n")
            copied = await run("backup", killed.parent / "copy.db", "--data", killed)
            assert copied[0] == 0
            code, said, complaint = await run("check", "--drop-damaged", "42", "--data", killed)
            assert (code, said) == (1, "")
            assert "in use by another server" in complaint
        assert await process.stop() == 0
    lines = "".join(logbook.lines).splitlines()
    (opened,) = [line for line in lines if "was not closed in order" in line]
    assert "its process was killed; its events are still to be checked" in opened
    (named,) = [line for line in lines if "event 3 fails its checksum" in line]
    assert named.endswith(problem)
    assert any("the events of 2 diagnoses were checked: damaged: 1" in line for line in lines)


@pytest.mark.guarantee(4)
async def test_what_is_damaged_is_dropped_and_followers_are_told_the_exact_gap(killed: Path) -> None:
    flip(killed, 42, 3)
    async with served(killed) as (process, server):
        epoch = (await get(server, "/actors/42"))["epoch"]
        await process.kill()
    code, said, complaint = await run("check", "--data", killed)
    assert (code, said.count("avicenna-live check --drop-damaged 42")) == (1, 1)
    code, said, complaint = await run(
        "check", "--drop-damaged", "42", "--drop-damaged", "43", "--drop-damaged", "nobody", "--data", killed
    )
    assert (code, complaint.count("Traceback")) == (1, 0)
    assert said.splitlines() == [
        "diagnosis 42: event 3 fails its checksum; dropped 3 events, left is 4 to 6; its numbers go on",
        "diagnosis 43 is not damaged; nothing was dropped",
        "diagnosis nobody is not registered",
    ]
    assert (await run("check", "--data", killed))[:2] == (0, "ok\n")
    code, said, _ = await run("check", "--json", "--drop-damaged", "42", "--data", killed)
    assert (code, json.loads(said)) == (
        0,
        [{"diagnosis_id": "42", "dropped": 0, "why": "diagnosis 42 is not damaged; nothing was dropped"}],
    )
    async with served(killed) as (process, server):
        assert (await server.publish(7, 42)).json()["seq"] == 7
        async with server.connect(42, device="phone") as client:
            frames = await client.until_live()
        assert (frames[0]["data"]["resume"], frames[0]["data"]["epoch"]) == ("partial", epoch)
        (gap,) = [frame["data"] for frame in frames if frame["type"] == "gap"]
        assert gap == {"from": 2, "to": 3, "count": 2, "reason": "evicted"}
        assert [frame["seq"] for frame in frames if "seq" in frame] == [4, 5, 6, 7]
        assert (await server.status())["damage_by_diagnosis"] == {}
        (row,) = (await get(server, "/audit?action=outbox.drop_damaged"))["items"]
        assert (row["actor"], row["target"], row["diagnosis_id"]) == ("avicenna-live", "42", 42)
        assert row["before"] == {"damage": "event 3 fails its checksum"}
        assert row["after"] == {"epoch": epoch, "head": 6, "floor": 3, "dropped": 3}
        await process.kill()


@pytest.mark.guarantee(2)
async def test_a_damaged_head_gets_a_new_epoch_and_followers_a_reset(killed: Path) -> None:
    assert (await run("check", "--data", killed))[0] == 0  # closes it in order: it can be changed without its log
    with closing(sqlite3.connect(killed / DATABASE, isolation_level=None)) as db:
        db.execute("INSERT OR REPLACE INTO head SELECT dx, 4, floor, purged FROM head WHERE dx = 1")
    async with served(killed) as (process, server):
        refused = await server.publish(7, 42)
        assert "its head 4 is below number 6, which was given" in refused.json()["detail"]
        operator = server.bearer("op", "operate")
        purged = await server.http.delete("/actors/42/outbox", headers=operator)
        assert (purged.status_code, purged.json()["code"]) == (503, "storage_unavailable")
        await process.kill()
    code, said, _ = await run("check", "--json", "--drop-damaged", "42", "--data", killed)
    (done,) = json.loads(said)
    assert (code, done["dropped"], done["head"], done["floor"], done["new_epoch"]) == (0, 0, 6, 0, True)
    async with served(killed) as (process, server):
        assert (await server.publish(7, 42)).json()["seq"] == 7
        async with server.connect(42, device="phone") as client:
            frames = await client.until_live()
        assert (frames[0]["data"]["resume"], frames[0]["data"]["epoch"]) == ("reset", done["epoch"])
        assert [frame["seq"] for frame in frames if "seq" in frame] == [1, 2, 3, 4, 5, 6, 7]
        await process.kill()


async def test_a_damaged_diagnosis_can_be_deleted_or_purged_while_the_server_runs(killed: Path) -> None:
    flip(killed, 42, 3)
    flip(killed, 43, 1)
    async with served(killed) as (process, server):
        operator = server.bearer("op", "operate")
        purged = await server.http.delete("/actors/42/outbox", headers=operator)
        assert (purged.status_code, purged.json()["head"], purged.json()["floor"]) == (200, 6, 6)
        assert (await server.publish(7, 42)).json()["seq"] == 7
        (row,) = (await get(server, "/audit?action=outbox.purge"))["items"]
        assert row["before"] == {"epoch": purged.json()["epoch"], "head": 6, "floor": 0}
        deleted = await server.http.delete("/diagnoses/43", headers=operator)
        assert deleted.status_code == 200
        await server.register(43)
        assert (await server.publish(1, 43)).json()["seq"] == 1
        assert (await server.status())["damage_by_diagnosis"] == {}
        await process.kill()


async def test_damage_of_a_diagnosis_sets_no_database_aside(killed: Path) -> None:
    flip(killed, 42, 3)
    async with served(killed, AVICENNA_DAMAGED_DATABASE="set_aside") as (process, server):
        assert (await server.publish(7, 42)).status_code == 503
        assert (await server.publish(3, 43)).status_code == 200
        await process.kill()
    assert not list(killed.glob("*.damaged*"))


async def test_dropping_is_not_for_a_server_that_is_named(killed: Path) -> None:
    code, said, complaint = await run("check", "--drop-damaged", "42", "--data", killed, "--url", "http://127.0.0.1:9")
    assert (code, said) == (2, "")
    assert "leave out --url, AVICENNA_URL" in complaint


class Gate:
    """Holds the check of all outboxes back."""

    def __init__(self) -> None:
        self.stores: list[Store] = []
        self.opened = trio.Event()


@pytest.fixture
def gate(monkeypatch: pytest.MonkeyPatch) -> Gate:
    """In front of the check of a server in this process."""
    found, look_through = Gate(), SqliteStore.look_through

    async def wait_and_look(store: SqliteStore) -> None:
        found.stores.append(store)
        await found.opened.wait()
        await look_through(store)

    monkeypatch.setattr(SqliteStore, "look_through", wait_and_look)
    return found


async def test_a_server_serves_before_anything_was_checked(
    killed: Path, gate: Gate, monkeypatch: pytest.MonkeyPatch
) -> None:
    judged: list[int] = []
    judge_some = integrity.judge_some

    def watched(db: sqlite3.Connection, after: int, *limits: Any) -> integrity.Judged:
        judged.append(after)
        return judge_some(db, after, *limits)

    monkeypatch.setattr(integrity, "judge_some", watched)
    async with running_server(Settings(port=0, data=killed)) as server:
        async with server.live(42) as client:
            assert (await server.publish(7, 42)).json()["seq"] == 7
            assert (await client.next())["seq"] == 7
        assert (await server.status())["node"]["check_pending"] is True
        assert judged == []
        gate.opened.set()

        async def is_over() -> bool:
            return (await server.status())["node"]["check_pending"] is False

        await eventually(is_over)
        assert judged[:1] == [0]


async def test_damage_that_the_check_finds_under_load_ends_the_followers_of_its_diagnosis_alone(
    killed: Path, gate: Gate, caplog: pytest.LogCaptureFixture
) -> None:
    answers: list[int] = []
    async with (
        running_server(Settings(port=0, data=killed)) as server,
        server.live(42, device="phone") as follower,
        server.live(43, device="phone") as other,
    ):
        assert (await server.publish(7, 42)).status_code == 200
        store = gate.stores[0]
        await damage(store, "42", 5)

        async def publish(stop: trio.Event) -> None:
            while not stop.is_set():
                answers.append((await server.publish(len(answers), 43)).status_code)

        enough = trio.Event()
        async with trio.open_nursery() as nursery:
            for _ in range(4):
                nursery.start_soon(publish, enough)
            gate.opened.set()
            frames, code, reason = await follower.close_frames()
            assert (frames[-1]["type"], code, reason) == ("bye", 1013, "quarantined")
            assert frames[-1]["data"]["retry_after_ms"] >= 60_000
            refused = await server.publish(8, 42)
            assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
            enough.set()
        assert set(answers) == {200}
        assert [frame["seq"] for frame in await other.events(len(answers))][-1] == 2 + len(answers)
    told = [one.getMessage() for one in caplog.records if one.name == "avicenna.storage"]
    assert sum("diagnosis 42: event 5 fails its checksum" in one for one in told) == 1


@pytest.mark.guarantee(6)
async def test_what_a_disk_has_made_of_one_row_keeps_no_list_from_being_read(killed: Path) -> None:
    with closing(sqlite3.connect(killed / DATABASE, isolation_level=None)) as db:
        db.execute(
            "UPDATE diagnosis SET public_id = CAST(x'343fff' AS TEXT), created_at = 1e300 WHERE public_id = '42'"
        )
        db.execute("UPDATE audit SET target = CAST(x'ff' AS TEXT), after = '{', at = -1e300 WHERE number = 1")
    (killed / f"{DATABASE}-wal").write_bytes(wal.CLOSED)
    async with served(killed) as (process, server):
        server.http.event_hooks = {}  # an id that a disk has damaged is none of the contract's
        for path in ("/actors", "/diagnoses", "/audit"):
            items = (await get(server, path))["items"]
            assert len(items) >= 2, path
        assert items[-1]["after"] == {"damaged": "{"}
        assert (await server.publish(3, 43)).json()["seq"] == 3
        assert await process.stop() == 0
