"""What a position in the ring is due."""

from __future__ import annotations

from actors.reading import Live, RenderedEvent, take
from actors.ring import Gap, Ring
from storage.records import Epoch, Seq, Window


def _ring(*, floor: int, head: int) -> Ring:
    ring = Ring(Window(Epoch("e"), Seq(floor), Seq(floor), Seq(0)))
    for seq in range(floor + 1, head + 1):
        ring.append(Seq(seq), b"%d" % seq)
    return ring


def _event(seq: int) -> RenderedEvent:
    return RenderedEvent(Seq(seq), b"%d" % seq)


def test_live_comes_right_behind_the_event_that_completes_the_replay() -> None:
    taken = take(_ring(floor=0, head=3), Seq(1), Seq(2), 10)
    assert taken == ([_event(2), Live(Seq(2)), _event(3)], 3, 0, None)


def test_live_waits_until_the_replay_is_complete() -> None:
    assert take(_ring(floor=0, head=3), Seq(0), Seq(3), 2) == ([_event(1), _event(2)], 2, 0, 3)


def test_a_gap_comes_first_and_counts_for_no_event() -> None:
    taken = take(_ring(floor=4, head=6), Seq(1), None, 1)
    assert taken == ([Gap(Seq(2), Seq(4), purged=False), _event(5)], 5, 3, None)


def test_a_gap_over_the_end_of_the_replay_completes_it() -> None:
    taken = take(_ring(floor=4, head=5), Seq(1), Seq(3), 10)
    assert taken == ([Gap(Seq(2), Seq(4), purged=False), Live(Seq(3)), _event(5)], 5, 3, None)


def test_a_gap_up_to_the_head_leaves_no_event() -> None:
    taken = take(_ring(floor=4, head=4), Seq(1), Seq(3), 10)
    assert taken == ([Gap(Seq(2), Seq(4), purged=False), Live(Seq(3))], 4, 3, None)


def test_who_is_in_step_and_live_is_due_nothing() -> None:
    assert take(_ring(floor=0, head=3), Seq(3), None, 10) == ([], 3, 0, None)
