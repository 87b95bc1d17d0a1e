"""People who follow: they connect, acknowledge, lie, stall, flood and leave."""

from __future__ import annotations

from random import Random
from typing import Final

import trio

from tests.simulation.clients import Follower
from tests.simulation.network import Link
from tests.simulation.process import Process
from tests.simulation.publishing import Publishing
from tests.simulation.stage import (
    DEVICES,
    FOLLOWERS,
    OTHER,
    QUIET,
    VICTIM,
)
from tests.simulation.truth import Violation

_PING_FRAME: Final = b"\x81\x90\x00\x00\x00\x00" + b'{"type": "ping"}'


class Following(Publishing):
    """Followers."""

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
