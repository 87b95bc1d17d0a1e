"""Every operation that changes something, as somebody with the right to it asks for it, and what it could change."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tests.identity.conftest import MovableClock
from tests.server.harness import Client, Server
from web.contract.operations import NDJSON, OPERATIONS

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
    "drainServer": Act("/drain"),
}
"""By the name of its operation."""

CHANGING = {one.name: one for one in OPERATIONS if one.method not in ("get", "head")}


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
