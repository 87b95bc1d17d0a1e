"""Every route that changes something, and a token or a right that ends while the body of its request travels."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import pytest

from storage.clock import SystemClock
from storage.sqlite import open_store
from tests.access.conftest import MovableClock
from tests.access.travelling import Arrivals, noted_arrivals, travelling
from tests.server.harness import Client, Server, running_server
from web.operations import NDJSON, OPERATIONS
from web.settings import DATABASE_FILE, Settings
from web.tokens import issue

LINES = 100
SENDER = "sender"
NEEDLESS = b'{"a body": "that nobody needs"}'


@dataclass(frozen=True)
class Act:
    """One operation as somebody with the right to it asks for it."""

    path: str
    body: bytes = NEEDLESS
    scope: str = "operate"
    """Of the token; a right that comes from a scope goes with its token alone."""
    is_owners: bool = False
    """The right is that of the owner of the diagnosis, and goes with it."""
    media_type: str = "application/json"


def publishing(kind: str, **fields: object) -> Act:
    body = json.dumps({"diagnosis_id": "d1", **fields}).encode()
    return Act(f"/ws/broadcast-{kind}-update", body, scope="", is_owners=True)


LINE = json.dumps({"type": "feedback_update", "diagnosis_id": "d1", "feedback_id": 1, "rating": 5}).encode() + b"\n"

ACTS = {
    "broadcastRecommendationUpdate": publishing("recommendation", new_data={"herb": "saffron"}),
    "broadcastEffectivenessUpdate": publishing("effectiveness", recommendation_id=7, new_effectiveness=0.85),
    "broadcastFeedbackUpdate": publishing("feedback", feedback_id=9, rating=5),
    "broadcastMany": Act("/ws/broadcast", LINE * LINES, scope="", is_owners=True, media_type=NDJSON),
    "putDiagnosis": Act("/diagnoses/d1", b'{"owner": "mallory"}', scope="register"),
    "deleteDiagnosis": Act("/diagnoses/d1", scope="register"),
    "restartActor": Act("/actors/d1/restart"),
    "stopActor": Act("/actors/d1/stop"),
    "purgeOutbox": Act("/actors/d1/outbox"),
    "disconnectSubscribers": Act("/actors/d1/subscribers?sub=bo&forget=1"),
    "eraseSubject": Act("/subjects/bo"),
    "eraseSubjectByQuery": Act("/subjects?sub=bo"),
    "revokeTokens": Act("/revocations", b'{"sub": "bo"}'),
    "liftRevocation": Act("/revocations/1"),
    "makeBackup": Act("/backup"),
    "checkDatabase": Act("/check"),
}
"""By the name of its operation."""

OF_TOKEN = {
    "subject revoked": ("unauthenticated", 401),
    "token revoked": ("unauthenticated", 401),
    "token expired": ("token_expired", 401),
}
OF_RIGHT = {"right lost": ("forbidden", 403), "diagnosis deleted": ("forbidden", 403)}
"""Of an owner's: what a scope allows goes with its token alone."""

CASES = [(name, change) for name, act in ACTS.items() for change in (*OF_TOKEN, *(OF_RIGHT if act.is_owners else ()))]

CHANGING = {one.name: one for one in OPERATIONS if one.method not in ("get", "head")}


def test_every_route_that_changes_something_is_in_the_table() -> None:
    assert ACTS.keys() == CHANGING.keys()


@pytest.fixture
def arrivals(monkeypatch: pytest.MonkeyPatch) -> Iterator[Arrivals]:
    with noted_arrivals(monkeypatch) as noted:
        yield noted


class Ward:
    """A server with one diagnosis that is followed, one event, and one revocation."""

    def __init__(self, server: Server, clock: MovableClock) -> None:
        self.server = server
        self.clock = clock

    async def chief(self, method: str, path: str, body: object = None) -> dict[str, Any]:
        """What another operator is answered."""
        headers = self.server.bearer("chief", "operate", ttl_seconds=3600)
        answer = await self.server.http.request(method, path, json=body, headers=headers)
        assert answer.is_success, answer.text
        shown: dict[str, Any] = answer.json()
        return shown

    async def begin(self) -> None:
        await self.chief("PUT", "/diagnoses/d1", {"owner": SENDER, "viewers": ["bo"]})
        await self.chief("POST", "/revocations", {"jti": "spare"})
        assert (await self.server.publish(1, "d1", SENDER)).status_code == 200

    async def change(self, change: str) -> None:
        """Take the right away; what follows was answered before this returns."""
        match change:
            case "subject revoked":
                await self.chief("POST", "/revocations", {"sub": SENDER})
            case "token revoked":
                await self.chief("POST", "/revocations", {"jti": "of the sender"})
            case "token expired":
                self.clock.ahead_seconds = 200.0
            case "right lost":
                await self.chief("PUT", "/diagnoses/d1", {"owner": "another", "viewers": ["bo"]})
            case "diagnosis deleted":
                await self.chief("DELETE", "/diagnoses/d1")

    async def state(self) -> dict[str, Any]:
        """All that an act could have changed, but for the trail."""
        found: dict[str, Any] = {path: await self.chief("GET", path) for path in ("/diagnoses", "/revocations")}
        for one in found["/diagnoses"]["items"]:
            found["actor"] = await self.chief("GET", f"/actors/{one['diagnosis_id']}")
        return found


async def expect_alive(client: Client) -> None:
    await client.say(type="ping")
    assert (await client.next())["type"] == "pong"


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
