"""What the crash loop says of what it finds of a case: each broken promise is seen, and what may be is taken."""

from __future__ import annotations

from collections import Counter
from dataclasses import replace

import pytest

from tests.crash.acts import STEPS, WITHOUT_ROW, Case, Seen, expected, judge


def after(count: int, *, is_in_doubt: bool = False) -> Case:
    """A case with all steps, of which so many were answered."""
    return Case(1, STEPS, done=count, is_in_doubt=is_in_doubt)


def seen_after(count: int) -> Seen:
    return expected(after(count), frozenset(STEPS[:count]), cursor=None, halves=0)


@pytest.mark.parametrize("count", range(len(STEPS) + 1))
def test_what_was_answered_must_be_there_and_nothing_else(count: int) -> None:
    case = after(count)
    assert judge(case, seen_after(count)) == []
    for other in range(len(STEPS) + 1):
        if seen_after(other) != seen_after(count):
            assert judge(case, seen_after(other)) != []
    assert case.done == count


@pytest.mark.parametrize("count", range(len(STEPS)))
def test_a_step_in_doubt_is_there_or_is_not(count: int) -> None:
    case = after(count, is_in_doubt=True)
    assert judge(case, seen_after(count)) == []
    assert (case.done, case.is_in_doubt) == (count, False)
    case = after(count, is_in_doubt=True)
    assert judge(case, seen_after(count + 1)) == []
    assert (case.done, case.is_in_doubt) == (count + 1, False)


@pytest.mark.parametrize("step", [step for step in STEPS if step not in WITHOUT_ROW])
def test_no_act_is_there_without_its_row_and_no_row_without_its_act(step: str) -> None:
    before, behind = seen_after(STEPS.index(step)), seen_after(STEPS.index(step) + 1)
    for half in (replace(behind, rows=before.rows), replace(before, rows=behind.rows)):
        assert judge(after(STEPS.index(step), is_in_doubt=True), half) != []


@pytest.mark.parametrize(
    "change",
    [
        {"rows": Counter({"register": 2, "share": 1})},
        {"is_registered": False},
        {"viewers": ("person-1",)},
        {"head": 0},
        {"floor": 1},
        {"cursor": 0},
        {"cursor": None},
        {"is_revoked": True},
        {"is_named": False},
    ],
)
def test_each_difference_is_seen(change: dict[str, object]) -> None:
    count = STEPS.index("purge")
    assert judge(after(count), replace(seen_after(count), **change)) != []  # type: ignore[arg-type]


def test_a_follower_that_has_acknowledged_nothing_is_known_at_0_or_not_at_all() -> None:
    count = STEPS.index("acknowledge")
    for cursor, is_right in ((None, True), (0, True), (1, False)):
        assert (judge(after(count), replace(seen_after(count), cursor=cursor)) == []) == is_right


def test_an_erasure_that_was_cut_off_leaves_its_row_and_nothing_of_the_person_but_what_rows_say() -> None:
    count = STEPS.index("erase")
    behind = seen_after(count + 1)
    half = replace(behind, is_named=True)
    case = after(count, is_in_doubt=True)
    assert judge(case, half) == []
    assert (case.done, case.is_in_doubt, case.halves) == (count, False, 1)
    assert judge(case, behind) != []
    case.answered()  # it was asked for again
    assert judge(case, replace(behind, rows=behind.rows + Counter({"erase": 1}))) == []
    assert judge(after(count), half) != []
    assert judge(after(count, is_in_doubt=True), replace(half, cursor=1)) != []
