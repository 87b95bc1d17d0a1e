"""What a proxy in front takes for each idle WebSocket: `make bench-proxies`.

Each proxy of `deploy/` that is installed stands in front of a server with the settings of docs/DEPLOYMENT.md, and
clients follow through it with TLS. Beside it: the same clients without a proxy. Memory of the proxy is the proportional
set size of all its processes; memory of the kernel is counted as `bench-growth` counts it, without the client's end.
Exit code: 0, 1 if a connection was lost, 2 if it could not be run.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import shutil
import socket
import ssl
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from benchmarks import records
from benchmarks.growth import ENDS, kernel_bytes, table
from benchmarks.measuring import SETTLE_SECONDS, room_for
from benchmarks.processes import CannotRun, cores, memory_bytes
from benchmarks.records import Point
from benchmarks.servers import OURS, ROOT, THIS_CHECKOUT, Running, ServerFailed, running

DEPLOY: Final = ROOT / "deploy"
NAME: Final = "live.example.org"
DIRECT: Final = "no proxy"
DIAGNOSES: Final = 100
IN_FLIGHT: Final = 8
"""Clients that connect at the same time."""
START_SECONDS_MAX: Final = 15.0
WARM_UP: Final = 50
"""Connections that come and go first, so that what a proxy makes once is not counted."""


@dataclass(frozen=True, slots=True)
class Place:
    """Where a proxy finds its server and its certificate, and where it listens."""

    directory: Path
    port: int

    @property
    def socket(self) -> Path:
        """Of the server."""
        return self.directory / "live.sock"


def replaced(text: str, places: Mapping[str, str]) -> str:
    """The text with what is here in place of what is in production."""
    for theirs, ours in places.items():
        if theirs not in text:
            raise CannotRun(f"{theirs!r} is not in the example any more")
        text = text.replace(theirs, ours)
    return text


def nginx(place: Place, connections: int) -> list[str]:
    """The example within a configuration like Debian's, with room for the connections."""
    places = {
        "/run/avicenna/live.sock": f"{place.socket}",
        "/etc/ssl/": f"{place.directory}/",
        "/var/log/nginx/": f"{place.directory}/",
        "listen 443 ": f"listen 127.0.0.1:{place.port} ",
    }
    text = replaced((DEPLOY / "nginx" / "avicenna-live.conf").read_text(), places)
    user = "user root;" if os.geteuid() == 0 else ""
    file = place.directory / "nginx.conf"
    file.write_text(
        f"daemon off; worker_processes auto; worker_rlimit_nofile {connections * 3}; pid {place.directory}/pid;\n"
        f"error_log {place.directory}/error.log; {user} events {{ worker_connections {connections * 3}; }}\n"
        f"http {{\n{text}}}\n"
    )
    return ["nginx", "-p", str(place.directory), "-e", f"{place.directory}/error.log", "-c", str(file)]


def haproxy(place: Place, connections: int) -> list[str]:
    """The example as it stands."""
    pem = place.directory / "both.pem"
    pem.write_bytes((place.directory / "live.pem").read_bytes() + (place.directory / "live.key").read_bytes())
    places = {
        "/run/avicenna/live.sock": f"{place.socket}",
        "/etc/ssl/live.pem": f"{pem}",
        "/etc/haproxy/": f"{DEPLOY}/haproxy/",
        "bind :443 ": f"bind 127.0.0.1:{place.port} ",
        "    user haproxy\n    group haproxy\n": "",
    }
    file = place.directory / "haproxy.cfg"
    file.write_text(replaced((DEPLOY / "haproxy" / "haproxy.cfg").read_text(), places))
    return ["haproxy", "-db", "-q", "-f", str(file)]


def caddy(place: Place, connections: int) -> list[str]:
    """The example, with a certificate of a file."""
    places = {
        "{$SITE:live.example.org} {": f"https://{NAME}:{place.port} {{\n\tbind 127.0.0.1\n"
        f"\ttls {place.directory}/live.pem {place.directory}/live.key",
        "{$UPSTREAM:unix//run/avicenna/live.sock}": f"unix/{place.socket}",
    }
    text = replaced((DEPLOY / "caddy" / "Caddyfile").read_text(), places)
    file = place.directory / "Caddyfile"
    file.write_text("{\n\tadmin off\n\tauto_https disable_redirects\n\tskip_install_trust\n}\n" + text)
    return ["caddy", "run", "--config", str(file), "--adapter", "caddyfile"]


