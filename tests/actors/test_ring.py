"""The ring keeps the newest hundred, by number, and says exactly what is missing."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.ring import Gap, Ring
from storage.records import Epoch, Seq, Window

EMPTY = Window(Epoch("e"), Seq(0), Seq(0), Seq(0))


def filled(count: int) -> Ring:
    ring = Ring(EMPTY)
    for number in range(1, count + 1):
        ring.append(Seq(number), b"%d" % number)
    return ring


def numbers_after(ring: Ring, position: int, limit: int = 1000) -> list[int]:
    return [seq for seq, _ in ring.texts_after(Seq(position), limit)]


def test_a_new_ring_holds_nothing() -> None:
    assert numbers_after(Ring(EMPTY), 0) == []
    assert Ring(EMPTY).gap_after(Seq(0)) is None


def test_the_hundred_and_first_event_evicts_the_first() -> None:
    ring = filled(101)
    assert (ring.floor, ring.head, len(ring)) == (1, 101, 100)
    assert ring.gap_after(Seq(0)) == Gap(Seq(1), Seq(1), purged=False)


def test_an_event_that_skips_a_number_is_refused() -> None:
    with pytest.raises(ValueError, match="cannot follow"):
        filled(3).append(Seq(5), b"")


def test_a_purge_leaves_a_gap_with_its_reason() -> None:
    ring = filled(10)
    ring.raise_floor(Window(Epoch("e"), Seq(10), Seq(10), Seq(10)))
    assert ring.gap_after(Seq(4)) == Gap(Seq(5), Seq(10), purged=True)
    ring.append(Seq(11), b"11")
    assert numbers_after(ring, 4) == [11]


def test_a_gap_that_ends_with_an_evicted_number_is_an_eviction_even_after_a_purge() -> None:
    ring = filled(10)
    ring.raise_floor(Window(Epoch("e"), Seq(10), Seq(10), Seq(10)))
    for number in range(11, 112):
        ring.append(Seq(number), b"")
    assert ring.gap_after(Seq(4)) == Gap(Seq(5), Seq(11), purged=False)


@given(count=st.integers(0, 350), position=st.integers(0, 350), limit=st.integers(1, 120))
def test_gap_and_events_together_are_every_number_above_a_position(count: int, position: int, limit: int) -> None:
    ring = filled(count)
    gap = ring.gap_after(Seq(position))
    missing = list(range(gap.first, gap.last + 1)) if gap else []
    wanted = list(range(position + 1, count + 1))
    got = numbers_after(ring, position, limit)
    assert (missing + got) == wanted[: len(missing) + limit]
    assert all(text == b"%d" % seq for seq, text in ring.texts_after(Seq(position), limit))
