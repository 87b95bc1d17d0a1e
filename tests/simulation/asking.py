"""Asking the server: requests with tokens, what an answer may be, and rights that are given and taken."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from random import Random

import trio

from tests.simulation.clients import Follower
from tests.simulation.network import Answer, Link, request
from tests.simulation.process import Process
from tests.simulation.stage import (
    ANSWER_SECONDS_MAX,
    KEY,
    LEEWAY_SECONDS,
    REGISTERED,
    TOKEN_SECONDS,
    Stage,
)
from tests.simulation.truth import Barred, Violation
from web.identity.tokens import issue


class Asking(Stage):
    """Who has a token asks."""

    def token(self, sub: str, scope: str = "") -> str:
        """A token of somebody. One that was revoked is used on until a new one can be had."""
        found = self._tokens.get(sub)
        revoked_at = self.revoked_at.get(sub)
        is_due = found is None or found[2] != self.era[sub]
        may = revoked_at is None or trio.current_time() > revoked_at + LEEWAY_SECONDS
        is_old = found is not None and not -5 < self.clock.wall() - found[1] < TOKEN_SECONDS / 2
        if found is None or ((is_due or is_old) and may):
            made = issue(
                KEY,
                sub=sub,
                scope=scope,
                ttl_seconds=TOKEN_SECONDS,
                now=self.clock.wall(),
                token_id=f"t{next(self._ids)}",
            )
            found = self._tokens[sub] = made, self.clock.wall(), self.era[sub]
        return found[0]

    def era_of(self, sub: str) -> int:
        """Of the token that somebody uses."""
        return self._tokens[sub][2]

    async def ask(
        self,
        method: str,
        target: str,
        who: tuple[str, str],
        body: object = None,
        *,
        headers: Mapping[str, str] | None = None,
        cut_after: float | None = None,
        seconds_max: float = ANSWER_SECONDS_MAX,
        ndjson: bytes | None = None,
    ) -> Answer:
        """Ask the server; an answer without status: it has not come.

        Raises:
            Violation: it takes too long, without a reason.
        """
        process, answer = self.process, Answer()
        token = self.token(*who)
        try:
            link = Link(process.data / "s", self.nursery, Random(self.lots.getrandbits(32)))
        except OSError:
            return answer
        next(self._links)

        def hear(data: bytes) -> None:
            answer.hear(data)
            if answer.status is not None:
                link.cut()

        link.hears = hear
        given = dict(headers or {})
        content = ndjson
        if body is not None:
            given["Content-Type"] = "application/json"
            content = json.dumps(body).encode()
        elif ndjson is not None:
            given["Content-Type"] = "application/x-ndjson"
        link.send(request(method, target, token, content, given))
        died = trio.Event()
        began = trio.current_time()

        async def watch() -> None:
            await process.ended.wait()
            died.set()
            link.lose_server(hears_rest=False)

        async with trio.open_nursery() as nursery:
            nursery.start_soon(watch)
            with trio.move_on_after(seconds_max if cut_after is None else cut_after) as waiting:
                await link.over.wait()
            nursery.cancel_scope.cancel()
        link.cut()
        if waiting.cancelled_caught and cut_after is None and not process.disk.hung_since(began):
            raise Violation(f"{method} {target} is not answered within {seconds_max:g} s")
        self.note(f"{method} {target} of {who[0]}: {answer.status}")
        if answer.status is not None and answer.status >= 500:
            self._judge_failure(method, target, answer, process, began)
        return answer

    def _judge_failure(self, method: str, target: str, answer: Answer, process: Process, began: float) -> None:
        problem = answer.json()
        code = problem.get("code", "")
        reasons = {
            "internal_error": any(what.startswith("crash") for what in self.seen),
            "quarantined": bool(self.quarantined),
            "draining": process.is_stopping or process.disk.broke,
            "storage_unavailable": process.disk.had_trouble_since(began - 30)
            or process.is_stopping
            or bool(self.quarantined),
        }
        if not reasons.get(code, False):
            raise Violation(f"{method} {target} was answered {answer.status} {code} without a reason: {problem}")

    async def _register_all(self) -> None:
        for diagnosis_id, (owner, viewers) in REGISTERED.items():
            answer = await self.register(diagnosis_id, owner, viewers)
            assert answer.status in (200, 201), answer.data

    async def register(self, diagnosis_id: str, owner: str, viewers: tuple[str, ...]) -> Answer:
        self._names(owner, *viewers)
        body = {"owner": owner, "viewers": list(viewers)}
        before = list(self._linked())
        answer = await self.ask("PUT", f"/diagnoses/{diagnosis_id}", ("registrar", "register"), body)
        self._names(owner, *viewers)
        if answer.status == 201:
            self.life[diagnosis_id] += 1
        if answer.status == 200:
            for sub in {"amira", "bo", "cy", "guest"} - {owner, *viewers}:
                self._bar(sub, diagnosis_id, before, may_publish=True)
        return answer

    def _names(self, *subs: str) -> None:
        """Somebody is named, so that it is in the database again though it was erased."""
        self.named.update(subs)
        self.erased.difference_update(subs)

    def _linked(self) -> list[Follower]:
        return [one for one in self.followers if one.is_open]

    def _heads(self) -> dict[str, int]:
        """The head of each epoch, as the database has it now."""
        found: dict[str, int] = {}
        if not self.process.disk.is_dead and self.process.disk.database is not None:
            rows = sqlite3.Connection.execute(
                self.process.disk.database, "SELECT epoch, last_seq FROM diagnosis JOIN head USING (dx)"
            )
            found = dict(rows.fetchall())
        return found

    def _bar(self, sub: str, diagnosis_id: str | None, before: list[Follower], *, may_publish: bool) -> None:
        """A right is gone: nobody uses it any more."""
        links = max((one.number for one in before), default=0) + 1
        heads = self._heads()
        era = self.era_of(sub) if sub in self._tokens else 0
        self.truth.barred.append(Barred(sub, era, heads, diagnosis_id, links, may_publish=may_publish))
