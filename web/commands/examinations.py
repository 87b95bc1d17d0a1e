"""The checks of `avicenna-live doctor`, one function each; none knows another, and none changes anything."""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import email.utils
import errno
import http.client
import logging
import os
import platform
import resource
import shlex
import shutil
import socket
import sqlite3
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, cast
from urllib.parse import urlsplit

from storage.disk import database_files, trust
from storage.errors import CannotOpen, StorageError
from web.commands.answers import Status
from web.commands.client import Client, Credentials
from web.commands.failures import FAILED, NOBODY_THERE, WRONG_USAGE, CommandFailed, Unreachable, UsageError
from web.commands.finding import Found, client_for, find_of_directory, given_url, workers_of_directory
from web.commands.transport import connection_to, socket_path_of
from web.contract.origins import normal_origin
from web.http.descriptors import RESERVED
from web.identity import keyring
from web.identity.keys import KeyUnusable
from web.server import settings
from web.server.listening_file import NotListening
from web.server.setting_kinds import UNIX_PREFIX
from web.server.settings import DATABASE_FILE, Settings

Level = Literal["ok", "warning", "problem"]

SYNCS: Final = 20
"""Syncs that are measured: enough for a median."""

SYNC_BYTES: Final = 4096
"""Written before each: a page of the write-ahead log."""

SLOW_SYNC_SECONDS: Final = 0.02
"""A publish waits for one sync. Beyond: a warning."""

FREE_BYTES_MIN: Final = 1024**3
"""Free space of the data directory. Below: a warning."""

CLOCKS_APART_SECONDS_MAX: Final = 10.0
"""Difference of two clocks that tokens tolerate. Beyond: a warning."""

EARLIEST: Final = 1_767_225_600.0
"""2026-01-01: a clock that is before it was never set."""

NETWORK_FILE_SYSTEMS: Final = frozenset({"nfs", "nfs4", "cifs", "smb3", "smbfs", "9p", "fuse.sshfs", "ceph", "afs"})
"""SQLite's write-ahead log needs memory that processes share, and locks that hold; these have neither for certain."""

SQLITE_MIN: Final = (3, 37, 0)
"""What the schema needs: tables with strict types."""

ANSWER_SECONDS_MAX: Final = 5.0

REQUESTS_THROUGH_PROXY: Final = 20
"""Sent to see which way they take, however much else is going on."""


@dataclass(frozen=True, slots=True)
class Finding:
    """What one check has found."""

    check: str
    """Its name."""
    level: Level
    text: str
    cure: str | None = None
    """A command that helps, or what to set; `None`: nothing is to be done, or nobody knows."""
    exit_code: int = FAILED
    """Of the command, if this is a problem."""

    def as_json(self) -> dict[str, str | None]:
        """For programs."""
        return {"check": self.check, "level": self.level, "text": self.text, "help": self.cure}


@dataclass(frozen=True, slots=True)
class Patient:
    """What is looked at."""

    settings: Settings
    """Its settings, or the defaults where they cannot be used."""
    problems: tuple[str, ...]
    """What is wrong with the settings."""
    url: str | None
    """Where a proxy is, or a server elsewhere; `None`: nobody named one."""
    arguments: argparse.Namespace

    @property
    def data(self) -> Path:
        return self.settings.data

    @property
    def shell_data(self) -> str:
        """The data directory, as it is written in a command."""
        return shlex.quote(str(self.data))

    def running(self) -> Found | None:
        """The server that runs on the data directory; `None`: there is none."""
        try:
            return find_of_directory(self.arguments)
        except (NotListening, UsageError):
            return None

    def running_workers(self) -> int | None:
        """How many processes serve for that server, whatever the settings say; `None`: there is none."""
        try:
            return workers_of_directory(self.arguments)
        except (NotListening, UsageError):
            return None


def patient_of(arguments: argparse.Namespace) -> Patient:
    """What the options and the environment describe.

    Raises:
        UsageError: the URL is wrong.
    """
    url = given_url(arguments)
    try:
        found = settings.load(os.environ, config=arguments.config, options={"data": arguments.data})
    except settings.SettingsError as error:
        defaults = Settings() if arguments.data is None else Settings(data=Path(arguments.data))
        return Patient(defaults, error.problems, url, arguments)
    return Patient(found, (), url, arguments)


