"""The programs and pages of `examples/` do what their heads say."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import sqlite3
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from tests.browser.chromium import Tab, chromium
from tests.javascript.node import CLIENT, node
from tests.logbook import LOGBOOK
from tests.programs import NODE_PACKAGES, ROOT, node_package, program
from tests.server.harness import running_server
from web.identity.keys import KeySpec
from web.server.settings import Settings

EXAMPLES = ROOT / "examples"

HOOK_LINES_MAX = 40

pytestmark = pytest.mark.timeout(240)


class Running:
    """An example in a process of its own."""

    def __init__(self, process: trio.Process) -> None:
        self.process = process
        self._said = ""

    async def until(self, pattern: str) -> str:
        """The next line in which a pattern is found."""
        assert self.process.stdout is not None
        with trio.fail_after(60):
            while True:
                line, newline, rest = self._said.partition("\n")
                if newline:
                    self._said = rest
                    if re.search(pattern, line):
                        return line
                    continue
                chunk = await self.process.stdout.receive_some()
                assert chunk, f"it ended without {pattern}: {line}"
                self._said += chunk.decode()


@asynccontextmanager
async def running(*command: str, cwd: Path, **variables: str) -> AsyncIterator[Running]:
    """A command, killed at the end if it still runs."""
    process = await trio.lowlevel.open_process(
        command, cwd=cwd, env=os.environ | variables, stdin=subprocess.PIPE, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )  # fmt: skip
    try:
        yield Running(process)
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            for pipe in (process.stdin, process.stdout):
                assert pipe is not None
                await pipe.aclose()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(port=0, data=tmp_path / "data")


async def until_answered(url: str) -> None:
    async with httpx.AsyncClient() as http:
        with trio.fail_after(30):
            while True:
                try:
                    await http.get(url)
                except httpx.TransportError:
                    await trio.sleep(0.05)
                else:
                    return


async def lines_of(tab: Tab) -> list[str]:
    """What the list of a page shows, the newest first."""
    found: list[str] = await tab.run("[...document.querySelectorAll('li')].map(({ textContent }) => textContent)")
    return found


@asynccontextmanager
async def rating_service(tmp_path: Path) -> AsyncIterator[str]:
    """The FastAPI service beside a server that knows its key; its URL."""
    key = tmp_path / "service.key"
    key.write_text("0f" * 32 + "\n")
    LOGBOOK.note("0f" * 32, "a key")
    origin = f"http://127.0.0.1:{free_port()}"
    chosen = Settings(
        port=0, data=tmp_path / "data", allowed_origins=(origin,), token_keys=(KeySpec("HS256", key, "service"),)
    )
    python = program("python-client")
    # The harness makes tokens with the local key.
    async with running_server(Settings(port=0, data=tmp_path / "data")):
        pass
    async with running_server(chosen) as server:
        command = (
            python, "-m", "uvicorn", "--app-dir", str(EXAMPLES / "fastapi"), "--port", origin.rpartition(":")[2],
            "service:app",
        )  # fmt: skip
        variables = {"AVICENNA_URL": server.url, "AVICENNA_KEY_FILE": str(key)}
        async with running(*command, cwd=tmp_path, **variables) as service:
            await service.until("Application startup complete")
            await until_answered(origin)
            yield origin


async def test_the_service_publishes_a_rating_once_and_its_page_shows_it(tmp_path: Path) -> None:
    async with rating_service(tmp_path) as url, httpx.AsyncClient(base_url=url, timeout=30) as http:
        for _ in range(2):
            answer = await http.post("/ratings", json={"feedback_id": 7, "rating": 4, "comment": "slept well"})
            assert answer.json() == {"seq": 1}
        assert (await http.post("/ratings", json={"feedback_id": 8, "rating": 6})).status_code == 422
        async with chromium(tmp_path / "profile") as browser:
            tab = await browser.open(f"{url}/")
            await tab.until("document.querySelectorAll('li').length === 1")
            await tab.until("document.querySelector('#status').textContent === 'live'")
            await tab.run("document.querySelector('input').value = 'better'; document.forms[0].requestSubmit()")
            await tab.until("document.querySelectorAll('li').length === 2")
            assert await lines_of(tab) == ["2: ★★★★★ better", "1: ★★★★ slept well"]


async def test_the_plain_page_follows_from_another_origin_and_names_a_gap(tmp_path: Path, settings: Settings) -> None:
    port = free_port()
    chosen = Settings(port=0, data=settings.data, allowed_origins=(f"http://127.0.0.1:{port}",))
    async with (
        chromium(tmp_path / "profile") as browser,
        running_server(chosen) as server,
        running("python3", "-m", "http.server", "--bind", "127.0.0.1", "--directory", str(EXAMPLES / "page"), str(port),
                cwd=tmp_path),
    ):  # fmt: skip
        await server.register()
        await server.publish(1)
        await until_answered(f"http://127.0.0.1:{port}/")
        tab = await browser.open(f"http://127.0.0.1:{port}/")
        fields = {"url": server.url, "id": "42", "token": server.token("amira")}
        await tab.run(
            f"for (const [name, value] of Object.entries({json.dumps(fields)})) document.forms[0][name].value = value"
        )
        await tab.run("document.forms[0].requestSubmit()")
        await tab.until("document.querySelectorAll('li').length === 1")
        await server.publish(2)
        await tab.until("document.querySelectorAll('li').length === 2")
        assert [line.split(" {")[0] for line in await lines_of(tab)] == ["2: feedback_update", "1: feedback_update"]
        assert await tab.run("document.querySelector('#status').textContent") == "live"
        assert await tab.run("getComputedStyle(document.forms[0]).display") == "none"


async def shown_by(example: Running, pattern: str) -> dict[str, Any]:
    found: dict[str, Any] = json.loads(await example.until(pattern))
    return found


async def test_the_hook_shows_state_and_updates_and_leaves_nothing_open(tmp_path: Path, settings: Settings) -> None:
    for name in ("react", "react-dom", "happy-dom", "ws"):
        node_package(name)
    for file in (EXAMPLES / "react").iterdir():
        shutil.copy(file, tmp_path)
    (tmp_path / "node_modules").mkdir()
    for package in NODE_PACKAGES.iterdir():
        (tmp_path / "node_modules" / package.name).symlink_to(package)
    (tmp_path / "node_modules" / "avicenna-live-client").symlink_to(CLIENT)
    (tmp_path / "package.json").write_text('{"type": "module"}')
    async with running_server(settings) as server:
        await server.register()
        await server.publish(1)
        command = (*node("with WebSocket"), "test.mjs", server.url, server.token("amira"))
        async with running(*command, cwd=tmp_path) as example:
            assert (await shown_by(example, '"live".*saffron'))["seqs"] == []
            await server.publish(2)
            shown = await shown_by(example, r'"seqs":\[2\]')
            assert (shown["status"], shown["state"], shown["error"]) == ("live", {"herb": "saffron"}, None)
            assert (await server.status())["total_connections"] == 1
            assert example.process.stdin is not None
            await example.process.stdin.send_all(b"leave\n")
            assert await shown_by(example, "left") == {"left": ""}
            with trio.fail_after(30):
                assert await example.process.wait() == 0
        await server.until_alone()


def test_the_hook_is_short() -> None:
    assert len((EXAMPLES / "react" / "use-diagnosis.js").read_text().splitlines()) <= HOOK_LINES_MAX


async def test_the_trio_program_applies_each_update_once_over_a_kill(tmp_path: Path, settings: Settings) -> None:
    python = program("python-client")
    async with running_server(settings) as server:
        await server.register()
        command = (python, str(EXAMPLES / "ward.py"), server.url, "ward.db", "42")
        for numbers in ((1, 2), (3, 4)):
            for number in numbers:
                await server.publish(number)
            async with running(*command, cwd=tmp_path, AVICENNA_TOKEN=server.token("amira")) as ward:
                await ward.until(f"42: applied {numbers[-1]}")
        with sqlite3.connect(tmp_path / "ward.db") as db:
            assert [seq for (seq,) in db.execute("SELECT seq FROM applied ORDER BY seq")] == [1, 2, 3, 4]
        db.close()


async def test_the_script_may_be_run_twice_and_names_the_row_that_is_refused(
    tmp_path: Path, settings: Settings
) -> None:
    python = program("python-client")
    (tmp_path / "ratings.csv").write_text("feedback_id,rating,comment\n1,5,slept well\n2,6,\n3,4,\n")
    async with running_server(settings) as server:
        await server.register()
        variables = {"AVICENNA_URL": server.url, "AVICENNA_TOKEN": server.token("importer", "broadcast")}
        said = []
        for _ in range(2):
            done = await trio.run_process(
                [python, str(EXAMPLES / "import_ratings.py"), "42", "ratings.csv"],
                cwd=tmp_path, env=os.environ | variables, check=False, capture_stdout=True, capture_stderr=True,
            )  # fmt: skip
            assert done.returncode == 1
            assert "row 2 was not published" in done.stderr.decode()
            assert "rating must be 1-5" in done.stderr.decode()
            said.append(done.stdout.decode())
        assert said[0] == "row 1 is update 1\nrow 3 is update 2\n"
        assert said[1] == "row 1 is update 1 (as before)\nrow 3 is update 2 (as before)\n"


def test_the_crash_demo_loses_and_repeats_nothing() -> None:
    command = [program("python-client"), str(EXAMPLES / "crash_demo.py"), "--updates", "12", "--kills", "1"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.splitlines()[-1] == "12 updates, 1 kills: each number came once, in order"
