"""Pages of lists: one ends where its items take too many bytes, and the next one goes on there."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import replace
from typing import Any

import httpx
import pytest
import trio

from tests.server.harness import Server, running_server
from web.contract import paging
from web.contract.paging import PAGE_BYTES_MAX
from web.server.settings import Settings

VIEWERS = [f"{number:04d}" + "v" * 40 for number in range(1000)]
"""Together some 47 KB."""

LARGEST_BYTES = 64 * 1024
"""Of an item of these tests."""


async def pages(server: Server, path: str, **query: str) -> AsyncIterator[tuple[int, list[Any]]]:
    """The pages of a list: their size in bytes, and their items."""
    headers = {"Authorization": f"Bearer {server.token('op', 'operate')}"}
    after: str | None = ""
    while after is not None:
        answer: httpx.Response = await server.http.get(
            path, params={"limit": "1000", **query} | ({"after": after} if after else {}), headers=headers
        )
        assert answer.status_code == 200
        page = answer.json()
        yield len(answer.content), page["items"]
        after = page["next"]


async def check(server: Server, path: str, name: str, expected: list[Any], **query: str) -> None:
    """The list has these items, each once and in order, in several pages within the bound."""
    found, count = [], 0
    async for size, items in pages(server, path, **query):
        assert items, "at least one"
        assert size < PAGE_BYTES_MAX + LARGEST_BYTES
        found += [item[name] for item in items]
        count += 1
    assert found == expected
    assert count > 1


async def test_diagnoses_with_many_viewers(server: Server) -> None:
    for number in range(1, 16):
        await server.register(number + 100, "amira", *VIEWERS)
    await check(server, "/diagnoses", "diagnosis_id", list(range(101, 116)))


async def test_an_outbox_of_large_events(server: Server) -> None:
    await server.register(42, "amira")
    for number in range(12):
        assert (await server.publish(number, comment="x" * 60_000)).status_code == 200
    await check(server, "/actors/42/outbox", "seq", list(range(1, 13)))


async def test_the_audit_trail_of_large_acts(server: Server) -> None:
    for number in range(12):
        await server.register(number, "amira", *VIEWERS)
    expected = [number async for _, items in pages(server, "/audit", limit="1") for number in [items[0]["id"]]]
    assert len(expected) >= 12
    await check(server, "/audit", "id", expected)


async def test_lists_of_long_names(server: Server) -> None:
    names = [f"{number:04d}" + "界" * 250 for number in range(400)]
    headers = {"Authorization": f"Bearer {server.token('op', 'operate')}"}
    for name in names:
        assert (await server.http.post("/revocations", json={"sub": name}, headers=headers)).status_code == 201
    await check(server, "/revocations", "sub", names)


@pytest.mark.parametrize("path", ["/diagnoses", "/actors", "/audit", "/revocations"])
async def test_a_list_of_few_is_one_page(server: Server, path: str) -> None:
    await server.register(42, "amira")
    assert len([page async for page in pages(server, path)]) == 1


async def test_the_last_page_of_a_list_that_ends_at_the_bound_is_the_last(server: Server) -> None:
    await server.register(42, "amira")
    for number in range(5):
        assert (await server.publish(number, comment="x" * 60_000)).status_code == 200
    found = [[item["seq"] for item in items] async for _, items in pages(server, "/actors/42/outbox")]
    assert found == [[1, 2, 3, 4, 5]]


async def test_every_list_ends_its_pages_by_their_bytes(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(paging, "PAGE_BYTES_MAX", 1)
    async with running_server(replace(settings, access_trail=True)) as server:
        for number in (41, 42, 43):
            await server.register(number, "amira")
        for number in range(3):
            assert (await server.publish(number)).status_code == 200
        headers = {"Authorization": f"Bearer {server.token('op', 'operate')}"}
        for jti in ("a", "b"):
            assert (await server.http.post("/revocations", json={"jti": jti}, headers=headers)).status_code == 201
        async with server.live(device="a"), server.live(device="b"):
            for path, count in (
                ("/diagnoses", 3),
                ("/actors", 3),
                ("/actors/42/outbox", 3),
                ("/diagnoses/42/delivery", 2),
                ("/revocations", 2),
            ):
                seq = {"seq": "1"} if path.endswith("delivery") else {}
                found = [items async for _, items in pages(server, path, **seq)]
                assert [len(items) for items in found] == [1] * count, path
        for path in ("/audit", "/accesses"):
            found = []
            with trio.fail_after(10):
                while len(found) < 4:  # a row of the trail of accesses appears within a second
                    found = [items async for _, items in pages(server, path)]
            assert {len(items) for items in found} == {1}, path
