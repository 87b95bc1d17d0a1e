"""Servers of several processes for tests: which processes they have, and what is waited for."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.logbook import LOGBOOK
from tests.server.harness import Server
from tests.server.process import Process, served


@asynccontextmanager
async def two_workers(data: Path, *options: str) -> AsyncIterator[tuple[Process, Server]]:
    """A server with two workers, whose processes may be killed again and again."""
    often = {"AVICENNA_RESTART_INTENSITY_MAX": "1000", "AVICENNA_RESTART_INTENSITY_SECONDS": "1"}
    async with served(data, "--workers", "2", *options, logbook=LOGBOOK, **often) as both:
        yield both


def children(process: Process) -> dict[str, int]:
    """The numbers of the processes of a server, by name."""
    parent = process.process.pid
    found: dict[str, int] = {}
    threads = Path(f"/proc/{parent}/task").glob("*/children") if process.process.returncode is None else []
    for pid in " ".join(one.read_text() for one in threads).split():
        try:
            words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        except OSError:
            continue
        if b"web.server.workers" in words:
            found[words[words.index(b"web.server.workers") + 1].decode()] = int(pid)
    return found


def workers(process: Process) -> dict[str, int]:
    return {name: pid for name, pid in children(process).items() if name != "store"}


async def until(is_true: Callable[[], bool], seconds: float = 30) -> None:
    with trio.fail_after(seconds):
        while not is_true():
            await trio.sleep(0.01)
