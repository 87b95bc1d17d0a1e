"""Servers of several processes for tests: which processes they have, and what is waited for."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Final

import trio

from benchmarks.processes import children_of, words_of
from tests.logbook import LOGBOOK
from tests.server.harness import Server
from tests.server.process import COMMAND, START_SECONDS_MAX, STOP_SECONDS_MAX, Process, served

OFTEN: Final = {"AVICENNA_RESTART_INTENSITY_MAX": "1000", "AVICENNA_RESTART_INTENSITY_SECONDS": "1"}
"""Processes may be killed again and again."""


@asynccontextmanager
async def two_workers(data: Path, *options: str) -> AsyncIterator[tuple[Process, Server]]:
    """A server with two workers, whose processes may be killed again and again."""
    async with served(data, "--workers", "2", *options, logbook=LOGBOOK, **OFTEN) as both:
        yield both


class Beside:
    """A server with two workers that runs beside the tests of a file, which share it: its start takes seconds."""

    def __init__(self, process: subprocess.Popen[bytes], url: str, data: Path) -> None:
        self.process = process
        self.data = data
        self._url = url

    def server(self) -> Server:
        """How to talk to it; closed by whoever asks."""
        return Server(self._url, self.data)


@contextmanager
def two_workers_beside(data: Path) -> Iterator[Beside]:
    """A server as of `two_workers`; at the end it drains, and ends with 0."""
    command = [str(COMMAND), "serve", "--port", "0", "--data", str(data), "--workers", "2"]
    with subprocess.Popen(command, stderr=subprocess.PIPE, env=os.environ | OFTEN) as process:
        urls: list[str] = []
        has_begun = threading.Event()

        def read() -> None:
            assert process.stderr is not None, "it is started with a pipe"
            for line in process.stderr:
                LOGBOOK.write(line)
                if (found := re.search(rb"listening on (http://[^\s\"]+)", line)) is not None:
                    urls.append(found[1].decode())
                    has_begun.set()
            has_begun.set()

        reading = threading.Thread(target=read, daemon=True)
        reading.start()
        try:
            has_begun.wait(START_SECONDS_MAX)
            assert urls, "it does not serve"
            yield Beside(process, urls[0], data)
            process.send_signal(signal.SIGTERM)
            assert process.wait(STOP_SECONDS_MAX) == 0
        finally:
            process.kill()
            reading.join()


def children(process: Process | Beside) -> dict[str, int]:
    """The numbers of the processes of a server, by name."""
    parent = process.process.pid
    found: dict[str, int] = {}
    for pid in children_of(parent) if process.process.returncode is None else []:
        try:
            words = words_of(pid)
        except OSError:
            continue
        if "web.server.workers" in words:
            found[words[words.index("web.server.workers") + 1]] = pid
    return found


def workers(process: Process | Beside) -> dict[str, int]:
    return {name: pid for name, pid in children(process).items() if name != "store"}


async def until(is_true: Callable[[], bool], seconds: float = 30) -> None:
    with trio.fail_after(seconds):
        while not is_true():
            await trio.sleep(0.01)
