"""The parent of `tests.server.forge`: commands in processes of their own that start in a few milliseconds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import trio

from tests.logbook import LOGBOOK
from tests.programs import ROOT
from web.server.listening_file import LISTENING_FILE

START_SECONDS_MAX: Final = 60
"""Longest time until a server listens: the forge itself may still import."""


class Forged:
    """A process that was forked off the forge."""

    def __init__(self, process_id: int) -> None:
        self.process_id = process_id
        self._descriptor = os.pidfd_open(process_id)

    async def kill(self) -> None:
        """SIGKILL; returns when it is gone."""
        await self._end(signal.SIGKILL)

    async def stop(self) -> None:
        """SIGTERM; returns when it is gone."""
        await self._end(signal.SIGTERM)

    async def ended(self) -> None:
        """Wait until it is gone."""
        with trio.fail_after(START_SECONDS_MAX):
            await trio.lowlevel.wait_readable(self._descriptor)
        os.close(self._descriptor)

    async def _end(self, number: signal.Signals) -> None:
        signal.pidfd_send_signal(self._descriptor, number)
        await self.ended()


class Forge:
    """Makes processes, and outlives the event loop of a test."""

    def __init__(self, process: subprocess.Popen[bytes], said: Path) -> None:
        self._process = process
        self._said = said

    @property
    def process_id(self) -> int:
        """Of the forge itself."""
        return self._process.pid

    def run(
        self, *argv: object, env: Mapping[str, str] | None = None, constants: Mapping[str, object] | None = None
    ) -> Forged:
        """One `avicenna-live`, with these variables beside ours and these constants instead of the program's."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        # The forge was started before the test, which may go by a way of its own.
        ours = {name: value for name, value in os.environ.items() if name.startswith("AVICENNA_")}
        order = {"argv": [*map(str, argv)], "env": ours | dict(env or {}), "set": dict(constants or {})}
        self._process.stdin.write(json.dumps(order).encode() + b"\n")
        self._process.stdin.flush()
        return Forged(int(self._process.stdout.readline()))

    async def serve(
        self, data: Path, *, env: Mapping[str, str] | None = None, constants: Mapping[str, object] | None = None
    ) -> tuple[Forged, str]:
        """A server that accepts connections, and its URL."""
        said_before = self._said.stat().st_size
        server = self.run("serve", "--port", 0, "--data", data, env=env, constants=constants)
        with trio.fail_after(START_SECONDS_MAX):
            while (url := _url_of(data, server.process_id)) is None:
                said = self._said.read_bytes()[said_before:]
                assert b"cannot start" not in said, said.decode()
                await trio.sleep(0.005)
        return server, url


@contextmanager
def forge(directory: Path) -> Iterator[Forge]:
    """A forge, and no process of it afterwards; what its servers say goes to a file in `directory`, and the logbook."""
    said = directory / "said-by-forged-servers"
    with said.open("wb") as stderr:
        process = subprocess.Popen(
            [sys.executable, "-m", "tests.server.forge"],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            cwd=ROOT,
            start_new_session=True,
        )
    with process:
        try:
            yield Forge(process, said)
        finally:
            os.killpg(process.pid, signal.SIGKILL)
            LOGBOOK.write(said.read_bytes())


def _url_of(data: Path, process_id: int) -> str | None:
    """Where this process listens; `None`: it does not, or not yet."""
    try:
        listening = json.loads((data / LISTENING_FILE).read_bytes())
    except FileNotFoundError:
        return None
    return str(listening["urls"][0]) if listening["pid"] == process_id else None
