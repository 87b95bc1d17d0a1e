"""The cases of a crash loop: each step asked of a server, and what the next server has of them."""

from __future__ import annotations

import json
import random
import secrets
import time
from collections import Counter
from typing import Any, Final

from tests.crash.acts import Case, Seen, drawn, judge
from tests.crash.connection import Connection, Cut, connected, following
from tests.logbook import LOGBOOK
from web.identity.tokens import issue

OLD_ONES: Final = 3
"""Cases of any earlier round that are looked at in each round."""

SHOWN_AS: Final = {
    "diagnosis.delete": "delete",
    "outbox.purge": "purge",
    "revocation.add": "revoke",
    "revocation.lift": "lift",
    "subject.erase": "erase",
}
"""The step behind an audit row; `diagnosis.register` is told by what was there before."""


class Cases:
    """All cases of a loop."""

    def __init__(self, chance: random.Random, key: bytes) -> None:
        """Begin without a case; tokens are made with this key."""
        self._chance = chance
        self._key = key
        self._all: list[Case] = []
        self._open: list[Case] = []
        """Those nobody works on, and that are not done."""
        self._touched: list[Case] = []
        """Those somebody has worked on since the last look."""
        self._revocation_max = 0
        """The highest number of a revocation that was seen."""
        self.answered: Counter[str] = Counter()
        self.in_doubt: Counter[str] = Counter()
        self.found_in_doubt: Counter[str] = Counter()
        """Of these, the steps that were there."""
        self.complaints: list[str] = []

    async def look(self, http: Connection) -> None:
        """Judge the cases of the last round, and some older ones."""
        older = self._chance.sample(self._all, min(OLD_ONES, len(self._all)))
        for case in {id(one): one for one in self._touched + older}.values():
            seen, doubted, before = await self._see(http, case), case.step if case.is_in_doubt else None, case.done
            self.complaints += judge(case, seen)
            if doubted is not None and case.done > before:
                self.found_in_doubt[doubted] += 1
        self._touched.clear()
        self._revocation_max = max([self._revocation_max, *(one.revocation or 0 for one in self._all)])

    async def act_until_killed(self, port: int) -> None:
        """Take cases step by step until the server is gone."""
        try:
            async with connected(port, {}) as http:
                while True:
                    case = self._open.pop() if self._open else self._new()
                    self._touched.append(case)
                    try:
                        while case.step is not None:
                            await self._take(http, port, case)
                    finally:
                        if case.step is not None:
                            self._open.append(case)
        except Cut:
            pass

    def _new(self) -> Case:
        case = drawn(len(self._all) + 1, self._chance)
        self._all.append(case)
        return case

    async def _take(self, http: Connection, port: int, case: Case) -> None:
        step = case.step
        assert step is not None
        case.is_in_doubt = True
        try:
            if step == "acknowledge":
                await self._acknowledge(port, case)
            else:
                await self._ask(http, case, step)
        except Cut:
            self.in_doubt[step] += 1
            raise
        self.answered[step] += 1
        case.answered()

    async def _ask(self, http: Connection, case: Case, step: str) -> None:
        method, path, body = {
            "register": ("PUT", f"/diagnoses/{case.name}", {"owner": "amira", "viewers": [case.person]}),
            "share": ("PUT", f"/diagnoses/{case.name}", {"owner": "amira", "viewers": [case.person, case.guest]}),
            "publish": (
                "POST",
                "/ws/broadcast-feedback-update",
                {"diagnosis_id": case.name, "feedback_id": 1, "rating": 5},
            ),
            "purge": ("DELETE", f"/actors/{case.name}/outbox", None),
            "revoke": ("POST", "/revocations", {"jti": case.token_id}),
            "lift": ("DELETE", f"/revocations/{case.revocation}", None),
            "erase": ("DELETE", f"/subjects?sub={case.person}", None),
            "delete": ("DELETE", f"/diagnoses/{case.name}", None),
        }[step]
        status, said = await http.ask(method, path, body, **self._bearer(case.operator, "operate"))
        if status not in (200, 201):
            self.complaints.append(f"{step} of {case} was answered {status} {said}")
        elif step == "revoke":
            case.revocation = said["id"]

    async def _acknowledge(self, port: int, case: Case) -> None:
        """Follow as the person, and have the event acknowledged."""
        async with following(port, f"/ws/{case.name}?ack=app", self._bearer(case.person, "")) as follower:
            await follower.until("live")
            await follower.send('{"type":"ack","seq":1}')
            await follower.until("acked")

    async def _see(self, http: Connection, case: Case) -> Seen:
        operator = self._bearer("op", "operate")
        _, trail = await http.ask("GET", f"/audit?actor={case.operator}&limit=100", **operator)
        seen = Seen(
            rows=Counter(map(_step_of, trail["items"])),
            is_revoked=await self._is_revoked(http, case),
            is_named=case.person in json.dumps(trail["items"]).replace('"', " ").split(),
        )
        status, diagnosis = await http.ask("GET", f"/diagnoses/{case.name}", **operator)
        if status == 404:
            return seen
        _, position = await http.ask("GET", f"/diagnoses/{case.name}/position", **operator)
        seen.is_registered, seen.viewers = True, tuple(diagnosis["viewers"])
        seen.head, seen.floor = position["head"], position["floor"]
        if seen.head:
            _, delivery = await http.ask("GET", f"/diagnoses/{case.name}/delivery?seq=1", **operator)
            seen.cursor = next((one["cursor"] for one in delivery["items"] if one["user_id"] == case.person), None)
        return seen

    async def _is_revoked(self, http: Connection, case: Case) -> bool:
        """Whether its token is refused; a revocation that was not answered has a number above all others."""
        after = self._revocation_max if case.revocation is None else case.revocation - 1
        _, page = await http.ask("GET", f"/revocations?limit=100&after={after}", **self._bearer("op", "operate"))
        for one in page["items"]:
            if one.get("jti") == case.token_id:
                case.revocation = one["id"]
                return True
        return False

    def _bearer(self, sub: str, scope: str) -> dict[str, str]:
        token = issue(
            self._key, sub=sub, scope=scope, ttl_seconds=86_000, now=time.time(), token_id=secrets.token_hex(8)
        )
        LOGBOOK.note(token, "a token")
        return {"Authorization": f"Bearer {token}"}


def _step_of(row: dict[str, Any]) -> str:
    if row["action"] == "diagnosis.register":
        return "register" if row["before"] is None else "share"
    return SHOWN_AS[row["action"]]
