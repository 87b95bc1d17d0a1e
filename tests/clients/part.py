"""One driver in one scenario: its user, its diagnosis, its network, and what it has reported."""

from __future__ import annotations

import itertools
import json
import math
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Final

import trio

from tests.clients import drivers
from tests.clients.proxy import FaultProxy
from tests.clients.reports import FREE, Course, Item, Report, Status, Unexpected, expected, is_awaited
from tests.clients.stage import Stage
from tests.clients.table import Step
from tests.logbook import LOGBOOK, PAYLOAD_MARKER
from web.identity.tokens import LEEWAY_SECONDS, issue

REPORT_SECONDS_MAX: Final = 30
"""Longest wait for one report: the longest way back is that of a connection given up after 10 s."""

HEARTBEAT_SECONDS: Final = 5

FOLLOW: Final[dict[str, Any]] = {
    "device": None,
    "store": None,
    "start": None,
    "renewable": False,
    "heartbeat": HEARTBEAT_SECONDS,
    "backoff_ms": [50, 400],
    "get_state": False,
    "clock_offset_s": 0,
    "raise_at": None,
}
"""Fields of the command where a scenario does not name them."""

TOKEN_SECONDS: Final = 600

BULK_LINES_MAX: Final = 50
"""Reason: so many large updates stay below the 4 MiB of a bulk request."""