PROXIES: Final[Mapping[str, Callable[[Place, int], list[str]]]] = {"nginx": nginx, "haproxy": haproxy, "caddy": caddy}


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def make_certificate(directory: Path) -> None:
    """`live.pem` and its `live.key`, of RSA with 2048 bits, as docs/guides/behind-a-proxy.md makes them."""
    asked = ["-x509", "-newkey", "rsa:2048", "-nodes", "-days", "1", "-subj", f"/CN={NAME}"]
    files = ["-keyout", str(directory / "live.key"), "-out", str(directory / "live.pem")]
    subprocess.run(["openssl", "req", *asked, *files], check=True, capture_output=True, timeout=60)


@contextmanager
def started(command: Sequence[str], place: Place) -> Iterator[int]:
    """A proxy that listens; its process."""
    environment = os.environ | {"HOME": str(place.directory), "XDG_DATA_HOME": str(place.directory)}
    program = shutil.which(command[0], path=f"{os.environ['PATH']}:/usr/sbin")
    assert program is not None, "it was looked for"
    with (place.directory / "said").open("wb") as said:
        process = subprocess.Popen(
            [program, *command[1:]], stdin=subprocess.DEVNULL, stdout=said, stderr=said, env=environment
        )
    try:
        until = time.monotonic() + START_SECONDS_MAX
        while not listens(place.port):
            if process.poll() is not None or time.monotonic() > until:
                raise CannotRun(f"{command[0]} did not start: {(place.directory / 'said').read_text()[-2000:]}")
            time.sleep(0.02)
        yield process.pid
    finally:
        process.terminate()
        process.wait()


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def family_bytes(pid: int) -> int:
    """Memory of a process and of those it has started."""
    below = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    return memory_bytes(pid) + sum(family_bytes(int(child)) for child in below)


class Clients:
    """Followers through a port. They send nothing and answer no Ping, so they are not kept for long."""

    def __init__(self, server: Running, port: int, context: ssl.SSLContext | None) -> None:
        self._server = server
        self._port = port
        self._context = context
        self._names = server.register(DIAGNOSES)
        self._open: list[socket.socket] = []

    def follow(self, count: int) -> None:
        """So many more, until each is live."""
        numbers = range(len(self._open), len(self._open) + count)
        with ThreadPoolExecutor(IN_FLIGHT) as pool:
            self._open += pool.map(self._one, numbers)

    def _one(self, number: int) -> socket.socket:
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=30)
        sock = self._context.wrap_socket(plain, server_hostname=NAME) if self._context else plain
        token = self._server.token(f"user-{number}", "monitor")
        lines = (
            f"GET /ws/{self._names[number % DIAGNOSES]} HTTP/1.1",
            f"Host: {NAME}",
            "Upgrade: websocket",
            "Connection: Upgrade",
            f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
            "Sec-WebSocket-Version: 13",
            f"Authorization: Bearer {token}",
        )
        sock.sendall("\r\n".join((*lines, "", "")).encode())
        received = b""
        while b'"type":"live"' not in received:
            chunk = sock.recv(1 << 16)
            if not chunk:
                raise CannotRun(f"a connection ended: {received[-500:]!r}")
            received += chunk
        return sock

    def connected(self) -> int:
        """Connections, as the server counts them."""
        target = self._server.target
        connection = http.client.HTTPConnection(target.address, target.port, timeout=30)
        headers = {"Authorization": f"Bearer {self._server.token('op', 'operate')}"}
        connection.request("GET", "/ws/status", headers=headers)
        count: int = json.loads(connection.getresponse().read())["total_connections"]
        connection.close()
        return count

    def leave(self) -> None:
        """All of them, and the server knows."""
        for sock in self._open:
            sock.close()
        self._open.clear()
        until = time.monotonic() + 30
        while self.connected() and time.monotonic() < until:
            time.sleep(0.05)


Values = dict[str, float]