def settings_are_right(patient: Patient) -> Sequence[Finding]:
    """Every setting that is wrong."""
    name = "settings"
    if not patient.problems:
        return [Finding(name, "ok", "they can be used")]
    page = "docs/SETTINGS.md lists what a setting must be; the checks below take the defaults"
    return [Finding(name, "problem", one, page, WRONG_USAGE) for one in patient.problems]


def data_directory(patient: Patient) -> Sequence[Finding]:
    """Who can read and write it, and whether the database is there."""
    name, data = "data directory", patient.data
    if not data.exists():
        if patient.settings.database_must_exist:
            return [Finding(name, "problem", f"{data} is missing, and database_must_exist is set: is it mounted?")]
        return [Finding(name, "ok", f"{data} does not exist yet: the first start makes it")]
    found: list[Finding] = []
    try:
        warnings = trust.check_directory(data, (keyring.KEY_FILE, *database_files.names_of(DATABASE_FILE)))
        if not patient.settings.shares_engine:
            from web.server.database import check_database  # noqa: PLC0415 - SQLite and Trio take long to import

            check_database(patient.settings)
    except (CannotOpen, StorageError, OSError) as error:
        # Each says which command helps.
        return [Finding(name, "problem", str(error))]
    found += [Finding(name, "warning", one) for one in warnings]
    if not os.access(data, os.R_OK | os.W_OK | os.X_OK):
        own = f"chown -R {os.geteuid()} {patient.shell_data}"
        found.append(Finding(name, "problem", f"user {os.geteuid()} cannot write {data}", own))
    return found or [Finding(name, "ok", f"{data} is this user's")]


def keys(patient: Patient) -> Sequence[Finding]:
    """Whether they can be used, and by nobody else."""
    name = "keys"
    try:
        keyring.see_that_keys_are_given(patient.settings)
    except KeyUnusable as error:
        return [Finding(name, "problem", str(error), exit_code=WRONG_USAGE)]
    if keyring.will_make_key(patient.settings):
        return [Finding(name, "ok", f"the first start makes one in {patient.data}")]
    with warnings_of(keyring.logger) as warnings:
        try:
            found = keyring.load_keys(patient.settings)
        except (KeyUnusable, OSError) as error:
            return [Finding(name, "problem", str(error), exit_code=WRONG_USAGE)]
    return [Finding(name, "warning", one) for one in warnings] or [Finding(name, "ok", f"{len(found)} can be used")]


@contextlib.contextmanager
def warnings_of(logger: logging.Logger) -> Iterator[list[str]]:
    """What it is warned about meanwhile, which is not logged."""
    warnings: list[str] = []

    def keep(record: logging.LogRecord) -> bool:
        if record.levelno >= logging.WARNING:
            warnings.append(record.getMessage())
        return False

    logger.addFilter(keep)
    try:
        yield warnings
    finally:
        logger.removeFilter(keep)


def disk(patient: Patient) -> Sequence[Finding]:
    """How fast it syncs, how full it is, and whether SQLite can trust it."""
    name = "disk"
    if patient.settings.shares_engine:
        return [Finding(name, "ok", "not looked at: the NATS servers have everything on theirs")]
    place = next(path for path in (patient.data.absolute(), *patient.data.absolute().parents) if path.is_dir())
    shown = shlex.quote(str(place))
    found: list[Finding] = []
    kind = file_system_of(place)
    if kind in NETWORK_FILE_SYSTEMS:
        text = f"{place} is on {kind}, over a network: SQLite can lose a database there"
        found.append(Finding(name, "problem", text, "put the data directory on a disk of this machine: --data DIR"))
    elif kind in ("tmpfs", "ramfs"):
        text = f"{place} is in memory ({kind}): all is lost when the machine stops"
        found.append(Finding(name, "warning", text, "put the data directory on a disk: --data DIR"))
    usage = shutil.disk_usage(place)
    if usage.free < FREE_BYTES_MIN:
        text = f"{usage.free // 2**20} MiB are free on the file system of {place}"
        found.append(Finding(name, "warning", text, f"df -h {shown}"))
    try:
        seconds = sync_seconds(place)
    except OSError as error:
        found.append(Finding(name, "problem", f"cannot write to {place}: {error.strerror}", f"ls -ld {shown}"))
        return found
    text = f"a sync (fdatasync) takes {seconds * 1000:.1f} ms, the median of {SYNCS}"
    if seconds > SLOW_SYNC_SECONDS:
        text += ": each publish waits for one"
        help_ = (
            "put the data directory on a faster disk; durability = normal waits for none, and a power loss costs events"
        )
        found.append(Finding(name, "warning", text, help_))
    return found or [Finding(name, "ok", text)]


