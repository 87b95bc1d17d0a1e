"""Actors that crash, operators who restart, stop, purge and erase, and rights that are taken away."""

from __future__ import annotations

import json
import sqlite3
from collections import Counter
from collections.abc import Mapping
from math import inf
from pathlib import Path
from random import Random

import trio

from tests.simulation.following import Following
from tests.simulation.stage import (
    OTHER,
    REGISTERED,
    VICTIM,
)
from tests.simulation.truth import Violation


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
            self._judge_copy(Path(answer.json()["path"]), before)

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


def names(value: object, sub: str) -> bool:
    """Whether this is somebody's name, or holds it."""
    return isinstance(value, str) and (value == sub or f'"{sub}"' in value)
