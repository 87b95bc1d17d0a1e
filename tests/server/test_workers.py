"""`serve --workers`: several processes on one port and one database."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio

from storage.bus import Bus
from storage.clock import Clock
from storage.store import Store
from tests.logbook import LOGBOOK, Logbook
from tests.server.harness import Client, Server, Together, begin
from tests.server.process import COMMAND, Process, run, served
from tests.server.test_console import console
from tests.server.workers import Beside, children, two_workers, two_workers_beside, until, workers
from web.http.handed_over import HandedOver
from web.http.listening import share_of_tcp
from web.server.composition import serve
from web.server.database import open_engine
from web.server.settings import Settings

pytestmark = pytest.mark.one_way


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """A server that tests of this file share, each with a diagnosis of its own."""
    with two_workers_beside(tmp_path_factory.mktemp("workers") / "data") as running:
        yield running


async def until_async(is_true: Callable[[], Awaitable[bool]], seconds: float = 30) -> None:
    with trio.fail_after(seconds):
        while not await is_true():
            await trio.sleep(0.05)


class Installation:
    """A server with two workers, asked again and again on new connections, which the kernel shares out among them."""

    def __init__(self, process: Process, server: Server, operators: Path) -> None:
        self.process = process
        self.server = server
        self._operators = operators
        self._highest: dict[str, float] = {}

    async def figures(self) -> dict[str, float]:
        """Its metrics, as one of the workers says them; none of its counters has gone down."""
        async with self._asking() as http:
            answer = await http.get("/metrics")
        assert answer.status_code == 200
        found = {}
        for line in answer.text.splitlines():
            if not line.startswith("#"):
                name, _, value = line.rpartition(" ")
                found[name] = float(value)
        counters = {name for name in found if re.search(r"_(total|count|sum|bucket)\b", name)}
        lower = {name: found[name] for name in counters if found[name] < self._highest.get(name, 0)}
        assert lower == {}
        self._highest |= {name: found[name] for name in counters}
        return found

    async def always(self, **wanted: float) -> None:
        """Whichever worker is asked says this."""
        for _ in range(8):
            found = await self.figures()
            assert {name: found[f"avicenna_{name}"] for name in wanted} == wanted

    async def publish(self, count: int) -> None:
        for number in range(count):
            async with self._client("amira") as http:
                body = {"diagnosis_id": 42, "feedback_id": number, "rating": 5}
                assert (await http.post("/ws/broadcast-feedback-update", json=body)).status_code == 200

    async def get(self, path: str) -> Any:
        """What a worker answers an operator."""
        async with self._client("op", "operate") as http:
            answer = await http.get(path)
        assert answer.status_code == 200, answer.text
        return answer.json()

    def _client(self, sub: str, scope: str = "") -> httpx.AsyncClient:
        # What waits for a worker that was killed is answered by the one that follows it.
        return httpx.AsyncClient(base_url=self.server.url, headers=self.server.bearer(sub, scope), timeout=60)

    def _asking(self) -> httpx.AsyncClient:
        transport = httpx.AsyncHTTPTransport(uds=str(self._operators))
        return httpx.AsyncClient(transport=transport, base_url="http://live", timeout=30)

    async def until_replaced(self, before: dict[str, int]) -> None:
        await until(lambda: not before.keys() & workers(self.process).keys() and len(workers(self.process)) == 2, 90)


@asynccontextmanager
async def many(server: Server, count: int, diagnosis_id: int = 42) -> AsyncIterator[list[Client]]:
    """So many followers of a diagnosis, which the kernel has shared out among the workers."""
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(server.live(diagnosis_id)) for _ in range(count)]


class Publisher:
    """Publishes numbered updates to a diagnosis, each with a key, and repeats one that was not stored."""

    def __init__(self, server: Server, diagnosis_id: int) -> None:
        self.server = server
        self._diagnosis_id = diagnosis_id
        self.seqs: list[int] = []
        """Acknowledged, in the order of the answers."""
        self.repeated = 0
        self.is_wanted = True

    async def run(self) -> None:
        number = 0
        while self.is_wanted:
            number += 1
            body = {"diagnosis_id": self._diagnosis_id, "feedback_id": number, "rating": 5}
            with trio.fail_after(60):
                while (seq := await self._try(body, f"key-{number}")) is None:
                    self.repeated += 1
                    await trio.sleep(0.05)
            self.seqs.append(seq)

    async def until_acknowledged(self, count: int) -> None:
        wanted = len(self.seqs) + count
        await until(lambda: len(self.seqs) >= wanted)

    async def _try(self, body: dict[str, int], key: str) -> int | None:
        try:
            answer = await self.server.post("feedback", body, **{"Idempotency-Key": key})
        except httpx.TransportError:
            return None
        assert answer.status_code in (200, 503), answer.text
        return int(answer.json()["seq"]) if answer.status_code == 200 else None


async def test_a_follower_on_any_worker_gets_every_number_once(beside: Beside) -> None:
    async with beside.server() as server:
        assert len(workers(beside)) == 2
        await server.register(1)
        async with many(server, 12, 1) as clients:
            for number in range(1, 41):
                async with httpx.AsyncClient(base_url=server.url, headers=server.bearer("amira")) as http:
                    body = {"diagnosis_id": 1, "feedback_id": number, "rating": 5}
                    answer = await http.post("/ws/broadcast-feedback-update", json=body)
                    assert (answer.status_code, answer.json()["seq"]) == (200, number)
            for client in clients:
                assert [frame["seq"] for frame in await client.events(40)] == list(range(1, 41))
            status = await server.status()
            assert status["total_connections"] == 12
            assert status["connections_open"] >= 12


async def test_one_diagnosis_with_300_followers_is_fanned_out_by_all_workers(beside: Beside) -> None:
    async with beside.server() as server:
        await server.register(2)
        async with many(server, 300, 2) as clients:
            held = [len(list(Path(f"/proc/{pid}/fd").iterdir())) for pid in workers(beside).values()]
            assert min(held) > 60, f"all workers have a part of them: {held}"
            for number in range(1, 6):
                assert (await server.publish(number, 2)).json()["seq"] == number

            async def read(client: Client) -> None:
                assert [frame["seq"] for frame in await client.events(5)] == [1, 2, 3, 4, 5]

            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(read, client)


async def test_a_right_that_is_taken_away_ends_followers_of_all_workers(beside: Beside) -> None:
    async with beside.server() as server:
        await server.register(3, "amira", "bo")
        async with AsyncExitStack() as stack:
            clients = [await stack.enter_async_context(server.live(3, "bo")) for _ in range(8)]
            await server.register(3, "amira")
            await server.publish(1, 3)
            for client in clients:
                frames, code, _ = await client.close_frames()
                assert code == 1008
                assert not [frame for frame in frames if "seq" in frame and frame.get("type") == "feedback_update"]


@pytest.mark.parametrize("is_alone", [True, False], ids=["one process", "workers"])
async def test_a_port_and_a_database_in_use_are_named(is_alone: bool, beside: Beside, tmp_path: Path) -> None:
    async with AsyncExitStack() as stack:
        if is_alone:
            _, server = await stack.enter_async_context(served(tmp_path / "one"))
        else:
            server = await stack.enter_async_context(beside.server())
        port = server.url.rpartition(":")[2]
        code, _, stderr = await run("serve", "--data", tmp_path / "two", "--port", port, "--workers", "2")
        assert (code, f"127.0.0.1:{port}" in stderr, "Address already in use" in stderr) == (2, True, True)
        code, _, stderr = await run("serve", "--data", server.data, "--port", "0", "--workers", "2")
        assert code == 2
        assert stderr.count("cannot start") == 1, (
            "the parent says so, or the store where the parent finds its socket free"
        )


async def test_who_connects_after_a_worker_has_died_comes_to_another_one_at_once(beside: Beside) -> None:
    async with beside.server() as server:
        killed, other = workers(beside).values()
        os.kill(killed, signal.SIGKILL)
        await until(lambda: killed not in workers(beside).values())
        for _ in range(8):  # the one in its place is still being started
            async with beside.server() as fresh:
                assert (await fresh.http.get("/healthz")).status_code == 200
        assert other in workers(beside).values()
        await until_two_serve(server)


async def test_a_worker_that_does_not_serve_yet_refuses_whoever_connects(tmp_path: Path) -> None:
    listener = share_of_tcp("127.0.0.1", 0)
    has_begun, may_serve, is_ready, stopping = trio.Event(), trio.Event(), trio.Event(), trio.Event()

    @asynccontextmanager
    async def engine(settings: Settings, clock: Clock) -> AsyncIterator[tuple[Store, Bus]]:
        async with open_engine(settings, clock) as both:
            has_begun.set()
            await may_serve.wait()
            yield both

    begin(tmp_path / "data")
    worker = Together(1, stopping).worker(0, engine)
    settings, here = Settings(data=tmp_path / "data"), listener.getsockname()
    run = partial(serve, settings, ready=lambda _: is_ready.set(), stopping=stopping)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(partial(run, engine=engine, handed_over=HandedOver((listener,)), worker=worker))
        await has_begun.wait()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(here)
        may_serve.set()
        await is_ready.wait()
        socket.create_connection(here).close()
        stopping.set()


async def test_a_worker_that_is_frozen_holds_no_act_up_and_is_replaced(beside: Beside) -> None:
    async with beside.server() as server:
        await server.register(4, "amira", "bo")
        frozen = next(iter(workers(beside).values()))
        os.kill(frozen, signal.SIGSTOP)
        async with trio.open_nursery() as nursery:
            for _ in range(8):  # the kernel gives some of them to the one that is frozen
                nursery.start_soon(_register, beside, nursery.cancel_scope)
        await until(lambda: frozen not in workers(beside).values() and len(workers(beside)) == 2)
        await until_two_serve(server)


async def _register(beside: Beside, end: trio.CancelScope) -> None:
    with contextlib.suppress(httpx.TransportError):
        async with beside.server() as other:
            assert (await other.register(4, "amira")).status_code in (200, 503)
            end.cancel()


async def until_two_serve(server: Server) -> None:
    """Wait until the worker in the place of another one serves."""

    async def serve() -> bool:
        headers = server.bearer("op", "operate")
        with contextlib.suppress(httpx.TransportError):
            async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as http:
                return bool((await http.get("/ws/status")).json()["nodes"]["known"] == 2)
        return False

    await until_async(serve, 60)


async def test_a_store_that_is_frozen_is_replaced_and_publishers_get_their_answer(beside: Beside) -> None:
    async with beside.server() as server:
        await server.register(5)
        async with many(server, 4, 5) as clients:
            frozen = children(beside)["store"]
            os.kill(frozen, signal.SIGSTOP)
            body = {"diagnosis_id": 5, "feedback_id": 1, "rating": 5}
            answer = None
            with trio.fail_after(60):
                while answer is None or answer.status_code == 503:
                    with contextlib.suppress(httpx.ReadTimeout):
                        answer = await server.post("feedback", body, **{"Idempotency-Key": "one"})
            assert (answer.status_code, answer.json()["seq"]) == (200, 1)
            assert children(beside)["store"] != frozen
            for client in clients:
                assert [frame["seq"] for frame in await client.events(1)] == [1]


async def test_sighup_replaces_the_workers_one_by_one_and_nothing_is_lost(beside: Beside) -> None:
    async with beside.server() as server:
        await server.register(6)
        before = workers(beside)
        async with trio.open_nursery() as nursery:
            publisher = Publisher(server, 6)
            nursery.start_soon(publisher.run)
            await publisher.until_acknowledged(5)
            beside.process.send_signal(signal.SIGHUP)
            await until(lambda: not before.keys() & workers(beside).keys(), 60)
            assert len(workers(beside)) == 2
            await publisher.until_acknowledged(5)
            publisher.is_wanted = False
        assert len(set(publisher.seqs)) == len(publisher.seqs)


async def test_any_worker_speaks_for_all(tmp_path: Path) -> None:
    data, operators = tmp_path / "data", tmp_path / "operators.sock"
    of_all = {"AVICENNA_OPERATORS_LISTEN": f"unix:{operators}", "AVICENNA_MAX_CONNECTIONS": "40"}
    often = {"AVICENNA_RESTART_INTENSITY_MAX": "1000", "AVICENNA_RESTART_INTENSITY_SECONDS": "1"}
    logbook = Logbook()
    async with served(data, "--workers", "2", logbook=logbook, **of_all, **often) as (process, server):
        both = Installation(process, server, operators)
        await server.register()
        async with many(server, 12) as clients:
            await both.publish(10)
            for client in clients:
                await client.events(10)
            await both.always(events_total=10, deliveries_total=120, followers=12, workers=2, diagnoses=1)
            for _ in range(4):
                status = await both.get("/ws/status")
                assert (status["node"]["connections"], status["nodes"]) == (12, {"known": 2, "answered": 2})
                actor = await both.get("/actors/42")
                assert (actor["subscribers"], len(actor["nodes"])) == (12, 2)
                assert await both.get("/readyz") == {"status": "ready"}
            for _ in range(3):
                async with console(server) as screen:
                    await screen.until("42", subscribers=12, head=10)
                    assert (screen.node["followers"], screen.node["events"]) == (12, 10)
            shown = [[row["id"] for row in (await both.get("/audit"))["items"]] for _ in range(4)]
            assert shown.count(shown[0]) == 4

        before = workers(process)
        await both.figures()
        os.kill(next(iter(before.values())), signal.SIGKILL)
        await until(lambda: len(workers(process)) == 2 and workers(process) != before)
        await both.publish(5)
        await until_async(lambda: _equals(both, "avicenna_workers", 2))
        assert (await both.figures())["avicenna_events_total"] == 15
        assert (await both.figures())['avicenna_restarted_processes_total{process="worker"}'] == 1
        os.kill(children(process)["store"], signal.SIGKILL)
        await both.publish(5)
        await both.always(events_total=20)

        # A reload that no worker can follow.
        before, key = workers(process), (data / "jwt.key").read_bytes()
        (data / "jwt.key").write_bytes(b"short")
        process.process.send_signal(signal.SIGHUP)
        await until(lambda: "the reload ends here" in "".join(logbook.lines), 60)
        assert workers(process) == before
        (data / "jwt.key").write_bytes(key)
        await both.always(events_total=20, workers=2)

        # A reload.
        uptime = (await both.get("/ws/status"))["uptime_seconds"]
        code, out, _ = await run("reload", "--data", data)
        assert (code, str(process.process.pid) in out) == (0, True)
        await both.until_replaced(before)
        await both.always(events_total=20)
        assert (await both.get("/ws/status"))["uptime_seconds"] > uptime

        # The limit of connections is that of all.
        with contextlib.ExitStack() as stack:
            host, port = server.url.removeprefix("http://").split(":")
            refused = 0
            for _ in range(60):
                connection = stack.enter_context(socket.create_connection((host, int(port))))
                connection.sendall(b"GET /client.js HTTP/1.1\r\nHost: localhost\r\n\r\n")
                connection.settimeout(10)
                refused += connection.recv(12).endswith(b"503")
            assert 20 <= refused <= 24, "those of whoever has asked before may be open still"

        # A drain in the middle of a reload.
        process.process.send_signal(signal.SIGHUP)
        await until(lambda: len(workers(process)) == 3, 60)
        assert await process.stop() == 0
        assert children(process) == {}


async def _equals(both: Installation, name: str, value: float) -> bool:
    return (await both.figures())[name] == value


async def test_a_worker_that_hangs_is_ended_where_a_service_manager_watches_and_an_operator_drains_all(
    tmp_path: Path,
) -> None:
    logbook, watched = Logbook(), {"NOTIFY_SOCKET": str(tmp_path / "manager"), "WATCHDOG_USEC": "4000000"}
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as manager:
        manager.bind(watched["NOTIFY_SOCKET"])
        async with served(tmp_path / "data", "--workers", "2", logbook=logbook, **watched) as (process, server):
            name, pid = next(iter(workers(process).items()))
            os.kill(pid, signal.SIGSTOP)
            await until(lambda: pid not in workers(process).values() and len(workers(process)) == 2, 60)
            assert f"process {name} has told nothing for 4 s: it is ended" in "".join(logbook.lines)
            await until_two_serve(server)
            assert (await server.http.post("/drain", headers=server.bearer("op", "operate"))).status_code == 202
            with trio.fail_after(20):
                assert await process.process.wait() == 0
            assert children(process) == {}


async def test_a_number_of_workers_that_cannot_be_is_refused_by_name(tmp_path: Path) -> None:
    code, _, stderr = await run("serve", "--data", tmp_path, "--workers", "65")
    assert (code, "workers" in stderr, "1-64" in stderr) == (2, True, True)


async def test_it_starts_again_at_once_after_its_parent_was_killed_and_a_signal_to_all_processes_drains(
    tmp_path: Path,
) -> None:
    data = tmp_path / ("long" * 40)  # longer than the address of a Unix socket may be
    async with two_workers(data) as (process, server):
        assert (data / "store.sock").stat().st_mode & 0o777 == 0o600
        await server.register()
        left = list(children(process).values())
        assert len(left) == 3
        async with many(server, 4):
            await process.kill()
            port = server.url.rpartition(":")[2]
            async with two_workers(data, "--port", port) as (next_process, next_server):
                assert not any(Path(f"/proc/{pid}").exists() for pid in left)
                await next_server.publish(1)
                async with many(next_server, 4) as clients:
                    for pid in [next_process.process.pid, *children(next_process).values()]:  # as systemd does
                        os.kill(pid, signal.SIGTERM)
                    assert [(await client.close_frames())[1] for client in clients] == [1012] * 4
                    with trio.fail_after(20):
                        assert await next_process.process.wait() == 0
                assert children(next_process) == {}


@pytest.mark.parametrize("kind", ["store", "worker"])
async def test_one_that_dies_too_often_ends_the_server_which_says_goodbye(kind: str, tmp_path: Path) -> None:
    rare = {"AVICENNA_RESTART_INTENSITY_MAX": "1", "AVICENNA_RESTART_INTENSITY_SECONDS": "3600"}
    async with served(tmp_path / "data", "--workers", "2", logbook=LOGBOOK, **rare) as (process, server):
        await server.register()
        async with many(server, 6) as clients:
            place = "store" if kind == "store" else min(workers(process))[: len("worker-1")]
            for _ in range(2):
                (pid,) = [pid for name, pid in children(process).items() if name.startswith(place)]
                os.kill(pid, signal.SIGKILL)
                await until(
                    lambda pid=pid: (
                        process.process.returncode is not None  # type: ignore[misc]
                        or any(one != pid and name.startswith(place) for name, one in children(process).items())
                    )
                )
            codes = {(await client.close_frames())[1] for client in clients if kind == "store"}
            assert codes <= {1012}
            with trio.fail_after(30):
                assert await process.process.wait() == 1


async def test_a_signal_while_it_starts_ends_it(tmp_path: Path) -> None:
    command = [str(COMMAND), "serve", "--port", "0", "--data", str(tmp_path / "data"), "--workers", "2"]
    process = await trio.lowlevel.open_process(command, stderr=subprocess.DEVNULL)
    try:
        started = Process(process, "")
        await until(lambda: "store" in children(started))
        assert await started.stop() == 0
    finally:
        if process.returncode is None:
            process.kill()
        with trio.CancelScope(shield=True):
            await process.wait()
