"""Real NATS servers on this machine: one, or a cluster of three, with a configuration and a directory of their own.

They listen on 127.0.0.1 alone, and end with the test that has started them.
"""

from __future__ import annotations

import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from random import SystemRandom
from typing import Final, TypeAlias

from storage.nats.connection import Address
from tests.programs import program

READY_SECONDS_MAX: Final = 60.0
"""Until a server says that it is healthy, on a busy machine."""

PORTS: Final = range(15_000, 32_000)
"""From which servers get theirs. Reason: the kernel gives connections those from 32768 on."""

CONFIGURATION: Final = """
server_name: {name}
listen: "127.0.0.1:{port}"
http: "127.0.0.1:{monitor}"
max_payload: 1MB
jetstream {{
  store_dir: "{store}"
  sync_interval: {sync}
  max_mem: 256M
  max_file: 4G
  limits {{ batch {{ max_inflight_per_stream: 1000, max_inflight_total: 10000 }} }}
}}
{more}
"""

CLUSTER: Final = """
cluster {{ name: tests, listen: "127.0.0.1:{route}", routes: [{routes}]{hidden} }}
"""

HIDDEN: Final = ', no_advertise: true, advertise: "127.0.0.1:9"'
"""A server behind links tells nobody where it really is, so that nobody comes to it but by a link."""

Between: TypeAlias = Callable[[int, int], int]
"""The port of a link from one server to another, by their numbers from 0 on."""


@dataclass
class NatsServer:
    """One server: its process, where it listens, and what it was configured with."""

    name: str
    directory: Path
    port: int
    monitor: int
    configuration: str
    process: subprocess.Popen[bytes] | None = field(default=None, repr=False)
    program: str = ""
    """Which one it is; empty: the one that is installed."""

    @property
    def address(self) -> Address:
        """Where clients find it."""
        return Address("127.0.0.1", self.port)

    @property
    def log(self) -> str:
        """What it has said."""
        return (self.directory / "log").read_text()

    def start(self) -> None:
        """Start it, with whatever its directory holds; it may not be ready yet."""
        self.directory.mkdir(parents=True, exist_ok=True)
        configuration = self.directory / "nats.conf"
        configuration.write_text(self.configuration)
        command = [self.program or program("nats-server"), "-c", str(configuration), "-l", str(self.directory / "log")]
        # In a group of its own: Ctrl-C is for whoever has started it.
        self.process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, process_group=0)

    def wait(self) -> None:
        """Wait until it says that it is healthy."""
        deadline = time.monotonic() + READY_SECONDS_MAX
        while not self.is_healthy():
            assert self.process is not None
            assert self.process.poll() is None, self.log
            assert time.monotonic() < deadline, self.log
            time.sleep(0.02)

    def is_healthy(self) -> bool:
        """Whether it serves, and has all that it should have."""
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{self.monitor}/healthz", timeout=2) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, OSError):
            return False

    def end(self, by: signal.Signals = signal.SIGTERM) -> None:
        """End it; what it has stored stays. Frozen servers end, too."""
        if self.process is not None:
            self.process.send_signal(by)
            self.process.send_signal(signal.SIGCONT)
            self.process.wait(30)
            self.process = None

    def freeze(self) -> None:
        """Have it do nothing until `thaw`."""
        assert self.process is not None
        freeze(self.process)

    def thaw(self) -> None:
        """Have it go on."""
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


def planned(
    directory: Path,
    count: int,
    more: str = "",
    *,
    sync: str = "2m",
    ports: Sequence[int] | None = None,
    between: Between | None = None,
) -> list[NatsServer]:
    """Servers that nobody has started yet.

    Args:
        count: one, or so many in one cluster.
        more: further configuration, the same for each.
        sync: how often what is written goes to the disk; `always`: before it is acknowledged.
        ports: three for each server: for clients, for whoever looks, for other servers. `None`: any.
        between: how they come to each other; `None`: directly.
    """
    ports = ports or free_ports(3 * count)
    servers = []
    for number in range(count):
        port, monitor, route = ports[3 * number : 3 * number + 3]
        others = [
            between(number, other) if between else ports[3 * other + 2]
            for other in range(count)
            if between is None or other != number
        ]
        routes = ", ".join(f'"nats://127.0.0.1:{one}"' for one in others)
        cluster = CLUSTER.format(route=route, routes=routes, hidden=HIDDEN if between else "")
        name, its = f"n{number + 1}", more + (cluster if count > 1 else "")
        configuration = CONFIGURATION.format(
            name=name, port=port, monitor=monitor, store=directory / name / "store", sync=sync, more=its
        )
        servers.append(NatsServer(name, directory / name, port, monitor, configuration))
    return servers


def freeze(process: subprocess.Popen[bytes]) -> None:
    """Have a process do nothing until SIGCONT."""
    process.send_signal(signal.SIGSTOP)
    deadline = time.monotonic() + READY_SECONDS_MAX
    tasks = Path(f"/proc/{process.pid}/task")
    while any(_state_of(task) not in "Tt" for task in tasks.iterdir()):
        assert time.monotonic() < deadline, "it is not frozen"
        time.sleep(0.001)


@contextmanager
def nats_servers(directory: Path, count: int = 1, more: str = "") -> Iterator[Sequence[NatsServer]]:
    """Servers that are ready; skips the test where there is no program.

    Args:
        count: one, or so many in one cluster.
        more: further configuration, the same for each.
    """
    program("nats-server")
    servers = planned(directory, count, more)
    try:
        for one in servers:
            one.start()
        for one in servers:
            one.wait()
        yield servers
    finally:
        for one in servers:
            one.end(signal.SIGKILL)


def _state_of(task: Path) -> str:
    """The state of a thread, as the kernel has it."""
    return (task / "stat").read_text().rpartition(")")[2].split()[0]


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens at now, and that no connection gets while who listens there is away."""
    found: dict[int, None] = {}
    while len(found) < count:
        port = SystemRandom().choice(PORTS)
        with suppress(OSError), socket.create_server(("127.0.0.1", port)):
            found[port] = None
    return list(found)
