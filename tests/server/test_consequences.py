"""What follows from an act, when only a store tells of it: no request here asks for anything."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
import trio
from trio.testing import MockClock

from actors.access_trail import AccessTrail
from actors.messages import Inspect, Subscribe, Trace
from actors.registry import Registry
from actors.resume import Wanted
from actors.ring import Gap
from actors.roster import Subscriber
from actors.slot import ActorLimits
from actors.transport import Ending
from actors.which import OfUser
from storage.changes import TokensRevoked
from storage.errors import Busy, Failed
from storage.memory import MemoryStore
from storage.memory_engine import MemoryEngine
from storage.records import AccessRow, Act, Erasure, NewEvent, Revocation, Seq, SubscriberId
from tests.actors.world import Reader, WorldClock, anybody, memory_store, render
from web.contract.principals import ANONYMOUS, Principal
from web.identity.revoked import Revoked
from web.operating.consequences import Consequences

ISSUED_AT = 1_000_000.0


class There:
    """A store that others write, too, and the actors' room that hears of it."""

    def __init__(self, store: MemoryStore, registry: Registry, trail: AccessTrail, revoked: Revoked) -> None:
        self.store, self.registry, self.trail, self.revoked = store, registry, trail, revoked
        self.consequences: Consequences

    async def follow(
        self,
        sub: str | None,
        diagnosis_id: str = "d",
        token_id: str | None = None,
        *,
        peeks: bool = False,
        issued_at: float = ISSUED_AT,
    ) -> Reader:
        who = ANONYMOUS if sub is None else Principal(sub, frozenset(), issued_at + 3600, token_id, issued_at)
        reader = Reader()
        reader.subscriber = Subscriber(SubscriberId(sub, None), who, reader)
        await self.registry.ask(diagnosis_id, Subscribe(reader.subscriber, Wanted(), anybody, peeks))
        reader.wake()
        return reader

    async def accesses(self) -> Sequence[AccessRow]:
        await self.trail.flush()
        return await self.store.accesses()


@asynccontextmanager
async def there_is(store: MemoryStore | None = None) -> AsyncIterator[There]:
    clock, store, revoked = WorldClock(), store or memory_store(), Revoked()
    trail = AccessTrail(store, clock)
    async with trio.open_nursery() as nursery:
        registry = Registry(
            store, nursery, render=render, clock=clock, jitter=lambda: 0.5, limits=ActorLimits(), trail=trail
        )
        there = There(store, registry, trail, revoked)
        there.consequences = Consequences(store, registry, revoked, nursery, now=clock.wall, anonymous_allowed=True)
        store.tell(there.consequences)
        await nursery.start(registry.run)
        nursery.start_soon(trail.run)
        await store.register("d", "amira", ["bo", "cyrus"])
        yield there
        nursery.cancel_scope.cancel()


async def test_whoever_lost_the_right_is_ended_and_nobody_else(autojump_clock: MockClock) -> None:
    async with there_is() as there:
        amira, bo, cyrus, anonymous = [await there.follow(sub) for sub in ("amira", "bo", "cyrus", None)]
        await there.store.register("d", "cyrus", ["amira"])
        await there.consequences.settled()
        assert bo.ending is Ending.VIEWER_REMOVED
        assert (amira.ending, cyrus.ending, anonymous.ending) == (None, None, None)


async def test_a_deletion_ends_the_old_connections_and_none_of_a_new_registration(autojump_clock: MockClock) -> None:
    async with there_is() as there:
        old = await there.follow("amira")
        await there.store.delete("d")
        await there.store.register("d", "amira", [])
        new = await there.follow("amira")
        await there.consequences.settled()
        assert (old.ending, new.ending) == (Ending.DELETED, None)
        assert there.registry.connections == {"d": 1}


async def test_a_revocation_ends_whom_it_covers_wherever(autojump_clock: MockClock) -> None:
    async with there_is() as there:
        await there.store.register("e", "bo", [])
        bo, amira, elsewhere = await there.follow("bo"), await there.follow("amira"), await there.follow("bo", "e")
        stolen, other = [await there.follow("amira", token_id=token) for token in ("stolen", "other")]
        await there.store.revoke(sub="bo", leeway_seconds=10)
        await there.store.revoke(token_id="stolen")
        await there.consequences.settled()
        assert [one.ending for one in (bo, elsewhere, stolen)] == [Ending.REVOKED] * 3
        assert [one.ending for one in (amira, other)] == [None, None]


