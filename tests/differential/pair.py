"""Two servers that differ in one setting, and what differs in how they answer the same bytes."""

from __future__ import annotations

import itertools
import json
import sqlite3
from collections.abc import AsyncIterator, Callable, Hashable, Mapping, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Final
from unittest.mock import patch

import trio
import trio.testing

from storage.bus import Bus, NoBus
from storage.clock import Clock
from storage.sqlite.opening import open_store
from storage.sqlite.store import SqliteStore
from storage.store import Store
from tests.differential.clock import StandingClock
from tests.differential.conversation import Heard, Steps, hold
from tests.differential.people import KEY, bearer
from tests.server.harness import Server, running_server
from web.http import bodies
from web.http.line import Patience
from web.identity.keyring import KEY_FILE
from web.identity.limits import Limits, Most
from web.operating.audit_rows import AUDIT_ROWS
from web.server import composition
from web.server.settings import DATABASE_FILE, Settings
from web.websocket.holds import Holds

HASTY: Final = partial(Patience, first_byte_seconds=3.0, head_seconds=0.4, linger_seconds=1.0)
"""How long hasty servers wait for the bytes of a request, so that a test sees what follows."""

HASTY_BODY_SECONDS_MAX: Final = 0.5
"""The same for a body."""

AT_ONCE: Final = ("diagnosis", "viewer", "head", "entry", "idem", "revocation", "audit")
"""Tables that are as they will be once an answer is out."""

IN_THE_END: Final = (*AT_ONCE, "cursor", "access")
"""All tables, but for what runs tell each other: the others are written together, within a second."""

Tables = dict[str, list[tuple[Any, ...]]]
"""Rows of tables, by their names."""

Way = Callable[[Settings], Settings]
"""What the second server does otherwise."""


def without_the_short_way(settings: Settings) -> Settings:
    """Every request goes the long way."""
    return replace(settings, short_way=False)


@dataclass(frozen=True)
class Side:
    """One of the two."""

    server: Server
    port: int
    clock: StandingClock
    stores: list[SqliteStore]
    """The one it has opened."""

    async def stored(self) -> Tables:
        """What its database holds that is there once an answer is out."""
        return await self.stores[0]._read(partial(_rows, AT_ONCE))

    def left(self) -> Tables:
        """What its database holds once it has stopped."""
        with closing(sqlite3.connect(self.server.data / DATABASE_FILE)) as database:
            return _rows(IN_THE_END, database)

    async def settled(self) -> None:
        """Return when every task waits, and none of them for the database."""
        store = self.stores[0]
        await trio.testing.wait_all_tasks_blocked()
        while store._committer._waiting_since() is not None:
            await store._read(_nothing)  # behind what is in hand
            await trio.testing.wait_all_tasks_blocked()

    async def status(self) -> dict[str, Any]:
        """What an operator is shown, but for what is about time; of the ways the sum."""
        found: dict[str, Any] = (
            await self.server.http.get("/ws/status", headers={"Authorization": bearer("op", "operate")})
        ).json()
        found["node"]["requests"] = sum(found["node"]["requests"].values())
        del found["uptime_seconds"], found["node"]["storage_waiting_seconds"]
        del found["connections_open"]  # those of the client that asks, too
        return found


@dataclass(frozen=True)
class Difference:
    """What one server did and the other did not."""

    name: str
    what: str
    first: object
    second: object

    def __str__(self) -> str:
        return f"{self.name}: {self.what} differs\n  first:  {self.first!r}\n  second: {self.second!r}"


class Pair:
    """Both."""

    def __init__(self, first: Side, second: Side) -> None:
        self.first = first
        self.second = second

    async def heard(self, steps: Steps) -> tuple[list[Heard], list[Heard]]:
        """What each answers to the same conversation, one after the other, at the same time of its clock."""
        now = trio.current_time()
        self.first.clock.stand_at(now)
        self.second.clock.stand_at(now)
        sides = []
        for side in (self.first, self.second):
            sides.append(await hold(side.port, steps, side.clock, side.settled))
            await side.settled()  # whoever followed is gone
        return sides[0], sides[1]

    async def differences_of(self, name: str, steps: Steps) -> list[Difference]:
        """What differs in the answers to a conversation."""
        sides = await self.heard(steps)
        shown = [[one.shown() for one in heard] for heard in sides]
        return [
            Difference(name, f"connection {number}", first, second)
            for number, (first, second) in enumerate(zip(*shown, strict=True), start=1)
            if first != second
        ]

    async def differences_stored(self, name: str) -> list[Difference]:
        """What differs in the databases."""
        return _differences_between(name, await self.first.stored(), await self.second.stored())

    def differences_left(self, name: str) -> list[Difference]:
        """What differs in the databases of servers that have stopped."""
        return _differences_between(name, self.first.left(), self.second.left())

    async def differences_shown(self, name: str) -> list[Difference]:
        """What differs in the status."""
        for side in (self.first, self.second):
            side.clock.advance(1000.0)  # no rate is in the way
        first, second = [await side.status() for side in (self.first, self.second)]
        return [
            Difference(name, f"status {key}", first.get(key), second.get(key))
            for key in sorted(first.keys() | second.keys())
            if first.get(key) != second.get(key)
        ]


