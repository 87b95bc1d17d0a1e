"""The server under a service manager: listeners that are handed over outlive it, and the manager is told how it is."""

from __future__ import annotations

import os
import signal
import socket
import sys
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path

import httpx
import pytest
import trio

from tests.logbook import LOGBOOK, Logbook
from tests.server.process import run, served, served_on
from web.http.handed_over import HandedOver, HandOverError, take
from web.http.handed_over import _listener as listener_of
from web.server import service_manager

CONNECTS_PER_SECOND = 200
REQUEST = b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"


def on_unix(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX)
    listener.bind(str(path))
    listener.listen(1024)
    return listener


# What is handed over


@pytest.fixture
def tcp() -> Iterator[socket.socket]:
    with socket.create_server(("127.0.0.1", 0), backlog=4096) as listener:
        yield listener


class Load:
    """Connects at a steady rate, each with one request."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.failed: list[str] = []
        self.closed_early = 0
        """Connections that had not sent their request when the server stopped."""
        self.answered = 0

    async def run(self) -> None:
        async with trio.open_nursery() as nursery:
            while True:
                nursery.start_soon(self._connect)
                await trio.sleep(1 / CONNECTS_PER_SECOND)

    async def _connect(self) -> None:
        try:
            async with await trio.open_tcp_stream("127.0.0.1", self._port) as stream:
                await stream.send_all(REQUEST)
                answer = b"".join([chunk async for chunk in stream])
        except OSError as error:
            self.failed.append(repr(error))
            return
        if answer.startswith(b"HTTP/1.1 200"):
            self.answered += 1
        elif not answer:
            self.closed_early += 1
        else:
            self.failed.append(repr(answer[:80]))

    async def until_answered(self, more: int) -> None:
        wanted = self.answered + more
        with trio.fail_after(30):
            while self.answered < wanted:
                await trio.sleep(0.01)


async def test_a_restart_refuses_no_connection_at_200_a_second(tmp_path: Path, tcp: socket.socket) -> None:
    load = Load(tcp.getsockname()[1])
    async with trio.open_nursery() as nursery:
        for start in range(2):
            async with served_on([("public", tcp)], tmp_path / "data") as (process, _):
                if not start:
                    nursery.start_soon(load.run)
                await load.until_answered(50)
                assert await process.stop() == 0
        async with served_on([("public", tcp)], tmp_path / "data"):
            await load.until_answered(50)
            nursery.cancel_scope.cancel()
    assert load.failed == []
    assert load.closed_early <= 3, "one for each stop, which it may meet between its connect and its request"


@pytest.mark.parametrize("options", [(), ("--workers", "2")], ids=["one process", "workers"])
async def test_a_server_serves_what_is_handed_over_by_name_and_nothing_beside_it(
    options: tuple[str, ...], tmp_path: Path, tcp: socket.socket
) -> None:
    public, operators = on_unix(tmp_path / "public.sock"), on_unix(tmp_path / "operators.sock")
    logbook = Logbook()
    variables = {
        "AVICENNA_UNIX_SOCKET": str(tmp_path / "setting.sock"),
        "AVICENNA_OPERATORS_LISTEN": f"unix:{tmp_path}/setting-operators.sock",
    }
    listeners = [("public", tcp), ("operators", operators), ("public", public)]
    with public, operators:
        async with served_on(listeners, tmp_path / "data", *options, logbook=logbook, **variables) as (process, server):
            assert server.url.endswith(f":{tcp.getsockname()[1]}")
            assert not [*tmp_path.glob("setting*")]
            for path, expected in (("public.sock", 401), ("operators.sock", 200)):
                transport = httpx.AsyncHTTPTransport(uds=str(tmp_path / path))
                async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
                    assert (await client.get("/metrics")).status_code == expected
            code, out, _ = await run("status", "--json", "--url", f"unix:{tmp_path}/public.sock", "--data", server.data)
            assert (code, '"total_connections"' in out) == (0, True)
            assert await process.stop() == 0
        said = "".join(logbook.lines)
    for place in (server.url, f"unix:{tmp_path}/public.sock"):
        assert f"listening on {place}" in said
    assert f"listening for operators on unix:{tmp_path}/operators.sock" in said
    assert (tmp_path / "public.sock").exists(), "it belongs to whoever handed it over"


PID = str(os.getpid())


@pytest.mark.parametrize(
    ("variables", "why"),
    [
        ({"LISTEN_PID": PID, "LISTEN_FDS": "one"}, "LISTEN_FDS must be a number 0-32, not 'one'"),
        ({"LISTEN_PID": PID, "LISTEN_FDS": "-1"}, "LISTEN_FDS must be a number 0-32, not '-1'"),
        ({"LISTEN_PID": PID, "LISTEN_FDS": "33"}, "LISTEN_FDS must be a number 0-32, not '33'"),
        ({"LISTEN_PID": PID, "LISTEN_FDS": "9" * 5000}, "LISTEN_FDS must be a number 0-32"),
        (
            {"LISTEN_PID": PID, "LISTEN_FDS": "2", "LISTEN_FDNAMES": "public"},
            "LISTEN_FDNAMES has 1 names, and LISTEN_FDS says 2",
        ),
        (
            {"LISTEN_PID": PID, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "avicenna-live.socket"},
            "LISTEN_FDNAMES names 'avicenna-live.socket', and must say public or operators",
        ),
    ],
)
def test_variables_that_make_no_sense_are_named(variables: dict[str, str], why: str) -> None:
    with pytest.raises(HandOverError, match=f"^{why}"):
        take(variables, os.getpid())


@pytest.mark.parametrize(
    "variables",
    [
        {"LISTEN_FDS": ""},
        {"LISTEN_PID": "", "LISTEN_FDS": "", "LISTEN_FDNAMES": ""},
        {"LISTEN_PID": PID, "LISTEN_FDS": ""},
        {"LISTEN_PID": PID},
        {"LISTEN_PID": PID, "LISTEN_FDS": "0"},
    ],
)
def test_an_empty_variable_hands_nothing_over(variables: dict[str, str]) -> None:
    assert take(variables, os.getpid()) == HandedOver()


@pytest.mark.parametrize("for_whom", [{"LISTEN_PID": "1"}, {"LISTEN_PID": ""}, {}])
def test_what_is_handed_over_to_another_process_or_to_none_is_not_taken_and_is_not_handed_on(
    for_whom: dict[str, str],
) -> None:
    variables = {**for_whom, "LISTEN_FDS": "1", "LISTEN_FDNAMES": "public", "PATH": "/bin"}
    assert take(variables, os.getpid()) == HandedOver()
    assert variables == {"PATH": "/bin"}


def test_descriptors_that_cannot_be_served_are_named(tmp_path: Path) -> None:
    with pytest.raises(HandOverError, match="descriptor 9999 cannot be used: Bad file descriptor"):
        listener_of(9999)
    with (tmp_path / "file").open("w") as file, pytest.raises(HandOverError, match="is no socket"):
        listener_of(file.fileno())
    with socket.socket(type=socket.SOCK_DGRAM) as packets, pytest.raises(HandOverError, match="neither TCP nor"):
        listener_of(os.dup(packets.fileno()))
    with socket.socket() as silent, pytest.raises(HandOverError, match=r"does not listen; .* Accept=no"):
        listener_of(os.dup(silent.fileno()))


async def test_a_server_that_cannot_use_what_is_handed_over_says_so_and_ends_with_2(tmp_path: Path) -> None:
    # LISTEN_PID is that of the shell, which becomes the command.
    command = f"LISTEN_PID=$$ LISTEN_FDS=3 exec {Path(sys.executable).with_name('avicenna-live')} serve --data data"
    done = await trio.run_process(
        ["sh", "-c", command], check=False, capture_stdout=True, capture_stderr=True, cwd=tmp_path
    )
    assert done.returncode == 2
    assert b"LISTEN_FDS: descriptor 3 cannot be used: Bad file descriptor" in done.stderr
    assert b"Traceback" not in done.stderr


# What the manager is told


class Manager:
    """A service manager: hears what it is told."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._socket = trio.socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)

    @asynccontextmanager
    async def listening(self) -> AsyncIterator[Manager]:
        await self._socket.bind(self.path.replace("@", "\0", 1))
        with self._socket:
            yield self

    async def hears(self) -> dict[str, str]:
        with trio.fail_after(20):
            text = (await self._socket.recv(4096)).decode()
        return dict(line.split("=", 1) for line in text.split("\n"))

    async def hears_of(self, word: str) -> dict[str, str]:
        while word not in (said := await self.hears()):
            pass
        return said


