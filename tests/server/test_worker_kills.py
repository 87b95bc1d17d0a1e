"""`serve --workers` under load, and its processes killed: nothing acknowledged is lost, and no number is given twice.

`WORKERS_ROUNDS` says how often (`make workers-test`). Publishers repeat with their keys what got no answer, or 503.
What followers got is compared with what publishers were told.
"""

from __future__ import annotations

import contextlib
import os
import random
import signal
import statistics
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import trio
from trio_websocket import ConnectionClosed, HandshakeError

from tests.server.cut_off import connected
from tests.server.harness import Client, Server
from tests.server.process import served
from tests.server.workers import Beside, children, two_workers, two_workers_beside, until, workers

pytestmark = [
    pytest.mark.one_way,
    # What it has left of a request whose connection was cut.
    pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning"),
]

ROUNDS = int(os.environ.get("WORKERS_ROUNDS", "2"))

AHEAD_MAX = 60
"""Updates that the slowest follower may be behind when another one is published."""

FOLLOWERS = 6
PUBLISHERS = 3

BACK_SECONDS_MAX = 60.0
"""Longest wait of a follower for its next connection. Reason: a machine that is busy with other tests starts a worker
slowly."""


class Publisher:
    """Publishes numbered updates, each with a key, and repeats one that was not stored."""

    def __init__(self, load: Load, name: int) -> None:
        self._load = load
        self._name = name
        self._count = 0

    async def run(self) -> None:
        load = self._load
        async with httpx.AsyncClient(base_url=load.server.url, timeout=30) as http:
            while load.is_wanted:
                await load.not_too_far_ahead()
                self._count += 1
                number = self._count * PUBLISHERS + self._name
                began = trio.current_time()
                with trio.fail_after(60):
                    while (seq := await self._try(http, number)) is None:
                        load.repeated += 1
                        await trio.sleep(0.05)
                load.longest_seconds = max(load.longest_seconds, trio.current_time() - began)
                assert seq not in load.acknowledged, f"number {seq} was given twice"
                load.acknowledged[seq] = number
                load.head = max(load.head, seq)

    async def _try(self, http: httpx.AsyncClient, number: int) -> int | None:
        body = {"diagnosis_id": self._load.diagnosis_id, "feedback_id": number, "rating": 5}
        headers = self._load.server.bearer("amira") | {"Idempotency-Key": f"key-{number}"}
        try:
            answer = await http.post("/ws/broadcast-feedback-update", json=body, headers=headers)
        except httpx.TransportError:
            assert self._load.may_close, "no socket closes"
            return None
        assert answer.status_code in (200, 503), answer.text
        return int(answer.json()["seq"]) if answer.status_code == 200 else None


class Follower:
    """Follows the diagnosis, and comes back from where it was when its connection ends."""

    def __init__(self, load: Load) -> None:
        self._load = load
        self._epoch = ""
        self.is_live = trio.Event()
        self.got: dict[int, int] = {}
        """Numbers, and the ids of their updates."""
        self.position = 0
        """The newest number."""

    async def run(self) -> None:
        ended_at: float | None = None
        while True:
            position: dict[str, Any] = {"after": self.position, "epoch": self._epoch} if self._epoch else {}
            try:
                await self._follow(position, ended_at)
            except* (OSError, ConnectionClosed, HandshakeError):
                assert self._load.may_close, "no socket closes"
                if self.is_live.is_set():
                    ended_at, self.is_live = trio.current_time(), trio.Event()
                await trio.sleep(0.01)

    async def _follow(self, position: dict[str, Any], ended_at: float | None) -> None:
        with trio.fail_after(BACK_SECONDS_MAX) as patience:
            server, headers = self._load.server, self._load.server.bearer("amira", ttl_seconds=86_400)
            async with connected(server.url, self._load.diagnosis_id, position, headers) as connection:
                client = Client(connection)
                first, *missed = await client.until_live()
                patience.deadline = trio.current_time() + 3600
                if position:
                    assert first["data"]["resume"] == "exact"
                if ended_at is not None:
                    self._load.back_seconds.append(trio.current_time() - ended_at)
                self._epoch = first["data"]["epoch"]
                for frame in missed:
                    self._take(frame)
                self.is_live.set()
                while True:
                    with trio.move_on_after(5):  # `next` has a deadline of its own: nothing may come for long
                        self._take(await client.next())

    def _take(self, frame: dict[str, object]) -> None:
        assert frame["type"] != "gap", frame
        if "seq" in frame and frame["type"] == "feedback_update":
            seq = int(str(frame["seq"]))
            assert seq == self.position + 1, "a number is missing, or comes twice"
            data = frame["data"]
            assert isinstance(data, dict)
            self.got[seq] = int(data["feedback_id"])
            self.position = seq


