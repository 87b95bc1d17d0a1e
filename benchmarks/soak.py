"""Everything at once, for as long as one wants, on one server: `make soak MINUTES=15`.

Publishers, followers who stay, others who vanish, read slowly or flood, actors that crash, registrars and operators go
on for a tenth of the time. Then all of it stops, and the server comes to rest: no connection, no actor in memory. So it
does once more at the end. What it has at rest then, it may not have more of than after the first tenth (`BOUNDS`); and
whatever it has acknowledged must be there, before and after `kill -9`.

Exit code: 0, 1 if something grew or was lost, 2 if it could not be run.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import secrets
import sys
import tempfile
from collections import Counter
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import httpx
import trio

from benchmarks import churn, records
from benchmarks.churn import FOLLOWERS, ROWS_BEFORE, SHAKY, STEADY, World
from benchmarks.kept import Kept
from benchmarks.place import NEAR, TTL_SECONDS, Place
from benchmarks.processes import cores, descriptors_of, memory_resident_bytes, threads_of
from benchmarks.records import AT_REST, UNDER_LOAD, Point
from benchmarks.servers import OURS, Running, ServerFailed, running
from storage.sqlite.schema import CACHE_KIB, WAL_BYTES_KEPT
from web.identity.keyring import load_key

MINUTES: Final = 15.0
MINUTES_MIN: Final = 1.0
"""Reason: both rests, and what is done only now and then."""

MINUTES_MAX: Final = 0.9 * TTL_SECONDS / 60
"""Reason: tokens live for a day."""

SAMPLES: Final = 30
"""Looks at the process under load, spread over the time."""

REST_SECONDS_MAX: Final = 90.0
"""Longest wait for the server to come to rest."""

REST_SECONDS: Final = 18.0
"""About as long takes a rest, and what is looked at behind it."""

SETTLE_SECONDS: Final = 12.0
"""At rest, nothing may have changed for so long. Reason: a worker thread of Trio ends after 10 s without work."""

LOOK_SECONDS: Final = 1.0

SETTINGS: Final = {
    "AVICENNA_PASSIVATE_AFTER_SECONDS": "2",
    "AVICENNA_RESTART_INTENSITY_SECONDS": "10",
    "AVICENNA_QUARANTINE_SECONDS": "2",
    "AVICENNA_BACKUPS_KEPT": "3",
    "AVICENNA_ACCESS_TRAIL": "true",
}

COMMAND: Final = f"{sys.executable} -m benchmarks.crashing"

Figures = Mapping[str, float]
"""What one look found, by name."""


@dataclass(frozen=True, slots=True)
class Bound:
    """By how much a figure at the end may exceed that after the first tenth; both at rest."""

    share: float = 0.0
    more: float = 0.0
    at_least: float = 0.0
    """Up to here it may be in any case."""
    is_cached: bool = False
    """Pages of the database are in it, as far as SQLite keeps them: with the database it may grow."""

    def limit(self, before: float, database_grew_mib: float) -> float:
        """The most it may be, where the database has grown by so much."""
        cached = min(database_grew_mib * PAGE_IN_CACHE, CACHE_KIB / 2**10) if self.is_cached else 0.0
        return max(before * (1 + self.share) + self.more + cached, self.at_least)


PAGE_IN_CACHE: Final = 1.25
"""Memory that SQLite's cache takes for a page, in pages: 8.0 MiB for 6.7 at half an hour. Beside the page there is what
belongs to it, and what the allocator cannot use."""

BOUNDS: Final[Mapping[str, Bound]] = {
    # Other caches, and what the allocator keeps.
    "memory_mib": Bound(share=0.05, more=4, is_cached=True),
    "tasks": Bound(),
    "descriptors": Bound(),
    "threads": Bound(more=1),  # SQLite's, and workers of Trio that come and go
    "wal_mib": Bound(at_least=WAL_BYTES_KEPT / 2**20),  # the log keeps its file up to this size
}


def grown(before: Figures, after: Figures) -> list[str]:
    """The figures that are not flat, each a sentence."""
    database_grew_mib = max(0.0, after["database_mib"] - before["database_mib"])
    return [
        f"{name} was {before[name]:g} after the first tenth and is {after[name]:g}, which is more than {limit:g}"
        for name, bound in BOUNDS.items()
        if after[name] > (limit := bound.limit(before[name], database_grew_mib))
    ]


class Soak:
    """One server, and what is seen of it."""

    def __init__(self, world: World, server: Running, settle_seconds: float) -> None:
        self._settle_seconds = settle_seconds
        self._world = world
        self._server = server
        self._began_at = trio.current_time()
        self.under_load: list[Point] = []
        self.at_rest: list[Point] = []

    @property
    def minutes(self) -> float:
        """Since it began."""
        return (trio.current_time() - self._began_at) / 60

    async def load(self, seconds: float, every_seconds: float) -> None:
        """Load the server for so long, and look at it meanwhile."""
        async with trio.open_nursery() as looking_nursery:
            looking_nursery.start_soon(self._look_every, every_seconds)
            await churn.load(self._world, seconds)
            looking_nursery.cancel_scope.cancel()

    async def _look_every(self, seconds: float) -> None:
        while True:
            await trio.sleep(seconds)
            self.under_load.append(self._point(await self.look()))

    def _point(self, figures: Figures) -> Point:
        return Point(round(self.minutes, 2), {name: [value] for name, value in figures.items()})

    async def look(self) -> dict[str, float]:
        """The figures now."""
        shown = await self.metrics()
        pid = self._server.pid
        assert self._server.data is not None, "our server has a data directory"
        return {
            "memory_mib": memory_resident_bytes(pid) / 2**20,
            "tasks": shown["avicenna_tasks"],
            "descriptors": descriptors_of(pid),
            "threads": threads_of(pid),
            "wal_mib": (self._server.data / "avicenna.db-wal").stat().st_size / 2**20,
            "database_mib": shown["avicenna_database_bytes"] / 2**20,
            "followers": shown["avicenna_followers"],
            "events": shown["avicenna_events_total"],
        }

    async def metrics(self) -> dict[str, float]:
        """What `/metrics` shows without a label."""
        headers = {"Authorization": f"Bearer {self._world.operator}"}
        answer = await self._world.http.get("/metrics", headers=headers)
        return {name: float(value) for name, value in re.findall(r"^(\w+) (\S+)$", answer.text, re.MULTILINE)}

    async def rest(self) -> dict[str, float]:
        """Wait until nobody is connected, no actor is in memory, and nothing changes any more; the figures then."""
        left: dict[str, float] = {}
        with trio.move_on_after(REST_SECONDS_MAX) as waiting:
            while (left := await self._left())["connections"] > 1 or left["actors"] or left["consoles"]:
                await trio.sleep(LOOK_SECONDS)
            figures, since = await self.look(), trio.current_time()
            while trio.current_time() - since < self._settle_seconds:
                await trio.sleep(LOOK_SECONDS)
                last, figures = figures, await self.look()
                if any(last[name] != figures[name] for name in ("tasks", "descriptors", "threads")):
                    since = trio.current_time()
        if waiting.cancelled_caught:
            self._world.kept.complain(f"the server did not come to rest within {REST_SECONDS_MAX:g} s: {left}")
            figures = await self.look()
        self.at_rest.append(self._point(figures))
        return figures

    async def _left(self) -> dict[str, float]:
        shown = await self.metrics()
        return {name: shown[f"avicenna_{name}"] for name in ("connections", "actors", "consoles")}


async def judge(world: World) -> None:
    """Compare what the server has with what it has acknowledged."""
    operator, kept = world.operator, world.kept
    for name in STEADY + SHAKY:
        _, position = await world.ask("GET", f"/diagnoses/{name}/position", operator)
        kept.judge_position(name, position)
        events = await churn.read_outbox(world, name)
        for event in events:
            kept.see(name, event["data"]["feedback_id"], event["seq"])
        numbers = [event["seq"] for event in events]
        if numbers != list(range(position["floor"] + 1, position["head"] + 1)):
            kept.complain(f"{name} stands at {position}, and has {numbers}")
        for of, sub in FOLLOWERS:
            if of == name and (stood := world.positions.get((of, sub), (0, ""))[0]) != position["head"]:
                kept.complain(f"{sub} stands at {stood}, and {name} at {position['head']}")
        if position["head"]:
            known = await _items(world, f"/diagnoses/{name}/delivery?seq={position['head']}")
            kept.judge_cursors(name, {str(one["user_id"]): one["cursor"] for one in known if one["device"] is None})
    registered = {str(one["diagnosis_id"]) for one in await _items(world, "/diagnoses")}
    if registered != {*STEADY, *SHAKY}:
        kept.complain(f"registered are {sorted(registered)}")
    in_force = {one["id"] for one in await _items(world, "/revocations")}
    if in_force != kept.revocations:
        kept.complain(f"in force are revocations {sorted(in_force)}, and should be {sorted(kept.revocations)}")
    rows = Counter(one["action"] for one in await _items(world, "/audit"))
    kept.judge_rows(rows, before=ROWS_BEFORE)


async def _items(world: World, path: str) -> list[dict[str, Any]]:
    """All items of a list in pages."""
    found: list[dict[str, Any]] = []
    after: str | None = None
    while True:
        joined = "&" if "?" in path else "?"
        asked = f"{path}{joined}limit=100" + ("" if after is None else f"&after={httpx.QueryParams({'a': after})['a']}")
        _, page = await world.ask("GET", asked, world.operator)
        found += page.get("items", ())
        after = page.get("next")
        if after is None:
            return found


@asynccontextmanager
async def talking_to(server: Running, kept: Kept, chance: random.Random) -> AsyncIterator[World]:
    """Everybody who talks to a server."""
    assert server.data is not None, "our server has a data directory"
    key = load_key(server.data)
    assert key is not None, "a server that has started has a key"
    place = Place(server.target.port, key)
    limits = httpx.Limits(max_connections=50, max_keepalive_connections=10, keepalive_expiry=3)
    async with httpx.AsyncClient(base_url=f"http://{NEAR}:{place.port}", timeout=60, limits=limits) as http:
        yield World(place, http, kept, chance)


async def soak(
    first_seconds: float,
    then_seconds: float,
    data: Path,
    kept: Kept,
    chance: random.Random,
    say: Callable[[str], None],
    settle_seconds: float = SETTLE_SECONDS,
) -> Soak:
    """Load a fresh server twice, with a rest behind each time; look at what is there, before and after a kill."""
    core = cores()[0]
    with running(OURS, core, COMMAND, data=data, settings=SETTINGS) as server:
        async with talking_to(server, kept, chance) as world:
            seen = Soak(world, server, settle_seconds)
            await churn.set_up(world)
            say("the first tenth")
            every_seconds = (first_seconds + then_seconds) / SAMPLES
            await seen.load(first_seconds, every_seconds)
            before = await seen.rest()
            say(f"at rest: {_shown(before)}")
            await seen.load(then_seconds, every_seconds)
            after = await seen.rest()
            say(f"at rest: {_shown(after)}")
            for name, sub in FOLLOWERS:
                await churn.catch_up(world, name, sub)
            await judge(world)
            positions = world.positions
        for sentence in grown(before, after):
            kept.complain(sentence)
        server.process.kill()
        server.process.wait()
    say("killed, and started again")
    with running(OURS, core, COMMAND, data=data, settings=SETTINGS) as server:
        async with talking_to(server, kept, chance) as again:
            again.positions = positions
            await judge(again)
    say(f"done: {json.dumps(world.counts)}; {kept.acknowledged} events acknowledged; {sum(kept.acts.values())} acts")
    return seen


def _shown(figures: Figures) -> str:
    return ", ".join(f"{name} {value:.4g}" for name, value in figures.items())


def main(argv: Sequence[str] | None = None) -> int:
    """Soak a server, and write the run."""
    parser = argparse.ArgumentParser(prog="make soak", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument("--minutes", type=float, default=MINUTES, metavar="N", help="in all; default %(default)s")
    parser.add_argument(
        "--seed", type=int, metavar="N", help="of the order of what is done; default: another each time"
    )
    parser.add_argument("--into", type=Path, metavar="DIR", help="where the run is written; default: docs/measured")
    options = parser.parse_args(argv)
    if not MINUTES_MIN <= options.minutes <= MINUTES_MAX:
        parser.error(f"--minutes must be {MINUTES_MIN:g}-{MINUTES_MAX:g}")
    seed = secrets.randbits(32) if options.seed is None else options.seed
    load_before, kept, seconds = records.load_now(), Kept(), 60 * options.minutes
    print(f"seed {seed}", file=sys.stderr, flush=True)
    try:
        with tempfile.TemporaryDirectory(prefix="avicenna-soak-") as directory:
            seen = trio.run(
                soak,
                0.1 * seconds,
                0.9 * seconds - 2 * REST_SECONDS,
                Path(directory) / "data",
                kept,
                random.Random(seed),
                lambda text: print(text, file=sys.stderr, flush=True),
            )
    except (ServerFailed, OSError) as failure:
        print(f"benchmarks.soak: {failure}", file=sys.stderr)
        return 2
    for sentence in kept.violations:
        print(f"BROKEN: {sentence}")
    run = records.make_run(
        "soak", f"soak MINUTES={options.minutes:g}", [], load_before,
        series={UNDER_LOAD: seen.under_load, AT_REST: seen.at_rest}, faults=kept.violations,
    )  # fmt: skip
    print(f"written: {records.write(run, options.into or records.MEASURED)}")
    return 1 if kept.violations else 0


if __name__ == "__main__":
    sys.exit(main())
