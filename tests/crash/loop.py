"""The crash loop: the server is killed under load again and again, on the same data, and must keep every promise."""

from __future__ import annotations

import contextlib
import random
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

import trio

from tests.crash.connection import Connection, Cut, connected
from tests.crash.ledger import RETAINED_MAX, Found, Ledger, fields_of
from tests.crash.operating import Cases
from tests.logbook import LOGBOOK
from tests.server.forged import Forged, forge
from web.identity.keyring import load_key
from web.identity.tokens import issue

DIAGNOSES: Final = ("1", "2", "three")
PUBLISHERS: Final = 6
"""Each has one request in flight, on a connection that is kept alive."""

OPERATORS: Final = 2
"""Each takes one case at a time through its steps."""

SECONDS_TO_LIVE_MAX: Final = 0.12
"""After the first acknowledgement of a round, the server lives for a random time up to this."""

KEYS_TRIED: Final = 3
"""Keys of answered updates, of any round, that are tried again in each round."""


@dataclass
class Figures:
    """What a loop did and found."""

    rounds: int = 0
    acknowledged: int = 0
    unanswered: int = 0
    stored_unanswered: int = 0
    """Events that were stored although nobody was told: what an Idempotency-Key is for."""
    keys_tried: int = 0
    acts: Counter[str] = field(default_factory=Counter)
    """Steps of cases that were answered."""
    acts_in_doubt: Counter[str] = field(default_factory=Counter)
    """Steps that were asked for and not answered."""
    acts_found: Counter[str] = field(default_factory=Counter)
    """Of these, the steps that were there afterwards."""
    seconds: float = 0.0
    violations: list[str] = field(default_factory=list)

    def __str__(self) -> str:
        return (
            f"{self.rounds} rounds in {self.seconds:.0f} s: {self.acknowledged} events acknowledged, "
            f"{self.unanswered} requests unanswered, {self.stored_unanswered} of them stored all the same; "
            f"{self.keys_tried} keys tried again; acts and acknowledgements answered: {dict(self.acts)}, "
            f"in doubt: {dict(self.acts_in_doubt)}, of these there: {dict(self.acts_found)}; "
            f"{len(self.violations)} violations"
        )


async def run(data: Path, rounds: int, chance: random.Random) -> Figures:
    """Kill a server this often; what came of it. Ends at the first round with a violation."""
    figures = Figures()
    began = time.monotonic()
    loop: Loop | None = None
    with forge(data.parent) as servers:
        for number in range(rounds):
            settings = {"AVICENNA_DURABILITY": ("full", "normal")[number % 2], "AVICENNA_LOG_LEVEL": "info"}
            victim, url = await servers.serve(data, env=settings)
            loop = loop or Loop(chance, data)
            await loop.run_round(victim, urlsplit(url).port or 0)
            figures.rounds += 1
            if loop.violations():
                break
    assert loop is not None, "there was a round"
    figures.seconds = time.monotonic() - began
    figures.acknowledged = sum(ledger.acknowledged for ledger in loop.ledgers.values())
    figures.stored_unanswered = sum(ledger.stored_unanswered for ledger in loop.ledgers.values())
    figures.unanswered, figures.keys_tried, figures.violations = loop.unanswered, loop.keys_tried, loop.violations()
    cases = loop.cases
    figures.acts, figures.acts_in_doubt, figures.acts_found = cases.answered, cases.in_doubt, cases.found_in_doubt
    return figures


@dataclass(frozen=True, slots=True)
class Sent:
    """An update on its way."""

    diagnosis_id: str
    update: int
    key: str | None