def sync_seconds(directory: Path) -> float:
    """The median time of a sync after a small write, in a file that has no name."""
    taken: list[float] = []
    with tempfile.TemporaryFile(dir=directory, buffering=0) as file:
        for _ in range(SYNCS):
            file.write(b"\0" * SYNC_BYTES)
            began_at = time.perf_counter()
            os.fdatasync(file.fileno())
            taken.append(time.perf_counter() - began_at)
    return statistics.median(taken)


def file_system_of(path: Path) -> str:
    """The kind of the file system a directory is on; empty: the system does not tell."""
    device = path.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/self/mountinfo").read_text().splitlines():
            fields = line.split()
            if fields[2] == wanted:
                return fields[fields.index("-") + 1]
    return ""


def clock(patient: Patient) -> Sequence[Finding]:
    """Whether it was set, is kept, and has not gone back."""
    name, now, set_it = "clock", time.time(), "timedatectl set-ntp true; timedatectl status"
    if now < EARLIEST:
        return [Finding(name, "problem", f"it says {time.ctime(now)}: it was never set", set_it)]
    found: list[Finding] = []
    database = patient.data / DATABASE_FILE
    written = [one for one in (database, database_files.wal_of(database)) if one.exists()]
    with contextlib.suppress(OSError):
        ahead = max((one.stat().st_mtime for one in written), default=now) - now
        if ahead > CLOCKS_APART_SECONDS_MAX:
            text = f"it has gone back: the database was written {ahead:.0f} s after what it says now"
            found.append(Finding(name, "problem", text, set_it))
    is_kept = is_synchronized()
    if is_kept is False:
        found.append(
            Finding(name, "warning", "no time service keeps it (NTP): tokens of other machines may fail", set_it)
        )
    known = "kept by a time service" if is_kept else "set; the system does not tell whether a time service keeps it"
    return found or [Finding(name, "ok", known)]


def is_synchronized() -> bool | None:
    """Whether the kernel's clock is kept by a time service; `None`: the system does not tell (adjtimex(2))."""
    STA_UNSYNC, status_at = 0x40, 40  # noqa: N806 - the kernel's name
    buffer = ctypes.create_string_buffer(512)
    try:
        if platform.machine() not in ("x86_64", "aarch64") or ctypes.CDLL(None).adjtimex(buffer) < 0:
            return None
    except (OSError, AttributeError):
        return None
    return not int.from_bytes(buffer.raw[status_at : status_at + 4], "little") & STA_UNSYNC


def open_files(patient: Patient) -> Sequence[Finding]:
    """Whether the connections of the settings fit into the limit."""
    name, wanted = "open files", patient.settings.max_connections + RESERVED
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if hard != resource.RLIM_INFINITY and hard < wanted:
        text = (
            f"at most {hard} here, and max_connections = {patient.settings.max_connections} needs {wanted}: a server "
            "that is started like this command accepts fewer"
        )
        help_ = f"ulimit -Hn {wanted} (systemd: LimitNOFILE={wanted}; docker: --ulimit nofile={wanted})"
        return [Finding(name, "warning", text, help_)]
    allowed = "any number" if hard == resource.RLIM_INFINITY else str(hard)
    return [Finding(name, "ok", f"{allowed} allowed, {wanted} needed")]


def engine(patient: Patient) -> Sequence[Finding]:
    """Whether what holds everything is there."""
    name, chosen = "engine", patient.settings
    if not chosen.shares_engine:
        return [Finding(name, "ok", f"SQLite, in {patient.data}")]
    from web.commands import offline_nats  # noqa: PLC0415 - starts the event loop's packages

    where = ", ".join(chosen.nats_url)
    try:
        server, problems = offline_nats.look(chosen, ANSWER_SECONDS_MAX)
    except StorageError as error:
        return [Finding(name, "problem", f"{where}: {error}", "nats_url, nats_credentials, nats_ca; nats server check")]
    found = [Finding(name, "problem", one, "nats stream edit, or another nats_name") for one in problems]
    if chosen.nats_replicas == 1:
        text = "nats_replicas is 1: one NATS server has everything, and nothing is served without it"
        found.append(Finding(name, "warning", text, "AVICENNA_NATS_REPLICAS=3, with three servers"))
    return found or [Finding(name, "ok", f"the NATS server {server} takes us")]


