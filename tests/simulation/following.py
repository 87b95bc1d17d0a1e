"""People who follow: they connect, acknowledge, lie, stall, flood and leave."""

from __future__ import annotations

from random import Random
from typing import Final

import trio

from tests.simulation.clients import Follower, StreamFollower
from tests.simulation.network import Link
from tests.simulation.process import Process
from tests.simulation.publishing import Publishing
from tests.simulation.stage import (
    DEVICES,
    FOLLOWERS,
    LEEWAY_SECONDS,
    OTHER,
    QUIET,
    VICTIM,
)
from tests.simulation.tokens import Token
from tests.simulation.truth import Violation

_PING_FRAME: Final = b"\x81\x90\x00\x00\x00\x00" + b'{"type": "ping"}'


class Following(Publishing):
    """Followers."""

    def connect(
        self,
        lots: Random,
        diagnosis_id: str,
        sub: str,
        device: str | None,
        *,
        peeks: bool = False,
        streams: bool = False,
        given: Token | None = None,
    ) -> Follower | None:
        """Somebody follows, as far as the server lets it.

        Args:
            given: the token to use; `None`: the one that this person has.
        """
        who = diagnosis_id, sub, device
        process = self.process
        try:
            link = Link(process.data / "s", self.nursery, Random(self.lots.getrandbits(32)))
        except OSError:
            return None
        scope = {"monitor": "monitor", "auditor": "operate"}.get(sub, "")
        token = given or self.token_of(sub, scope)
        kind = StreamFollower if streams else Follower
        one = kind(next(self._links), link, who, self.subscribers[who], self.truth, peeks=peeks)
        one.process = process.number
        one.hears = lambda what: self.note(f"connection {one.number}: {what}")
        one.expires_at, one.newer = token.expires_at, lambda: self.newer_token(sub, scope)
        one.is_barred = self.may_not_come(sub, token)
        self.note(f"connection {one.number} of {sub} {device} to {diagnosis_id}")
        if device is not None and any(
            other.is_open and (other.diagnosis_id, other.sub, other.device) == who for other in self.followers
        ):
            self.happens("take-over")
        self.followers.append(one)
        resumes = lots.choice(("position", "position", "cursor", "cursor", "lie" if "lie" in self.done else "cursor"))
        one.ask(token.text, lots, resumes=resumes, acks=lots.choice(("app", "transport", "transport")))
        self.nursery.start_soon(self._watch, one, process)
        return one

    async def _watch(self, one: Follower, process: Process) -> None:
        """Judge how a connection ends."""
        await one.link.over.wait()
        if one.gaps:
            self.seen["gap"] += one.gaps
        self.seen += one.seen
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
            "restart": process.is_stopping or process.was_killed or process.disk.broke or "restore" in self.done,
            "quarantined": one.diagnosis_id in self.quarantined,
            "try later": process.disk.had_trouble_since(0) or any(what.startswith("crash") for what in self.seen),
            "access denied": bool(self.done & {"take a right", "begin anew", "erase"}) or self.has_lost,
            "invalid token": "clock jumps" in self.done or one.is_barred or "exchange keys" in self.done,
            "token expired": "clock jumps" in self.done or one.expires_at <= self.clock.wall(),
            "rate limited": one.asked_to_end,
            "": one.asked_to_end,
            "closed by the client": one.asked_to_end,
        }
        # What a stream is refused with.
        reasons |= {
            "unauthenticated": reasons["revoked"] or reasons["invalid token"],
            "token_expired": reasons["token expired"],
            "forbidden": reasons["access denied"] or reasons["viewer removed"],
            "not_found": reasons["diagnosis not found"],
            "draining": reasons["restart"],
            "storage_unavailable": reasons["try later"] or reasons["restart"],
            "internal_error": reasons["try later"],
        }
        if code == 1000 and one.asked_to_end:
            return
        if one.diagnosis_id == QUIET and reason in ("quarantined", "diagnosis deleted", "viewer removed"):
            raise Violation(f"G6: connection {one.number} to {QUIET} was closed: {code} {reason}")
        if not reasons.get(reason, False):
            raise Violation(f"G8: connection {one.number} of {one.sub} was closed without a reason: {code} {reason}")

    def _open_one(self, lots: Random) -> Follower | None:
        found = [one for one in self.followers if one.is_open]
        return lots.choice(found) if found else None

    def _open_socket(self, lots: Random) -> Follower | None:
        found = [one for one in self.followers if one.is_open and not isinstance(one, StreamFollower)]
        return lots.choice(found) if found else None

    async def do_connect(self, lots: Random) -> None:
        diagnosis_id = lots.choice((VICTIM, VICTIM, VICTIM, OTHER))
        sub = lots.choice(FOLLOWERS)
        self.connect(lots, diagnosis_id, sub, lots.choice(DEVICES))
        await trio.sleep(lots.choice((0.0, 0.5, 2.0)))

    async def do_stream(self, lots: Random) -> None:
        """Somebody follows an event stream."""
        diagnosis_id = lots.choice((VICTIM, VICTIM, OTHER))
        one = self.connect(lots, diagnosis_id, lots.choice(FOLLOWERS), lots.choice(DEVICES), streams=True)
        await trio.sleep(lots.choice((0.0, 0.5, 2.0)))
        if one is not None and one.is_open:
            self.happens("stream")

    async def do_follow_beside(self, lots: Random) -> None:
        """Somebody follows the diagnosis to which nothing is ever done."""
        self.connect(lots, QUIET, "dora", None, streams=lots.random() < 0.3)

    async def do_replay_a_token(self, lots: Random) -> None:
        """Somebody comes with a token that was revoked, or sends it on a connection that it has."""
        sub = lots.choice(("amira", "bo", "cy"))
        found = [one for one in self.made[sub] if self.may_not_come(sub, one)]
        if not found:
            return
        self.happens("a revoked token comes back")
        replayed = lots.choice(found)
        open_ones = [
            one for one in self.followers if one.is_open and one.sub == sub and not isinstance(one, StreamFollower)
        ]
        if open_ones and lots.random() < 0.5:
            lots.choice(open_ones).renew(replays=replayed.text)
        else:
            streams = lots.random() < 0.3
            self.connect(lots, lots.choice((VICTIM, OTHER)), sub, None, streams=streams, given=replayed)

    async def do_token_ends(self, lots: Random) -> None:
        """Somebody follows with a token that ends soon, and has a newer one in time, or has not."""
        sub = lots.choice(("amira", "bo", "cy"))
        if self.is_waiting_for_a_token(sub):
            return
        ahead, token = self.clock.ahead, self.short_token(sub, lots.choice((2.0, 30.0, 62.0)))
        one = self.connect(lots, VICTIM, sub, lots.choice(DEVICES), given=token)
        if one is None:
            return
        one.renews = renews = lots.random() < 0.6
        await trio.sleep(token.expires_at - self.clock.wall() + LEEWAY_SECONDS + 2)
        if renews or self.clock.ahead != ahead or one.asked_to_end or not one.link.flows:
            return
        if one.is_open and one.expires_at == token.expires_at:
            raise Violation(f"connection {one.number} of {sub} is open, and its token has ended")
        if one.ending == (1008, "token expired"):
            self.happens("token expired")

    async def do_renew(self, lots: Random) -> None:
        """Somebody sends a newer token though nobody has asked for it."""
        one = self._open_socket(lots)
        if one is not None and not one.peeks and not self.is_waiting_for_a_token(one.sub):
            one.renew()

    async def do_peek(self, lots: Random) -> None:
        self.connect(lots, lots.choice((VICTIM, OTHER)), "monitor", None, peeks=True)

    async def do_lie(self, lots: Random) -> None:
        self.done.add("lie")
        if (one := self._open_socket(lots)) is not None:
            one.acknowledge(one.seq + lots.choice((1, 5, 1000, 10**12)))

    async def do_leave(self, lots: Random) -> None:
        if (one := self._open_one(lots)) is not None:
            one.asked_to_end = True
            if lots.random() < 0.5:
                one.leave(lots.choice((1000, 1001, 1012)))
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
        if (one := self._open_socket(lots)) is not None and not one.peeks:
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
        if (one := self._open_socket(lots)) is not None:
            one.asked_to_end, one.answers_pings = True, False
            await trio.sleep(lots.choice((5.0, 40.0)))
            one.answers_pings = True

    async def do_flood(self, lots: Random) -> None:
        if (one := self._open_socket(lots)) is not None:
            one.asked_to_end = True
            self.happens("flood")
            for _ in range(lots.choice((150, 600))):
                one.link.send(_PING_FRAME)

    async def do_speak(self, lots: Random) -> None:
        if (one := self._open_socket(lots)) is not None:
            one.link.send(_PING_FRAME)
