"""The drivers of the table: small programs around a client, with JSON lines on stdin and stdout."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final

import trio

from tests.clients import page_driver
from tests.clients.reports import Report
from tests.javascript.node import CLIENT, node
from tests.programs import ROOT, node_package, program

EXIT_SECONDS_MAX: Final = 5
"""Longest time from `stop` to the exit: the 3 s of the table, and a loaded machine."""


@dataclass(frozen=True, slots=True)
class Driver:
    """One of them."""

    name: str
    command: Callable[[], list[str]]
    """What starts it. Skips the test where a program is missing (`tests.programs`)."""

    def __str__(self) -> str:
        return self.name


def _python(library: str) -> list[str]:
    return [program("python-client"), str(ROOT / "clients" / "python" / "drivers" / "driver.py"), library]


def _node() -> list[str]:
    return [*node("with WebSocket"), str(CLIENT / "driver.mjs")]


def _node_without_websocket() -> list[str]:
    return [*node("without WebSocket"), str(CLIENT / "driver.mjs"), str(node_package("ws") / "wrapper.mjs")]


DRIVERS: Final = (
    Driver("tail", lambda: [sys.executable, "-m", "tests.clients.tail_driver"]),
    Driver("trio", partial(_python, "trio")),
    Driver("asyncio", partial(_python, "asyncio")),
    Driver("node", _node),
    Driver("node with ws", _node_without_websocket),
    Driver("chromium", page_driver.command),
)


class Running:
    """A driver that runs."""

    def __init__(self, process: trio.Process, stderr: Path) -> None:
        self._process = process
        self._stderr = stderr

    async def command(self, **fields: object) -> None:
        """Give it a command."""
        assert self._process.stdin is not None
        await self._process.stdin.send_all(json.dumps(fields).encode() + b"\n")

    async def reports(self) -> AsyncIterator[Report]:
        """What it reports, until its stdout ends."""
        assert self._process.stdout is not None
        pieces: list[bytes] = []
        async with self._process.stdout as stdout:
            async for chunk in stdout:
                first, *others = chunk.split(b"\n")
                pieces.append(bytes(first))
                for piece in others:
                    yield json.loads(b"".join(pieces))
                    pieces = [bytes(piece)]

    async def ended(self) -> int:
        """Its exit code, which is awaited."""
        with trio.fail_after(EXIT_SECONDS_MAX):
            return await self._process.wait()

    async def kill(self) -> None:
        """SIGKILL to it and all that it has started; returns when it is gone."""
        with contextlib.suppress(ProcessLookupError):
            os.killpg(self._process.pid, signal.SIGKILL)
        await self._process.wait()
        assert self._process.stdin is not None
        await self._process.stdin.aclose()

    @property
    def said(self) -> str:
        """What it wrote to stderr."""
        return self._stderr.read_text(errors="replace")


async def start(driver: Driver, directory: Path) -> Running:
    """Start a driver; what it writes to stderr goes to a file in `directory`."""
    stderr = directory / "stderr"
    environment = {name: value for name, value in os.environ.items() if not name.startswith("AVICENNA_")}
    with stderr.open("ab") as file:
        process = await trio.lowlevel.open_process(
            driver.command(),
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=file,
            cwd=ROOT,
            env=environment,
            start_new_session=True,
        )
    return Running(process, stderr)
