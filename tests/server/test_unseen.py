"""Subscribers that nobody has seen for 30 days: forgotten once a day, whether or not their diagnosis is in memory."""

from __future__ import annotations

from trio.testing import MockClock

from actors.messages import Inspect
from actors.roster import UNSEEN_SECONDS_MAX
from storage.belief import EVEN_SECONDS
from storage.records import CursorMove, Seq, SubscriberId
from tests.actors.world import settled_cursors
from tests.server.test_retention import DAY, Reader, Room, housekeeper, room
from web.server.settings import Settings


def leave(reader: Reader) -> None:
    assert reader.subscriber is not None
    reader.subscriber.detach()


async def known(there: Room) -> list[str | None]:
    """The subscribers the store knows, once all that waits is done and stored."""
    if there.registry.statistics().actors:
        await there.registry.ask("d", Inspect())
    await settled_cursors(there.registry)
    return [one.subscriber.sub for one in await there.store.cursors("d")]


async def test_a_diagnosis_that_is_always_followed_forgets_who_never_came_back(autojump_clock: MockClock) -> None:
    async with room() as there:
        house = housekeeper(there, Settings())
        await there.follow("amira")
        leave(await there.follow("bo", device="lost"))
        await house.tidy()
        there.clock.now += UNSEEN_SECONDS_MAX - 1
        await house.tidy()
        assert await known(there) == ["amira", "bo"]
        there.clock.now += DAY
        await house.tidy()
        assert await known(there) == ["amira"]
        (cursor,) = await there.store.cursors("d")
        assert cursor.seen_at == there.clock.now, "whoever is connected is seen"


async def test_diagnoses_that_rest_lose_them_too_and_are_not_woken(autojump_clock: MockClock) -> None:
    async with room() as there:
        for reader in (await there.follow("amira"), await there.follow("bo")):
            leave(reader)
        await there.registry.stop("d")
        ids = [f"ward-{number}" for number in range(150)]
        for diagnosis_id in ids:
            epoch = (await there.store.register(diagnosis_id, "amira", [])).diagnosis.epoch
            move = CursorMove(diagnosis_id, SubscriberId("bo", None), epoch, Seq(0), there.clock.now)
            await there.store.move_cursors([move])
        house = housekeeper(there, Settings())
        there.clock.now += UNSEEN_SECONDS_MAX - 1
        await house.tidy()
        assert len(await known(there)) == 2
        there.clock.now += DAY
        await house.tidy()
        assert there.registry.statistics().actors == 0
        for diagnosis_id in ("d", *ids):
            assert await there.store.cursors(diagnosis_id) == []


async def test_nobody_is_forgotten_by_a_clock_that_is_not_believed(autojump_clock: MockClock) -> None:
    async with room() as there:
        house = housekeeper(there, Settings())
        await there.follow("amira")
        leave(await there.follow("bo"))
        await house.tidy()
        there.clock.wrong_by = 40 * DAY
        await house.tidy()
        await there.registry.stop("d")
        assert (await known(there)) == ["amira", "bo"]
        there.clock.wrong_by = 0.0
        there.clock.now += EVEN_SECONDS
        await house.tidy()
        assert await known(there) == ["amira", "bo"]


async def test_it_is_judged_as_soon_as_a_clock_is_believed_again(autojump_clock: MockClock) -> None:
    async with room() as there:
        house = housekeeper(there, Settings())
        leave(await there.follow("bo"))
        there.clock.now += UNSEEN_SECONDS_MAX
        there.clock.wrong_by = 2 * DAY
        await house.tidy()
        assert await known(there) == ["bo"]
        there.clock.now += EVEN_SECONDS - 1
        await house.tidy()
        assert await known(there) == ["bo"]
        there.clock.now += 1
        await house.tidy()
        assert await known(there) == []