async def test_a_revocation_covers_a_token_that_is_from_the_future_since_the_clock_was_set_back(
    autojump_clock: MockClock,
) -> None:
    async with there_is() as there:
        bo = await there.follow("bo", issued_at=WorldClock().wall() + 86_400)
        await there.store.revoke(sub="bo", leeway_seconds=10)
        await there.consequences.settled()
        assert bo.ending is Ending.REVOKED


async def test_a_revocation_holds_in_the_stretch_in_which_it_is_told_and_goes_when_it_is_lifted(
    autojump_clock: MockClock,
) -> None:
    async with there_is() as there:
        made = Revocation(7, "bo", None, ISSUED_AT, ISSUED_AT)
        there.consequences.changed(TokensRevoked(2, made))
        assert there.revoked.covering("bo", None, ISSUED_AT) == made
        stored = (await there.store.revoke(sub="cyrus")).revocation
        assert there.revoked.covering("cyrus", None, None) == stored
        await there.store.lift_revocation(stored.number)
        assert there.revoked.covering("cyrus", None, None) is None


async def test_a_purge_by_somebody_else_reaches_an_actor_in_memory(autojump_clock: MockClock) -> None:
    async with there_is() as there:
        late = await there.follow("amira")
        late.slow = True
        there.store.append_nowait("d", [NewEvent("k", b"1"), NewEvent("k", b"2")])
        await there.registry.restart("d")
        await there.registry.ask("d", Inspect())
        await there.store.purge("d")
        assert (await there.registry.ask("d", Inspect())).floor == 2
        late.take()
        assert late.got[-1] == Gap(Seq(1), Seq(2), purged=True)


async def test_whoever_is_erased_is_ended_and_forgotten_and_what_it_left_can_be_erased_then(
    autojump_clock: MockClock,
) -> None:
    erasure = Erasure("bo", "[erased]", ["bo"])
    async with there_is() as there:
        bo, amira = await there.follow("bo"), await there.follow("amira")
        await there.store.erase(erasure, Act("op", "subject.erase"))
        await there.consequences.settled()
        assert (bo.ending, amira.ending) == (Ending.DISCONNECTED, None)
        known = [one.subscriber.sub for one in await there.registry.ask("d", Trace(Seq(1)))]
        assert known == ["amira"]
        # As the handler does it.
        assert there.registry.erase(OfUser("bo"), "[erased]") == 0
        await there.store.erase(erasure)
        await trio.sleep(2)
        assert [one.subscriber.sub for one in await there.store.cursors("d")] == ["amira"]
        rows = [(row.what, row.subscriber.sub) for row in await there.accesses()]
        assert rows == [("disconnect", "[erased]"), ("connect", "amira"), ("connect", "[erased]")]


async def test_what_the_connections_of_an_erased_person_left_is_erased_where_another_process_was_asked(
    autojump_clock: MockClock,
) -> None:
    engine = MemoryEngine(clock=WorldClock(), new_epoch=lambda: "epoch", shared=True)
    other, here = MemoryStore(engine, "other"), MemoryStore(engine, "here")
    async with there_is(here) as there:
        bo, amira = await there.follow("bo"), await there.follow("amira")
        there.registry.acknowledge(bo.subscriber, Seq(0), "app")
        await other.erase(Erasure("bo", "[erased]", ["bo"]), Act("op", "subject.erase"))
        await trio.sleep(5)
        assert (bo.ending, amira.ending) == (Ending.DISCONNECTED, None)
        assert [one.subscriber.sub for one in await other.cursors("d")] == ["amira"]
        assert {row.subscriber.sub for row in await there.accesses()} == {"[erased]", "amira"}


async def test_what_an_erased_person_left_is_erased_as_soon_as_the_store_is_back(autojump_clock: MockClock) -> None:
    engine = MemoryEngine(clock=WorldClock(), new_epoch=lambda: "epoch", shared=True)
    other, here = MemoryStore(engine, "other"), MemoryStore(engine, "here")
    async with there_is(here) as there:
        bo = await there.follow("bo")
        refusals, inner = [Busy("not now"), Failed("not now")], here.erase

        async def erase(*args: Any) -> Any:
            if refusals:
                raise refusals.pop()
            return await inner(*args)

        here.erase = erase  # type: ignore[assignment,method-assign]
        await other.erase(Erasure("bo", "[erased]", ["bo"]), Act("op", "subject.erase"))
        await trio.sleep(10)
        assert (bo.ending, refusals) == (Ending.DISCONNECTED, [])
        assert await other.cursors("d") == []
        assert {row.subscriber.sub for row in await there.accesses()} == {"[erased]"}


