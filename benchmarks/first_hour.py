"""What a newcomer waits for: `make first-hour`.

A fresh clone, an empty home, the user who calls this. The commands of the README's first block are run as they stand
(the place to clone from and the port apart), and the time is taken until the page moves: two updates stand in it that
came while it was open. Headless Chromium looks at it; where there is none, it is asked for, and an update followed.
"""

from __future__ import annotations

import getpass
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final

import httpx
import trio

from tests.browser.chromium import chromium

ROOT: Final = Path(__file__).parents[1]
README: Final = ROOT / "README.md"

SECONDS_MAX: Final = 600
"""Longest wait for the page. Beyond: something is wrong."""

END_SECONDS_MAX: Final = 20

CLONE: Final = re.compile(r"git clone \S+ (\S+)")
"""The first command; the directory it makes."""

KEPT: Final = ("PATH", "LANG", "http_proxy", "https_proxy", "no_proxy")
"""Variables of ours that a newcomer has, too, beside those of pip."""


def commands() -> list[str]:
    """The commands of the README's first block."""
    block = re.search(r"```console\n(.*?)```", README.read_text(), re.DOTALL)
    assert block, "the README begins with its commands"
    return [line[2:] for line in block[1].splitlines() if line.startswith("$ ")]


async def measure(directory: Path) -> tuple[float, float]:
    """The seconds until the page is served and until it moves."""
    home = directory / "home"
    home.mkdir()
    variables = {name: value for name, value in os.environ.items() if name in KEPT or name.startswith("PIP_")}
    clone, demo = commands()
    clone = CLONE.sub(rf"git clone --quiet {ROOT} \1", clone)
    begin = time.monotonic()
    async with running(f"{clone}\n{demo} ARGS='--port 0'", directory, variables | {"HOME": str(home)}) as process:
        url = await announced(process)
        async with httpx.AsyncClient(timeout=END_SECONDS_MAX) as http:
            (await http.get(f"{url}/demo")).raise_for_status()
        served = time.monotonic() - begin
        await until_it_moves(url, directory)
        moves = time.monotonic() - begin
    return served, moves


@asynccontextmanager
async def running(script: str, directory: Path, variables: dict[str, str]) -> AsyncIterator[trio.Process]:
    """The commands, one after the other, in a shell; ended as by Ctrl-C."""
    process = await trio.lowlevel.open_process(
        ["sh", "-e", "-c", script],
        cwd=directory,
        env=variables,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        start_new_session=True,
    )
    try:
        yield process
    finally:
        with trio.CancelScope(shield=True):
            for how in (signal.SIGINT, signal.SIGKILL):
                if process.returncode is None:
                    os.killpg(process.pid, how)
                    with trio.move_on_after(END_SECONDS_MAX):
                        await process.wait()
            assert process.stdout is not None
            await process.stdout.aclose()


async def announced(process: trio.Process) -> str:
    """Where the demo says that its page is."""
    said = ""
    assert process.stdout is not None
    with trio.fail_after(SECONDS_MAX):
        async for chunk in process.stdout:
            said += chunk.decode()
            if (found := re.search(r"Open (http://[^\s/]+)/demo", said)) is not None:
                return found[1]
    raise SystemExit(f"the commands ended before there was a page:\n{said}")


async def until_it_moves(url: str, directory: Path) -> None:
    """Wait for an update that comes while the page is open."""
    if shutil.which("chromium") is None:
        print("no Chromium: the page is not looked at, its update is followed", file=sys.stderr)
        updates = f"{url}/diagnoses/42/events?start=new"
        async with httpx.AsyncClient(timeout=END_SECONDS_MAX) as http, http.stream("GET", updates) as stream:
            async for line in stream.aiter_lines():
                if line.startswith("data:") and "_update" in line:
                    return
        raise SystemExit("the stream ended without an update")
    async with chromium(directory / "profile") as browser:
        tab = await browser.open(f"{url}/demo")
        await tab.until("document.querySelectorAll('#strip li.live').length >= 2")


def main(arguments: Sequence[str]) -> int:
    """Measure once, and print it."""
    if arguments:
        print(__doc__, file=sys.stderr)
        return 2
    with tempfile.TemporaryDirectory(prefix="avicenna-first-hour-", ignore_cleanup_errors=True) as made:
        served, moves = trio.run(measure, Path(made))
        packages = sum(1 for _ in Path(made).glob("*/.venv/lib/python*/site-packages/*.dist-info"))
    print(f"{len(commands())} commands as {getpass.getuser()}, {packages} packages")
    print(f"the page is served after {served:.1f} s and moves after {moves:.1f} s")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
