"""Data about people: events that grow old, who followed what, and the erasure of a person."""

from __future__ import annotations

import itertools
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from urllib.parse import quote

import pytest
import trio
from trio.testing import MockClock

from actors.access_trail import WAITING_MAX, AccessTrail
from actors.messages import Inspect, Publish, Subscribe
from actors.reading import Due, RenderedEvent
from actors.registry import Registry
from actors.resume import Wanted
from actors.ring import Gap
from actors.roster import Subscriber
from actors.slot import ActorLimits
from actors.transport import Burst, Ending
from storage.errors import Busy
from storage.memory import MemoryStore
from storage.memory_engine import MemoryEngine
from storage.records import DAY_SECONDS, AccessRow, AuditRow, Epoch, Erasure, NewEvent, Seq, SubscriberId, Window
from storage.sqlite.opening import open_store
from tests.actors.world import anybody
from tests.server.harness import Server, running_server
from tests.server.test_broadcasts import assert_problem
from tests.storage.conftest import ManualClock
from web.contract.wire import render_event
from web.identity.revoked import Revoked
from web.operating.audit_rows import ERASED, spellings_of, without_name
from web.operating.consequences import Consequences
from web.operating.housekeeping import Housekeeper
from web.server.settings import DATABASE_FILE, Settings

DAY = float(DAY_SECONDS)


class Reader:
    """A transport that reads the ring whenever it is told to."""

    def __init__(self) -> None:
        self.due: list[Due] = []
        self.ending: Ending | None = None
        self.subscriber: Subscriber | None = None

    def wake(self) -> None:
        assert self.subscriber is not None
        self.due.extend(self.subscriber.take(100))

    def feed(self, burst: Burst) -> bool:
        self.wake()
        return True

    def acknowledged(self, seq: Seq) -> None:
        pass

    def end(self, ending: Ending) -> None:
        self.ending = ending


class Room:
    """The actors' room over a store in memory, and a clock a test can move."""

    def __init__(self, store: MemoryStore, registry: Registry, trail: AccessTrail, clock: ManualClock) -> None:
        self.store, self.registry, self.trail, self.clock = store, registry, trail, clock

    async def publish(self, count: int) -> None:
        for _ in range(count):
            await self.registry.ask("d", Publish(NewEvent("feedback_update", b"{}"), anybody))

    async def follow(self, sub: str, after: int | None = None, device: str | None = None) -> Reader:
        reader = Reader()
        reader.subscriber = Subscriber(SubscriberId(sub, device), None, reader)
        wanted = Wanted(None if after is None else Seq(after))
        await self.registry.ask("d", Subscribe(reader.subscriber, wanted, anybody))
        reader.wake()
        return reader

    async def rows(self) -> list[AccessRow]:
        await self.trail.flush()
        return list(reversed(await self.store.accesses()))


@asynccontextmanager
async def room() -> AsyncIterator[Room]:
    clock = ManualClock()
    names = (f"epoch-{number}" for number in itertools.count())
    store = MemoryStore(MemoryEngine(clock=clock, new_epoch=lambda: next(names)))
    await store.register("d", "amira", ["bo"])
    trail = AccessTrail(store, clock)
    async with trio.open_nursery() as nursery:
        registry = Registry(
            store, nursery, render=render_event, clock=clock, jitter=lambda: 0.5, limits=ActorLimits(), trail=trail
        )
        await nursery.start(registry.run)
        store.tell(Consequences(store, registry, Revoked(), nursery, now=clock.wall, anonymous_allowed=False))
        nursery.start_soon(trail.run)
        yield Room(store, registry, trail, clock)
        nursery.cancel_scope.cancel()


def housekeeper(there: Room, settings: Settings) -> Housekeeper:
    return Housekeeper(settings, there.store, there.registry, there.clock)


@pytest.mark.guarantee(4)
async def test_old_events_go_and_readers_are_told_exactly_which(autojump_clock: MockClock) -> None:
    async with room() as there:
        await there.publish(3)
        lagging, live = await there.follow("amira", after=0), await there.follow("bo")
        there.clock.now += 2 * DAY
        await there.publish(2)
        await housekeeper(there, Settings(events_kept_days=1)).tidy()
        window = await there.registry.ask("d", Inspect())
        assert (window.head, window.floor) == (5, 3)
        back = await there.follow("amira", after=1)
        await there.publish(1)
    assert back.due[0] == Gap(Seq(2), Seq(3), purged=False)
    assert [one.seq for one in back.due if isinstance(one, RenderedEvent)] == [4, 5, 6]
    for reader in (lagging, live):
        assert not any(isinstance(one, Gap) for one in reader.due)
        assert [one.seq for one in reader.due if isinstance(one, RenderedEvent)] == [1, 2, 3, 4, 5, 6]