@pytest.mark.parametrize("place", ["path", "abstract"])
async def test_the_manager_hears_of_the_start_of_life_of_a_reload_and_of_the_end(
    tmp_path: Path, place: str, way: str
) -> None:
    path = str(tmp_path / "notify") if place == "path" else f"@avicenna-live-test-{os.getpid()}"
    # A parent gives its processes as long as it is given: on a busy machine they need more than 0.3 s.
    variables = {"NOTIFY_SOCKET": path, "WATCHDOG_USEC": "5000000" if way == "workers" else "300000"}
    async with (
        Manager(path).listening() as manager,
        served(tmp_path / "data", logbook=LOGBOOK, **variables) as (process, server),
    ):
        said = await manager.hears_of("READY")
        assert (said["READY"], said["STATUS"]) == ("1", f"listening on {server.url}")
        for _ in range(2):
            assert await manager.hears_of("WATCHDOG") == {"WATCHDOG": "1"}
        process.process.send_signal(signal.SIGHUP)
        said = await manager.hears_of("RELOADING")
        assert said["RELOADING"] == "1"
        assert int(said["MONOTONIC_USEC"]) > 0
        assert (await manager.hears_of("READY"))["READY"] == "1"
        assert await process.stop() == 0
        assert (await manager.hears_of("STOPPING"))["STOPPING"] == "1"


