"""A disk that fails a write or a sync: the server ends, and the next start goes on with everything acknowledged."""

from __future__ import annotations

import errno
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
import trio

from storage.sqlite.schema import WAL_AUTOCHECKPOINT_PAGES
from tests import programs
from tests.crash.connection import Cut, connected
from tests.logbook import Logbook
from tests.server.harness import Server
from tests.server.process import Process, run, served

SOURCE = Path(__file__).with_name("faulty_disk.c")
DATABASE, LOG = "avicenna.db", "avicenna.db-wal"
FOR_EVER = 1_000_000
CANNOT_START, STORAGE_FAILED = 2, 1
COMMENT_BYTES = 60_000
LOG_BYTES = WAL_AUTOCHECKPOINT_PAGES * 4096
BURST = 12
"""Publishes at once, of a kilobyte each: a commit of them has several frames."""


@pytest.fixture(scope="session")
def faulty_disk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """What makes the disk of a process fail."""
    built = tmp_path_factory.mktemp("built") / "faulty_disk.so"
    command = [programs.program("cc"), "-O1", "-shared", "-fPIC", "-o", str(built), str(SOURCE), "-ldl"]
    subprocess.run(command, check=True, timeout=60)
    return built


@dataclass
class Disk:
    """Under a server, and what was published to it."""

    library: Path
    directory: Path
    numbers: dict[int, int] = field(default_factory=dict)
    """Of acknowledged events: by number, the feedback id."""
    published: int = 0
    codes: set[int] = field(default_factory=set)
    cut: int = 0
    """Publishes that were told nothing."""

    @property
    def plan(self) -> Path:
        return self.directory / "plan"

    @property
    def variables(self) -> dict[str, str]:
        self.plan.touch()
        return {
            "LD_PRELOAD": str(self.library),
            "FAULTY_DISK": str(self.plan),
            # A disk that others keep busy is slow, and is not what these tests are about.
            "AVICENNA_STORAGE_SECONDS_MAX": "60",
        }

    def fails(self, calls: str, file: str, number: int, *, after: int = 0, times: int = FOR_EVER) -> None:
        """Such calls fail from now on; see the source."""
        arriving = self.plan.with_suffix(".new")
        arriving.write_text(f"{calls} {file} {number} {after} {times}\n")
        arriving.rename(self.plan)

    def works(self) -> None:
        """Nothing fails from now on."""
        self.plan.write_text("")

    async def burst(self, server: Server, count: int = BURST, comment_bytes: int = 1000) -> None:
        """Publish at once; keeps what was acknowledged, and that no number is given twice."""

        port, headers = urlsplit(server.url).port or 0, server.bearer("amira")

        async def publish(number: int) -> None:
            body = {"diagnosis_id": 42, "feedback_id": number, "rating": 5, "comment": "x" * comment_bytes}
            try:
                async with connected(port, headers) as http:
                    status, answer = await http.ask("POST", "/ws/broadcast-feedback-update", body)
            except Cut:
                self.cut += 1
                return
            self.codes.add(status)
            if status == 200:
                seq = answer["seq"]
                assert self.numbers.setdefault(seq, number) == number, f"number {seq} was given twice"

        async with trio.open_nursery() as nursery:
            for _ in range(count):
                self.published += 1
                nursery.start_soon(publish, self.published)

    async def fill_log(self, server: Server) -> None:
        """Publish half as much again as makes the log be copied into the database, unless the server ends before."""
        for _ in range(3 * LOG_BYTES // (2 * BURST * COMMENT_BYTES)):
            await self.burst(server, comment_bytes=COMMENT_BYTES)
            if self.cut:
                return

    async def look(self, server: Server) -> str:
        """Compare what is stored with what was acknowledged; the epoch."""
        operator = server.bearer("op", "operate")
        stored: dict[int, int] = {}
        page: dict[str, Any] = {"next": "0"}
        while page["next"] is not None:
            query: dict[str, Any] = {"limit": 100, "after": page["next"]}
            page = (await server.http.get("/actors/42/outbox", params=query, headers=operator)).json()
            stored |= {event["seq"]: event["data"]["feedback_id"] for event in page["items"]}
        assert {seq: number for seq, number in self.numbers.items() if seq in stored} == {
            seq: number for seq, number in stored.items() if seq in self.numbers
        }
        position = (await server.http.get("/diagnoses/42/position", headers=server.bearer("amira"))).json()
        assert position["head"] >= max(self.numbers)
        assert set(range(position["floor"] + 1, position["head"] + 1)) == set(stored)
        return str(position["epoch"])


@pytest.fixture
def disk(faulty_disk: Path, tmp_path: Path) -> Disk:
    return Disk(faulty_disk, tmp_path)


@asynccontextmanager
async def filled(disk: Disk, data: Path, logbook: Logbook) -> AsyncIterator[tuple[Process, Server, str]]:
    """A new server to which something was published, and the epoch."""
    async with served(data, logbook=logbook, **disk.variables) as (process, server):
        await server.register()
        await disk.burst(server)
        assert disk.codes == {200}
        yield process, server, await disk.look(server)


async def ended(process: Process, logbook: Logbook) -> int:
    """The exit code of a server that ends by itself."""
    with trio.move_on_after(60):
        return await process.process.wait()
    pytest.fail(f"the server goes on; it wrote: {''.join(logbook.lines)[-4000:]}")


async def judge_next_start(disk: Disk, data: Path, epoch: str, logbook: Logbook) -> None:
    """With a disk that works everything acknowledged is there, under its numbers, and nothing false was said."""
    disk.works()
    async with served(data, logbook=logbook, **disk.variables) as (process, server):
        assert await disk.look(server) == epoch
        await disk.burst(server)
        assert await disk.look(server) == epoch
        assert await process.stop() == 0
    assert (await run("check", "--data", data))[0] == 0
    assert "Traceback" not in "".join(logbook.lines)


@pytest.mark.one_process("with workers the store begins again, and the server does not end")
@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize(
    ("calls", "after", "times"),
    [("wh", 3, FOR_EVER), ("w", 0, 2), ("s", 0, 2), ("s", 0, FOR_EVER), ("st", 0, FOR_EVER)],
)
async def test_after_a_log_that_could_not_be_written_or_synced_the_next_start_goes_on(
    disk: Disk, tmp_path: Path, calls: str, after: int, times: int
) -> None:
    data, logbook = tmp_path / "data", Logbook()
    async with filled(disk, data, logbook) as (process, server, epoch):
        disk.fails(calls, LOG, errno.EIO, after=after, times=times)
        while process.process.returncode is None and len(disk.codes) == 1:
            await disk.burst(server)
        assert await ended(process, logbook) == STORAGE_FAILED
    await judge_next_start(disk, data, epoch, logbook)


@pytest.mark.one_process("with workers the store begins again, and the server does not end")
@pytest.mark.guarantee(1)
@pytest.mark.parametrize(("calls", "times"), [("wh", FOR_EVER), ("s", 1)])
async def test_a_log_that_cannot_be_copied_into_the_database_ends_the_server_and_the_next_start_goes_on(
    disk: Disk, tmp_path: Path, calls: str, times: int
) -> None:
    data, logbook = tmp_path / "data", Logbook()
    async with filled(disk, data, logbook) as (process, server, epoch):
        disk.fails(calls, DATABASE, errno.EIO, times=times)
        await disk.fill_log(server)
        assert await ended(process, logbook) == STORAGE_FAILED
    assert "cannot be copied into the database: disk I/O error (SQLITE_IOERR" in "".join(logbook.lines)
    await judge_next_start(disk, data, epoch, logbook)


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(13)
@pytest.mark.parametrize(
    ("file", "number", "after"), [(LOG, errno.ENOSPC, 3), ("*", errno.EDQUOT, 2), (DATABASE, errno.ENOSPC, 0)]
)
async def test_want_of_room_ends_nothing_and_a_kill_meanwhile_loses_nothing(
    disk: Disk, tmp_path: Path, file: str, number: int, after: int
) -> None:
    data, logbook = tmp_path / "data", Logbook()
    async with served(data, logbook=logbook, **disk.variables) as (process, server):
        await server.register()
        for _ in range(2):
            disk.fails("wh", file, number, after=after)
            await (disk.fill_log(server) if file == DATABASE else disk.burst(server))
            assert process.process.returncode is None
            disk.works()
            await disk.burst(server, 5)
        epoch = await disk.look(server)
        disk.fails("wh", file, number, after=after)
        await (disk.fill_log(server) if file == DATABASE else disk.burst(server))
        assert disk.codes == ({200} if file == DATABASE else {200, 503})
        await process.kill()
    await judge_next_start(disk, data, epoch, logbook)


@pytest.mark.one_process("with workers the parent has a line, too")
@pytest.mark.guarantee(1)
@pytest.mark.parametrize(
    ("calls", "file", "after"),
    [("wh", LOG, 4), ("s", LOG, 1), ("s", DATABASE, 0)],
)
async def test_a_start_that_the_disk_fails_changes_nothing_for_the_next_one(
    disk: Disk, tmp_path: Path, calls: str, file: str, after: int
) -> None:
    data, logbook = tmp_path / "data", Logbook()
    async with filled(disk, data, logbook) as (process, _, epoch):
        await process.kill()
    disk.fails(calls, file, errno.EIO, after=after)
    for _ in range(2):
        code, _, said = await run("serve", "--port", "0", "--data", data, **disk.variables)
        assert code == CANNOT_START
        assert said.count("\n") == 1
        assert "Traceback" not in said
    await judge_next_start(disk, data, epoch, logbook)
