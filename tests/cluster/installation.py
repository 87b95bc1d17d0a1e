"""Three NATS servers, three of our servers on them and HAProxy before these, on one machine: for people and for chaos.

Everything listens on 127.0.0.1 and lies in one directory; who opens an installation ends all of it. Nodes are called
a, b and c, NATS servers 1, 2 and 3.
"""

from __future__ import annotations

import json
import resource
import signal
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

from tests.cluster.links import Links
from tests.cluster.nodes import COMMAND, Node, directory_with_key, start_node, variables_of
from tests.cluster.servers import READY_SECONDS_MAX, NatsServer, free_ports, planned
from tests.programs import ROOT, found

NAME: Final = "cluster"
SERVERS: Final = "123"
NODES: Final = "abc"

HAPROXY: Final = ROOT / "deploy" / "haproxy"
"""Where the configuration lies that is shipped for several servers, `several.cfg`."""


class CannotBegin(Exception):
    """A program is missing; the text says which, and how to get it."""


def needs(*names: str) -> None:
    """Raise `CannotBegin` unless all these programs are here."""
    how = {"nats-server": "make nats-server", "haproxy": "your system's package haproxy"}
    if missing := [f"{name} is not installed: {how[name]}" for name in names if found(name) is None]:
        raise CannotBegin("; ".join(missing))


@dataclass
class Installation:
    """What runs, and how to get at it."""

    servers: Sequence[NatsServer]
    nodes: Sequence[Node]
    ports: Sequence[int]
    """Of the nodes."""
    variables: Sequence[Mapping[str, str]]
    """Of the environment of each node."""
    urls: Sequence[str]
    """Where clients come to: the proxy, or the nodes where there is none."""
    key: bytes
    proxy: subprocess.Popen[bytes] | None
    programs: list[Path] = field(default_factory=lambda: [COMMAND] * len(NODES))
    """Which `avicenna-live` each node is."""

    def start_node(self, number: int) -> None:
        """Start one again that has ended; it may not serve yet."""
        node = self.nodes[number]
        variables, port = dict(self.variables[number]), self.ports[number]
        again = start_node(node.data, variables, port, program=self.programs[number])
        node.process, node.url = again.process, ""

    def url_of(self, number: int) -> str:
        """Where one of ours listens, now or once it is started."""
        return f"http://127.0.0.1:{self.ports[number]}"

    def is_ready(self, number: int) -> bool:
        """Whether one of ours says that it is ready."""
        return _status(f"{self.url_of(number)}/readyz") == 200

    def memory(self) -> str:
        """What each process holds in memory now, in words."""
        processes = [*(one.process for one in self.nodes), *(one.process for one in self.servers)]
        return (
            ", ".join(f"{name} {_mib(one):.0f}" for name, one in zip(NODES + SERVERS, processes, strict=True)) + " MiB"
        )

    def leader(self) -> int | None:
        """The NATS server that leads the stream in which everything changes; `None`: nobody knows of any."""
        for one in self.servers:
            with suppress(OSError, ValueError):
                asked = f"http://127.0.0.1:{one.monitor}/jsz?streams=true&accounts=true"
                with urllib.request.urlopen(asked, timeout=2) as answer:
                    if (name := _leader_in(json.load(answer))) is not None:
                        return [server.name for server in self.servers].index(name)
        return None


def _leader_in(seen: Mapping[str, Any]) -> str | None:
    for account in seen.get("account_details", ()):
        for stream in account.get("stream_detail", ()):
            if stream["name"] == NAME:
                leader: str | None = stream.get("cluster", {}).get("leader") or None
                return leader
    return None


