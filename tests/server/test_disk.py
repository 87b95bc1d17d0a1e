"""What an operator sees when the disk is full, the files are damaged or taken: one clear line, the right exit code."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from storage.errors import Busy, Failed, StorageError
from storage.sqlite.store import SqliteStore
from storage.sqlite.wal import FRAME
from tests.crash.connection import Cut, connected
from tests.logbook import PAYLOAD_MARKER, Logbook
from tests.mounts import read_only, small_disk
from tests.server.harness import Server
from tests.server.process import run, served

DATABASE = "avicenna.db"
LOG = "avicenna.db-wal"

CANNOT_START = 2
STORAGE_FAILED = 1

PAGE_BYTES = 4096


@dataclass(frozen=True, slots=True)
class Kept:
    """Two data directories with events 1 to 5 of diagnosis 42 in the database itself."""

    closed: Path
    """The last server ended in order."""
    killed: Path
    """The last server did not."""

    def copy(self, source: Path, target: Path) -> Path:
        """One of them, to be damaged."""
        shutil.copytree(source, target)
        return target


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory) -> Kept:
    """Made once for all tests."""
    directory = tmp_path_factory.mktemp("kept")
    made = Kept(directory / "closed", directory / "killed")

    async def fill() -> None:
        async with served(made.closed) as (process, server):
            await server.register()
            for number in range(1, 6):
                assert (await server.publish(number)).status_code == 200
            await process.kill()
        # Opens the database without a server, and closes it in order.
        assert (await run("check", "--data", made.closed))[0] == 0
        made.copy(made.closed, made.killed)
        async with served(made.killed) as (process, _):
            await process.kill()

    trio.run(fill)
    return made


@pytest.fixture
def closed(kept: Kept, tmp_path: Path) -> Path:
    """A data directory whose last server ended in order."""
    return kept.copy(kept.closed, tmp_path / "data")


@pytest.fixture
def killed(kept: Kept, tmp_path: Path) -> Path:
    """A data directory whose last server was killed."""
    return kept.copy(kept.killed, tmp_path / "data")


async def refusal(data: Path, **variables: str) -> str:
    """The one line with which a server says why it does not start."""
    code, said, complaint = await run("serve", "--port", "0", "--data", data, **variables)
    assert (code, said) == (CANNOT_START, "")
    assert "Traceback" not in complaint
    lines = [line for line in complaint.splitlines() if "cannot start" in line]
    assert len(lines) == 1, complaint
    assert str(data / DATABASE) in lines[0]
    return lines[0]


def change(path: Path, place: int, content: bytes) -> None:
    """Write over bytes of a file."""
    with path.open("r+b") as file:
        file.seek(place)
        file.write(content)


def place_of_an_event(data: Path) -> int:
    """Where in the database a stored body is."""
    return (data / DATABASE).read_bytes().index(PAYLOAD_MARKER.encode())


async def retained(server: Server) -> list[int]:
    """The feedback ids of the events a server retains, in order."""
    headers = server.bearer("op", "operate")
    items = (await server.http.get("/actors/42/outbox", headers=headers)).json()["items"]
    assert [event["seq"] for event in items] == list(range(1, len(items) + 1))
    return [event["data"]["feedback_id"] for event in items]


async def test_a_read_only_file_is_refused(closed: Path) -> None:
    with read_only(closed / DATABASE):
        assert "is read-only; the server must be able to write it" in await refusal(closed)
    async with served(closed) as (process, server):
        assert await retained(server) == [1, 2, 3, 4, 5]
        await process.kill()


async def test_a_file_another_program_has_locked_is_refused(closed: Path) -> None:
    hold = (
        "import sqlite3, sys; db = sqlite3.connect(sys.argv[1], isolation_level=None);"
        " db.execute('BEGIN IMMEDIATE'); print('locked', end='', flush=True); sys.stdin.read()"
    )
    command = [sys.executable, "-c", hold, str(closed / DATABASE)]
    async with trio.open_nursery() as nursery:
        holder: trio.Process = await nursery.start(
            partial(trio.run_process, command, stdin=subprocess.PIPE, stdout=subprocess.PIPE)
        )
        assert holder.stdin is not None
        assert holder.stdout is not None
        assert await holder.stdout.receive_some() == b"locked"
        assert "is in use by another process" in await refusal(closed)
        await holder.stdin.aclose()


@pytest.mark.guarantee(12)
async def test_a_second_server_is_told_what_to_do(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data) as (_, server):
        await server.register()
        assert "in use by another server; stop it, or name another directory with --data" in await refusal(data)
        assert (await server.publish(1)).status_code == 200


async def test_an_overwritten_header_is_refused_with_the_command_that_helps(closed: Path) -> None:
    change(closed / DATABASE, 0, b"overwritten by something else")
    said = await refusal(closed)
    assert "is not a database, or its header is overwritten" in said
    assert f"avicenna-live restore FILE --data {closed}" in said


async def test_a_damaged_page_ends_the_server_and_is_refused_from_then_on_with_the_command_that_helps(
    killed: Path,
) -> None:
    place = place_of_an_event(killed)
    change(killed / DATABASE, place - place % PAGE_BYTES, b"\xff" * 64)
    code, _, complaint = await run("serve", "--port", "0", "--data", killed)
    assert code == STORAGE_FAILED
    assert "SQLITE_CORRUPT" in complaint
    for _ in range(2):
        said = await refusal(killed)
        assert "is damaged" in said
        assert f"avicenna-live restore FILE --data {killed}" in said


@pytest.mark.guarantee(1)
@pytest.mark.one_process("the process that has the log outlives its parent, and ends in order")
async def test_a_log_that_is_deleted_after_a_crash_is_missed(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data) as (process, server):
        await server.register()
        await server.publish(1)
        await process.kill()
    (data / LOG).unlink()
    said = await refusal(data)
    assert f"its log {data / LOG} is missing" in said
    assert f"avicenna-live restore {data / DATABASE} --data {data}" in said


def cut_to(log: Path, size: int) -> None:
    """As `truncate -s`."""
    os.truncate(log, size)


CUTS: dict[str, Callable[[Path], None]] = {
    "to nothing": lambda log: cut_to(log, 0),
    "opened for writing": lambda log: log.open("wb").close(),
    "to half": lambda log: cut_to(log, log.stat().st_size // 2),
    "to a frame": lambda log: cut_to(log, log.stat().st_size - 3 * (PAGE_BYTES + FRAME.size)),
    "head zeroed": lambda log: change(log, 0, bytes(PAGE_BYTES)),
}


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("cut", CUTS.values(), ids=CUTS.keys())
async def test_a_log_that_is_cut_under_publishes_ends_the_server_and_no_number_is_given_twice(
    tmp_path: Path, cut: Callable[[Path], None]
) -> None:
    data, logbook = tmp_path / "data", Logbook()
    acknowledged = set[tuple[str, int]]()
    enough = trio.Event()

    async def publish(port: int, headers: dict[str, str]) -> None:
        with contextlib.suppress(Cut):
            async with connected(port, headers) as http:
                while True:
                    body = {"diagnosis_id": 42, "feedback_id": 1, "rating": 5, "comment": PAYLOAD_MARKER}
                    status, answer = await http.ask("POST", "/ws/broadcast-feedback-update", body)
                    if status != 200:
                        assert answer["code"] == "storage_unavailable"
                        return
                    assert (answer["epoch"], answer["seq"]) not in acknowledged
                    acknowledged.add((answer["epoch"], answer["seq"]))
                    if len(acknowledged) > 100:
                        enough.set()

    async with served(data, logbook=logbook) as (process, server):
        await server.register()
        with trio.fail_after(30):
            async with trio.open_nursery() as publishers_nursery:
                for _ in range(10):
                    publishers_nursery.start_soon(publish, int(server.url.rpartition(":")[2]), server.bearer("amira"))
                await enough.wait()
                cut(data / LOG)
            assert await process.process.wait() == STORAGE_FAILED
        await trio.testing.wait_all_tasks_blocked(0.05)
    (line,) = [one for one in "".join(logbook.lines).splitlines() if "storage failed" in one]
    assert f"{data / LOG} was cut or overwritten while the server used it" in line
    said = await refusal(data)
    assert f"its log {data / LOG} was cut or overwritten while a server used it" in said
    code, _, complaint = await run("restore", data / DATABASE, "--data", data)
    assert code == 0, complaint
    async with served(data) as (process, server):
        await server.register()
        answer = (await server.publish(1)).json()
        assert answer["epoch"] not in {epoch for epoch, _ in acknowledged}
        await process.kill()


async def test_a_damaged_database_is_set_aside_if_the_operator_says_so(closed: Path) -> None:
    logbook = Logbook()
    change(closed / DATABASE, 0, b"overwritten by something else")
    damaged = (closed / DATABASE).read_bytes()
    async with served(closed, logbook=logbook, AVICENNA_DAMAGED_DATABASE="set_aside") as (process, server):
        assert (await server.status())["total_diagnoses"] == 0
        await server.register()
        assert (await server.publish(1)).json()["seq"] == 1
        await process.kill()
    aside = closed / f"{DATABASE}.damaged"
    assert aside.read_bytes() == damaged
    assert f"it is now {aside}, and an empty one is begun" in "".join(logbook.lines)


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(13)
async def test_a_full_disk_is_answered_503_until_there_is_room_and_loses_nothing(tmp_path: Path) -> None:
    with small_disk(tmp_path / "disk", size_kib=4096) as disk:
        data, filler = disk / "data", disk / "filler"
        accepted: list[int] = []
        logbook = Logbook()
        async with served(data, logbook=logbook) as (process, server):
            await server.register()

            async def publish(number: int) -> int:
                answer = await server.publish(number)
                if answer.status_code == 200:
                    accepted.append(number)
                else:
                    assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")
                    assert int(answer.headers["Retry-After"]) > 0
                    assert answer.json()["detail"] == "certainly not stored: the disk is full"
                return answer.status_code

            assert {await publish(number) for number in range(1, 6)} == {200}
            _fill_up(filler)
            assert 503 in {await publish(number) for number in range(6, 16)}
            async with trio.open_nursery() as publishers_nursery:
                for number in range(16, 36):
                    publishers_nursery.start_soon(publish, number)
            filler.unlink()
            assert {await publish(number) for number in range(36, 41)} == {200}
            assert await retained(server) == accepted
            with trio.fail_after(10):  # a thread writes the log: what it has not written yet is gone with the process
                while "is stored again" not in "".join(logbook.lines):
                    await trio.sleep(0.01)
            await process.kill()
        began, ended = ("".join(logbook.lines).count(said) for said in ("nothing is stored until", "is stored again"))
        assert began == ended
        assert 1 <= began < 5, "a line for each outage, not for each request"
        async with served(data) as (process, server):
            assert await retained(server) == accepted
            await process.kill()


@pytest.mark.parametrize("failure", [Failed("why"), Busy("why")])
async def test_what_cannot_be_read_right_now_is_not_said_to_be_perhaps_stored(
    server: Server, monkeypatch: pytest.MonkeyPatch, failure: StorageError
) -> None:
    async def fail(*_: object, **__: object) -> object:
        raise failure

    await server.register()
    for method in ("diagnoses", "read_after", "register"):
        monkeypatch.setattr(SqliteStore, method, fail)
    operator = server.bearer("op", "operate")
    for method, path in (("GET", "/diagnoses"), ("GET", "/actors/42/outbox"), ("HEAD", "/diagnoses")):
        answer = await server.http.request(method, path, headers=operator)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "1")
        if method == "GET":
            assert (answer.json()["code"], answer.json()["detail"]) == (
                "storage_unavailable",
                "this cannot be read right now",
            )
    fate = "it is unknown whether this was done" if isinstance(failure, Failed) else "certainly not stored"
    assert (await server.register()).json()["detail"].startswith(fate)


def _fill_up(path: Path) -> None:
    """Take what room is left on a disk, to the last byte."""
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT)
    for size in (65536, 1):
        with pytest.raises(OSError, match="No space left"):
            while True:
                os.write(descriptor, b"x" * size)
    os.close(descriptor)
