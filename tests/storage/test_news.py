"""News of a log that is written elsewhere: what of it can be put together, and what must be looked up."""

from __future__ import annotations

from storage.news import LOOK, News, merged
from storage.records import Epoch, Event, Seq, Window

EPOCH = Epoch("e")


def news_of(seq: int, epoch: Epoch = EPOCH) -> News:
    """An event was appended."""
    return News(Window(epoch, Seq(seq), Seq(0), Seq(0)), (Event(Seq(seq), 1.0, "k", b"%d" % seq),))


def mark(head: int, floor: int) -> News:
    """A purge."""
    return News(Window(EPOCH, Seq(head), Seq(floor), Seq(floor)))


def numbers(news: News) -> list[int]:
    return [event.seq for event in news.events]


def test_events_that_follow_each_other_are_one_piece_of_news() -> None:
    both = merged(merged(news_of(4), news_of(5)), news_of(6))
    assert (numbers(both), both.window, both.is_whole) == ([4, 5, 6], news_of(6).window, True)


def test_a_mark_behind_events_keeps_them_and_brings_its_floor() -> None:
    both = merged(news_of(4), mark(4, 4))
    assert (numbers(both), both.window, both.is_whole) == ([4], mark(4, 4).window, True)
    assert numbers(merged(both, news_of(5))) == [4, 5]


def test_with_a_hole_they_keep_their_events_and_say_how_far_the_log_has_come() -> None:
    both = merged(merged(news_of(4), news_of(6)), news_of(7))
    assert (numbers(both), both.is_whole, both.window) == ([4, 6, 7], False, news_of(7).window)
    with_mark = merged(both, mark(8, 8))
    assert (numbers(with_mark), with_mark.is_whole, with_mark.window) == ([4, 6, 7], False, mark(8, 8).window)
    assert merged(both, LOOK) == News(both.window, is_whole=False)


def test_a_repetition_and_another_epoch_are_to_be_looked_up() -> None:
    for older, newer in (
        (news_of(4), news_of(4)),
        (news_of(4), news_of(1, Epoch("f"))),
    ):
        both = merged(older, newer)
        assert (both.events, both.is_whole, both.window) == ((), False, newer.window)


def test_news_that_comes_too_late_does_not_take_back_how_far_the_log_has_come() -> None:
    assert merged(news_of(7), news_of(5)) == News(news_of(7).window, is_whole=False)
    assert merged(mark(7, 7), news_of(7)) == News(mark(7, 7).window, is_whole=False)


def test_what_is_to_be_looked_up_stays_so_and_how_far_the_log_has_come_is_remembered() -> None:
    assert merged(LOOK, LOOK) == LOOK
    for both in (merged(news_of(4), LOOK), merged(LOOK, news_of(4)), merged(merged(news_of(3), LOOK), news_of(4))):
        assert (both.events, both.is_whole, both.window) == ((), False, news_of(4).window)


def test_more_events_than_an_outbox_holds_are_to_be_looked_up() -> None:
    found = news_of(1)
    for seq in range(2, 101):
        found = merged(found, news_of(seq))
    assert len(found.events) == 100
    assert merged(found, news_of(101)) == News(news_of(101).window, is_whole=False)
