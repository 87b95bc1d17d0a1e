"""What the table expects is compared with what a driver reports: whatever is not as it stands there fails."""

from __future__ import annotations

from typing import Any

import pytest

from tests.clients.reports import (
    FREE,
    Course,
    Ended,
    Event,
    Gap,
    Raised,
    Report,
    Reset,
    Snapshot,
    Status,
    Through,
    Unexpected,
    expected,
    is_awaited,
)


def event(seq: int, epoch: str = "e1") -> Report:
    return {"event": "feedback_update", "seq": seq, "epoch": epoch, "data": {}}


def gap(first: int, last: int, reason: str = "evicted") -> Report:
    return {"gap": {"first": first, "last": last, "reason": reason}}


def status(name: str, code: int | None = None, reason: str | None = None) -> Report:
    return {"status": name, "code": code, "reason": reason}


@pytest.mark.parametrize(
    ("entry", "items", "statuses"),
    [
        (3, [Event(3)], []),
        ("3-5", [Event(3), Event(4), Event(5)], []),
        ("through 200", [Through(200)], []),
        ("gap 3-5 evicted", [Gap(3, 5, "evicted")], []),
        ("reset 0", [Reset(0)], []),
        ("snapshot", [Snapshot()], []),
        ("raised 2", [Raised(2)], []),
        ("live", [], [Status("live")]),
        ("needs_auth 1008 token expired", [], [Status("needs_auth", 1008, "token expired")]),
        ("ended 4000 replaced", [Ended(4000, "replaced")], [Status("ended", 4000, "replaced")]),
    ],
)
def test_an_entry_stands_for_items_and_statuses(entry: object, items: list[Any], statuses: list[Any]) -> None:
    assert expected(entry) == (items, statuses)


@pytest.mark.parametrize("entry", ["", "alive", "gap 3-5", "gap 3-5 lost", "reset", "3 - 5", None])
def test_what_is_no_entry_is_refused(entry: object) -> None:
    with pytest.raises(ValueError, match=r"called|unpack|literal"):
        expected(entry)


@pytest.mark.parametrize(
    ("wanted", "report"),
    [
        (Event(2), event(2)),
        (Through(2), event(2)),
        (Through(5), gap(2, 5)),
        (Gap(2, 5, "purged"), gap(2, 5, "purged")),
        (Reset(7), {"reset": {"epoch": "e2", "floor": 7}}),
        (Snapshot(), {"snapshot": {"epoch": "e1", "seq": 1}}),
        (Raised(2), {"raised": 2}),
        (Ended(4000, None), {"ended": {"code": 4000, "reason": "replaced"}}),
    ],
)
def test_an_item_that_is_the_next_one_is_taken(wanted: Any, report: Report) -> None:
    course = Course()
    course.take(Event(1), event(1))
    assert course.take(wanted, report)


@pytest.mark.parametrize(
    ("wanted", "report"),
    [
        (Event(2), event(1)),
        (Event(2), event(3)),
        (Event(2), event(2, "e2")),
        (Event(2), gap(2, 2)),
        (Through(5), event(1)),
        (Through(5), event(3)),
        (Through(5), gap(3, 4)),
        (Through(5), gap(1, 4)),
        (Gap(2, 5, "purged"), gap(2, 5)),
        (Gap(2, 5, "evicted"), gap(2, 6)),
        (Reset(7), {"reset": {"epoch": "e1", "floor": 7}}),
        (Reset(7), {"reset": {"epoch": "e2", "floor": 0}}),
        (Snapshot(), {"snapshot": {"epoch": "e2", "seq": 1}}),
        (Raised(2), event(2)),
        (Ended(4000, "replaced"), {"ended": {"code": 4000, "reason": None}}),
        (Event(2), {"failed": "text"}),
        (Event(2), {"cannot": "raise"}),
    ],
)
def test_an_item_that_is_not_the_next_one_is_said(wanted: Any, report: Report) -> None:
    course = Course()
    course.take(Event(1), event(1))
    with pytest.raises(Unexpected):
        course.take(wanted, report)


def test_through_takes_events_and_gaps_until_its_number_has_come() -> None:
    course = Course()
    reports = [event(1), gap(2, 3), event(4)]
    assert [course.take(Through(4), report) for report in reports] == [False, False, True]


def test_after_a_reset_numbers_go_on_behind_its_floor_in_its_epoch() -> None:
    course = Course()
    course.take(Event(9), event(9))
    course.take(Reset(2), {"reset": {"epoch": "e2", "floor": 2}})
    assert course.take(Through(3), event(3, "e2"))


def test_a_status_is_awaited_by_name_code_and_reason() -> None:
    assert is_awaited(Status("offline"), status("offline", 1006), exactly=True)
    assert is_awaited(Status("offline", 1012, "restart"), status("offline", 1012, "restart"), exactly=True)
    assert not is_awaited(Status("offline", 1012), status("offline", 1006), exactly=False)


@pytest.mark.parametrize("name", sorted(FREE))
def test_a_free_status_may_come_before_the_awaited_one_unless_none_may(name: str) -> None:
    assert not is_awaited(Status("needs_auth"), status(name), exactly=False)
    with pytest.raises(Unexpected):
        is_awaited(Status("needs_auth"), status(name), exactly=True)


@pytest.mark.parametrize("name", ["needs_auth", "ended"])
def test_a_status_that_is_not_free_may_not_come(name: str) -> None:
    with pytest.raises(Unexpected):
        is_awaited(Status("live"), status(name), exactly=False)
