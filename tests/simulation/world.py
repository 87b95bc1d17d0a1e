"""One history, played: a server that dies and starts again, everybody who talks to it, and what must be true."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections import Counter, defaultdict
from collections.abc import Mapping
from hashlib import sha256
from itertools import count
from pathlib import Path
from random import Random
from typing import Any, Final

import trio

from storage.records import Event
from tests.simulation.clients import EVENT, Follower, Subscriber
from tests.simulation.history import History, Operation
from tests.simulation.network import Answer, Link, request
from tests.simulation.process import Complaints, Crashes, Process, WallClock
from tests.simulation.truth import Barred, Published, Truth, Violation
from web.contract.wire import render_event
from web.identity.tokens import issue

KEY: Final = b"k" * 32
VICTIM, OTHER, QUIET = "1", "2", "quiet"
"""Actors of the first two crash; nothing is ever done to the third."""

REGISTERED: Final = {VICTIM: ("amira", ("bo", "cy")), OTHER: ("bo", ("amira", "cy")), QUIET: ("dora", ())}
FOLLOWERS: Final = ("amira", "bo", "cy", "cy")
DEVICES: Final = (None, "phone", "phone", "tablet")

ANSWER_SECONDS_MAX: Final = 40.0
"""A request that takes longer while the disk answers and the network flows is stuck."""

PASSIVATE_SECONDS: Final = 5.0
QUARANTINE_SECONDS: Final = 10.0

KEPT_SECONDS: Final = 20.0
"""Age at which events are dropped, where they are: shorter than an operator may choose, as idle time costs."""

HISTORY_SECONDS_MAX: Final = 3000.0
"""A history that lasts longer is stuck."""

TOKEN_SECONDS: Final = 20 * 86400
DIRECTORY: Final = Path("/dev/shm")

LEEWAY_SECONDS: Final = 11.0
"""A token counts as issued before a revocation for so long after it."""


class World:
    """Plays one history."""

    def __init__(self, history: History, directory: Path) -> None:
        self.history, self.directory = history, directory
        self.lots = Random(history.seed)
        self.clock, self.truth, self.crashes = WallClock(), Truth(), Crashes()
        self.crashes.met = self.happens
        self.seen: Counter[str] = Counter()
        """What has happened, how often: a history in which nothing rare happens shows nothing."""
        self.trace: list[str] = []
        self.steps = 0
        self._ids, self._links, self._numbers, self._processes = count(1), count(1), count(1), count(1)
        self.process: Process
        self.run = 0
        self.boot = 1
        self.followers: list[Follower] = []
        self.subscribers: dict[tuple[str, str, str | None], Subscriber] = defaultdict(Subscriber)
        self.in_flight: Counter[str] = Counter()
        """Publishes under way, by diagnosis."""
        self.era: Counter[str] = Counter()
        """How often all rights of somebody were taken away."""
        self._tokens: dict[str, tuple[str, float, int]] = {}
        self.revoked_at: dict[str, float] = {}
        self.life: Counter[str] = Counter()
        self.done: set[str] = set()
        """Kinds of acts that were begun: what may end a connection."""
        self.erased: set[str] = set()
        """Who was erased, and has not been named since."""
        self.named: Counter[str] = Counter()
        """How often somebody was named, by the beginning or the end of a request that does."""
        self.quarantined: set[str] = set()
        self.troubled_until = 0.0
        """Until then the disk, or what it has left behind, may refuse."""
        self.stop_restarting = False
        self.was_killed = False
        """A process has died, and has left open what it had."""
        self.has_lost = False
        """Registrations may be gone, as power has failed under `durability = normal`."""

    # The whole of it

    async def play(self) -> None:
        """The history, and what must be true afterwards. Raises `Violation`."""
        complaints = Complaints()
        complaints.hears = self._hear_log
        logger = logging.getLogger("avicenna")
        logger.addHandler(complaints)
        propagates, logger.propagate = logger.propagate, False
        try:
            async with trio.open_nursery() as self.nursery:
                self._begin_process(None)
                self.nursery.start_soon(self._end_with_history)
                await self.process.ready.wait()
                self.nursery.start_soon(self._keep_running)
                await self._register_all()
                async with trio.open_nursery() as self.operations:
                    for operation in self.history.operations:
                        await self._do(operation)
                await self._look_back()
                self.nursery.cancel_scope.cancel()
        except BaseExceptionGroup as group:
            found: BaseException = group
            while isinstance(found, BaseExceptionGroup):
                found = found.exceptions[0]
            raise found from group
        finally:
            logger.removeHandler(complaints)
            logger.propagate = propagates
        if complaints.found:
            raise Violation(f"the server complains: {complaints.found[0]}")

    async def _end_with_history(self) -> None:
        """Kill the server when the history ends early: its own end would wait for a disk that may hang."""
        try:
            await trio.sleep(HISTORY_SECONDS_MAX)
            raise Violation(f"the history does not end within {HISTORY_SECONDS_MAX:g} s")
        finally:
            self.stop_restarting = True
            self.process.kill(power_fails=False)

    def note(self, line: str) -> None:
        """Write a line of the trace."""
        self.trace.append(f"{trio.current_time():.6f} {line}")

    def happens(self, what: str) -> None:
        """Count something rare."""
        self.seen[what] += 1
        self.note(f"* {what}")

    @property
    def digest(self) -> str:
        """A name of the trace."""
        return sha256("\n".join(self.trace).encode()).hexdigest()

    def _hear_log(self, line: str) -> None:
        self.note(f"log: {line}")
        if "quarantined for" in line:
            self.quarantined.add(line.split()[1].rstrip(":"))
            self.happens("quarantine")

    async def _do(self, operation: Operation) -> None:
        await trio.sleep(operation.pause)
        self.steps += 1
        step = getattr(self, "do_" + operation.kind.replace(" ", "_").replace("-", "_"))
        self.note(f"do {operation.kind}")
        if operation.is_waited_for:
            await step(operation.lots)
        else:
            self.operations.start_soon(step, operation.lots)

    # The server

    def _begin_process(self, before: Process | None) -> None:
        data = self.directory / f"run-{next(self._processes)}"
        if before is None:
            data.mkdir(mode=0o700)
            (self.directory / "secret").write_bytes(KEY)
            (self.directory / "secret").chmod(0o600)
        elif before.was_killed:
            before.disk.put_into(data)
        else:
            data = before.data
        settings: dict[str, Any] = {
            "durability": self.history.durability,
            "access_trail": self.history.has_access_trail,
            "passivate_after_seconds": PASSIVATE_SECONDS,
            "quarantine_seconds": QUARANTINE_SECONDS,
            "local_key": False,
            "token_keys": (f"HS256:{self.directory / 'secret'}",),
        }
        self.run += 1
        kept_days = KEPT_SECONDS / 86400 if self.history.drops_old_events else None
        self.process = Process(
            data,
            self.clock,
            Random(self.lots.getrandbits(32)),
            self._ids,
            crashes=self.crashes,
            render=self._render,
            settings=settings,
            boot=f"boot-{self.boot}",
            events_kept_days=kept_days,
        )
        self.process.disk.met = self.happens
        self.process.died = self._process_died
        self.process.happens = self.happens
        self.note(f"process {self.run} begins")
        self.nursery.start_soon(self.process.run)

    def _render(self, diagnosis_id: str, event: Event) -> bytes:
        self.crashes.maybe("render", diagnosis_id)
        return render_event(diagnosis_id, event)

    def _process_died(self, process: Process) -> None:
        self.note(f"process {self.run} dies")
        self.was_killed = True
        if process.disk.has_lost:
            # What was answered may be undone: who was revoked, who was erased, what was registered.
            self.has_lost = True
            self.truth.barred.clear()
            self.erased.clear()
        for one in [*self.followers]:
            if one.process == self.run:
                one.link.lose_server(hears_rest=self.lots.random() < 0.5)

    async def _keep_running(self) -> None:
        """Start the server again whenever it has ended."""
        while True:
            process = self.process
            await process.ended.wait()
            self.note(f"process {self.run} has ended: {type(process.error).__name__}")
            if self.stop_restarting:
                return
            broke = process.disk.broke
            if process.error is not None and not process.was_killed and not broke:
                raise Violation(f"the server ended by itself: {process.error!r}") from process.error
            await trio.sleep(self.lots.choice((0.01, 0.5, 3.0)))
            self.troubled_until = max(self.troubled_until, trio.current_time() + 1)
            self._begin_process(process)
            with trio.move_on_after(30) as waiting:
                await self.process.ready.wait()
            if waiting.cancelled_caught and not self.process.was_killed and self.process.disk.answers:
                raise Violation(f"the server does not start: {self.process.error!r}")

    # Asking

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

    # Publishers

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
            one = lots.choice(found[-20:])
            scope = "broadcast" if "service" in one.author else ""
            if self.era[one.author] != one.era:
                one.is_repeated_by_others = True
            await self.publish(one, (one.author, scope))

    # Followers

    def connect(
        self, lots: Random, diagnosis_id: str, sub: str, device: str | None, *, peeks: bool = False
    ) -> Follower | None:
        who = diagnosis_id, sub, device
        try:
            link = Link(self.process.data / "s", self.nursery, Random(self.lots.getrandbits(32)))
        except OSError:
            return None
        one = Follower(next(self._links), link, who, self.subscribers[who], self.truth, peeks=peeks)
        one.process = self.run
        one.hears = lambda what: self.note(f"connection {one.number}: {what}")
        scope = {"monitor": "monitor", "auditor": "operate"}.get(sub, "")
        self.note(f"connection {one.number} of {sub} {device} to {diagnosis_id}")
        if device is not None and any(
            other.is_open and (other.diagnosis_id, other.sub, other.device) == who for other in self.followers
        ):
            self.happens("take-over")
        self.followers.append(one)
        resumes = lots.choice(("position", "position", "cursor", "cursor", "lie" if "lie" in self.done else "cursor"))
        one.ask(self.token(sub, scope), lots, resumes=resumes, acks=lots.choice(("app", "transport", "transport")))
        self.nursery.start_soon(self._watch, one, self.process)
        return one

    async def _watch(self, one: Follower, process: Process) -> None:
        """Judge how a connection ends."""
        await one.link.over.wait()
        if one.gaps:
            self.seen["gap"] += one.gaps
        self.seen["reset"] += one.seen["reset"]
        if one.ending is None:
            died = process.was_killed or process.ended.is_set() or process.is_stopping or process.disk.broke
            if not (one.asked_to_end or died):
                raise Violation(f"G8: connection {one.number} ended without a word, and nobody had meddled with it")
            return
        code, reason = one.ending
        who = one.diagnosis_id, one.sub, one.device
        newer = any(
            (other.diagnosis_id, other.sub, other.device) == who and other is not one for other in self.followers
        )
        reasons = {
            "replaced": newer and one.device is not None,
            "revoked": f"revoke {one.sub}" in self.done,
            "viewer removed": "take a right" in self.done,
            "diagnosis deleted": "begin anew" in self.done,
            "diagnosis not found": "begin anew" in self.done or self.has_lost,
            "disconnected by operator": "disconnect" in self.done or "erase" in self.done,
            "restart": process.is_stopping or process.was_killed or process.disk.broke,
            "quarantined": one.diagnosis_id in self.quarantined,
            "try later": process.disk.had_trouble_since(0) or any(what.startswith("crash") for what in self.seen),
            "access denied": bool(self.done & {"take a right", "begin anew", "erase"}) or self.has_lost,
            "invalid token": "clock jumps" in self.done,
            "token expired": "clock jumps" in self.done,
            "rate limited": one.asked_to_end,
            "": one.asked_to_end,
            "closed by the client": one.asked_to_end,
        }
        if code == 1000 and one.asked_to_end:
            return
        if not reasons.get(reason, False):
            raise Violation(f"G8: connection {one.number} of {one.sub} was closed without a reason: {code} {reason}")

    def _open_one(self, lots: Random) -> Follower | None:
        found = [one for one in self.followers if one.is_open]
        return lots.choice(found) if found else None

    async def do_connect(self, lots: Random) -> None:
        diagnosis_id = lots.choice((VICTIM, VICTIM, VICTIM, OTHER))
        sub = lots.choice(FOLLOWERS)
        self.connect(lots, diagnosis_id, sub, lots.choice(DEVICES))
        await trio.sleep(lots.choice((0.0, 0.5, 2.0)))

    async def do_peek(self, lots: Random) -> None:
        self.connect(lots, lots.choice((VICTIM, OTHER)), "monitor", None, peeks=True)

    async def do_lie(self, lots: Random) -> None:
        self.done.add("lie")
        if (one := self._open_one(lots)) is not None:
            one.acknowledge(one.seq + lots.choice((1, 5, 1000, 10**12)))

    async def do_leave(self, lots: Random) -> None:
        if (one := self._open_one(lots)) is not None:
            one.asked_to_end = True
            if lots.random() < 0.5:
                one.leave()
            else:
                one.link.cut()

    async def do_fall_behind(self, lots: Random) -> None:
        """Somebody is away while more is published than is kept, and comes back."""
        one = self._open_one(lots)
        if one is None or one.diagnosis_id == QUIET or one.peeks:
            return
        one.asked_to_end = True
        one.link.cut()
        for _ in range(3):
            await self._publish_many(lots, one.diagnosis_id, 50)
        self.connect(lots, one.diagnosis_id, one.sub, one.device)

    async def do_half_close(self, lots: Random) -> None:
        if (one := self._open_one(lots)) is not None:
            one.asked_to_end = True
            one.link.half_close()

    async def do_acknowledge(self, lots: Random) -> None:
        if (one := self._open_one(lots)) is not None and not one.peeks:
            behind = lots.choice((0, 0, 1, 10))
            for _ in range(lots.choice((1, 1, 2))):
                one.acknowledge(max(0, one.seq - behind))

    async def do_stall(self, lots: Random) -> None:
        if (one := self._open_one(lots)) is not None:
            seconds = lots.choice((1.0, 5.0, 15.0))
            one.asked_to_end = one.asked_to_end or seconds > 9
            one.link.stop_flow()
            await trio.sleep(seconds)
            one.link.flow()

    async def do_freeze(self, lots: Random) -> None:
        """A page that takes what comes and answers nothing."""
        if (one := self._open_one(lots)) is not None:
            one.asked_to_end, one.answers_pings = True, False
            await trio.sleep(lots.choice((5.0, 40.0)))
            one.answers_pings = True

    async def do_flood(self, lots: Random) -> None:
        if (one := self._open_one(lots)) is not None:
            one.asked_to_end = True
            self.happens("flood")
            for _ in range(lots.choice((150, 600))):
                one.link.send(_PING_FRAME)

    async def do_speak(self, lots: Random) -> None:
        if (one := self._open_one(lots)) is not None:
            one.link.send(_PING_FRAME)

    # Actors

    async def do_crash(self, lots: Random) -> None:
        place = lots.choice(("append", "outcome", "load", "render"))
        diagnosis_id = lots.choice((VICTIM, VICTIM, OTHER))
        self.crashes.due[place, diagnosis_id] = lots.choice((1, 1, 2))

    async def do_crash_again_and_again(self, lots: Random) -> None:
        self.crashes.due["load", VICTIM] = 5
        await self.ask("POST", f"/actors/{VICTIM}/restart", ("operator", "operate"))
        await self.do_publish(lots)

    async def do_restart(self, lots: Random) -> None:
        await self.ask("POST", f"/actors/{lots.choice((VICTIM, OTHER))}/restart", ("operator", "operate"))

    async def do_stop(self, lots: Random) -> None:
        await self._stop(lots.choice((VICTIM, OTHER)))

    async def _stop(self, diagnosis_id: str) -> None:
        if self.in_flight[diagnosis_id]:
            self.happens("passivation under mail")
        await self.ask("POST", f"/actors/{diagnosis_id}/stop", ("operator", "operate"))

    async def do_stop_under_mail(self, lots: Random) -> None:
        async with trio.open_nursery() as nursery:
            for _ in range(lots.choice((3, 10))):
                nursery.start_soon(self.do_publish, lots)
            await trio.sleep(lots.choice((0.0, 0.001, 0.005)))
            await self._stop(VICTIM)

    # Rights, and what operators do

    async def do_purge(self, lots: Random) -> None:
        await self.ask("DELETE", f"/actors/{lots.choice((VICTIM, OTHER))}/outbox", ("operator", "operate"))

    async def do_evict_under_load(self, lots: Random) -> None:
        """Everything becomes old, and actors load as it is dropped."""
        if not self.history.drops_old_events:
            return
        await self._stop(VICTIM)
        self.process.disk.hang()
        await trio.sleep(62)
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self.do_publish, lots)
            self.connect(lots, VICTIM, "amira", "phone")
            self.process.disk.thaw()

    async def do_erase(self, lots: Random) -> None:
        await self._erase(lots.choice(("guest", "cy")))

    async def do_erase_under_load(self, lots: Random) -> None:
        """Somebody is erased while an actor loads that knows it."""
        await self._stop(VICTIM)
        self.connect(lots, VICTIM, "cy", "phone")
        await trio.sleep(lots.choice((0.0, 0.001, 0.005)))
        await self._erase("cy")

    async def _erase(self, sub: str) -> None:
        self.done.add("erase")
        named = self.named[sub]
        asked = self._linked()
        process = self.process
        answer = await self.ask("DELETE", f"/subjects?sub={sub}", ("operator", "operate"), seconds_max=125)
        self._forgotten(sub, answer.status)
        if answer.status != 200:
            return
        if named == self.named[sub] and process is self.process:
            self.erased.add(sub)
        if process is self.process:
            self._bar(sub, None, asked, may_publish=True)
        self._judge_erasures()

    def _forgotten(self, sub: str, status: int | None) -> None:
        for who, one in self.subscribers.items():
            if who[1] == sub:
                one.is_forgotten_by(status)
        for follower in self.followers:
            if follower.sub == sub:
                follower.is_forgotten = True

    def _judge_erasures(self) -> None:
        """No table names who was erased and has not come back."""
        for sub in sorted(self.erased):
            if any(one.sub == sub and not one.link.is_over for one in self.followers):
                continue
            found = self._named(sub)
            if found:
                raise Violation(f"{sub} was erased, and is in {found}")

    def _named(self, sub: str) -> list[str]:
        database = self.process.disk.database
        if self.process.disk.is_dead or database is None:
            return []
        found = []
        execute = sqlite3.Connection.execute
        for (table,) in execute(database, "SELECT name FROM sqlite_schema WHERE type = 'table'").fetchall():
            if table == "revocation":  # it keeps tokens out that may live on
                continue
            rows = execute(database, f"SELECT * FROM {table}").fetchall()
            found += [f"{table}: {row}" for row in rows if any(_names(value, sub) for value in row)]
        return found

    async def do_revoke(self, lots: Random) -> None:
        await self._revoke(lots.choice(("service", "amira", "bo", "cy")))

    async def do_revoke_under_load(self, lots: Random) -> None:
        """Somebody publishes as its rights are taken away."""
        async with trio.open_nursery() as nursery:
            for _ in range(5):
                nursery.start_soon(self._publish_as, "service", lots)
            await trio.sleep(lots.choice((0.0, 0.001, 0.01)))
            self.happens("revocation under load")
            await self._revoke("service")
            await self._publish_as("service", lots)

    async def _publish_as(self, sub: str, lots: Random) -> None:
        who = (sub, "broadcast")
        await self.publish(self._update(VICTIM, sub, key=lots.random() < 0.5), who)

    async def _revoke(self, sub: str) -> None:
        self.done.add(f"revoke {sub}")
        self._names(sub)
        asked, process = self._linked(), self.process
        answer = await self.ask("POST", "/revocations", ("operator", "operate"), {"sub": sub})
        if answer.status == 201 and process is self.process and sub in self._tokens:
            self._bar(sub, None, asked, may_publish=False)
        self._names(sub)
        self.era[sub] += 1
        self.revoked_at[sub] = trio.current_time()

    async def do_take_a_right(self, lots: Random) -> None:
        self.done.add("take a right")
        await self.register(VICTIM, "amira", lots.choice((("bo",), ("cy",), ())))

    async def do_register(self, lots: Random) -> None:
        self.done.add("take a right")
        await self.register(VICTIM, "amira", lots.choice((("bo", "cy"), ("bo", "cy", "guest"))))

    async def do_begin_anew(self, lots: Random) -> None:
        self.done |= {"begin anew", "take a right"}
        self.life[OTHER] += 1
        await self.ask("DELETE", f"/diagnoses/{OTHER}", ("registrar", "register"))
        await self.register(OTHER, *REGISTERED[OTHER])

    async def do_disconnect(self, lots: Random) -> None:
        self.done.add("disconnect")
        sub = lots.choice(("amira", "bo", "cy"))
        device = lots.choice(("", "&device=phone"))
        self._names(sub)
        answer = await self.ask("DELETE", f"/actors/{VICTIM}/subscribers?sub={sub}{device}", ("operator", "operate"))
        self._names(sub)
        self._forgotten(sub, answer.status)

    # The machine

    async def do_drain(self, lots: Random) -> None:
        if self.process.is_serving:
            process = self.process
            process.drain()
            self.happens("drain")
            with trio.move_on_after(10) as waiting:
                await process.ended.wait()
            if waiting.cancelled_caught and not process.disk.had_trouble_since(0):
                raise Violation("G11: the server does not end within 10 s")

    async def do_kill(self, lots: Random) -> None:
        if self.process.is_serving:
            self.happens("kill")
            self.process.kill(power_fails=False)

    async def do_kill_at_commit(self, lots: Random) -> None:
        power_fails = lots.random() < 0.4
        if power_fails:
            self.boot += 1
        self.process.disk.die_at_commit(lots.choice(("before", "within", "after")), power_fails=power_fails)

    async def do_power_fails(self, lots: Random) -> None:
        if self.process.is_serving:
            self.boot += 1
            self.happens("power failure")
            self.process.kill(power_fails=True)

    async def do_disk_full(self, lots: Random) -> None:
        self.process.disk.fault = lots.choice(("full", "full at commit"))

    async def do_disk_fails(self, lots: Random) -> None:
        self.process.disk.fault = lots.choice(("error", "error at commit"))

    async def do_disk_hangs(self, lots: Random) -> None:
        disk = self.process.disk
        disk.hang()
        self.happens("disk hangs")
        await trio.sleep(lots.choice((0.5, 4.0, 8.0, 12.0)))
        disk.thaw()

    async def do_clock_jumps(self, lots: Random) -> None:
        self.done.add("clock jumps")
        self.happens("clock jump")
        self.clock.ahead += lots.choice((-86400.0 * 3, -4000.0, 4000.0, 86400.0 * 2, 86400.0 * 400))

    async def do_wait(self, lots: Random) -> None:
        await trio.sleep(lots.choice((0.1, 1.0, 3.0)))

    async def do_wait_long(self, lots: Random) -> None:
        await trio.sleep(lots.choice((PASSIVATE_SECONDS + 1, QUARANTINE_SECONDS + 1, 30.0)))

    # What must be true at the end

    async def _look_back(self) -> None:
        self.note("look back")
        self.crashes.due.clear()
        disk = self.process.disk
        disk.fault = None
        disk.thaw()
        for one in self.followers:
            one.link.flow()
            one.answers_pings = True
        await trio.sleep(QUARANTINE_SECONDS + 5)
        with trio.move_on_after(60) as waiting:
            while not self.process.is_serving:
                await trio.sleep(0.5)
        if waiting.cancelled_caught:
            raise Violation(f"the server does not come back: {self.process.error!r}")
        self.process.disk.forget_plans()
        if self.has_lost:
            await self._register_all()
        await self._ask_for_what_is_unknown()
        for diagnosis_id in REGISTERED:
            await self._compare(diagnosis_id)
        await trio.sleep(1)
        for one in self.followers:
            if one.is_open and not one.asked_to_end and one.seq < self.truth.heads[one.epoch or ""]:
                raise Violation(
                    f"connection {one.number} of {one.sub} to {one.diagnosis_id} stands at {one.seq}, "
                    f"and the head is {self.truth.heads[one.epoch or '']}"
                )
        await self._leave_all()
        self._judge_erasures()
        await self._end()

    async def _ask_for_what_is_unknown(self) -> None:
        """Repeat what nobody knows the outcome of, until it is known."""
        for one in [*self.truth.published.values()]:
            if one.key is not None and one.process and not one.seqs and one.life == self.life[one.diagnosis_id]:
                one.is_repeated_by_others = True
                answer = await self.publish(one, ("auditor", "operate"))
                if answer.status not in (200, 404):
                    raise Violation(f"update {one.number} cannot be stored in the end: {answer.status} {answer.body!r}")

    async def _compare(self, diagnosis_id: str) -> None:
        who = ("auditor", "operate")
        answer = await self.ask("GET", f"/diagnoses/{diagnosis_id}/position", who)
        if answer.status == 404 and "begin anew" in self.done:
            return
        if answer.status != 200:
            raise Violation(f"{diagnosis_id} cannot be read in the end: {answer.status} {answer.body!r}")
        told = answer.json()
        database = self.process.disk.database
        assert database is not None, "it serves"
        rows = sqlite3.Connection.execute(
            database,
            "SELECT seq, body FROM entry JOIN diagnosis USING (dx) JOIN head USING (dx) "
            "WHERE public_id = ? AND deleted_at IS NULL AND seq > floor",
            (diagnosis_id,),
        ).fetchall()
        stored = {seq: json.loads(body)["feedback_id"] for seq, body in rows}
        self.truth.judge_outbox(diagnosis_id, told["epoch"], told["head"], told["floor"], stored)

    async def _leave_all(self) -> None:
        for one in self.followers:
            if not one.link.is_over:
                one.asked_to_end = True
                one.link.cut()
        await trio.sleep(PASSIVATE_SECONDS * 2 + 5)
        answer = await self.ask("GET", "/ws/status", ("auditor", "operate"))
        status = answer.json()
        if status["total_connections"]:
            raise Violation(f"{status['total_connections']} connections are left")
        answer = await self.ask("GET", "/actors", ("auditor", "operate"))
        left = [one for one in answer.json()["items"] if one["state"] != "passive"]
        if left:
            raise Violation(f"actors are left in memory: {left}")

    async def _end(self) -> None:
        self.stop_restarting = True
        self.process.drain()
        with trio.move_on_after(10) as waiting:
            await self.process.ended.wait()
        if waiting.cancelled_caught:
            raise Violation("G11: the server does not end within 10 s")
        if self.process.error is not None:
            raise Violation(f"the server does not end in order: {self.process.error!r}") from self.process.error


_PING_FRAME: Final = b"\x81\x90\x00\x00\x00\x00" + b'{"type": "ping"}'


def _names(value: object, sub: str) -> bool:
    return isinstance(value, str) and (value == sub or f'"{sub}"' in value)


def descriptors() -> int:
    """Open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))