async def test_an_actor_that_rests_reads_what_is_left(autojump_clock: MockClock) -> None:
    async with room() as there:
        await there.publish(3)
        await there.registry.stop("d")
        there.clock.now += 2 * DAY
        await housekeeper(there, Settings(events_kept_days=1)).tidy()
        assert there.registry.statistics().actors == 0
        assert await there.registry.ask("d", Inspect()) == Window(Epoch("epoch-0"), Seq(3), Seq(3), Seq(0))
        await there.publish(1)
        assert (await there.registry.ask("d", Inspect())).head == 4


async def test_without_a_setting_nothing_grows_too_old(autojump_clock: MockClock) -> None:
    async with room() as there:
        await there.publish(3)
        await there.follow("amira")
        there.clock.now += 1000 * DAY
        await housekeeper(there, Settings()).tidy()
        assert (await there.registry.ask("d", Inspect())).floor == 0
        assert len(await there.rows()) == 1


async def test_rows_of_both_trails_grow_old(autojump_clock: MockClock) -> None:
    async with room() as there:
        reader = await there.follow("amira")
        assert len(await there.rows()) == 1
        there.clock.now += 3 * DAY
        assert reader.subscriber is not None
        reader.subscriber.detach()
        assert len(await there.rows()) == 2
        await housekeeper(there, Settings(access_trail_kept_days=2, audit_kept_days=2)).tidy()
        assert [row.what for row in await there.rows()] == ["disconnect"]


async def test_the_access_trail_says_who_followed_what_from_when_to_when(autojump_clock: MockClock) -> None:
    async with room() as there:
        first = await there.follow("amira", device="phone")
        there.clock.now += 5
        await there.follow("amira", device="phone")
        assert first.ending is Ending.REPLACED
        there.clock.now += 5
        await there.registry.end_all()
        shown = [(row.at - there.clock.now, row.what, row.diagnosis_id, row.subscriber) for row in await there.rows()]
    phone = SubscriberId("amira", "phone")
    assert shown == [
        (-10, "connect", "d", phone),
        (-5, "disconnect", "d", phone),
        (-5, "connect", "d", phone),
        (0, "disconnect", "d", phone),
    ]


async def test_a_store_that_refuses_gets_the_rows_later(autojump_clock: MockClock) -> None:
    async with room() as there:
        await there.follow("amira")
        refusals = iter([Busy("full"), Busy("full")])

        def refuse() -> None:
            if (refusal := next(refusals, None)) is not None:
                raise refusal

        there.store.before_change = refuse
        assert [row.what for row in await there.rows()] == ["connect"]


async def test_rows_that_wait_are_bounded() -> None:
    trail = AccessTrail(MemoryStore(MemoryEngine(clock=ManualClock(), new_epoch=str)), ManualClock())
    subscriber = Subscriber(SubscriberId("amira", None), None, Reader())
    for _ in range(WAITING_MAX + 5):
        trail.note("connect", "d", subscriber)
    with trio.fail_after(60):
        async with trio.open_nursery() as nursery:
            nursery.start_soon(trail.run)
            await trail.flush()
            nursery.cancel_scope.cancel()


async def test_connections_of_a_server_leave_rows_and_survive_its_end(settings: Settings) -> None:
    keeping = Settings(port=0, data=settings.data, access_trail=True)
    async with running_server(keeping) as server:
        await server.register()
        async with server.live(device="phone"):
            server.stop()
    async with open_store(settings.data / DATABASE_FILE, clock=ManualClock(), new_epoch=str) as store:
        rows = await store.accesses()
    assert [(row.what, row.subscriber) for row in rows] == [
        ("disconnect", SubscriberId("amira", "phone")),
        ("connect", SubscriberId("amira", "phone")),
    ]


