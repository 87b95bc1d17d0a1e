"""Every route that changes something, and a token or a right that ends while the body of its request travels."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from storage.clock import SystemClock
from storage.sqlite.opening import open_store
from tests.identity.acts import ACTS, CHANGING, LINES, SENDER, Ward, expect_alive
from tests.identity.conftest import MovableClock
from tests.identity.travelling import Arrivals, noted_arrivals, travelling
from tests.server.harness import running_server
from web.identity.tokens import issue
from web.server.settings import DATABASE_FILE, Settings

OF_TOKEN = {
    "subject revoked": ("unauthenticated", 401),
    "token revoked": ("unauthenticated", 401),
    "token expired": ("token_expired", 401),
}
OF_RIGHT = {"right lost": ("forbidden", 403), "diagnosis deleted": ("forbidden", 403)}
"""Of an owner's: what a scope allows goes with its token alone."""

CASES = [(name, change) for name, act in ACTS.items() for change in (*OF_TOKEN, *(OF_RIGHT if act.is_owners else ()))]


def test_every_route_that_changes_something_is_in_the_table() -> None:
    assert ACTS.keys() == CHANGING.keys()


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arrivals]:
    with noted_arrivals(monkeypatch) as noted:
        yield noted


@pytest.mark.guarantee(16)
@pytest.mark.parametrize(("name", "change"), CASES)
async def test_a_right_that_ends_while_the_body_travels_is_gone(
    settings: Settings, clock: MovableClock, arrivals: Arrivals, name: str, change: str
) -> None:
    act = ACTS[name]
    async with running_server(settings, clock) as server:
        ward = Ward(server, clock)
        await ward.begin()
        async with server.live("d1", "bo", device="phone") as follower:
            token = issue(
                server.key, sub=SENDER, scope=act.scope, ttl_seconds=100, now=clock.wall(), token_id="of the sender"
            )
            method = CHANGING[name].method.upper()
            sent = travelling(server, arrivals, method, act.path, act.body, token, Content_Type=act.media_type)
            async with sent as request:
                await ward.change(change)
                before = await ward.state()
                answered = await request.arrive()
            assert await ward.state() == before
            if change != "diagnosis deleted":
                await expect_alive(follower)
    code, status = (OF_TOKEN | OF_RIGHT)[change]
    if name == "broadcastMany":
        assert answered.status == 200
        assert [(one["line"], one["status"], one["code"]) for one in answered.lines] == [
            (line, status, code) for line in range(1, LINES + 1)
        ]
    else:
        assert (answered.status, answered.json["code"]) == (status, code)
    assert not (settings.data / "backups").exists()
    async with open_store(settings.data / DATABASE_FILE, clock=SystemClock(), new_epoch=str) as store:
        assert [row.what for row in await store.audit() if row.who == SENDER] == []
