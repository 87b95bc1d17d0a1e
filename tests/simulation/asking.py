"""Asking the server: requests with tokens, what an answer may be, and rights that are given and taken."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping
from math import inf
from random import Random
from typing import Final

import trio

from tests.simulation.clients import Follower
from tests.simulation.network import Answer, Link, request
from tests.simulation.process import Process
from tests.simulation.stage import (
    ANSWER_SECONDS_MAX,
    LEEWAY_SECONDS,
    REGISTERED,
    TOKEN_SECONDS,
    Stage,
)
from tests.simulation.tokens import Token
from tests.simulation.truth import Barred, Violation
from web.identity.tokens import issue

ACTS: Final = {
    "restart": "actor.restart",
    "stop": "actor.stop",
    "outbox": "outbox.purge",
    "subscribers": "subscriber.disconnect",
    "subjects": "subject.erase",
    "revocations": "revocation.add",
    "backup": "database.backup",
    "check": "database.check",
}
"""What the row of an act calls it, by the end of the path that asks for it."""


def act_of(method: str, target: str) -> str | None:
    """What the row of an act calls it; `None`: it is none."""
    path = target.partition("?")[0]
    if path.startswith("/diagnoses/"):
        return {"PUT": "diagnosis.register", "DELETE": "diagnosis.delete"}.get(method)
    return None if method == "GET" else ACTS.get(path.rpartition("/")[2])


class Asking(Stage):
    """Who has a token asks."""

    def token(self, sub: str, scope: str = "") -> str:
        """A token of somebody."""
        return self.token_of(sub, scope).text

    def token_of(self, sub: str, scope: str = "") -> Token:
        """A token of somebody. One that was revoked is used on until a new one can be had."""
        found = self._tokens.get(sub)
        is_due = found is None or found.era != self.era[sub]
        if found is not None and found.key not in self.keys.values():
            found = None
        is_old = found is not None and not -5 < self.clock.wall() - found.issued_at < TOKEN_SECONDS / 2
        if found is None or ((is_due or is_old) and not self.is_waiting_for_a_token(sub)):
            found = self._tokens[sub] = self._make_token(sub, scope, TOKEN_SECONDS)
        return found

    def short_token(self, sub: str, seconds: float) -> Token:
        """A token that ends soon, beside the one that somebody has."""
        return self._make_token(sub, "", seconds)

    def newer_token(self, sub: str, scope: str) -> tuple[str, float]:
        """What somebody sends before the token of a connection ends, and when that ends."""
        made = self._make_token(sub, scope, TOKEN_SECONDS)
        return made.text, made.expires_at

    def is_waiting_for_a_token(self, sub: str) -> bool:
        """Somebody was revoked so lately that a new token would be taken for an old one."""
        revoked_at = self.revoked_at.get(sub)
        return revoked_at is not None and trio.current_time() <= revoked_at + LEEWAY_SECONDS

    def is_revoked(self, sub: str, token: Token) -> bool:
        """A token of somebody was revoked, and the answer to that has come."""
        asked_at, ahead = self.confirmed.get(sub, (-inf, 0.0))
        return token.issued_at <= asked_at and token.ahead == ahead

    def may_not_come(self, sub: str, token: Token) -> bool:
        """A token of somebody was revoked, or its key withdrawn, and every server knows that."""
        return token.key in self.withdrawn or self.is_revoked(sub, token)

    def _make_token(self, sub: str, scope: str, seconds: float, *, issuer_ahead: float = 0.0) -> Token:
        """Issue a token.

        Args:
            issuer_ahead: how far the clock of whoever issues it is ahead of the server's.
        """
        now, name = self.clock.wall(), f"t{next(self._ids)}"
        says = now + issuer_ahead
        text = issue(self.keys[self.signing], sub=sub, scope=scope, ttl_seconds=int(seconds), now=says, token_id=name)
        made = Token(text, now, int(says) + int(seconds), self.era[sub], self.clock.ahead, self.keys[self.signing])
        self.made[sub].append(made)
        return made

    def era_of(self, sub: str) -> int:
        """Of the token that somebody uses."""
        return self._tokens[sub].era

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
        what = act_of(method, target)
        if what is not None:
            self.acts_asked[what] += 1
            if answer.status is not None and answer.status < 300:
                self.acts_done[what] += 1
        # Who publishes waits for no disk; an act is carried through.
        gives_up = target.startswith("/ws/broadcast")
        if waiting.cancelled_caught and cut_after is None and (gives_up or not process.disk.hung_since(began)):
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
            or bool(self.quarantined)
            # What had reached the store as its diagnosis was deleted may be stored in the next registration.
            or ("begin anew" in self.done and "it is unknown whether" in problem["detail"]),
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
        if answer.status in (200, 201):
            self.truth.begins_in(answer.json()["epoch"], None, f"registration of {diagnosis_id}")
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