def _mib(process: subprocess.Popen[bytes] | None) -> float:
    if process is None:
        return 0.0
    pages = int(Path(f"/proc/{process.pid}/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def _status(url: str) -> int:
    try:
        with urllib.request.urlopen(url, timeout=1) as answer:
            return int(answer.status)
    except urllib.error.HTTPError as error:
        return error.code
    except OSError:
        return 0


def state_of(process: subprocess.Popen[bytes] | None) -> str:
    """Whether a process is `up`, `frozen` or `dead`."""
    if process is None or process.poll() is not None:
        return "dead"
    with suppress(OSError):
        state = Path(f"/proc/{process.pid}/stat").read_text().rpartition(")")[2].split()[0]
        return "frozen" if state in "Tt" else "up"
    return "dead"


@dataclass(frozen=True, slots=True)
class Former:
    """Programs of former versions with which an installation begins."""

    nats_server: str = ""
    """Empty: the one that is installed."""
    node: Path = COMMAND

    @property
    def is_any(self) -> bool:
        """Whether something is of a former version."""
        return self != Former()


@contextmanager
def installed(
    directory: Path,
    key: bytes,
    links: Links | None = None,
    port: int = 0,
    sync: str = "2m",
    former: Former = Former(),
) -> Iterator[Installation]:
    """An installation whose nodes are ready; all of it has ended at the end.

    Args:
        links: by which servers come to each other, and nodes to servers; `None`: directly.
        port: of the proxy; 0: any.
        sync: how often NATS servers write to the disk; `always`: before they acknowledge.
        former: what it begins with.

    Raises:
        CannotBegin: there is no NATS server here.
    """
    needs("nats-server")
    ports = free_ports(3 * len(SERVERS) + len(NODES) + 1)
    of_servers, of_nodes, front = ports[: 3 * len(SERVERS)], ports[-len(NODES) - 1 : -1], port or ports[-1]
    servers = _planned(directory, of_servers, links, sync)
    variables = [
        variables_of(servers, NAME)
        | ({"AVICENNA_NATS_URL": ",".join(links.url(node, one) for one in SERVERS)} if links else {})
        | {"AVICENNA_NODE_NAME": node}
        for node in NODES
    ]
    nodes: list[Node] = []
    proxy: subprocess.Popen[bytes] | None = None
    try:
        for one in servers:
            one.program = former.nats_server
            one.start()
        for one in servers:
            one.wait()
        for name, settings, its_port in zip(NODES, variables, of_nodes, strict=True):
            data = directory_with_key(directory / f"node-{name}", key)
            nodes.append(start_node(data, dict(settings), its_port, program=former.node))
        for node in nodes:
            node.wait()
        urls = [node.url for node in nodes]
        if (haproxy := found("haproxy")) is not None:
            proxy, urls = _proxy(haproxy, directory, front, of_nodes), [f"http://127.0.0.1:{front}"]
        yield Installation(servers, nodes, of_nodes, variables, urls, key, proxy, [former.node] * len(NODES))
    finally:
        if proxy is not None:
            proxy.kill()
            proxy.wait()
        for node in nodes:
            node.end(signal.SIGKILL)
        for one in servers:
            one.end(signal.SIGKILL)


def _planned(directory: Path, ports: Sequence[int], links: Links | None, sync: str) -> list[NatsServer]:
    if links is None:
        return planned(directory, len(SERVERS), sync=sync, ports=ports)
    links.lead_to({one: ports[3 * number + 2] for number, one in enumerate(SERVERS)}, SERVERS)
    links.lead_to({one: ports[3 * number] for number, one in enumerate(SERVERS)}, NODES)

    def between(one: int, other: int) -> int:
        return links.port(SERVERS[one], SERVERS[other])

    return planned(directory, len(SERVERS), sync=sync, ports=ports, between=between)


def configuration(port: int, nodes: Sequence[int]) -> str:
    """The configuration of HAProxy that is shipped, with places of this machine, and without TLS."""
    text = (HAPROXY / "several.cfg").read_text()
    places = {
        "bind :443 ssl crt /etc/ssl/live.pem alpn h2,http/1.1": f"bind 127.0.0.1:{port}",
        "/etc/haproxy/": f"{HAPROXY}/",
        "    user haproxy\n    group haproxy\n": "",  # it is of whoever runs this
    }
    for theirs, ours in places.items():
        assert theirs in text, theirs
        text = text.replace(theirs, ours)
    for name, its in zip(NODES, nodes, strict=True):
        text = text.replace(f" {name}:8000", f" 127.0.0.1:{its}")
    return text


def _proxy(haproxy: str, directory: Path, port: int, nodes: Sequence[int]) -> subprocess.Popen[bytes]:
    """HAProxy that has seen a node which is ready."""
    file = directory / "haproxy.cfg"
    file.write_text(configuration(port, nodes))
    with (directory / "haproxy.log").open("wb") as log:
        process = subprocess.Popen([haproxy, "-db", "-q", "-f", str(file)], stdout=log, stderr=log, process_group=0)
    deadline = time.monotonic() + READY_SECONDS_MAX
    while _status(f"http://127.0.0.1:{port}/readyz") != 200:
        said = (directory / "haproxy.log").read_text()
        if process.poll() is not None or time.monotonic() > deadline:
            process.kill()
            raise CannotBegin(f"HAProxy does not serve at 127.0.0.1:{port}: {said.strip()}")
        time.sleep(0.02)
    return process
