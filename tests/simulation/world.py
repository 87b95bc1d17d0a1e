"""One history, played: a server that dies and starts again, everybody who talks to it, and what must be true."""

from __future__ import annotations

import json
import logging
import sqlite3
from collections.abc import Mapping, Sequence
from pathlib import Path
from random import Random
from typing import Any, Final

import trio

from tests.simulation.clients import Follower
from tests.simulation.history import Operation
from tests.simulation.operating import Operating
from tests.simulation.process import Complaints
from tests.simulation.stage import (
    PASSIVATE_SECONDS,
    QUARANTINE_SECONDS,
    REGISTERED,
)
from tests.simulation.truth import Violation

LOOKS: Final = 2
"""What is told of an outbox is compared with it so often, if it changes meanwhile."""


class World(Operating):
    """Plays one history."""

    async def play(self) -> None:
        """The history, and what must be true afterwards. Raises `Violation`."""
        complaints = Complaints()
        complaints.hears = self._hear_log
        logger = logging.getLogger("avicenna")
        logger.addHandler(complaints)
        propagates, logger.propagate = logger.propagate, False
        try:
            async with trio.open_nursery() as self.nursery:
                await self._begin()
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

    async def _begin(self) -> None:
        self._begin_process(None)
        self.nursery.start_soon(self._end_with_history)
        await self.process.ready.wait()
        self.nursery.start_soon(self._keep_running)

    async def _do(self, operation: Operation) -> None:
        await trio.sleep(operation.pause)
        self.steps += 1
        step = getattr(self, "do_" + operation.kind.replace(" ", "_").replace("-", "_"))
        self.note(f"do {operation.kind}")
        if operation.is_waited_for:
            await step(operation.lots())
        else:
            self.operations.start_soon(step, operation.lots())

    # The machine

    async def do_drain(self, lots: Random) -> None:
        if self.process.is_serving:
            process = self.process
            if lots.random() < 0.5:
                await self.do_publish(lots)
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
        for process in self.processes:
            process.disk.fault = None
            process.disk.thaw()
        for one in self.followers:
            one.link.flow()
            one.answers_pings = True
        for sender in self.senders:
            sender.link.flow()
        await self._calm_down()
        if self.has_lost:
            await self._register_all()
        await self._ask_for_what_is_unknown()
        for diagnosis_id in REGISTERED:
            await self._compare(diagnosis_id)
        await trio.sleep(1)
        for one in self.followers:
            if one.epoch is None and one.ending is None and not (one.link.is_over or one.asked_to_end):
                raise Violation(
                    f"connection {one.number} of {one.sub} to {one.diagnosis_id} is neither let in nor refused"
                )
            if one.is_open and not one.asked_to_end and one.seq < self.truth.heads[one.epoch or ""]:
                raise Violation(
                    f"connection {one.number} of {one.sub} to {one.diagnosis_id} stands at {one.seq}, "
                    f"and the head is {self.truth.heads[one.epoch or '']}"
                )
            if one.is_open and one.epoch in self.truth.ended:
                raise Violation(f"connection {one.number} follows {one.diagnosis_id} in {one.epoch}, which has ended")
        self._judge_devices()
        self._judge_rows()
        await self._leave_all()
        self._judge_erasures()
        await self._end()

    async def _calm_down(self) -> None:
        """Wait until nothing of what has gone wrong holds anything up."""
        await trio.sleep(QUARANTINE_SECONDS + 2)
        with trio.move_on_after(60) as waiting:
            while not all(process.is_serving for process in self.processes):
                await trio.sleep(0.5)
        if waiting.cancelled_caught:
            errors = [process.error for process in self.processes]
            raise Violation(f"the server does not come back: {errors!r}")
        for process in self.processes:
            process.disk.forget_plans()

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
        database = self.process.disk.database
        assert database is not None, "it serves"
        for _ in range(LOOKS):
            answer = await self.ask("GET", f"/diagnoses/{diagnosis_id}/position", who)
            if answer.status == 404 and "begin anew" in self.done:
                return
            if answer.status != 200:
                raise Violation(f"{diagnosis_id} cannot be read in the end: {answer.status} {answer.body!r}")
            told = answer.json()
            found = sqlite3.Connection.execute(
                database,
                "SELECT floor, seq, body FROM diagnosis JOIN head USING (dx) "
                "LEFT JOIN entry ON entry.dx = diagnosis.dx AND seq > floor WHERE public_id = ? AND deleted_at IS NULL",
                (diagnosis_id,),
            ).fetchall()
            if found[0][0] == told["floor"]:
                break  # else old events were dropped while the answer travelled
        self.truth.begins_in(told["epoch"], None, f"position of {diagnosis_id}")
        self._judge_stored(diagnosis_id, told, [(seq, body) for _, seq, body in found if seq is not None])

    def _judge_stored(self, diagnosis_id: str, told: Mapping[str, Any], rows: Sequence[tuple[int, bytes]]) -> None:
        stored = {seq: json.loads(body)["feedback_id"] for seq, body in rows}
        self.truth.judge_outbox(diagnosis_id, told["epoch"], told["head"], told["floor"], stored)

    def _judge_devices(self) -> None:
        """A named device has one connection."""
        named = [one for one in self.followers if one.is_open and one.device and not one.peeks and not one.asked_to_end]
        for index, one in enumerate(named):
            for other in named[:index]:
                if one.subscriber is other.subscriber and self._is_judged_with(one, other):
                    raise Violation(f"connections {other.number} and {one.number} of {one.sub} {one.device} are open")

    def _is_judged_with(self, one: Follower, other: Follower) -> bool:
        return True

    async def _leave_all(self) -> None:
        for one in self._everybody():
            if not one.link.is_over:
                one.asked_to_end = True
                one.link.cut()
        await trio.sleep(PASSIVATE_SECONDS * 2 + 3)
        await self._judge_what_is_left()

    async def _judge_what_is_left(self) -> None:
        """Everybody has left, and actors have had the time to rest: nothing of them is in memory."""
        who = ("auditor", "operate")
        status = (await self.ask("GET", "/ws/status", who)).json()
        node = status["node"]
        left = {
            "followers": status["total_connections"],
            "connections": status["connections_open"] - 1,  # which asks
            "actors": node["actors"],
            "bytes of events": node["ring_bytes"],
        }
        if any(left.values()):
            raise Violation(f"something is left in memory: {left}")
        listed = await self.ask("GET", "/actors", who)
        found = [one for one in listed.json()["items"] if one["state"] != "passive"]
        if found:
            raise Violation(f"actors are left in memory: {found}")
        await trio.sleep(1)
        tasks = self.process.tasks()
        if more := tasks - self.process.tasks_at_rest:
            raise Violation(f"tasks are left: {dict(more)}")

    async def _end(self) -> None:
        self.stop_restarting = True
        for process in self.processes:
            process.drain()
        with trio.move_on_after(10) as waiting:
            for process in self.processes:
                await process.ended.wait()
        if waiting.cancelled_caught:
            raise Violation("G11: the server does not end within 10 s")
        for process in self.processes:
            if process.error is not None:
                raise Violation(f"the server does not end in order: {process.error!r}") from process.error


def descriptors() -> int:
    """Open files of this process."""
    return len(list(Path("/proc/self/fd").iterdir()))