class Loop:
    """The publishers and operators, and what they know."""

    def __init__(self, chance: random.Random, data: Path) -> None:
        key = load_key(data)
        assert key is not None, "a server has a key"
        LOGBOOK.note_key(key)
        self.cases = Cases(chance, key)
        self.ledgers = {name: Ledger(name) for name in DIAGNOSES}
        self.unanswered = 0
        self.keys_tried = 0
        self._complaints: list[str] = []
        self._chance = chance
        self._headers = _headers(key)
        self._is_new = True
        self._updates = 0
        self._answered: list[Sent] = []
        """With a key."""
        self._waiting: list[Sent] = []
        """Without an answer, of the last round, with a key."""

    async def run_round(self, victim: Forged, port: int) -> None:
        """Compare what a server retains with what was promised, load it, kill it."""
        async with connected(port, self._headers) as http:
            if self._is_new:
                await self._register(http)
                self._is_new = False
            await self._look(http)
            await self.cases.look(http)
            await self._try_keys(http)
        await self._publish_until_killed(victim, port)

    def violations(self) -> list[str]:
        """What was promised and not kept."""
        return (
            self._complaints
            + self.cases.complaints
            + [one for ledger in self.ledgers.values() for one in ledger.violations]
        )

    async def _register(self, http: Connection) -> None:
        for name in DIAGNOSES:
            status, _ = await http.ask("PUT", f"/diagnoses/{name}", {"owner": "amira", "viewers": []})
            assert status == 201

    async def _look(self, http: Connection) -> None:
        for name, ledger in self.ledgers.items():
            _, position = await http.ask("GET", f"/diagnoses/{name}/position")
            _, outbox = await http.ask("GET", f"/actors/{name}/outbox?limit={RETAINED_MAX}")
            found = [Found(event["seq"], event["data"]) for event in outbox["items"]]
            ledger.judge(position["epoch"], position["head"], found)

    async def _try_keys(self, http: Connection) -> None:
        """Repeat what was not answered, and some of what was."""
        repeated = self._chance.sample(self._answered, min(KEYS_TRIED, len(self._answered)))
        for sent in self._waiting + repeated:
            known = self.ledgers[sent.diagnosis_id].seq_of(sent.update)
            is_replay = await self._send(http, sent)
            self.keys_tried += 1
            if known is not None and not is_replay:
                self._complaints.append(f"update {sent.update} was event {known}, and was stored again")
        for sent in repeated[:1]:
            status, _ = await _post(http, Sent(sent.diagnosis_id, sent.update + 1, sent.key))
            if status != 409:
                self._complaints.append(f"another update under a used key was answered {status}")
        self._waiting.clear()

    async def _publish_until_killed(self, victim: Forged, port: int) -> None:
        """Publish from all sides; kill the server some time after its first answer."""
        is_first_answer = trio.Event()
        async with trio.open_nursery() as publishers_nursery:
            for _ in range(PUBLISHERS):
                publishers_nursery.start_soon(self._publish, port, is_first_answer)
            for _ in range(OPERATORS):
                publishers_nursery.start_soon(self.cases.act_until_killed, port)
            with trio.fail_after(60):
                await is_first_answer.wait()
            await trio.sleep(self._chance.uniform(0, SECONDS_TO_LIVE_MAX))
            await victim.kill()

    async def _publish(self, port: int, is_first_answer: trio.Event) -> None:
        """Publish until the connection is cut."""
        with contextlib.suppress(Cut):
            async with connected(port, self._headers) as http:
                while True:
                    await self._publish_next(http)
                    is_first_answer.set()

    async def _publish_next(self, http: Connection) -> None:
        self._updates += 1
        key = f"key-of-update-{self._updates}" if self._chance.random() < 0.5 else None
        sent = Sent(self._chance.choice(DIAGNOSES), self._updates, key)
        try:
            await self._send(http, sent)
        except Cut:
            self.unanswered += 1
            self.ledgers[sent.diagnosis_id].leave_unanswered(sent.update)
            if key is not None:
                self._waiting.append(sent)
            raise

    async def _send(self, http: Connection, sent: Sent) -> bool:
        """Publish, and take note of the answer; whether it was a replay."""
        status, answer = await _post(http, sent)
        if status != 200:
            self._complaints.append(f"a broadcast was answered {status} {answer}")
            return False
        self.ledgers[sent.diagnosis_id].acknowledge(sent.update, answer["seq"], answer["epoch"])
        if sent.key is not None:
            self._answered.append(sent)
        return bool(answer["replayed"])


async def _post(http: Connection, sent: Sent) -> tuple[int, Any]:
    headers = {} if sent.key is None else {"Idempotency-Key": sent.key}
    body = {"diagnosis_id": sent.diagnosis_id, **fields_of(sent.update)}
    return await http.ask("POST", "/ws/broadcast-feedback-update", body, **headers)


def _headers(key: bytes) -> dict[str, str]:
    """What lets the publishers in."""
    token = issue(key, sub="crash", scope="operate", ttl_seconds=86_000, now=time.time(), token_id="crash")
    LOGBOOK.note(token, "a token")
    return {"Authorization": f"Bearer {token}"}