def measured(name: str, sizes: Sequence[int], command: str) -> tuple[list[tuple[int, Values]], list[str]]:
    """Memory for each connection, by connections; and faults. The kernel's counts both ends of a client's socket."""
    server_core, _ = cores()
    with tempfile.TemporaryDirectory(prefix="avicenna-bench-") as made:
        directory = Path(made)
        directory.chmod(0o755)
        make_certificate(directory)
        place = Place(directory, free_port())
        settings = room_for(max(sizes)) | {
            "AVICENNA_UNIX_SOCKET": str(place.socket),
            "AVICENNA_TRUSTED_PROXIES": "unix",
            "AVICENNA_ADDRESS_SHARE": "1",
        }
        with running(OURS, server_core, command, settings=settings) as server:
            if name == DIRECT:
                return looked_at(Clients(server, server.target.port, None), None, sizes)
            trust = ssl.create_default_context(cafile=str(directory / "live.pem"))
            trust.check_hostname = False
            with started(PROXIES[name](place, max(sizes)), place) as pid:
                return looked_at(Clients(server, place.port, trust), pid, sizes)


def looked_at(clients: Clients, pid: int | None, sizes: Sequence[int]) -> tuple[list[tuple[int, Values]], list[str]]:
    """Connect so many, one size after the other, and look at what that took."""
    found: list[tuple[int, Values]] = []
    faults: list[str] = []
    try:
        clients.follow(WARM_UP)
        clients.leave()
        time.sleep(SETTLE_SECONDS)
        kernel_before, proxy_before = kernel_bytes(), 0 if pid is None else family_bytes(pid)
        there = 0
        for size in sizes:
            clients.follow(size - there)
            there = size
            time.sleep(SETTLE_SECONDS)
            values: Values = {}
            if kernel_before is not None:
                values["kernel_kb"] = ((kernel_bytes() or 0) - kernel_before) / 1024 / size
            if pid is not None:
                values["proxy_kb"] = (family_bytes(pid) - proxy_before) / 1024 / size
            if (count := clients.connected()) != size:
                faults.append(f"{size} connections were made, and {count} are there")
            found.append((size, values))
    finally:
        clients.leave()
    return found, faults


def main(argv: Sequence[str] | None = None) -> int:
    """Measure one proxy after the other; print and write."""
    parser = argparse.ArgumentParser(prog="make bench-proxies", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--connections", default="1000,2000", metavar="A,B", help="default: 1000,2000")
    parser.add_argument("--only", default=",".join(PROXIES), metavar="A,B", help=", ".join(PROXIES))
    parser.add_argument("--server-command", default=THIS_CHECKOUT, metavar="COMMAND", help="what starts our server")
    parser.add_argument("--into", type=Path, default=records.MEASURED, metavar="DIR", help="where the run is written")
    options = parser.parse_args(argv)
    sizes = sorted(map(int, options.connections.split(",")))
    chosen = options.only.split(",")
    if unknown := sorted(set(chosen) - PROXIES.keys()):
        parser.error(f"--only: {unknown[0]!r} is none of {', '.join(PROXIES)}")
    load_before = records.load_now()
    series: dict[str, list[Point]] = {}
    faults: list[str] = []
    try:
        room_for(max(sizes) * 3)
        for name in (DIRECT, *chosen):
            if name != DIRECT and shutil.which(name, path=f"{os.environ['PATH']}:/usr/sbin") is None:
                print(f"{name}: skipped: it is not installed", file=sys.stderr)
                continue
            points, lost = measured(name, sizes, options.server_command)
            faults += [f"{name}: {fault}" for fault in lost]
            series[name] = []
            for size, values in points:
                if "kernel_kb" in values:
                    # A client's end costs what the other end of the same socket costs.
                    ends = [point for point in series.get(DIRECT, []) if point.x == size]
                    client = ends[0].values["kernel_kb"][0] if ends else values["kernel_kb"] / ENDS
                    values["kernel_kb"] -= client
                print(f"{name}: {size}: {values}", file=sys.stderr, flush=True)
                series[name].append(Point(size, {key: [value] for key, value in values.items()}))
    except (CannotRun, ServerFailed, OSError) as failure:
        print(f"benchmarks.proxies: {failure}", file=sys.stderr)
        return 2
    run = records.make_run("proxies", "bench-proxies", argv, load_before, series=series, faults=faults)
    print(f"{table(series)}\nwritten: {records.write(run, options.into)}")
    for fault in faults:
        print(f"FAULT: {fault}")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
