"""Following: what a connection gets, and what it is told it cannot get."""

from __future__ import annotations

import pytest
from trio.testing import MockClock

from actors.messages import Purge
from actors.reading import Live
from actors.resume import Resume, Wanted
from actors.ring import Gap
from storage.records import Act, Seq
from tests.actors.world import Reader, World, anybody


async def test_live_comes_once_after_the_replay(autojump_clock: MockClock, small: World) -> None:
    for _ in range(3):
        await small.publish()
    reader = Reader()
    await small.connect(reader)
    await small.publish()
    kinds = [type(one).__name__ for one in reader.got]
    assert kinds == ["RenderedEvent"] * 3 + ["Live", "RenderedEvent"]
    assert reader.got[3] == Live(Seq(3))


async def test_live_stands_where_the_head_was_even_if_more_has_come_meanwhile(
    autojump_clock: MockClock, small: World
) -> None:
    await small.publish()
    reader = Reader()
    reader.slow = True
    await small.connect(reader)
    await small.publish()
    reader.take()
    assert [type(one).__name__ for one in reader.got] == ["RenderedEvent", "Live", "RenderedEvent"]


@pytest.mark.guarantee(3)
async def test_a_slow_reader_catches_up_from_its_position(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await small.connect(reader)
    reader.slow = True
    for _ in range(100):
        await small.publish()
    reader.take()
    assert reader.numbers == list(range(1, 101))


@pytest.mark.guarantee(4)
async def test_a_reader_more_than_a_hundred_behind_is_told_the_exact_gap_in_mid_stream(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    await small.connect(reader)
    await small.publish()
    reader.slow = True
    for _ in range(140):
        await small.publish()
    reader.take()
    reader.slow = False
    await small.publish()
    assert [one for one in reader.got if isinstance(one, Gap)] == [Gap(Seq(2), Seq(41), purged=False)]
    assert reader.accounted == list(range(1, 143))
    assert reader.ending is None


@pytest.mark.guarantee(7)
async def test_a_reader_that_never_reads_delays_nobody(autojump_clock: MockClock, small: World) -> None:
    stuck, lively = Reader("stuck"), Reader("lively")
    stuck.slow = True
    await small.connect(stuck)
    await small.connect(lively)
    for _ in range(300):
        await small.publish()
    assert lively.numbers == list(range(1, 301))


@pytest.mark.guarantee(4)
async def test_the_promise_online_away_and_new(autojump_clock: MockClock, small: World) -> None:
    """A and B are online, C is away since 40; 140 more events come; C returns, D is new."""
    a, b, c = Reader("a"), Reader("b"), Reader("c")
    for reader in (a, b, c):
        await small.connect(reader)
    for _ in range(40):
        await small.publish()
    small.acknowledge(c, 40)
    c.leave()
    for _ in range(140):
        await small.publish()
    assert a.numbers == b.numbers == list(range(1, 181))

    back = Reader("c")
    admission = await small.connect(back)
    assert (admission.plan.resume, admission.plan.missed, admission.plan.queued) == (Resume.PARTIAL, 40, 100)
    assert back.got[0] == Gap(Seq(41), Seq(80), purged=False)
    assert (back.numbers, back.got[-1]) == (list(range(81, 181)), Live(Seq(180)))

    new = Reader("d")
    admission = await small.connect(new)
    assert (admission.plan.resume, admission.window.floor, admission.plan.missed) == (Resume.FRESH, 80, 0)
    assert (new.numbers, new.got[-1]) == (list(range(81, 181)), Live(Seq(180)))


async def test_a_purge_opens_an_exact_gap_for_a_reader_that_lags(autojump_clock: MockClock, small: World) -> None:
    reader = Reader()
    await small.connect(reader)
    reader.slow = True
    for _ in range(5):
        await small.publish()
    await small.registry.ask("d", Purge(Act("op", "outbox.purge"), anybody))
    await small.publish()
    reader.take()
    assert reader.got[1:2] == [Gap(Seq(1), Seq(5), purged=True)]
    assert reader.accounted == [1, 2, 3, 4, 5, 6]


async def test_a_reader_that_left_while_it_was_admitted_is_not_attached(
    autojump_clock: MockClock, small: World
) -> None:
    reader = Reader()
    reader.leave()
    await small.connect(reader, Wanted())
    assert small.actor().connections == 0
