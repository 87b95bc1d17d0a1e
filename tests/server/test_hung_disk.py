"""A disk that hangs: whoever waits is told so in time, everything else goes on, and what was begun is finished."""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import ExitStack
from dataclasses import replace
from functools import partial
from pathlib import Path

import httpx
import pytest
import trio

from actors.mailbox import Mailbox
from actors.messages import Envelope, Publish
from benchmarks.frozen import CannotFreeze, FreezableDisk, freezable_disk
from storage.errors import StoreBroken
from tests.hanging import Disk, hangable_disk
from tests.logbook import Logbook
from tests.server.harness import Server, running_server
from tests.server.process import served
from web.server.settings import DATABASE_FILE, Settings

PATIENCE_SECONDS = 0.5


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Nobody waits long."""
    return Settings(port=0, data=tmp_path / "data", storage_seconds_max=PATIENCE_SECONDS, access_trail=True)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """Under the server."""
    return hangable_disk(monkeypatch)


@pytest.fixture
async def server(settings: Settings, disk: Disk) -> AsyncIterator[Server]:
    """A running server on that disk, with diagnosis 42 in memory."""
    async with running_server(settings) as running:
        await running.register(42, "amira", "bo")
        assert (await running.publish(1)).status_code == 200
        yield running


def is_unknown(answer: httpx.Response) -> bool:
    """It is told that nobody knows what became of it."""
    problem = answer.json()
    assert (answer.status_code, problem["code"], answer.headers["Retry-After"]) == (503, "storage_unavailable", "1")
    return "unknown" in problem["detail"]


async def eventually(is_so: Callable[[], Awaitable[bool]]) -> None:
    """Wait until something is so."""
    with trio.fail_after(10):
        while not await is_so():
            await trio.sleep(0.02)


async def readiness(server: Server, status: int) -> bool:
    return (await server.http.get("/readyz")).status_code == status


async def test_a_publish_is_answered_in_time_and_delivered_when_the_disk_answers_again(
    server: Server, disk: Disk
) -> None:
    async with server.live() as client:
        with disk.hanging():
            began = time.monotonic()
            answer = await server.post(
                "feedback", {"diagnosis_id": 42, "feedback_id": 2, "rating": 5}, **{"Idempotency-Key": "k"}
            )
            assert is_unknown(answer)
            assert PATIENCE_SECONDS <= time.monotonic() - began < 5
        assert (await client.next())["seq"] == 2
        again = await server.post(
            "feedback", {"diagnosis_id": 42, "feedback_id": 2, "rating": 5}, **{"Idempotency-Key": "k"}
        )
        assert (again.json()["seq"], again.json()["replayed"]) == (2, True)


async def test_every_line_of_a_bulk_request_is_answered_in_time(server: Server, disk: Disk) -> None:
    line = json.dumps({"type": "feedback_update", "diagnosis_id": 42, "feedback_id": 2, "rating": 5})
    headers = server.bearer("amira", "broadcast") | {"Content-Type": "application/x-ndjson"}
    with disk.hanging():
        answer = await server.http.post("/ws/broadcast", content="\n".join([line] * 20), headers=headers)
        lines = [json.loads(one) for one in answer.text.splitlines()]
    assert [(one["status"], one["code"]) for one in lines] == [(503, "storage_unavailable")] * 20


async def test_a_connect_is_told_to_try_later(server: Server, disk: Disk) -> None:
    with disk.hanging():
        async with server.connect(42, "bo") as client:
            frames, code, reason = await client.close_frames()
    assert [frame["data"]["code"] for frame in frames] == ["quarantined"]
    assert (code, reason) == (1013, "try later")


@pytest.mark.parametrize("path", ["/diagnoses", "/audit", "/actors/43", "/revocations", "/actors/43/outbox"])
async def test_what_only_the_disk_can_answer_is_answered_in_time(server: Server, disk: Disk, path: str) -> None:
    with disk.hanging():
        answer = await server.http.get(path, headers=server.bearer("op", "operate"))
        assert (answer.status_code, answer.json()["code"]) == (503, "storage_unavailable")


async def test_what_memory_can_answer_does_not_wait_for_the_disk(server: Server, disk: Disk) -> None:
    async with server.live():
        with disk.hanging():
            assert is_unknown(await server.publish(2))
            began = time.monotonic()
            assert (await server.http.get("/healthz")).status_code == 200
            position = await server.http.get("/diagnoses/42/position", headers=server.bearer("amira"))
            assert position.json()["head"] == 1
            assert time.monotonic() - began < PATIENCE_SECONDS
            status = await server.status()
            assert (status["total_diagnoses"], status["total_connections"]) == (1, 1)
            assert status["connections_by_diagnosis"] == {"42": 1}
            assert status["node"]["storage_waiting_seconds"] > 0


async def test_readiness_follows_the_disk_and_the_log_has_a_line_for_its_beginning_and_one_for_its_end(
    server: Server, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    assert await readiness(server, 200)
    with disk.hanging():
        assert is_unknown(await server.publish(2))
        assert await readiness(server, 200)
        await eventually(partial(readiness, server, 503))
        assert is_unknown(await server.publish(3))
    await eventually(partial(readiness, server, 200))

    def lines() -> list[str]:
        return [one.getMessage() for one in caplog.records if "the disk" in one.getMessage()]

    async def is_told() -> bool:
        return len(lines()) == 2

    await eventually(is_told)
    began, ended = lines()
    assert began.startswith("the disk has not answered for 2 s")
    assert ended.startswith("the disk answers again, after ")


async def test_a_disk_that_hangs_is_seen_though_nobody_asks_it_for_anything(
    server: Server, disk: Disk, caplog: pytest.LogCaptureFixture
) -> None:
    async def is_told() -> bool:
        return any("the disk has not answered for 2 s" in one.getMessage() for one in caplog.records)

    with disk.hanging():
        await eventually(partial(readiness, server, 503))
        await eventually(is_told)
    await eventually(partial(readiness, server, 200))


async def test_a_revocation_that_was_answered_503_still_ends_connections(server: Server, disk: Disk) -> None:
    operator = server.bearer("op", "operate")
    async with server.live(42, "bo") as client:
        with disk.hanging():
            assert is_unknown(await server.http.post("/revocations", json={"sub": "bo"}, headers=operator))
        _, code, reason = await client.close_frames()
        assert (code, reason) == (1008, "revoked")
    assert (await server.http.get("/diagnoses/42/position", headers=server.bearer("bo"))).status_code == 401
    rows = (await server.http.get("/audit?action=revocation.add", headers=operator)).json()["items"]
    assert len(rows) == 1


async def _take_away(server: Server) -> httpx.Response:
    return await server.register(42, "amira")


async def _delete(server: Server) -> httpx.Response:
    return await server.http.delete("/diagnoses/42", headers=server.bearer("registrar", "register"))


async def _disconnect(server: Server) -> httpx.Response:
    return await server.http.delete("/actors/42/subscribers?sub=bo", headers=server.bearer("op", "operate"))


async def _forget(server: Server) -> httpx.Response:
    return await server.http.delete("/actors/42/subscribers?sub=bo&forget=1", headers=server.bearer("op", "operate"))


async def _erase(server: Server) -> httpx.Response:
    return await server.http.delete("/subjects/bo", headers=server.bearer("op", "operate"))


@pytest.mark.parametrize("act", [_take_away, _delete, _disconnect, _forget, _erase])
async def test_what_takes_a_right_away_and_was_answered_503_still_closes_sockets(
    server: Server, disk: Disk, act: Callable[[Server], Awaitable[httpx.Response]]
) -> None:
    async with server.live(42, "bo") as client:
        with disk.hanging():
            assert is_unknown(await act(server))
        _, code, _ = await client.close_frames()
        assert code == 1008


async def test_an_actor_that_was_to_stop_stops_although_its_operator_was_answered_503(
    server: Server, disk: Disk
) -> None:
    operator = server.bearer("op", "operate")
    with disk.hanging():
        assert is_unknown(await server.http.post("/actors/42/stop", headers=operator))

    async def is_passive() -> bool:
        answer = await server.http.get("/actors/42", headers=operator)
        return bool(answer.json()["state"] == "passive")

    await eventually(is_passive)


@pytest.mark.parametrize(
    ("method", "path"),
    [("PUT", "/diagnoses/42"), ("POST", "/actors/42/stop"), ("POST", "/actors/42/restart"), ("POST", "/backup")],
)
async def test_an_act_that_takes_no_key_is_not_told_to_be_repeated_with_one(
    server: Server, disk: Disk, method: str, path: str
) -> None:
    body = {"owner": "amira", "viewers": []} if method == "PUT" else None
    with disk.hanging():
        answer = await server.http.request(method, path, json=body, headers=server.bearer("op", "operate register"))
        assert is_unknown(answer)
    assert answer.json()["detail"] == "it is unknown whether this was done; look before you repeat it"


async def test_reads_that_nobody_waits_for_any_more_do_not_hold_up_the_disk_when_it_answers(
    server: Server, disk: Disk
) -> None:
    operator = server.bearer("op", "operate")
    with disk.hanging():
        async with trio.open_nursery() as readers_nursery:
            for _ in range(20):
                readers_nursery.start_soon(partial(server.http.get, "/audit", headers=operator))
    assert (await server.publish(2)).status_code == 200
    assert (await server.http.get("/audit", headers=operator)).status_code == 200


@pytest.mark.parametrize(
    "fail",
    [
        lambda database: database.rename(database.with_suffix(".elsewhere")),
        lambda database: os.truncate(database, 4096),
        lambda database: Path(shutil.copy(database, database.with_suffix(".other"))).rename(database),
    ],
    ids=["moved away", "cut", "replaced"],
)
async def test_when_storage_fails_who_waits_is_told_that_the_outcome_is_unknown_and_followers_get_a_goodbye(
    settings: Settings, disk: Disk, fail: Callable[[Path], object], monkeypatch: pytest.MonkeyPatch
) -> None:
    answers: list[httpx.Response] = []
    arrived = 0
    all_wait = trio.Event()
    has_failed = False
    tell_nowait = Mailbox.tell_nowait

    def told(mailbox: Mailbox, envelope: Envelope) -> None:
        nonlocal arrived
        tell_nowait(mailbox, envelope)
        arrived += isinstance(envelope.message, Publish)
        if arrived == 1 + 6:
            all_wait.set()

    monkeypatch.setattr(Mailbox, "tell_nowait", told)

    async def publish(server: Server) -> None:
        answers.append(await server.publish(2))

    try:
        async with running_server(replace(settings, storage_seconds_max=60)) as server:
            await server.register(42, "amira", "bo")
            await server.publish(1)
            async with server.live() as client, trio.open_nursery() as publishers_nursery:
                with disk.hanging():
                    for _ in range(6):
                        publishers_nursery.start_soon(publish, server)
                    with trio.fail_after(10):
                        await all_wait.wait()
                    fail(settings.data / DATABASE_FILE)
                frames, code, reason = await client.close_frames()
                assert (frames[-1]["type"], code, reason) == ("bye", 1012, "restart")
    except* StoreBroken:
        has_failed = True
    assert has_failed
    assert [is_unknown(answer) for answer in answers] == 6 * [True]


@pytest.fixture
def frozen_disk(tmp_path: Path) -> Iterator[FreezableDisk]:
    """A file system that can be frozen; skips where mounting is not allowed."""
    with ExitStack() as stack:
        try:
            disk = stack.enter_context(freezable_disk(tmp_path))
        except CannotFreeze as why:
            pytest.skip(str(why))
        yield disk


@pytest.mark.guarantee(11)
@pytest.mark.by_workers
async def test_sigterm_closes_all_sockets_within_ten_seconds_and_ends_the_process_as_soon_as_the_kernel_lets_it(
    frozen_disk: FreezableDisk,
) -> None:
    data, logbook = frozen_disk.path / "data", Logbook()
    async with served(data, logbook=logbook, AVICENNA_STORAGE_SECONDS_MAX="1") as (process, server):
        await server.register()
        assert (await server.publish(1)).status_code == 200
        async with server.live() as client:
            try:
                frozen_disk.freeze()
                assert is_unknown(await server.publish(2))
                began = time.monotonic()
                process.process.terminate()
                frames, code, _ = await client.close_frames()
                assert (frames[-1]["type"], code) == ("bye", 1012)
                with pytest.raises(OSError):  # noqa: PT011 - whatever the kernel calls a port nobody listens on
                    while True:
                        (await trio.open_tcp_stream("127.0.0.1", httpx.URL(server.url).port or 0)).socket.close()
                        await trio.sleep(0.05)
                assert time.monotonic() - began < 10
            finally:
                frozen_disk.thaw()
        with trio.fail_after(12):
            await process.process.wait()
