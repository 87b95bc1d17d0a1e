"""The installed command in a process of its own: what an operator starts, kills and starts again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.logbook import LOGBOOK, Logbook
from tests.server.harness import Server

COMMAND = Path(sys.executable).with_name("avicenna-live")


class Process:
    """A running `avicenna-live serve`."""

    def __init__(self, process: trio.Process, url: str) -> None:
        self.process = process
        self.url = url

    async def kill(self) -> None:
        """End it as a power button would: SIGKILL."""
        self.process.kill()
        await self.process.wait()

    async def stop(self) -> int:
        """SIGTERM, and the exit code."""
        self.process.send_signal(signal.SIGTERM)
        with trio.fail_after(15):
            return await self.process.wait()


async def run(*arguments: object, **variables: str) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a command that ends by itself."""
    with trio.fail_after(60):
        done = await trio.run_process(
            [str(COMMAND), *map(str, arguments)],
            check=False,
            capture_stdout=True,
            capture_stderr=True,
            env=os.environ | variables,
        )
    LOGBOOK.write(done.stderr)
    return done.returncode, done.stdout.decode(), done.stderr.decode()


@asynccontextmanager
async def served(
    data: Path, *options: str, logbook: Logbook = LOGBOOK, **variables: str
) -> AsyncIterator[tuple[Process, Server]]:
    """`avicenna-live serve` on a free port with this data directory; killed at the end if it still runs.

    Args:
        options: of the command.
        logbook: gets everything it writes.
        variables: of its environment, beside ours.
    """
    command = [str(COMMAND), "serve", "--port", "0", "--data", str(data), *options]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.PIPE, env=os.environ | variables)
    assert process.stderr is not None
    try:
        url = await _announced_url(process.stderr, logbook)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(_keep, process.stderr, logbook)
            async with Server(url, data) as server:
                yield Process(process, url), server
            nursery.cancel_scope.cancel()
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
            await process.stderr.aclose()


async def _announced_url(stderr: trio.abc.ReceiveStream, logbook: Logbook) -> str:
    said = b""
    with trio.fail_after(20):
        while (found := re.search(rb'listening on (http://[^\s"]+)', said)) is None:
            chunk = await stderr.receive_some()
            assert chunk, f"the server ended: {said.decode()}"
            logbook.write(bytes(chunk))
            said += chunk
    return found[1].decode()


async def _keep(stream: trio.abc.ReceiveStream, logbook: Logbook) -> None:
    async for chunk in stream:
        logbook.write(bytes(chunk))
