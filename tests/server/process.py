"""The installed command in a process of its own: what an operator starts, kills and starts again."""

from __future__ import annotations

import os
import re
import signal
import socket
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path

import trio

from tests.logbook import LOGBOOK, Logbook
from tests.server.harness import Server

COMMAND = Path(sys.executable).with_name("avicenna-live")

START_SECONDS_MAX = 60
"""Longest time until a server listens. Reason: imports take a second of CPU, and other tests have most of the cores."""

STOP_SECONDS_MAX = 30
"""Longest wait for its end. What it promises is 10 s on a machine that lets it run; here others run, too."""


HAND_OVER = """
import os, sys
names, *rest = sys.argv[1:]
at = rest.index("--")
kept = [int(one) for one in rest[:at]]
high = [os.dup2(one, to, inheritable=False) for to, one in enumerate(kept, max(kept) + 10)]
for to, one in enumerate(high, 3):
    os.dup2(one, to)
os.environ |= {"LISTEN_PID": str(os.getpid()), "LISTEN_FDS": str(len(high)), "LISTEN_FDNAMES": names}
os.execv(rest[at + 1], rest[at + 1:])
"""
"""A program that hands sockets over as systemd does, and becomes the command."""


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
        with trio.fail_after(STOP_SECONDS_MAX):
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
    async with served_on((), data, *options, logbook=logbook, **variables) as both:
        yield both


@asynccontextmanager
async def served_on(
    listeners: Sequence[tuple[str, socket.socket]],
    data: Path,
    *options: str,
    logbook: Logbook = LOGBOOK,
    **variables: str,
) -> AsyncIterator[tuple[Process, Server]]:
    """As `served`, on listeners that are handed over to it as systemd does, by these names; they stay open."""
    command = [str(COMMAND), "serve", "--port", "0", "--data", str(data), *options]
    descriptors = [listener.fileno() for _, listener in listeners]
    if listeners:
        names = ":".join(name for name, _ in listeners)
        command = [sys.executable, "-c", HAND_OVER, names, *map(str, descriptors), "--", *command]
    process = await trio.lowlevel.open_process(
        command, stderr=subprocess.PIPE, env=os.environ | variables, pass_fds=descriptors
    )
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
    with trio.fail_after(START_SECONDS_MAX):
        while (found := re.search(rb'listening on (http://[^\s"]+)', said)) is None:
            chunk = await stderr.receive_some()
            assert chunk, f"the server ended: {said.decode()}"
            logbook.write(bytes(chunk))
            said += chunk
    return found[1].decode()


async def _keep(stream: trio.abc.ReceiveStream, logbook: Logbook) -> None:
    async for chunk in stream:
        logbook.write(bytes(chunk))
