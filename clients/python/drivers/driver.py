"""The driver of the Python client for the scenario table (`clients/scenarios.yaml` has the JSON lines).

`python driver.py trio` or `python driver.py asyncio`.
"""

from __future__ import annotations

import asyncio
import json
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import trio

from avicenna_live import Backoff, Ended, FileStore, Follower, Gap, Item, Reset, Snapshot, Status


class RaisedOnDemand(Exception):
    """The runner asked for it."""


class Driver:
    """One `follow`, from the command to `stop`."""

    def __init__(self, wanted: dict[str, Any], event: Callable[[], asyncio.Event | trio.Event]) -> None:
        self._wanted = wanted
        self._event = event
        self._token = wanted["token"]
        self._raise_at: int | None = wanted["raise_at"]
        self._resumed = event()
        self._resumed.set()
        self.stopped = event()
        self.follower = Follower(
            wanted["url"],
            token=(lambda: self._token) if wanted["renewable"] else wanted["token"],
            device=wanted["device"],
            store=FileStore(wanted["store"]) if wanted["store"] else None,
            get_state=(lambda _: {"state": True}) if wanted["get_state"] else None,
            on_state=lambda _, status: report(told_by_status(status)),
            heartbeat=wanted["heartbeat"],
            backoff=Backoff(*(milliseconds / 1000 for milliseconds in wanted["backoff_ms"])),
        )

    def obey(self, command: dict[str, Any]) -> None:
        """Do what the runner asks."""
        match command:
            case {"do": "token", "token": token} if self._wanted["renewable"]:
                self._token = token
            case {"do": "token", "token": token}:
                self.follower.use_token(token)
            case {"do": "pause"}:
                self._resumed = self._event()
            case {"do": "resume"}:
                self._resumed.set()
            case {"do": "stop"}:
                self.stopped.set()
            case _:
                report({"cannot": command["do"]})

    async def consume(self) -> None:
        while True:
            try:
                async for item in self.follower.follow(self._wanted["diagnosis_id"], start=self._wanted["start"]):
                    self._take(item)
                    await self._resumed.wait()
                return
            except RaisedOnDemand:
                report({"raised": self._raise_at})
                self._raise_at = None
            except Ended as ended:
                report({"ended": {"code": ended.code, "reason": ended.reason}})
                return
            except Exception as error:  # noqa: BLE001 - the runner fails on it
                report({"failed": repr(error)})
                return

    def _take(self, item: Item) -> None:
        match item:
            case Gap(first, last, reason):
                report({"gap": {"first": first, "last": last, "reason": reason}})
            case Reset(epoch, floor):
                report({"reset": {"epoch": epoch, "floor": floor}})
            case Snapshot(epoch, seq, data):
                assert data == {"state": True}
                report({"snapshot": {"epoch": epoch, "seq": seq}})
            case _ if item.seq == self._raise_at:
                raise RaisedOnDemand
            case _:
                report({"event": item.type, "seq": item.seq, "epoch": item.epoch, "data": item.data})


def told_by_status(status: Status) -> dict[str, Any]:
    """The report of a status."""
    return {"status": status.state, "reason": status.reason, "code": status.code}


def report(told: dict[str, Any]) -> None:
    """Write one line."""
    print(json.dumps(told), flush=True)  # noqa: T201 - its stdout is what it is for


def listen(obey: Callable[[dict[str, Any]], object]) -> None:
    """Hand every further command on from a thread of its own; the end of stdin is `stop`."""

    def read() -> None:
        for line in sys.stdin:
            obey(json.loads(line))
        obey({"do": "stop"})

    threading.Thread(target=read, daemon=True).start()


async def on_trio(wanted: dict[str, Any]) -> None:
    driver, loop = Driver(wanted, trio.Event), trio.lowlevel.current_trio_token()
    listen(lambda command: loop.run_sync_soon(driver.obey, command))
    async with trio.open_nursery() as nursery:
        async with driver.follower:
            nursery.start_soon(driver.consume)
            await driver.stopped.wait()
        nursery.cancel_scope.cancel()


async def on_asyncio(wanted: dict[str, Any]) -> None:
    driver, loop = Driver(wanted, asyncio.Event), asyncio.get_running_loop()
    listen(lambda command: loop.call_soon_threadsafe(driver.obey, command))
    async with driver.follower:
        consumer = asyncio.create_task(driver.consume())
        await driver.stopped.wait()
    consumer.cancel()


def main(library: str) -> None:
    """Obey until `stop`."""
    report({"ready": True})
    wanted = json.loads(sys.stdin.readline())
    right = time.time
    time.time = lambda: right() + wanted["clock_offset_s"]
    trio.run(on_trio, wanted) if library == "trio" else asyncio.run(on_asyncio(wanted))


if __name__ == "__main__":
    main(sys.argv[1])
