"""Processes of `avicenna-live serve --engine nats` on NATS servers of this machine, with one key."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from tests.cluster.servers import NatsServer
from tests.logbook import LOGBOOK
from web.identity.keyring import KEY_FILE
from web.server.listening_file import LISTENING_FILE

COMMAND: Final = Path(sys.executable).with_name("avicenna-live")

KEY: Final = b"k" * 32

START_SECONDS_MAX: Final = 60.0
"""Until one serves, on a busy machine."""


@dataclass
class Node:
    """One process, and its data directory."""

    data: Path
    process: subprocess.Popen[bytes]
    url: str = ""

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.data / "log").read_text()

    def wait(self) -> None:
        """Wait until it serves."""
        deadline = time.monotonic() + START_SECONDS_MAX
        while not self.url:
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            try:
                self.url = json.loads((self.data / LISTENING_FILE).read_text())["urls"][0]
            except (OSError, ValueError):
                time.sleep(0.02)

    def end(self, by: signal.Signals = signal.SIGTERM) -> int:
        """End it; its exit code."""
        self.process.send_signal(by)
        self.process.send_signal(signal.SIGCONT)
        return self.process.wait(30)


def variables_of(servers: Sequence[NatsServer], name: str) -> dict[str, str]:
    """The variables of a node of this installation."""
    return {
        "AVICENNA_ENGINE": "nats",
        "AVICENNA_NATS_URL": ",".join(f"nats://{one.address}" for one in servers),
        "AVICENNA_NATS_NAME": name,
        "AVICENNA_NATS_REPLICAS": str(len(servers)),
    }


def directory_with_key(data: Path, key: bytes = KEY) -> Path:
    """A data directory that has the key of all nodes."""
    data.mkdir(mode=0o700, parents=True)
    (data / KEY_FILE).write_bytes(key)
    (data / KEY_FILE).chmod(0o600)
    return data


def start_node(
    data: Path, variables: dict[str, str], port: int = 0, engine: str = "nats", program: Path = COMMAND
) -> Node:
    """A node that is starting, at this port or any."""
    (data / LISTENING_FILE).unlink(missing_ok=True)  # of one before
    with (data / "log").open("ab") as log:
        command = [str(program), "serve", "--engine", engine, "--port", str(port), "--data", str(data)]
        # In a group of its own: Ctrl-C is for whoever has started it.
        process = subprocess.Popen(command, stdout=log, stderr=log, env=os.environ | variables, process_group=0)
    return Node(data, process)


@contextmanager
def nodes_on(
    servers: Sequence[NatsServer], directory: Path, name: str, count: int = 2, **more: str
) -> Iterator[Sequence[Node]]:
    """So many nodes that serve."""
    variables = variables_of(servers, name) | more
    nodes = [start_node(directory_with_key(directory / f"node-{number}"), variables) for number in range(count)]
    try:
        for one in nodes:
            one.wait()
        yield nodes
    finally:
        for one in nodes:
            one.end(signal.SIGKILL)
            LOGBOOK.write((one.data / "log").read_bytes())
