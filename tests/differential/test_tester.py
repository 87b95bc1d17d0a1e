"""The differential test finds nothing between two equal servers, and finds what is wrong with one."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Final

import pytest

from tests.differential import hunt as hunting
from tests.differential.conversation import Steps, comparable
from tests.differential.meddling import Meddling, meddled
from tests.differential.mutations import MATERIAL, mutation, shorter
from tests.differential.pair import Difference, Pair, running_pair
from tests.differential.people import TOKENS
from tests.differential.tables import TABLES, steps_of
from web.server.settings import Settings

FAULTS: Final[Mapping[str, tuple[str, Meddling]]] = {
    "a refusal has another status": (
        "no token",
        Meddling(answered=lambda data: data.replace(b"HTTP/1.1 401", b"HTTP/1.1 403")),
    ),
    "an answer lacks a field": (
        "no token",
        Meddling(answered=lambda data: data.replace(b"www-authenticate: Bearer\r\n", b"")),
    ),
    "an answer has no id": (
        "a diagnosis",
        Meddling(answered=lambda data: re.sub(rb"x-request-id: [^\r]*\r\n", b"", data)),
    ),
    "a length beats chunks": (
        "chunks and a length",
        Meddling(asked=lambda data: data.replace(b"Transfer-Encoding: chunked\r\n", b"")),
    ),
    "a NUL is taken": (
        "a NUL in a value",
        Meddling(asked=lambda data: data.replace(b"\0", b"0")),
    ),
    "a connection ends behind its answer": ("publish feedback", Meddling(stays=False)),
    "what follows a request is lost": (
        "two publishes",
        Meddling(asked=lambda data: data[: 1 + data.find(b"}POST")] or data),
    ),
    "what follows a handshake is lost": (
        "a WebSocket and a byte",
        Meddling(asked=lambda data: data.removesuffix(b"x")),
    ),
    "something else is stored": (
        "publish feedback",
        Meddling(asked=lambda data: data.replace(b'"slept well"', b'"slept  ill"')),
    ),
}
"""What is wrong with one of the servers, and a case that finds it."""


@asynccontextmanager
async def spoiled_pair(directory: Path, meddling: Meddling) -> AsyncIterator[Pair]:
    """Two equal servers, the second one behind a relay."""
    async with (
        running_pair(directory, {}, lambda settings: settings) as pair,
        meddled(pair.second.port, meddling) as port,
    ):
        yield Pair(pair.first, replace(pair.second, port=port))


@pytest.mark.parametrize("fault", FAULTS)
async def test_a_fault_is_found(fault: str, tmp_path: Path) -> None:
    name, meddling = FAULTS[fault]
    async with spoiled_pair(tmp_path, meddling) as pair:
        assert await found_by(pair, name)


async def test_nothing_is_found_behind_a_relay_that_spoils_nothing(tmp_path: Path) -> None:
    async with spoiled_pair(tmp_path, Meddling()) as pair:
        for name, _ in FAULTS.values():
            assert not await found_by(pair, name)
        assert not await pair.differences_shown("all")


async def test_mutations_find_a_fault_and_make_it_short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hunting, "SHORTER_TRIES_MAX", 30)

    def with_origins(settings: Settings) -> Settings:
        return replace(settings, allowed_origins=("https://page.test",))  # every answer says `Vary: Origin`

    _, found = await hunting.hunt(1, range(20), otherwise=with_origins)
    assert found is not None
    assert len(_bytes(found.steps)) < len(_bytes(mutation(1, found.number)))
    assert f"--seed 1 --only {found.number}" in str(found)
    assert not any(token in str(found) for token in TOKENS.values())


async def found_by(pair: Pair, name: str) -> list[Difference]:
    return await pair.differences_of(name, steps_of(TABLES["plain"].cases[name])) + await pair.differences_stored(name)


def _bytes(steps: Steps) -> bytes:
    return b"".join(step for step in steps if isinstance(step, bytes))


def test_a_mutation_is_the_same_each_time_and_others_are_others() -> None:
    assert [mutation(7, number) for number in range(50)] == [mutation(7, number) for number in range(50)]
    assert len({mutation(7, number) for number in range(500)}) > 450
    assert mutation(8, 1) != mutation(7, 1)
    assert sum(_bytes(mutation(7, number)) in MATERIAL for number in range(500)) < 50


def test_what_is_shorter_is_shorter() -> None:
    steps: Steps = (b"abcd", b"ef")
    for one in shorter(steps):
        assert (len(_bytes(one)), len(one)) < (6, 3)
    assert (b"abcdef",) in list(shorter(steps))
    assert (b"bcd", b"ef") in list(shorter(steps))


def test_answers_are_comparable_whatever_the_order_of_their_fields() -> None:
    one = b"HTTP/1.1 200 \r\nA: b\r\nDate: x\r\nX-Request-ID: 1\r\n\r\nbody"
    other = b"HTTP/1.1 200 OK\r\ndate: y\r\nx-request-id: 2\r\na: b\r\n\r\nbody"
    assert comparable(one) == comparable(other)
    assert comparable(one) != comparable(one.replace(b"X-Request-ID: 1\r\n", b""))
    assert comparable(one) != comparable(one.replace(b"body", b"bodies"))
    assert comparable(one) != comparable(one.replace(b"200", b"201"))
