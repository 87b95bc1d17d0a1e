"""Where a connection begins, row by row of PROTOCOL section 4."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.resume import OLDEST, Plan, Resume, Wanted, plan
from storage.records import Epoch, Seq, Window

NOW, OTHER = Epoch("now"), Epoch("other")


def window(head: int, floor: int) -> Window:
    return Window(NOW, Seq(head), Seq(floor), Seq(0))


def wanted(after: int | None = None, epoch: Epoch | None = None, newest: int = OLDEST) -> Wanted:
    return Wanted(None if after is None else Seq(after), epoch, newest)


@pytest.mark.parametrize(
    ("head", "floor", "asked", "stored", "resume", "position", "cursor", "missed", "queued"),
    [
        # Nobody knows this subscriber: it begins where it says.
        (0, 0, wanted(), None, "fresh", 0, 0, 0, 0),
        (180, 80, wanted(), None, "fresh", 80, 80, 0, 100),
        (180, 80, wanted(newest=0), None, "fresh", 180, 180, 0, 0),
        (180, 80, wanted(newest=7), None, "fresh", 173, 173, 0, 7),
        (180, 80, wanted(newest=5000), None, "fresh", 80, 80, 0, 100),
        # Its stored cursor decides.
        (180, 80, wanted(), (NOW, 180), "exact", 180, 180, 0, 0),
        (180, 80, wanted(), (NOW, 80), "exact", 80, 80, 0, 100),
        (180, 80, wanted(), (NOW, 40), "partial", 40, 40, 40, 100),
        (180, 80, wanted(newest=0), (NOW, 100), "exact", 100, 100, 0, 80),
        (180, 80, wanted(), (OTHER, 100), "reset", 80, 80, 0, 100),
        # Its own position wins, and acknowledges.
        (180, 80, wanted(150), None, "exact", 150, 150, 0, 30),
        (180, 80, wanted(150), (NOW, 100), "exact", 150, 150, 0, 30),
        (180, 80, wanted(100), (NOW, 150), "exact", 100, 150, 0, 80),
        (180, 80, wanted(40, NOW), (NOW, 30), "partial", 40, 40, 40, 100),
        (180, 80, wanted(0), None, "partial", 0, 0, 80, 100),
        # A position of another history, or one that does not exist.
        (180, 80, wanted(181), None, "reset", 80, 80, 0, 100),
        (180, 80, wanted(100, OTHER), None, "reset", 80, 80, 0, 100),
        (180, 80, wanted(epoch=OTHER), None, "reset", 80, 80, 0, 100),
        (180, 80, wanted(epoch=OTHER), (NOW, 150), "reset", 80, 150, 0, 100),
        (180, 80, wanted(epoch=NOW), (NOW, 150), "exact", 150, 150, 0, 30),
        (180, 80, wanted(100, OTHER), (NOW, 150), "reset", 80, 150, 0, 100),
        (180, 80, wanted(181), (OTHER, 7), "reset", 80, 80, 0, 100),
        # An idle client is exact for ever.
        (0, 0, wanted(0), (NOW, 0), "exact", 0, 0, 0, 0),
    ],
)
def test_a_connection_begins_where_the_protocol_says(
    head: int,
    floor: int,
    asked: Wanted,
    stored: tuple[Epoch, int] | None,
    resume: str,
    position: int,
    cursor: int,
    missed: int,
    queued: int,
) -> None:
    known = None if stored is None else (stored[0], Seq(stored[1]))
    decided = plan(window(head, floor), asked, known)
    acknowledges = decided.resume is not Resume.RESET and bool(asked.after)
    assert decided == Plan(Resume(resume), Seq(position), Seq(cursor), missed, queued, acknowledges)


@given(
    floor=st.integers(0, 500),
    retained=st.integers(0, 100),
    after=st.none() | st.integers(0, 700),
    cursor=st.none() | st.integers(0, 700),
    same_epoch=st.booleans(),
    newest=st.integers(OLDEST, 200),
)
def test_missed_and_queued_are_every_number_from_the_position_to_the_head(
    floor: int, retained: int, after: int | None, cursor: int | None, same_epoch: bool, newest: int
) -> None:
    head = floor + retained
    epoch = NOW if same_epoch else OTHER
    known = None if cursor is None else (NOW, Seq(min(cursor, head)))
    decided = plan(window(head, floor), wanted(after, epoch, newest), known)
    assert decided.position + decided.missed + decided.queued == head
    assert 0 <= decided.queued <= 100
    assert decided.cursor <= head
    assert (decided.resume is Resume.PARTIAL) == (decided.missed > 0)


def test_a_position_that_does_not_acknowledge_leaves_the_cursor_of_a_known_subscriber() -> None:
    asked = Wanted(Seq(7), NOW, acknowledges=False)
    known = plan(window(10, 0), asked, (NOW, Seq(3)))
    unknown = plan(window(10, 0), asked, None)
    assert (known.position, known.cursor) == (7, 3)
    assert (unknown.position, unknown.cursor) == (7, 7)
