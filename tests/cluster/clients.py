"""Clients of an installation: who follows comes back through the proxy, who publishes repeats what got no answer.

What publishers were told, and what followers got, is kept in a `Ledger`: each number that was given, and to what.
"""

from __future__ import annotations

import json
import random
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any, Final

import httpx
import trio
from trio_websocket import ConnectionClosed, HandshakeError

from tests.server.cut_off import connected
from web.identity.tokens import issue

OWNER: Final = "amira"

ANSWER_SECONDS_MAX: Final = 12.0
"""Longest wait for an answer. Reason: a server says 503 after 10 s. Beyond: it is asked again, perhaps another one."""

REPEATED_SECONDS_MAX: Final = 120.0
"""So long an update is sent again. Beyond: that is a fault of the installation."""

BACKOFF_SECONDS: Final = (0.1, 0.5)
"""Between these, by lot, a client waits before it comes back."""


def bearer(key: bytes, sub: str = OWNER, scope: str = "", token_id: str = "t") -> dict[str, str]:
    """The header with a token of a day."""
    made = issue(key, sub=sub, scope=scope, ttl_seconds=86_400, now=time.time(), token_id=token_id)
    return {"Authorization": f"Bearer {made}"}


@dataclass
class Ledger:
    """What was acknowledged, and what went wrong."""

    acknowledged: dict[tuple[str, int], int] = field(default_factory=dict)
    """By diagnosis and number: the id of the update."""
    refused: int = 0
    """Tries that got 503 or no answer."""
    stored_all_the_same: int = 0
    """Of these, updates that a repeat with their key found stored."""
    unknown: set[int] = field(default_factory=set)
    """Updates without a key that got no answer: stored once, or not."""
    pause_seconds: float = 0.0
    """Longest time without an acknowledgement since `begin`."""
    doubled: int = 0
    wrong: list[str] = field(default_factory=list)
    """Sentences, one for each promise that was broken."""
    heard: trio.Event = field(default_factory=trio.Event)
    """Set at the next acknowledgement."""
    _last_at: float = 0.0

    def begin(self) -> None:
        """Count anew; what was acknowledged stays."""
        self.refused = self.stored_all_the_same = self.doubled = 0
        self.pause_seconds, self._last_at = 0.0, trio.current_time()

    def acknowledge(self, diagnosis: str, seq: int, number: int) -> None:
        """An update has got this number."""
        if (diagnosis, seq) in self.acknowledged:
            self.doubled += 1
            self.wrong.append(f"number {seq} of {diagnosis} was given twice")
        self.acknowledged[diagnosis, seq] = number
        now = trio.current_time()
        self.pause_seconds, self._last_at = max(self.pause_seconds, now - self._last_at), now
        self.heard.set()
        self.heard = trio.Event()

    def of(self, diagnosis: str) -> dict[int, int]:
        """What was acknowledged of one diagnosis: numbers, and the ids of their updates."""
        return {seq: number for (its, seq), number in self.acknowledged.items() if its == diagnosis}

    async def more(self, wanted: int, seconds: float) -> None:
        """Wait until so many more are acknowledged; complain after so many seconds without any."""
        until = len(self.acknowledged) + wanted
        with trio.move_on_after(seconds) as waiting:
            while len(self.acknowledged) < until:
                await self.heard.wait()
                waiting.deadline = trio.current_time() + seconds
        if waiting.cancelled_caught:
            self.wrong.append(f"nothing was acknowledged for {seconds:g} s")


NUMBERS: Final = count(1)
"""Of updates, whoever publishes them."""


