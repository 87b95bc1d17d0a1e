"""People who publish: one update, many, the same once more, and some who do not wait for the answer."""

from __future__ import annotations

import json
from collections.abc import Mapping
from random import Random
from typing import Any, Final

import trio

from tests.simulation.asking import Asking
from tests.simulation.clients import EVENT
from tests.simulation.network import Answer, Link
from tests.simulation.process import Process
from tests.simulation.senders import Sender
from tests.simulation.stage import (
    OTHER,
    QUIET,
    REGISTERED,
    VICTIM,
)
from tests.simulation.tokens import Token
from tests.simulation.truth import Published, Violation

QUIET_SECONDS_MAX: Final = 4.0
"""A publisher to whom nothing is done is answered within this time, whatever others meet. The network takes one."""

CERTAINLY_NOT: Final = ("certainly not stored", "nothing was stored")
"""What a refusal says of an update that is not stored, and will not be."""


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
        self._begins(one, self.token_of(*who))
        self.in_flight[one.diagnosis_id] += 1
        process, began = self.process, trio.current_time()
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
        elif answer.status is not None:
            self._refused(one, answer.status, answer.json())
        if answer.status == 409:
            raise Violation(f"G9: the key of update {one.number} was refused, and its body was the same")
        if answer.status in (400, 413, 415, 422):
            raise Violation(f"update {one.number} was refused: {answer.body!r}")
        is_quiet = one.diagnosis_id == QUIET
        seconds = trio.current_time() - began
        if (
            is_quiet
            and answer.status == 200
            and seconds > QUIET_SECONDS_MAX
            and not process.disk.had_trouble_since(began)
        ):
            raise Violation(f"G6: {QUIET} was served after {seconds:g} s")
        if is_quiet and (answer.status or 0) >= 500 and answer.json()["code"] in ("internal_error", "quarantined"):
            raise Violation(f"G6: {QUIET} was not served: {answer.body!r}")
        return answer

    def _begins(self, one: Published, token: Token) -> None:
        """It is asked for with this token."""
        if not one.process:
            one.process, one.era = self.process.number, token.era
        one.asked += 1

    def _refused(self, one: Published, status: int, problem: Mapping[str, Any]) -> None:
        if status in (401, 403, 404) or any(text in problem["detail"] for text in CERTAINLY_NOT):
            self.truth.denied(one.number)

    def _stored(self, one: Published, told: Mapping[str, Any]) -> None:
        if told["replayed"] and one.process != self.process.number:
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
        token = self.token_of(*who)
        many = [self._update(diagnosis_id, who[0], key=lots.random() < 0.5) for _ in range(updates)]
        lines = []
        for one in many:
            self._begins(one, token)
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
                else:
                    self._refused(one, told["status"], told)

    async def do_publish_over_a_socket(self, lots: Random) -> None:
        """Somebody publishes over a WebSocket: a new one, or one of before."""
        found = [one for one in self.senders if one.is_open]
        one = lots.choice(found) if found and lots.random() < 0.6 else self._open_sender(lots)
        if one is None:
            return
        for _ in range(lots.choice((1, 5, 30))):
            diagnosis_id = lots.choice((VICTIM, VICTIM, OTHER))
            made = self._update(diagnosis_id, one.sub, key=lots.random() < 0.7)
            self._begins(made, one.token)
            one.publish(made)
        await trio.sleep(lots.choice((0.0, 0.3, 2.0)))
        meddles = lots.random()
        if meddles < 0.1:
            one.asked_to_end = True
            one.link.cut()
        elif meddles < 0.2:
            one.asked_to_end = True
            one.link.half_close()
        elif meddles < 0.3:
            one.asked_to_end = True
            one.link.stop_flow()
            await trio.sleep(lots.choice((1.0, 5.0, 15.0)))
            one.link.flow()

    def _open_sender(self, lots: Random) -> Sender | None:
        sub, scope = lots.choice((("amira", ""), ("service", "broadcast"), ("other-service", "broadcast")))
        process, token = self.process, self.token_of(sub, scope)
        try:
            link = Link(process.data / "s", self.nursery, Random(self.lots.getrandbits(32)))
        except OSError:
            return None
        one = Sender(next(self._links), link, sub, token, self._stored, self._refused)
        one.process = process.number
        one.is_barred = self.may_not_come(sub, token)
        one.hears = lambda what: self.note(f"sender {one.number}: {what}")
        self.note(f"sender {one.number} of {sub}")
        self.senders.append(one)
        one.ask()
        self.nursery.start_soon(self._watch_sender, one, process)
        return one

    async def _watch_sender(self, one: Sender, process: Process) -> None:
        """Judge how a connection ends that has published."""
        await one.link.over.wait()
        if one.receipts:
            self.happens("publish socket")
        died = process.was_killed or process.ended.is_set() or process.disk.broke
        if one.ending is None:
            if not (one.asked_to_end or died or process.is_stopping):
                raise Violation(f"G8: sender {one.number} ended without a word, and nobody had meddled with it")
            return
        code, reason = one.ending
        reasons = {
            "revoked": f"revoke {one.sub}" in self.done,
            "disconnected by operator": "erase" in self.done,
            "restart": process.is_stopping or died,
            "invalid token": "clock jumps" in self.done
            or f"revoke {one.sub}" in self.done
            or "exchange keys" in self.done,
            "token expired": "clock jumps" in self.done,
            "try later": process.disk.had_trouble_since(0),
        }
        if not reasons.get(reason, one.asked_to_end):
            raise Violation(f"sender {one.number} of {one.sub} was closed without a reason: {code} {reason}")

    async def do_vanish_while_publishing(self, lots: Random) -> None:
        diagnosis_id = lots.choice((VICTIM, OTHER))
        who = self._publisher(lots, diagnosis_id)
        one = self._update(diagnosis_id, who[0], key=True)
        await self.publish(one, who, cut_after=lots.choice((0.0, 0.001, 0.01, 0.3)))

    async def do_repeat(self, lots: Random) -> None:
        found = [one for one in self.truth.published.values() if one.key is not None and one.process]
        if found:
            await self._repeat(lots.choice(found[-20:] if lots.random() < 0.5 else found))

    async def _repeat(self, one: Published) -> None:
        """Have an update published once more."""
        scope = "broadcast" if "service" in one.author else ""
        if self.era[one.author] != one.era:
            one.is_repeated_by_others = True
        await self.publish(one, (one.author, scope))
