"""The README's commands do what it says."""

from __future__ import annotations

import os
import re
import shlex
import socket
import subprocess
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.cli.demos import demo
from tests.programs import program
from tests.server.harness import running_server
from tests.server.process import COMMAND
from web.server.settings import Settings

ROOT = Path(__file__).parents[2]


def console_blocks() -> list[list[str]]:
    """The commands of the first console blocks: those of the demo, then terminal by terminal."""
    blocks = re.findall(r"```console\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    return [[line[2:] for line in block.splitlines() if line.startswith("$ ")] for block in blocks[:4]]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
    return port


@asynccontextmanager
async def running(command: str, environment: dict[str, str], directory: Path) -> AsyncIterator[trio.Process]:
    """A shell command with its output piped, ended at the end."""
    process = await trio.lowlevel.open_process(
        ["sh", "-c", f"exec {command}"],
        env=environment,
        cwd=directory,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    try:
        yield process
    finally:
        if process.returncode is None:
            process.terminate()
        with trio.CancelScope(shield=True):
            await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


async def until_said(process: trio.Process, *words: str) -> str:
    """What a process says until all the words have come."""
    assert process.stdout is not None
    said = ""
    with trio.fail_after(30):
        while not all(word in said for word in words):
            chunk = await process.stdout.receive_some()
            assert chunk, f"ended before saying {words}: {said}"
            said += chunk.decode()
    return said


async def test_the_second_command_opens_the_demo_and_what_it_says_about_the_page_is_true() -> None:
    (clone, show), *_ = console_blocks()
    assert clone.startswith("git clone ")
    assert show == "make demo"
    async with demo() as (shown, _):
        assert (await shown.http.get("/demo")).status_code == 200


async def test_the_three_terminals_of_the_readme_show_the_published_update(tmp_path: Path) -> None:
    _, (serve,), (add, tail), (publish,) = console_blocks()
    assert serve == "make serve"
    # The commands run as they stand, in an empty directory, beside a server that may already use port 8000.
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / "bin").symlink_to(COMMAND.parent)
    port = free_port()
    environment = os.environ | {"AVICENNA_URL": f"http://127.0.0.1:{port}"}
    served = f"{shlex.quote(str(COMMAND))} serve --port {port}"
    async with running(served, environment, tmp_path) as server:
        await until_said(server, "listening on")
        with trio.fail_after(30):
            await trio.run_process(["sh", "-c", add], env=environment, cwd=tmp_path, capture_stdout=True)
        async with running(tail, environment, tmp_path) as follower:
            await until_said(follower, "connected to")
            with trio.fail_after(30):
                await trio.run_process(["sh", "-c", publish], env=environment, cwd=tmp_path, capture_stdout=True)
            said = await until_said(follower, "saffron")
    assert "new evidence" in said


def test_the_readmes_server_is_the_command_make_runs() -> None:
    makefile = (ROOT / "Makefile").read_text()
    assert re.search(r"^serve:.*\n\t@exec \$\(BIN\)/avicenna-live serve", makefile, re.MULTILINE)


async def test_the_five_lines_of_python_publish(tmp_path: Path) -> None:
    python = program("python-client")
    found = re.search(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert found is not None
    script = found[1]
    assert len([line for line in script.splitlines() if line]) <= 5
    async with running_server(Settings(port=0, data=tmp_path / "data")) as server:
        await server.register()
        environment = os.environ | {"AVICENNA_URL": server.url, "AVICENNA_TOKEN": server.token("service", "broadcast")}
        with trio.fail_after(30):
            await trio.run_process([python, "-c", script], env=environment)
        assert [(await server.publish(number)).json()["seq"] for number in range(2)] == [4, 5]