class Part:
    """Each method that is named like a step of the table is that step."""

    def __init__(
        self, driver: drivers.Driver, number: int, stage: Stage, nursery: trio.Nursery, directory: Path
    ) -> None:
        """The driver follows diagnosis `number`; its network and what listens to it run in `nursery`."""
        self.driver = driver
        self.transcript: list[str] = []
        """Steps and reports, in the order in which they were done and seen."""
        self._stage = stage
        self._nursery = nursery
        self._directory = directory
        self._diagnosis_id = number
        self._sub = f"user-{number}"
        self._network = FaultProxy(nursery, lambda: stage.port)
        self._course = Course()
        self._free = FREE
        self._fields: dict[str, Any] = {}
        self._token_kind = "good"
        self._token_number = itertools.count(1)
        self._first_token = ""
        self._update_number = itertools.count(1)
        self._published: dict[int, dict[str, Any]] = {}
        """Bodies by the number they got."""
        self._running: drivers.Running | None = None

    async def begin(self) -> None:
        """Register the diagnosis, and start the driver."""
        await self.register_diagnosis()
        await self._start_driver()

    async def do(self, steps: Iterable[Step]) -> None:
        """Do these steps.

        Raises:
            Unexpected: the driver has reported something else, or nothing in time.
        """
        for step in steps:
            await self._do(step)

    async def _do(self, step: Step) -> None:
        self.transcript.append(f"- {step}")
        if step.act == "network":
            getattr(self._network, step.name.removeprefix("network_"))()
        else:
            await getattr(self, step.name)(*([] if step.argument is None or step.act == "wait" else [step.argument]))

    async def end(self) -> None:
        """Stop the driver in order, and see that nothing is left."""
        self.transcript.append("- the end")
        await self.stop_client()

    async def leave(self) -> None:
        """Kill the driver, if it still runs, and close the network."""
        self._network.close()
        if self._running is not None:
            await self._running.kill()

    @property
    def said(self) -> str:
        """What the driver wrote to stderr."""
        return "" if self._running is None else self._running.said

    # The client

    async def follow(self, fields: dict[str, Any] | None = None) -> None:
        self._fields = FOLLOW | (fields or {})
        self._token_kind = self._fields.pop("token", "good")
        if self._fields["store"] is not None:
            self._fields["store"] = str(self._directory / self._fields["store"])
        await self._follow()

    async def follow_again(self) -> None:
        await self._start_driver()
        await self._follow()

    async def token(self, kind: str) -> None:
        await self._driver.command(do="token", token=self._token_of(kind))

    async def pause(self) -> None:
        await self._driver.command(do="pause")

    async def resume(self) -> None:
        await self._driver.command(do="resume")

    async def stop_client(self) -> None:
        await self._driver.command(do="stop")
        code = await self._driver.ended()
        if code != 0:
            raise Unexpected(f"the driver has exited {code}")
        await self._nothing_is_left()

    async def kill_client(self) -> None:
        await self._driver.kill()
        await self._nothing_is_left()

    # The diagnosis

    async def publish(self, wanted: int | dict[str, int]) -> None:
        count, kilobytes = (wanted, 0) if isinstance(wanted, int) else (wanted["count"], wanted["kilobytes"])
        bodies = [self._update(kilobytes) for _ in range(count)]
        for first in range(0, count, BULK_LINES_MAX):
            lines = bodies[first : first + BULK_LINES_MAX]
            content = "\n".join(json.dumps({"diagnosis_id": self._diagnosis_id, **one}) for one in lines)
            answer = await self._http.post(
                "/ws/broadcast", content=content, headers=self._owner | {"Content-Type": "application/x-ndjson"}
            )
            for body, line in zip(lines, answer.text.splitlines(), strict=True):
                receipt = json.loads(line)
                assert receipt["status"] == 200, receipt
                self._published[receipt["seq"]] = body

    async def crash_actor(self) -> None:
        body = self._update()
        kind = body["type"].removesuffix("_update")
        sent = {"diagnosis_id": self._diagnosis_id, **body}
        del sent["type"]
        answer = await self._stage.server.post(kind, sent, self._sub)
        assert answer.status_code == 503, answer.text
        self._published[max(self._published) + 1] = body

    async def restart_actor(self) -> None:
        answer = await self._http.post(f"/actors/{self._diagnosis_id}/restart", headers=self._operator)
        assert answer.status_code == 200, answer.text

    async def purge(self) -> None:
        answer = await self._http.delete(f"/actors/{self._diagnosis_id}/outbox", headers=self._operator)
        assert answer.status_code == 200, answer.text

    async def delete_diagnosis(self) -> None:
        answer = await self._http.delete(f"/diagnoses/{self._diagnosis_id}", headers=self._operator)
        assert answer.status_code == 200, answer.text

    async def register_diagnosis(self) -> None:
        answer = await self._stage.server.register(self._diagnosis_id, self._sub)
        assert answer.status_code == 201, answer.text

    async def revoke_token(self) -> None:
        body = {"jti": f"{self._sub}-1"}
        answer = await self._http.post("/revocations", json=body, headers=self._operator)
        assert answer.status_code == 201, answer.text

    async def take_over(self) -> None:
        device = self._fields["device"]
        async with self._stage.server.connect(self._diagnosis_id, self._sub, device=device) as another:
            await another.until_live()

    # What is awaited

    async def wait_until_the_token_has_ended(self) -> None:
        server = self._stage.server
        async with server.connect(self._diagnosis_id, None, token=self._first_token, peek=1) as another:
            _, code, reason = await another.close_frames()
        assert (code, reason) == (1008, "token expired")

    async def wait_two_heartbeats(self) -> None:
        server = self._stage.server
        async with server.connect(self._diagnosis_id, self._sub, peek=1, heartbeat=HEARTBEAT_SECONDS) as another:
            for _ in range(2):
                await another.next_of("heartbeat")

    async def acknowledged(self, seq: int) -> None:
        path = f"/diagnoses/{self._diagnosis_id}/delivery?seq={seq}"
        cursors: list[object] = []
        with trio.move_on_after(REPORT_SECONDS_MAX):
            while (seq, "app") not in cursors:
                items = (await self._http.get(path, headers=self._operator)).json()["items"]
                cursors = [(one["cursor"], one["acknowledged_by"]) for one in items]
                await trio.sleep(0.02)
            return
        raise Unexpected(f"acknowledged is {cursors}, not {seq}")

    async def expect(self, entries: list[object], *, exactly: bool = False) -> None:
        items: list[Item] = []
        statuses: list[Status] = []
        for entry in entries:
            more_items, more_statuses = expected(entry)
            items += more_items
            statuses += more_statuses
        for item in items:
            await self._expect_item(item)
        for status in statuses:
            await self._expect_status(status, exactly)
        if exactly and self._statuses.statistics().current_buffer_used:
            raise Unexpected(f"{self._statuses.receive_nowait()} where no status is expected")

    async def expect_exactly(self, entries: list[object]) -> None:
        await self.expect(entries, exactly=True)

    async def _expect_item(self, wanted: Item) -> None:
        is_complete = False
        while not is_complete:
            report = await _next(self._items, wanted)
            is_complete = self._course.take(wanted, report)
            if "event" in report:
                self._compare(report)

    async def _expect_status(self, wanted: Status, exactly: bool) -> None:
        while not is_awaited(wanted, await _next(self._statuses, wanted), exactly=exactly, free=self._free):
            pass
        # It comes again with each attempt, until there is a good token.
        if wanted.name == "needs_auth":
            self._free |= {"needs_auth"}

    async def _nothing_is_left(self) -> None:
        """See that the driver has reported nothing but what was expected."""
        with trio.fail_after(drivers.EXIT_SECONDS_MAX):
            await self._listened.wait()
        if self._items.statistics().current_buffer_used:
            raise Unexpected(f"{_shown(self._items.receive_nowait())} where nothing is expected")

    def _compare(self, report: Report) -> None:
        body = self._published[report["seq"]]
        data = report["data"]
        if report["event"] != body["type"] or any(data[name] != body[name] for name in body.keys() - {"type"}):
            raise Unexpected(f"event {report['seq']} was published as {_shown(body)}, reported as {_shown(report)}")

    # Means

    @property
    def _driver(self) -> drivers.Running:
        assert self._running is not None
        return self._running

    async def _start_driver(self) -> None:
        if self._running is not None:
            await self._running.kill()
        self._running = await drivers.start(self.driver, self._directory)
        items, self._items = trio.open_memory_channel[Report](math.inf)
        statuses, self._statuses = trio.open_memory_channel[Report](math.inf)
        self._listened = trio.Event()
        self._nursery.start_soon(self._listen, self._running, items, statuses, self._listened)
        ready = await _next(self._items, "ready")
        if ready != {"ready": True}:
            raise Unexpected(f"{_shown(ready)} where a driver says that it is ready")

    async def _listen(
        self,
        running: drivers.Running,
        items: trio.MemorySendChannel[Report],
        statuses: trio.MemorySendChannel[Report],
        listened: trio.Event,
    ) -> None:
        with items, statuses:
            async for report in running.reports():
                self.transcript.append(f"  {_shown(report)}")
                (statuses if "status" in report else items).send_nowait(report)
        listened.set()

    async def _follow(self) -> None:
        self._first_token = self._token_of(self._token_kind)
        place = {"url": self._network.url, "diagnosis_id": self._diagnosis_id, "token": self._first_token}
        await self._driver.command(do="follow", **place, **self._fields)

    def _token_of(self, kind: str) -> str:
        server, now, ttl_seconds, sub, key = self._stage.server, time.time(), TOKEN_SECONDS, self._sub, None
        match kind.split():
            case ["good"]:
                pass
            case ["ends", "in", seconds, "s"]:
                # The server accepts it for some time after its `exp`.
                now, ttl_seconds = math.ceil(now) - TOKEN_SECONDS, TOKEN_SECONDS + int(seconds) - LEEWAY_SECONDS
            case ["of", "a", "stranger"]:
                sub = "stranger"
            case ["with", "a", "wrong", "signature"]:
                key = b"no key of the server, and 32 bytes"
            case ["of", "the", "provider"]:
                return self._noted(self._stage.provider.token(sub))
            case _:
                raise ValueError(f"there is no token {kind!r}")
        token_id = f"{self._sub}-{next(self._token_number)}"
        return self._noted(
            issue(key or server.key, sub=sub, scope="", ttl_seconds=ttl_seconds, now=now, token_id=token_id)
        )

    def _noted(self, token: str) -> str:
        LOGBOOK.note(token, "a token")
        return token

    def _update(self, kilobytes: int = 0) -> dict[str, Any]:
        """The body of the next update, without its diagnosis."""
        number = next(self._update_number)
        if kilobytes or number % 3 == 1:
            new = {"dose": number, "note": PAYLOAD_MARKER + "x" * 1000 * kilobytes}
            return {"type": "recommendation_update", "old_data": {"dose": number - 1}, "new_data": new}
        if number % 3 == 2:
            name = f"recommendation {number}"
            return {"type": "effectiveness_update", "recommendation_id": name, "new_effectiveness": 0.5}
        return {"type": "feedback_update", "feedback_id": number, "rating": 5, "comment": PAYLOAD_MARKER}

    @property
    def _http(self) -> Any:
        return self._stage.server.http

    @property
    def _owner(self) -> dict[str, str]:
        return self._stage.server.bearer(self._sub)

    @property
    def _operator(self) -> dict[str, str]:
        return self._stage.server.bearer("op", "operate")


async def _next(reports: trio.MemoryReceiveChannel[Report], wanted: object) -> Report:
    try:
        with trio.fail_after(REPORT_SECONDS_MAX):
            return await reports.receive()
    except trio.TooSlowError:
        raise Unexpected(f"nothing came where the table has {wanted}") from None
    except trio.EndOfChannel:
        raise Unexpected(f"the driver ended where the table has {wanted}") from None


def _shown(report: object) -> str:
    """On one line, cut where it is long."""
    text = json.dumps(report)
    return text if len(text) <= 300 else f"{text[:300]}..."