async def erase(server: Server, sub: str) -> dict[str, object]:
    answer = await server.http.delete(f"/subjects/{quote(sub, safe='')}", headers=server.bearer("op", "operate"))
    assert answer.status_code == 200, answer.text
    found: dict[str, object] = answer.json()
    return found


@pytest.mark.parametrize("sub", ["bogdana", 'bo/../"o\'brien"?', "بو علی", "owner"])
async def test_an_erased_person_is_nowhere_in_the_database(settings: Settings, sub: str, way: str) -> None:
    keeping = Settings(port=0, data=settings.data, access_trail=True)
    async with running_server(keeping) as server:
        await server.register(42, "amira", sub)
        await server.register("own", sub)
        await server.register("42", "amira", sub, "cyrus")
        async with server.live(sub=sub, device="phone") as client, server.live() as other:
            erased = await erase(server, sub)
            # Rows that wait at another worker are written without the name, and are not counted.
            assert erased.pop("access_rows") == 2 or way == "workers"
            assert erased == {
                "connections": 1,
                "cursors": 1,
                "viewer_entries": 1,
                "audit_rows": 3,
                "owned": ["own"],
                "owned_total": 1,
            }
            _, code, reason = await client.close_frames()
            assert (code, reason) == (1008, "disconnected by operator")
            await server.publish()
            assert (await other.next())["seq"] == 1
        assert (await server.http.get("/diagnoses/42/position", headers=server.bearer(sub))).status_code == 403
        await server.http.delete("/diagnoses/own", headers=server.bearer("registrar", "register"))
        assert (await erase(server, sub))["owned"] == []
    async with open_store(settings.data / DATABASE_FILE, clock=ManualClock(), new_epoch=str) as store:
        audit, accesses = await store.audit(), await store.accesses()
    assert [(row.who, row.target) for row in audit if row.what == "subject.erase"] == [("op", ERASED)] * 2
    values = {value for row in audit for value in (row.who, row.target, row.before, row.after)}
    assert not any(sub in str(value) for value in values if sub != "owner")
    assert '{"owner":"[erased]","viewers":[]}' in values
    assert {row.subscriber.sub for row in accesses} == {ERASED, "amira"}
    files = [path for path in Path(settings.data).iterdir() if path.name.startswith(DATABASE_FILE)]
    assert sub == "owner" or not any(sub.encode() in path.read_bytes() for path in files)


async def test_an_erased_person_may_come_back_as_somebody_unknown(server: Server) -> None:
    await server.register(42, "amira", "bo")
    for number in range(3):
        await server.publish(number)
    async with server.live(sub="bo", ack="app") as client:
        await client.say(type="ack", seq=3)
        await client.next_of("acked")
    await erase(server, "bo")
    await server.register(42, "amira", "bo")
    async with server.connect(sub="bo", ack="app") as client:
        assert (await client.until_live())[0]["data"]["resume"] == "fresh"


async def test_an_operator_can_erase_itself(server: Server, settings: Settings) -> None:
    await server.register()
    await erase(server, "op")
    await server.publish()


async def test_erasing_needs_the_scope(server: Server) -> None:
    assert_problem(await server.http.delete("/subjects/bo"), 401, "unauthenticated")
    assert_problem(await server.http.delete("/subjects/bo", headers=server.bearer("bo", "register")), 403, "forbidden")


def test_an_audit_row_loses_a_name_only_where_it_is_the_name() -> None:
    def row(what: str, target: str, before: str | None) -> AuditRow:
        return AuditRow(1, 1.0, "bo", what, target, before, None)

    def without(sub: str, row: AuditRow) -> AuditRow:
        return without_name(row, Erasure(sub, ERASED, spellings_of(sub)))

    acted = without("bo", row("actor.restart", "bo", '{"state":"bo","bo":"bob"}'))
    assert (acted.who, acted.target, acted.before) == (ERASED, "bo", f'{{"state":"{ERASED}","bo":"bob"}}')
    assert without("bo", row("revocation.add", '{"sub":"bo"}', None)).target == f'{{"sub":"{ERASED}"}}'
    assert without("7", row("revocation.lift", "7", None)).target == "7"
    assert without("bo", row("database.backup", "bo.db", None)).target == "bo.db"
    words = row("epochs.renew", "", "the database was restored from a backup")
    assert without("database", words) == words
    assert spellings_of("bo") == ["bo"]
    assert spellings_of('b"o') == ['b"o', 'b\\"o']
