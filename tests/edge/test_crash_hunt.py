"""Nothing from the network ends the process, and nothing of it stays behind (promise 15)."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import os
import random
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
import trio

from tests.edge.malformed import BROADCAST, CASES
from tests.edge.peers import connect, living_tasks, open_descriptors, request, upgrade
from tests.server.harness import Server
from web.server.settings import Settings

logger = logging.getLogger(__name__)

FUZZ_SECONDS = float(os.environ.get("FUZZ_SECONDS", "3"))
FUZZ_AT_ONCE = 8


@asynccontextmanager
async def nothing_stays(server: Server, caplog: pytest.LogCaptureFixture) -> AsyncIterator[None]:
    """Whatever happens within: the server lives, has met no error of its own, and has nothing open that it had not."""
    assert (await server.http.get("/healthz")).status_code == 200
    before = living_tasks(), open_descriptors()
    yield
    with trio.fail_after(20):
        while living_tasks() > before[0] or open_descriptors() > before[1]:
            await trio.sleep(0.02)
    assert [record.getMessage() for record in caplog.records if record.levelno >= logging.ERROR] == []
    assert (await server.http.get("/healthz")).status_code == 200


async def send_and_wait(url: str, sent: bytes) -> bytes:
    """Send, and read until the server has enough."""
    async with await connect(url) as peer:
        with contextlib.suppress(trio.BrokenResourceError):  # it has heard enough already
            await peer.send(sent)
        return await peer.end()


async def send_and_leave(url: str, sent: bytes) -> None:
    """Send, and be gone."""
    async with await connect(url) as peer:
        with trio.move_on_after(1), contextlib.suppress(trio.BrokenResourceError):
            await peer.send(sent)


@pytest.fixture
def settings(settings: Settings) -> Settings:
    """Idle connections end soon, so that what stays is what leaks."""
    return dataclasses.replace(settings, keep_alive_seconds=0.2)


def test_the_hunt_has_at_least_80_cases() -> None:
    assert len(CASES) >= 80
    assert len(set(CASES.values())) == len(CASES)


@pytest.mark.guarantee(15)
async def test_no_malformed_request_ends_the_server_or_stays_in_it_if_its_client_waits(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    answers: dict[str, bytes] = {}
    slow = "half a body, with a token"
    token = b"Bearer " + server.token("amira").encode()
    half = request(BROADCAST, b"POST", Authorization=token, Content_Length=b"9", Content_Type=b"application/json")
    cases = CASES | {slow: half + b"{"}
    async with nothing_stays(server, caplog), trio.open_nursery() as clients:

        async def one(name: str) -> None:
            answers[name] = await send_and_wait(server.url, cases[name])

        for name in cases:
            clients.start_soon(one, name)
    assert len(answers) == len(cases)
    assert answers[slow].startswith(b"HTTP/1.1 408 ")
    assert [name for name, answer in answers.items() if b" 500 " in answer.partition(b"\r\n")[0]] == []
    assert [name for name, answer in answers.items() if answer and not answer.startswith(b"HTTP/1.1 ")] == []


@pytest.mark.guarantee(15)
async def test_no_malformed_request_ends_the_server_or_stays_in_it_if_its_client_leaves(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    async with nothing_stays(server, caplog), trio.open_nursery() as clients:
        for sent in CASES.values():
            for part in (sent, sent[: len(sent) // 2]):
                clients.start_soon(send_and_leave, server.url, part)


@pytest.mark.guarantee(15)
async def test_random_damage_to_requests_ends_no_server_and_stays_nowhere(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    seed = int(os.environ.get("FUZZ_SEED", time.time_ns()))
    logger.info("FUZZ_SEED=%d repeats this", seed)  # shown if it fails
    seeds = random.Random(seed)
    corpus = [*CASES.values(), request(b"/healthz"), upgrade()]
    sent = 0

    async def damage(randomness: random.Random) -> None:
        nonlocal sent
        while time.monotonic() < until:
            data = damaged(randomness, corpus)
            async with await connect(server.url) as peer:
                with contextlib.suppress(trio.BrokenResourceError):
                    for piece in pieces(randomness, data):
                        await peer.send(piece)
                    if randomness.random() < 0.3:
                        await peer.stream.send_eof()
                    if randomness.random() < 0.5:
                        with trio.move_on_after(0.05):
                            await peer.end()
            sent += 1

    async with nothing_stays(server, caplog), trio.open_nursery() as clients:
        until = time.monotonic() + FUZZ_SECONDS
        for _ in range(FUZZ_AT_ONCE):
            clients.start_soon(damage, random.Random(seeds.random()))
    assert sent > FUZZ_SECONDS


def damaged(randomness: random.Random, corpus: list[bytes]) -> bytes:
    """A request with a few bytes changed, removed, repeated or moved, or a piece of another in it."""
    data = bytearray(randomness.choice(corpus)[:20_000])
    for _ in range(randomness.randint(1, 6)):
        at = randomness.randint(0, len(data))
        to = min(len(data), at + randomness.choice((1, 2, 8, 100)))
        match randomness.randint(0, 5):
            case 0:
                data[at:to] = randomness.randbytes(to - at)
            case 1:
                del data[at:to]
            case 2:
                data[at:at] = data[at:to] * randomness.randint(1, 20)
            case 3:
                data[at:at] = randomness.choice(corpus)[: randomness.randint(1, 200)]
            case 4:
                data[at:at] = randomness.choice((b"\r\n", b"\r\n\r\n", b"\0", b"\xff", b":", b" ", b"%", b"?", b","))
            case _:
                del data[at:]
    return bytes(data)


def pieces(randomness: random.Random, data: bytes) -> list[bytes]:
    """The bytes, cut anywhere."""
    cuts = sorted(randomness.sample(range(len(data) + 1), min(len(data), randomness.randint(0, 3))))
    return [data[begin:end] for begin, end in zip([0, *cuts], [*cuts, len(data)], strict=True) if begin < end]