def _nothing(database: sqlite3.Connection) -> None:
    """Asked for to come behind all else."""


def _limits_by(clock: StandingClock, most: Most, monotonic: Callable[[], float]) -> Limits:
    return Limits(most, clock.told)


def _no_hold(holds: Holds, name: Hashable, now: float) -> float:
    """How long a refused socket is held, which depends on how fast others were refused before."""
    return 0.0


def _rows(tables: Sequence[str], database: sqlite3.Connection) -> Tables:
    return {table: sorted(database.execute(f"SELECT * FROM {table}"), key=repr) for table in tables}


def _differences_between(name: str, first: Tables, second: Tables) -> list[Difference]:
    return [
        Difference(
            name,
            f"table {table}",
            [row for row in first[table] if row not in second[table]],
            [row for row in second[table] if row not in first[table]],
        )
        for table in first
        if first[table] != second[table]
    ]


@asynccontextmanager
async def running_pair(
    directory: Path,
    settings: Mapping[str, Any],
    otherwise: Way = without_the_short_way,
    *,
    is_hasty: bool = False,
) -> AsyncIterator[Pair]:
    """Two servers with these settings, of which the second one is otherwise; both begin with the same diagnoses.

    Args:
        is_hasty: they wait for the bytes of a request for less than a second.
    """
    now = trio.current_time()
    async with AsyncExitStack() as stack:
        if is_hasty:
            stack.enter_context(patch.object(composition, "Patience", HASTY))
            stack.enter_context(patch.object(bodies, "BODY_SECONDS_MAX", HASTY_BODY_SECONDS_MAX))
        first, second = [
            await stack.enter_async_context(
                running_side(way(Settings(port=0, data=directory / name, durability="normal", **settings)), now)
            )
            for name, way in (("first", lambda settings: settings), ("second", otherwise))
        ]
        yield Pair(first, second)


@asynccontextmanager
async def running_side(settings: Settings, now: float) -> AsyncIterator[Side]:
    """A server with these settings, the key of `people.py`, and a clock that begins at this time of Trio's."""
    settings.data.mkdir(mode=0o700, parents=True)
    (settings.data / KEY_FILE).write_bytes(KEY)
    (settings.data / KEY_FILE).chmod(0o600)
    clock, stores = StandingClock(now), list[SqliteStore]()
    with (
        patch.object(composition, "Limits", partial(_limits_by, clock)),
        patch.object(Holds, "seconds", _no_hold),
    ):
        async with running_server(settings, clock, engine=_engine(stores)) as server:
            await _prepare(server)
            yield Side(server, int(server.url.rpartition(":")[2]), clock, stores)


def _engine(opened: list[SqliteStore]) -> composition.Engine:
    """Opens a database whose epochs are numbered, so that two of them are equal."""
    epochs = (f"{number:016x}" for number in itertools.count(1))

    @asynccontextmanager
    async def open_(settings: Settings, clock: Clock) -> AsyncIterator[tuple[Store, Bus]]:
        path = settings.data / DATABASE_FILE
        async with open_store(
            path, clock=clock, new_epoch=epochs.__next__, durability=settings.durability, rows=AUDIT_ROWS
        ) as store:
            opened.append(store)
            yield store, NoBus()

    return open_


async def _prepare(server: Server) -> None:
    """Register what the conversations are about: 42 of doctor-1, whom patient-1 follows, and 43 of doctor-2."""
    headers = {"Authorization": bearer("op", "operate")}
    for diagnosis_id, owner, viewers in ((42, "doctor-1", ["patient-1"]), (43, "doctor-2", [])):
        body = {"owner": owner, "viewers": viewers}
        answer = await server.http.put(f"/diagnoses/{diagnosis_id}", json=body, headers=headers)
        assert answer.status_code == 201, answer.text
    with trio.fail_after(10):
        assert json.loads((await server.http.get("/ws/status", headers=headers)).content)["total_diagnoses"] == 2