class Load:
    """Publishers and followers of one diagnosis of a server."""

    def __init__(self, server: Server, diagnosis_id: int, followers: int = FOLLOWERS) -> None:
        self.server = server
        self.diagnosis_id = diagnosis_id
        self.may_close = False
        """Whether connections may end."""
        self.is_wanted = True
        self.acknowledged: dict[int, int] = {}
        """Numbers, and the ids of their updates."""
        self.head = 0
        """The highest of them."""
        self.repeated = 0
        self.longest_seconds = 0.0
        """From the first try of an update until its number was told."""
        self.back_seconds: list[float] = []
        """Of each connection that ended: until its follower was live again."""
        self.followers = [Follower(self) for _ in range(followers)]

    async def more(self, count: int) -> None:
        """Wait until so many more are acknowledged."""
        wanted = len(self.acknowledged) + count
        await until(lambda: len(self.acknowledged) >= wanted, 90)

    async def not_too_far_ahead(self) -> None:
        """Wait for followers: who is away shall find all that it missed among the newest 100."""
        with trio.fail_after(90):
            while any(self.head > one.position + AHEAD_MAX for one in self.followers):
                await trio.sleep(0.01)

    async def all_live(self) -> None:
        for follower in self.followers:
            with trio.fail_after(60):
                await follower.is_live.wait()

    def __str__(self) -> str:
        back = sorted(self.back_seconds)
        times = f"; back after {statistics.median(back):.2f} s, {back[-1]:.2f} s at most" if back else ""
        return (
            f"{len(self.acknowledged)} acknowledged, {self.repeated} repeated, "
            f"the longest took {self.longest_seconds:.2f} s{times}"
        )


@asynccontextmanager
async def loaded(server: Server, diagnosis_id: int) -> AsyncIterator[Load]:
    """A load; at the end all that was acknowledged is compared with what followers got."""
    await server.register(diagnosis_id)
    load = Load(server, diagnosis_id)
    async with trio.open_nursery() as followers:
        for follower in load.followers:
            followers.start_soon(follower.run)
        await load.all_live()
        async with trio.open_nursery() as publishers:
            for name in range(PUBLISHERS):
                publishers.start_soon(Publisher(load, name).run)
            yield load
            load.is_wanted = False
        for follower in load.followers:
            await until(lambda follower=follower: follower.position >= load.head, 90)  # type: ignore[misc]
            assert {seq: follower.got[seq] for seq in load.acknowledged} == load.acknowledged
        followers.cancel_scope.cancel()
    print(f"\n{load}")  # noqa: T201 - shown by `make workers-test`


async def kill_store(process: Beside) -> None:
    """Kill the process of the store at some moment, and wait for the next one."""
    before = children(process)["store"]
    await trio.sleep(random.uniform(0, 0.05))
    os.kill(before, signal.SIGKILL)
    await until(lambda: children(process).get("store") not in (None, before), 60)


async def until_both_serve(server: Server) -> None:
    headers = server.bearer("op", "operate")
    with trio.fail_after(90):
        while True:
            async with httpx.AsyncClient(base_url=server.url, headers=headers, timeout=30) as http:
                with contextlib.suppress(httpx.TransportError):
                    if (await http.get("/ws/status")).json()["nodes"]["known"] == 2:
                        return
            await trio.sleep(0.05)


@pytest.fixture(scope="module")
def beside(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Beside]:
    """A server that tests of this file share, each with a diagnosis of its own."""
    with two_workers_beside(tmp_path_factory.mktemp("killed") / "data") as running:
        yield running


async def test_the_store_is_killed_under_load_and_no_socket_closes(beside: Beside) -> None:
    async with beside.server() as server, loaded(server, 1) as load:
        for number in range(ROUNDS):
            await load.more(5)
            for _ in range(1 + number % 2):  # the second one is killed while it starts
                await kill_store(beside)
        await load.more(5)


async def test_a_worker_is_killed_and_its_clients_come_back_exactly(beside: Beside) -> None:
    async with beside.server() as server, loaded(server, 2) as load:
        load.may_close = True
        for number in range(ROUNDS):
            await load.more(5)
            killed = list(workers(beside).values())[number % 2]
            os.kill(killed, signal.SIGKILL)
            await until(lambda killed=killed: len(set(workers(beside).values()) - {killed}) == 2, 60)  # type: ignore[misc]
            await load.all_live()
            await until_both_serve(server)  # else the next one to be killed would be the last one that serves
        await load.more(5)


async def test_the_store_is_killed_while_workers_are_replaced(beside: Beside) -> None:
    async with beside.server() as server, loaded(server, 3) as load:
        load.may_close = True
        for _ in range(max(1, ROUNDS // 10)):
            before = set(workers(beside))
            await load.more(5)
            beside.process.send_signal(signal.SIGHUP)
            while before & set(workers(beside)):
                await kill_store(beside)
                await load.more(1)
            await until(lambda: len(workers(beside)) == 2, 60)
        await load.more(5)


async def test_the_store_is_killed_during_the_drain_and_nothing_acknowledged_is_lost(tmp_path: Path) -> None:
    acknowledged: dict[int, int] = {}
    for number in range(max(1, ROUNDS // 10)):
        async with two_workers(tmp_path / "data") as (process, server):
            if not number:
                await server.register()
            load = Load(server, 42, followers=0)
            load.may_close = True
            async with trio.open_nursery() as nursery:
                publisher = Publisher(load, 0)
                publisher._count = number * 100_000
                nursery.start_soon(publisher.run)
                await load.more(5)
                process.process.send_signal(signal.SIGTERM)
                os.kill(children(process)["store"], signal.SIGKILL)
                with trio.fail_after(30):
                    assert await process.process.wait() == 0
                nursery.cancel_scope.cancel()
            assert not acknowledged.keys() & load.acknowledged.keys()
            acknowledged |= load.acknowledged
        async with served(tmp_path / "data") as (one_process, server):
            headers = server.bearer("op", "operate")
            page = (await server.http.get("/actors/42/outbox", headers=headers)).json()
            kept = {event["seq"]: event["data"]["feedback_id"] for event in page["items"]}
            newest = {seq: one for seq, one in acknowledged.items() if seq >= min(kept)}
            assert {seq: kept.get(seq) for seq in newest} == newest
            assert await one_process.stop() == 0