async def test_rows_that_waited_while_the_store_was_away_do_not_bring_a_name_back(autojump_clock: MockClock) -> None:
    engine = MemoryEngine(clock=WorldClock(), new_epoch=lambda: "epoch", shared=True)
    other, here = MemoryStore(engine, "other"), MemoryStore(engine, "here")
    async with there_is(here) as there:
        bo = await there.follow("bo", peeks=True)
        here.go_away()
        bo.leave()
        await other.erase(Erasure("bo", "[erased]", ["bo"]), Act("op", "subject.erase"))
        here.come_back()
        await trio.sleep(10)
        rows = [(row.what, row.subscriber.sub) for row in await there.accesses()]
        assert rows == [("disconnect", "[erased]"), ("connect", "[erased]")]


async def test_an_act_that_is_stored_after_the_server_has_ended_is_told_and_nothing_follows(
    autojump_clock: MockClock,
) -> None:
    async with there_is() as there:
        await there.store.register("d", "amira", ["bo"])
    await there.store.revoke(sub="bo")
    await there.store.delete("d")
    assert there.revoked.covering("bo", None, ISSUED_AT) is not None
    await there.consequences.settled()


async def test_the_answer_of_an_act_comes_after_all_that_follows(autojump_clock: MockClock) -> None:
    async with there_is() as there:
        await there.store.register("d", "amira", [f"user-{number}" for number in range(300)])
        readers = [await there.follow(f"user-{number}") for number in range(300)]
        await there.store.register("d", "amira", [])
        assert [one for one in readers if one.ending is None], "they take turns"
        await there.consequences.settled()
        assert {one.ending for one in readers} == {Ending.VIEWER_REMOVED}


async def test_a_revocation_that_is_lifted_ends_nobody_more(autojump_clock: MockClock) -> None:
    async with there_is() as there:
        readers = [await there.follow("bo") for _ in range(300)]
        made = (await there.store.revoke(sub="bo", leeway_seconds=10)).revocation
        while readers[0].ending is None:
            await trio.lowlevel.checkpoint()
        await there.store.lift_revocation(made.number)
        await there.consequences.settled()
        assert readers[0].ending is Ending.REVOKED
        assert readers[-1].ending is None


async def test_where_acts_may_have_been_missed_all_connections_are_judged_by_what_holds_now(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with there_is() as there:
        await there.store.register("e", "amira", [])
        bo, amira, cyrus = [await there.follow(sub) for sub in ("bo", "amira", "cyrus")]
        elsewhere = await there.follow("amira", "e")
        with monkeypatch.context() as deaf:
            deaf.setattr(there.consequences, "changed", lambda change: None)
            await there.store.register("d", "amira", ["cyrus"])
            await there.store.revoke(sub="cyrus", leeway_seconds=10)
            await there.store.delete("e")
        refused = iter([Busy("not now")])
        inner = there.store.revocations

        async def revocations(**kwargs: Any) -> Any:
            for refusal in refused:
                raise refusal
            return await inner(**kwargs)

        monkeypatch.setattr(there.store, "revocations", revocations)
        there.consequences.missed()
        await there.consequences.carried_out()
        endings = [bo.ending, cyrus.ending, elsewhere.ending, amira.ending]
        assert endings == [Ending.VIEWER_REMOVED, Ending.REVOKED, Ending.DELETED, None]
        assert there.revoked.covering("cyrus", None, ISSUED_AT) is not None


async def test_a_consequence_that_fails_is_logged_and_holds_nothing_up(
    autojump_clock: MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    async with there_is() as there:
        bo, cyrus = await there.follow("bo"), await there.follow("cyrus")
        bo.subscriber.principal = None
        await there.store.revoke(sub="bo")
        await there.consequences.settled()
        await there.store.register("e", "amira", [])
        bo.leave()
        await there.store.revoke(sub="cyrus", leeway_seconds=10)
        await there.consequences.settled()
        assert cyrus.ending is Ending.REVOKED
    assert "what follows from an act failed unexpectedly: AssertionError" in caplog.text
