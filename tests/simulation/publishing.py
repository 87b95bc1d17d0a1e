"""People who publish: one update, many, the same once more, and some who do not wait for the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any

from tests.simulation.asking import Asking
from tests.simulation.clients import EVENT
from tests.simulation.network import Answer
from tests.simulation.stage import (
    OTHER,
    QUIET,
    REGISTERED,
    VICTIM,
)
from tests.simulation.truth import Published, Violation


class Publishing(Asking):
    """Publishers."""

    def _update(self, diagnosis_id: str, sub: str, *, key: bool) -> Published:
        number = next(self._numbers)
        body = {
            "diagnosis_id": diagnosis_id,
            "feedback_id": number,
            "rating": 1 + number % 5,
            "comment": "x" * (number * 37 % 300),
        }
        made = Published(
            number,
            diagnosis_id,
            sub,
            0,
            f"key-{number}" if key else None,
            json.dumps(body).encode(),
            self.life[diagnosis_id],
        )
        self.truth.published[number] = made
        return made

    async def publish(self, one: Published, who: tuple[str, str], *, cut_after: float | None = None) -> Answer:
        """Have one update published."""
        headers = {} if one.key is None else {"Idempotency-Key": one.key}
        self.token(*who)
        if not one.process:
            one.process, one.era = self.run, self.era_of(who[0])
        self.in_flight[one.diagnosis_id] += 1
        try:
            answer = await self.ask(
                "POST",
                "/ws/broadcast-feedback-update",
                who,
                json.loads(one.body),
                headers=headers,
                cut_after=cut_after,
            )
        finally:
            self.in_flight[one.diagnosis_id] -= 1
        if answer.status == 200:
            self._stored(one, answer.json())
        elif answer.status == 409:
            raise Violation(f"G9: the key of update {one.number} was refused, and its body was the same")
        elif answer.status in (400, 413, 415, 422):
            raise Violation(f"update {one.number} was refused: {answer.body!r}")
        is_quiet = one.diagnosis_id == QUIET
        if is_quiet and (answer.status or 0) >= 500 and answer.json()["code"] in ("internal_error", "quarantined"):
            raise Violation(f"G6: {QUIET} was not served: {answer.body!r}")
        return answer

    def _stored(self, one: Published, told: Mapping[str, Any]) -> None:
        if told["replayed"] and one.process != self.run:
            self.happens("a repeat across a crash is known")
        self.truth.answered(one.diagnosis_id, told["epoch"], told["seq"], one.number)

    def _publisher(self, lots: Random, diagnosis_id: str) -> tuple[str, str]:
        if diagnosis_id == QUIET:
            return "dora", ""
        owner = REGISTERED[diagnosis_id][0]
        return lots.choice(((owner, ""), ("service", "broadcast"), ("other-service", "broadcast")))

    async def do_publish(self, lots: Random) -> None:
        diagnosis_id = lots.choice((VICTIM, VICTIM, VICTIM, OTHER))
        who = self._publisher(lots, diagnosis_id)
        for _ in range(lots.choice((1, 1, 3))):
            await self.publish(self._update(diagnosis_id, who[0], key=lots.random() < 0.6), who)

    async def do_publish_beside(self, lots: Random) -> None:
        who = self._publisher(lots, QUIET)
        await self.publish(self._update(QUIET, who[0], key=True), who)

    async def do_publish_many(self, lots: Random) -> None:
        await self._publish_many(lots, lots.choice((VICTIM, VICTIM, OTHER)), lots.choice((20, 60, 130)))

    async def _publish_many(self, lots: Random, diagnosis_id: str, updates: int) -> None:
        who = self._publisher(lots, diagnosis_id)
        self.token(*who)
        many = [self._update(diagnosis_id, who[0], key=lots.random() < 0.5) for _ in range(updates)]
        lines = []
        for one in many:
            one.process, one.era = self.run, self.era_of(who[0])
            line = {"type": EVENT, **json.loads(one.body)}
            if one.key is not None:
                line["idempotency_key"] = one.key
            lines.append(json.dumps(line).encode())
        self.in_flight[diagnosis_id] += 1
        answer = await self.ask("POST", "/ws/broadcast", who, ndjson=b"\n".join(lines))
        self.in_flight[diagnosis_id] -= 1
        if answer.status == 200:
            for one, result in zip(many, answer.body.splitlines(), strict=True):
                told = json.loads(result)
                if told["status"] == 200:
                    self._stored(one, told)

    async def do_vanish_while_publishing(self, lots: Random) -> None:
        diagnosis_id = lots.choice((VICTIM, OTHER))
        who = self._publisher(lots, diagnosis_id)
        one = self._update(diagnosis_id, who[0], key=True)
        await self.publish(one, who, cut_after=lots.choice((0.0, 0.001, 0.01, 0.3)))

    async def do_repeat(self, lots: Random) -> None:
        found = [one for one in self.truth.published.values() if one.key is not None and one.process]
        if found:
            one = lots.choice(found[-20:] if lots.random() < 0.5 else found)
            scope = "broadcast" if "service" in one.author else ""
            if self.era[one.author] != one.era:
                one.is_repeated_by_others = True
            await self.publish(one, (one.author, scope))