async def test_a_loop_that_hangs_sends_no_sign_of_life(tmp_path: Path) -> None:
    variables = {"NOTIFY_SOCKET": str(tmp_path / "notify"), "WATCHDOG_USEC": "90000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.setblocking(False)
        heard.bind(variables["NOTIFY_SOCKET"])
        notified = service_manager.find(variables, os.getpid())
        assert variables == {}, "no child speaks for this process"
        async with trio.open_nursery() as nursery:
            nursery.start_soon(notified.watch)
            with trio.fail_after(20):
                await trio.lowlevel.wait_readable(heard)
                with suppress(BlockingIOError):
                    while True:
                        assert heard.recv(100) == b"WATCHDOG=1"
                until = trio.current_time() + 0.2
                while trio.current_time() < until:  # no checkpoint: the loop hangs
                    pass
                with pytest.raises(BlockingIOError):
                    heard.recv(100)
                await trio.lowlevel.wait_readable(heard)
            nursery.cancel_scope.cancel()


@pytest.mark.parametrize(
    ("variables", "seconds"),
    [
        ({"WATCHDOG_USEC": "2000000"}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": PID}, 2.0),
        ({"WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, None),
        ({"WATCHDOG_USEC": "soon"}, None),
        ({"WATCHDOG_USEC": "0"}, None),
        ({}, None),
    ],
)
def test_a_watchdog_is_that_of_this_process(variables: dict[str, str], seconds: float | None) -> None:
    assert service_manager.find({"NOTIFY_SOCKET": "/x"} | variables, os.getpid()).watchdog_seconds == seconds


async def test_a_manager_that_does_not_hear_is_one_warning_and_the_server_serves(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    service_manager.find({"NOTIFY_SOCKET": str(tmp_path / "nobody")}, os.getpid()).ready("serving")
    service_manager.find({"NOTIFY_SOCKET": "vsock:2:1"}, os.getpid()).ready("serving")
    said = [record.getMessage() for record in caplog.records]
    assert said == [
        "the service manager was not told READY=1: No such file or directory",
        "NOTIFY_SOCKET must be a path, or @ and a name, and is neither: no service manager is told",
    ]