class Publisher:
    """Publishes numbered updates of these diagnoses by lot, one or three at once, most with a key."""

    def __init__(
        self,
        urls: Sequence[str],
        key: bytes,
        diagnoses: Sequence[str],
        ledger: Ledger,
        chance: random.Random,
        pace_seconds: float,
    ) -> None:
        """Wait for about so long between two rounds."""
        self._urls = urls
        self._headers = bearer(key)
        self._diagnoses = diagnoses
        self._ledger = ledger
        self._chance = chance
        self._pace_seconds = pace_seconds
        self.is_wanted = True

    async def run(self, keyed: float = 0.7) -> None:
        """Publish until nobody wants it any more; all that was begun is finished.

        Args:
            keyed: the share of updates that have a key.
        """
        async with httpx.AsyncClient(timeout=ANSWER_SECONDS_MAX) as http:
            while self.is_wanted:
                diagnosis = self._chance.choice(self._diagnoses)
                async with trio.open_nursery() as nursery:
                    for _ in range(3 if self._chance.random() < 0.25 else 1):
                        has_key = self._chance.random() < keyed
                        nursery.start_soon(self._publish, http, diagnosis, next(NUMBERS), has_key)
                await trio.sleep(self._pace_seconds * self._chance.uniform(0.5, 1.5))

    async def _publish(self, http: httpx.AsyncClient, diagnosis: str, number: int, has_key: bool) -> None:
        ledger, tries = self._ledger, 0
        with trio.move_on_after(REPEATED_SECONDS_MAX):
            while True:
                answer = await self._try(http, diagnosis, number, has_key)
                if answer is not None:
                    ledger.acknowledge(diagnosis, int(answer["seq"]), number)
                    ledger.stored_all_the_same += bool(tries and answer["replayed"])
                    return
                ledger.refused += 1
                if not has_key:
                    ledger.unknown.add(number)
                    return
                tries += 1
                await trio.sleep(self._chance.uniform(*BACKOFF_SECONDS))
        ledger.wrong.append(f"update {number} of {diagnosis} was not taken within {REPEATED_SECONDS_MAX:g} s")

    async def _try(
        self, http: httpx.AsyncClient, diagnosis: str, number: int, has_key: bool
    ) -> Mapping[str, Any] | None:
        """The answer; `None`: there was none, or 503."""
        body = {"diagnosis_id": diagnosis, "feedback_id": number, "rating": 5}
        headers = self._headers | ({"Idempotency-Key": f"a-key-of-update-{number}"} if has_key else {})
        try:
            url = self._chance.choice(self._urls)
            answer = await http.post(f"{url}/ws/broadcast-feedback-update", json=body, headers=headers)
        except httpx.TransportError:
            return None
        if answer.status_code == 200:
            found: Mapping[str, Any] = answer.json()
            return found
        if answer.status_code not in (502, 503, 504):  # the proxy's own among them
            self._ledger.wrong.append(f"update {number} of {diagnosis} got {answer.status_code}: {answer.text}")
        return None


class Follower:
    """Follows one diagnosis, and comes back from where it was when its connection ends."""

    def __init__(self, urls: Sequence[str], key: bytes, diagnosis: str, wrong: Callable[[str], None]) -> None:
        """Tell of what must not be."""
        self._urls = urls
        self._headers = bearer(key)
        self._wrong = wrong
        self._epoch = ""
        self.diagnosis = diagnosis
        self.position = 0
        """The newest number."""
        self.got: dict[int, int] = {}
        """Numbers, and the ids of their updates."""
        self.missing = 0
        """Numbers that were passed over without a gap that names them."""
        self.doubled = 0
        self.gaps = 0
        """Numbers that gaps named."""
        self.closed = 0
        """Connections that have ended."""
        self.resumes: list[str] = []
        """How each connection after the first has begun."""
        self.back_seconds: list[float] = []
        """Of each of them: until it was live again."""
        self.is_live = False

    async def run(self) -> None:
        """Follow, until cancelled."""
        ended_at: float | None = None
        while True:
            try:
                await self._follow(ended_at)
            except* (OSError, ConnectionClosed, HandshakeError, trio.BrokenResourceError):
                pass
            if self.is_live:
                self.closed += 1
                self.is_live, ended_at = False, trio.current_time()
            await trio.sleep(random.uniform(*BACKOFF_SECONDS))

    async def _follow(self, ended_at: float | None) -> None:
        position: dict[str, object] = {"after": self.position, "epoch": self._epoch} if self._epoch else {}
        async with connected(random.choice(self._urls), self.diagnosis, position, self._headers) as connection:
            while True:
                frame = json.loads(await connection.get_message())
                if frame["type"] == "connect":
                    self._begun(frame["data"])
                elif frame["type"] == "live":
                    self.is_live = True
                    if ended_at is not None:
                        self.back_seconds.append(trio.current_time() - ended_at)
                else:
                    self.take(frame)

    def _begun(self, data: Mapping[str, Any]) -> None:
        if self._epoch:
            self.resumes.append(data["resume"])
            if data["epoch"] != self._epoch:
                self._wrong(f"{self.diagnosis} has another epoch, and nothing was restored")
        self._epoch = data["epoch"]

    def take(self, frame: Mapping[str, Any]) -> None:
        """Take an event or a gap into account; nothing else counts."""
        if frame["type"] == "gap":
            data = frame["data"]
            self._pass_over(data["from"])
            self.gaps += data["count"]
            self.position = data["to"]
        elif "seq" in frame:
            self._take_event(frame)

    def _take_event(self, frame: Mapping[str, Any]) -> None:
        seq = int(frame["seq"])
        if seq <= self.position:
            self.doubled += 1
            self._wrong(f"a follower of {self.diagnosis} got {seq} after {self.position}")
            return
        self._pass_over(seq)
        self.got[seq] = frame["data"]["feedback_id"]
        self.position = seq

    def _pass_over(self, first: int) -> None:
        """Count what is missing before the first number of what came."""
        if (missed := first - self.position - 1) > 0:
            self.missing += missed
            self._wrong(f"a follower of {self.diagnosis} got {first} after {self.position}, and no gap before it")