def workers(patient: Patient) -> Sequence[Finding]:
    """Whether there are cores for them."""
    name, wanted = "workers", patient.running_workers() or patient.settings.workers
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not every system tells
        cores = os.cpu_count() or 1
    if wanted == 1:
        return [Finding(name, "ok", "one process serves")]
    text = f"{wanted} processes serve, and one has the database; {cores} cores are there for them"
    if wanted > cores:
        return [
            Finding(name, "warning", f"{text}: they take turns, and each costs memory", f"AVICENNA_WORKERS={cores}")
        ]
    return [Finding(name, "ok", text)]


def listening(patient: Patient) -> Sequence[Finding]:
    """Whether the server is there and ready, or else whether its places are free."""
    name = "listening"
    if (server := patient.running()) is not None:
        return [_readiness(name, server)]
    chosen, found = patient.settings, []
    if chosen.tcp:
        found.append(_free_port(name, chosen.host, chosen.port, "port"))
    if chosen.unix_socket is not None:
        found.append(_free_path(name, chosen.unix_socket, "unix_socket"))
    place = chosen.operators_listen
    if place is not None and place.startswith(UNIX_PREFIX):
        found.append(_free_path(name, Path(place.removeprefix(UNIX_PREFIX)), "operators_listen"))
    elif place is not None:
        host, _, port = place.rpartition(":")
        found.append(_free_port(name, host.strip("[]"), int(port), "operators_listen"))
    return found


def _readiness(name: str, server: Found) -> Finding:
    try:
        Client(server.url, Credentials()).request(
            "GET", "readyz", answer=dict[str, Any], seconds_max=ANSWER_SECONDS_MAX
        )
    except CommandFailed as error:
        return Finding(
            name, "problem", f"a server runs at {server.url}, and is not ready: {error}", "avicenna-live top"
        )
    return Finding(name, "ok", f"a server runs at {server.url}, and is ready")


def _free_port(name: str, host: str, port: int, setting: str) -> Finding:
    place = f"{host}:{port}"
    try:
        family, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(family, socket.SOCK_STREAM) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind(address)
            probe.listen(1)
    except OSError as error:
        cure = f"ss -ltnp 'sport = :{port}'" if error.errno == errno.EADDRINUSE else "ip address"
        if error.errno == errno.EACCES:
            cure = f"a port from 1024 on, or a socket unit of deploy/systemd ({setting})"
        return Finding(name, "problem", f"cannot listen on {place} ({setting}): {error.strerror or error}", cure)
    return Finding(name, "ok", f"{place} ({setting}) is free")


def _free_path(name: str, path: Path, setting: str) -> Finding:
    parent = shlex.quote(str(path.parent))
    if not path.parent.is_dir():
        return Finding(name, "problem", f"{path.parent} is missing ({setting})", f"mkdir -p {parent}")
    if path.is_socket():
        with socket.socket(socket.AF_UNIX) as probe:
            probe.settimeout(ANSWER_SECONDS_MAX)
            with contextlib.suppress(ConnectionRefusedError):
                probe.connect(str(path))
                whose = f"ss -lxp | grep {shlex.quote(str(path))}"
                text = f"somebody else listens on {path} ({setting}), or systemd does for the server"
                return Finding(name, "warning", text, whose)
    elif path.exists():
        return Finding(name, "problem", f"{path} ({setting}) is there already and is no socket", f"ls -l {path}")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        return Finding(
            name, "problem", f"user {os.geteuid()} cannot write {path.parent} ({setting})", f"ls -ld {parent}"
        )
    return Finding(name, "ok", f"{path} ({setting}) is free")


def libraries(patient: Patient) -> Sequence[Finding]:
    """SQLite and Python."""
    name = "libraries"
    text = f"SQLite {sqlite3.sqlite_version}, Python {platform.python_version()}"
    if sqlite3.sqlite_version_info < SQLITE_MIN:
        least = ".".join(map(str, SQLITE_MIN))
        return [Finding(name, "problem", f"{text}: SQLite must be {least} or later", "a Python with a newer SQLite")]
    return [Finding(name, "ok", text)]


