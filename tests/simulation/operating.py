"""Actors that crash, operators who restart, stop, purge and erase, and rights that are taken away."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from math import inf
from pathlib import Path
from random import Random
from typing import Final

import trio

from tests.simulation.disk import Disk
from tests.simulation.following import Following
from tests.simulation.stage import (
    KEYS,
    OTHER,
    REGISTERED,
    TOKEN_SECONDS,
    VICTIM,
)
from tests.simulation.truth import Violation

ISSUER_AHEAD_SECONDS: Final = 8.0
"""How far the clock of an issuer may be ahead: less than the leeway."""


VOID_TOKENS: Final = 3
"""So many that are void are shown at once."""

NO_ROOM: Final = "the disk is full"
"""What a refusal says of an act that is certainly not done."""


class Operating(Following):
    """Operators, and faults of actors."""

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
        self.let_go_at[diagnosis_id] = inf
        await self.ask("POST", f"/actors/{diagnosis_id}/stop", ("operator", "operate"))
        self.let_go_at[diagnosis_id] = trio.current_time()

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

    def _judge_rows(self) -> None:
        """Every act that was answered has its row, and none has two. Whoever looks leaves no trace."""
        rows = self._rows()
        for what, asked in self.acts_asked.items():
            if not (0 if self.has_lost else self.acts_done[what]) <= rows[what] <= asked:
                raise Violation(
                    f"{what} was asked for {asked} times and answered {self.acts_done[what]} times: {rows[what]} rows"
                )
        for one in [] if "erase" in self.done else self.followers:
            ended = one.ending is not None and one.ending[1] == "disconnected by operator"
            if ended and one.sub not in self.disconnected:
                raise Violation(f"connection {one.number} was disconnected, and the answer was that nothing is done")
        if self._is_known("monitor"):
            raise Violation("monitor has only looked, and is a subscriber")

    def _rows(self) -> Counter[str]:
        database = self.process.disk.database
        assert database is not None, "it serves"
        found = sqlite3.Connection.execute(database, "SELECT what, count(*) FROM audit GROUP BY what").fetchall()
        return Counter(dict(found))

    def _is_known(self, sub: str) -> bool:
        database = self.process.disk.database
        assert database is not None, "it serves"
        return bool(sqlite3.Connection.execute(database, "SELECT 1 FROM cursor WHERE sub = ?", (sub,)).fetchall())

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
            found += [f"{table}: {row}" for row in rows if any(names(value, sub) for value in row)]
        return found

    async def do_revoke(self, lots: Random) -> None:
        sub = lots.choice(("service", "amira", "bo", "cy"))
        await self._revoke(sub)
        if sub != "service":
            self._come_with_a_void_one(lots, sub)

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
        self._make_token(sub, "", TOKEN_SECONDS, issuer_ahead=ISSUER_AHEAD_SECONDS)
        asked, process = self._linked(), self.process
        asked_at, ahead = self.clock.wall(), self.clock.ahead
        answer = await self.ask("POST", "/revocations", ("operator", "operate"), {"sub": sub})
        if answer.status == 201 and process is self.process and sub in self._tokens:
            self._bar(sub, None, asked, may_publish=False)
            if ahead == self.clock.ahead:
                self.confirmed[sub] = asked_at, ahead
        self._names(sub)
        self.era[sub] += 1
        self.revoked_at[sub] = trio.current_time()

    async def do_back_up(self, lots: Random) -> None:
        """A copy is made while others publish, and holds what was answered before."""
        before = {key: dict(told) for key, told in self.truth.acknowledged.items()}
        process = self.process
        answer = await self.ask("POST", "/backup", ("operator", "operate"), seconds_max=125)
        if answer.status == 200 and process is self.process:
            self.happens("backup")
            path = Path(answer.json()["path"])
            self._judge_copy(path, before)
            self.copies.append(path)

    def _judge_copy(self, path: Path, before: Mapping[tuple[str, str], Mapping[int, int]]) -> None:
        copy = sqlite3.connect(path)
        try:
            rows = copy.execute(
                "SELECT public_id, epoch, floor, seq, body FROM diagnosis JOIN head USING (dx) "
                "LEFT JOIN entry ON entry.dx = diagnosis.dx AND seq > floor "
                "WHERE deleted_at IS NULL"
            ).fetchall()
        finally:
            copy.close()
        stored = {(one, epoch, seq): json.loads(body)["feedback_id"] for one, epoch, _, seq, body in rows if body}
        floors = {(one, epoch): floor for one, epoch, floor, _, _ in rows}
        for (diagnosis_id, epoch), told in before.items():
            for seq, number in told.items():
                floor = floors.get((diagnosis_id, epoch))
                if floor is not None and seq > floor and stored.get((diagnosis_id, epoch, seq)) != number:
                    raise Violation(
                        f"{diagnosis_id} {epoch} {seq} was answered as {number}, and is not in a later copy"
                    )

    async def do_restore(self, lots: Random) -> None:
        """An operator stops the server, puts a copy in the place of its database, and has it started again."""
        if not self.copies:
            await self.do_back_up(lots)
        process = self.process
        if self.copies and process.is_serving and not process.is_stopping:
            self.restoring = lots.choice(self.copies)
            process.drain()
            await process.ended.wait()

    async def do_exchange_keys(self, lots: Random) -> None:
        """Tokens are signed with the other key; later the former one is exchanged for a new one. Nobody is ended."""
        former, self.signing = self.signing, next(name for name in KEYS if name != self.signing)
        await trio.sleep(lots.choice((0.0, 1.0, 10.0)))
        gone = self.keys[former]
        self.done.add("exchange keys")
        self._make_key(former)
        before = {process: process.readied for process in self.processes if process.is_serving}
        for process in before:
            process.reload.ask()
        await trio.sleep(1)
        if all(process in before and process.readied > before[process] for process in self.processes):
            self.withdrawn.add(gone)
            self.happens("keys exchanged")
            for sub in ("amira", "bo"):
                self._come_with_a_void_one(lots, sub)

    def _come_with_a_void_one(self, lots: Random, sub: str) -> None:
        """Somebody comes at once with the newest tokens that nobody may come with any more."""
        for one in [one for one in self.made[sub] if self.may_not_come(sub, one)][-VOID_TOKENS:]:
            self.connect(lots, VICTIM, sub, None, given=one)

    async def do_check(self, lots: Random) -> None:
        answer = await self.ask("POST", "/check", ("operator", "operate"), seconds_max=125)
        if answer.status == 200:
            self.happens("check")
            if answer.json()["problems"]:
                raise Violation(f"a check finds {answer.body!r}")

    async def do_take_a_right(self, lots: Random) -> None:
        self.done.add("take a right")
        await self.register(VICTIM, "amira", lots.choice((("bo",), ("cy",), ())))

    async def do_register(self, lots: Random) -> None:
        self.done.add("take a right")
        await self.register(VICTIM, "amira", lots.choice((("bo", "cy"), ("bo", "cy", "guest"))))

    async def do_begin_anew(self, lots: Random) -> None:
        self.done |= {"begin anew", "take a right"}
        self.life[OTHER] += 1
        self.let_go_at[OTHER] = inf
        disk, dies = self.process.disk, lots.random() < 0.6
        waits = lots.random() < 0.5 and len(self.processes) == 1
        async with trio.open_nursery() as nursery:
            if waits:
                disk.hang()
                nursery.start_soon(_thaw, disk)
            answer = await self.ask("DELETE", f"/diagnoses/{OTHER}", ("registrar", "register"))
            if answer.status == 200:
                self._ends(answer.json()["epoch"])
                if dies:
                    self.happens("power failure behind a deletion")
                    await self.do_power_fails(lots)
        await self.register(OTHER, *REGISTERED[OTHER])

    async def do_power_fails(self, lots: Random) -> None:
        if self.process.is_serving:
            self.boot += 1
            self.happens("power failure")
            self.process.kill(power_fails=True)

    async def do_disconnect(self, lots: Random) -> None:
        self.done.add("disconnect")
        people = ("amira", "bo", "cy")
        connected = [one.sub for one in self.followers if one.is_open and one.diagnosis_id == VICTIM]
        sub = lots.choice([sub for sub in connected if sub in people] or people)
        device = lots.choice(("", "&device=phone"))
        forgets = lots.random() < 0.3
        if lots.random() < 0.3:  # no act without its row
            self.process.disk.fault = "full"
        self._names(sub)
        path = f"/actors/{VICTIM}/subscribers?sub={sub}{device}{'&forget=1' * forgets}"
        answer = await self.ask("DELETE", path, ("operator", "operate"))
        self._names(sub)
        self._forgotten(sub, answer.status)
        if answer.status == 503 and NO_ROOM in answer.json()["detail"]:
            self.happens("an act is refused for want of room")
        else:
            self.disconnected.add(sub)


async def _thaw(disk: Disk) -> None:
    """Let a disk answer before anybody is told that it does not."""
    await trio.sleep(1)
    disk.thaw()


def names(value: object, sub: str) -> bool:
    """Whether this is somebody's name, or holds it."""
    return isinstance(value, str) and (value == sub or f'"{sub}"' in value)
