"""A diagnosis whose actor crashes in a loop, as its publishers, subscribers and operators see it."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator, Iterator

import pytest

from storage.records import Event
from tests.server.harness import Server, running_server
from tests.server.test_operators import get, post
from web.contract import wire
from web.server.settings import Settings

CURSED: set[str] = set()
"""Diagnoses whose events cannot be rendered: a bug that comes back with every incarnation."""


def faulty(diagnosis_id: str, event: Event) -> bytes:
    if diagnosis_id in CURSED:
        raise ZeroDivisionError
    return wire.render_event(diagnosis_id, event)


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    async with running_server(settings, render=faulty) as running:
        yield running


@pytest.fixture(autouse=True)
def no_curse() -> Iterator[None]:
    yield
    CURSED.clear()


@pytest.mark.one_process("the diagnosis crashes at those workers alone at which somebody follows it")
@pytest.mark.guarantee(6)
async def test_a_diagnosis_that_crashes_in_a_loop_is_quarantined_and_the_others_go_on(
    server: Server, caplog: pytest.LogCaptureFixture
) -> None:
    await server.register(13)
    await server.register(42)
    async with server.live(13) as follower, server.live(42) as other:
        CURSED.add("13")
        # It was stored before it crashed the actor: nobody is told that it was not.
        first = await server.publish(1, 13)
        assert (first.status_code, first.json()["code"]) == (503, "storage_unavailable")
        frames, code, reason = await follower.close_frames()
        assert (frames[-1]["type"], code, reason) == ("bye", 1013, "quarantined")

        refused = await server.publish(2, 13)
        assert (refused.status_code, refused.json()["code"]) == (503, "quarantined")
        assert 1 <= int(refused.headers["Retry-After"]) <= 60
        async with server.connect(13) as late:
            frames, code, _ = await late.close_frames()
        assert (frames[0]["data"]["code"], code) == ("quarantined", 1013)

        actor = await get(server, "/actors/13")
        assert (actor["state"], actor["restarts"]) == ("quarantined", 4)
        assert actor["last_crash"]["error"].startswith("ZeroDivisionError at faulty:")
        assert (await server.publish(3, 42)).status_code == 200
        assert (await other.next())["seq"] == 1
        assert (await server.http.get("/readyz")).status_code == 200
    crashes = [record.getMessage() for record in caplog.records if record.levelno == logging.ERROR]
    assert any("diagnosis 13: incarnation 1 crashed: ZeroDivisionError" in line for line in crashes)

    CURSED.clear()
    assert (await post(server, "/actors/13/restart"))["state"] == "running"
    async with server.connect(13) as back:
        assert [frame["seq"] for frame in await back.until_live() if "seq" in frame] == [1]
    assert (await server.publish(4, 13)).json()["seq"] == 2


@pytest.mark.one_process("where several processes share a store, nothing is rendered that nobody follows: no crash")
async def test_many_quarantines_take_readiness_off(settings: Settings) -> None:
    hasty = Settings(port=0, data=settings.data, restart_intensity_max=0, escalation_quarantines_max=1)
    async with running_server(hasty, render=faulty) as server:
        for name in ("13", "14"):
            assert (await server.http.get("/readyz")).status_code == 200
            await server.register(name)
            CURSED.add(name)
            await server.publish(1, name)
        refused = await server.http.get("/readyz")
        assert (refused.status_code, refused.json()["code"]) == (503, "quarantined")
        assert (await server.http.get("/healthz")).status_code == 200