def proxy(patient: Patient) -> Sequence[Finding]:
    """What is at `--url`: whether it answers, by its host, with WebSockets, and on the short way."""
    name, url = "proxy", patient.url
    if url is None:
        return [Finding(name, "ok", "not looked at: name it with --url")]
    try:
        status, headers = _asked(url, "/healthz", {})
    except Unreachable as error:
        return [Finding(name, "problem", str(error), "is the server up, and does the proxy reach it?", NOBODY_THERE)]
    if status == http.client.MISDIRECTED_REQUEST:
        host = urlsplit(url).hostname
        return [
            Finding(name, "problem", f"the server is not asked for by the host {host}", f"allowed_hosts = [{host!r}]")
        ]
    if status != http.client.OK:
        return [Finding(name, "problem", f"GET {url}/healthz is answered {status}", "the error log of the proxy")]
    found = [*_apart(name, headers), *_upgraded(name, url), *_short_way(name, patient), *_believed(name, patient, url)]
    return found or [Finding(name, "ok", f"{url} answers, and passes WebSockets")]


def _asked(url: str, path: str, headers: Mapping[str, str]) -> tuple[int, http.client.HTTPMessage]:
    connection = connection_to(url, seconds_max=ANSWER_SECONDS_MAX)
    try:
        connection.request("GET", path, headers=dict(headers))
        response = connection.getresponse()
        return response.status, response.headers
    except (http.client.HTTPException, OSError) as error:
        raise Client(url, Credentials()).unreachable(error) from None
    finally:
        connection.close()


def _apart(name: str, headers: http.client.HTTPMessage) -> Iterator[Finding]:
    with contextlib.suppress(TypeError, ValueError):
        apart = email.utils.parsedate_to_datetime(headers["Date"]).timestamp() - time.time()
        if abs(apart) > CLOCKS_APART_SECONDS_MAX:
            text = f"its clock and the one here are {abs(apart):.0f} s apart: tokens that are made here may fail"
            yield Finding(name, "warning", text, "timedatectl status, on both machines")


def _upgraded(name: str, url: str) -> Iterator[Finding]:
    """Whether a handshake arrives. It has no token: the server answers 101, and refuses by a Close."""
    asking = {
        "Connection": "Upgrade",
        "Upgrade": "websocket",
        "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "AAAAAAAAAAAAAAAAAAAAAA==",
    }
    status, _ = _asked(url, "/ws/doctor", asking)
    if status != http.client.SWITCHING_PROTOCOLS:
        text = f"a WebSocket is answered {status}, not 101: the proxy does not pass it on"
        yield Finding(name, "problem", text, "deploy/nginx, deploy/haproxy and deploy/caddy have examples (Upgrade)")


def _short_way(name: str, patient: Patient) -> Iterator[Finding]:
    """Requests through the proxy, and what the server says of their way; nothing, without a token for its status."""
    assert patient.url is not None, "somebody named it"
    client = client_for(Found(patient.url), patient.arguments, "operate")

    def ways() -> Mapping[str, int]:
        _, status = client.request("GET", "ws", "status", answer=Status, seconds_max=ANSWER_SECONDS_MAX)
        found: Mapping[str, int] = cast("Any", status)["node"]["requests"]
        return found

    with contextlib.suppress(CommandFailed, LookupError, TypeError):
        before = ways()
        for _ in range(REQUESTS_THROUGH_PROXY):
            _asked(patient.url, "/healthz", {})
        after = ways()
        if after["long"] - before["long"] >= REQUESTS_THROUGH_PROXY:
            text = "requests through it take the long way, at twice the cost: they are not plain"
            yield Finding(name, "warning", text, 'nginx: proxy_http_version 1.1; proxy_set_header Connection "";')


def _believed(name: str, patient: Patient, url: str) -> Iterator[Finding]:
    """Settings that do not fit a proxy; only of a server whose settings are here."""
    chosen = patient.settings
    if socket_path_of(url) is not None or patient.running() is None:
        return
    origin = normal_origin(url)
    if origin is not None and origin.startswith("https://"):
        if not chosen.trusted_proxies:
            text = "trusted_proxies is empty: all clients count as one, the proxy, and share its limits"
            yield Finding(name, "warning", text, "AVICENNA_TRUSTED_PROXIES=unix, or the address of the proxy")
        if chosen.public_url != origin:
            text = f"public_url is {chosen.public_url or 'not set'}, and browsers come by {origin}"
            yield Finding(name, "warning", text, f"AVICENNA_PUBLIC_URL={origin}")


EXAMINATIONS: Final[Mapping[str, Callable[[Patient], Sequence[Finding]]]] = {
    "settings": settings_are_right,
    "data directory": data_directory,
    "keys": keys,
    "disk": disk,
    "clock": clock,
    "engine": engine,
    "open files": open_files,
    "workers": workers,
    "listening": listening,
    "libraries": libraries,
    "proxy": proxy,
}
"""In the order in which they are told."""
