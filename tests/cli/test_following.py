"""The rules of a client that follows a diagnosis: position, repeats, and when to come back."""

from __future__ import annotations

import json
from typing import Any, Final

import pytest

from tests.programs import ROOT
from web.commands.following import Backoff, Hole, Position, then

CLOSE_CODES: Final = ROOT / "clients" / "close-codes.json"


def connect(
    resume: str, *, epoch: str = "e1", head: int = 9, floor: int = 0, queued: int = 9, missed: int = 0
) -> dict[str, Any]:
    data = {"resume": resume, "epoch": epoch, "head": head, "floor": floor, "queued": queued, "missed": missed}
    return {"type": "connect", "data": data}


def event(seq: int) -> dict[str, Any]:
    return {"type": "feedback_update", "seq": seq, "data": {}}


def test_without_a_position_the_server_is_told_where_to_start() -> None:
    assert Position().query("new") == {"start": "new"}


def test_a_position_is_resumed_with_its_epoch_and_start_is_left_out() -> None:
    position = Position()
    position.advance(connect("fresh"))
    position.advance(event(1))
    assert position.query("new") == {"after": "1", "epoch": "e1"}


def test_an_event_at_or_below_the_position_is_a_repeat() -> None:
    position = Position(5, "e1")
    assert not position.advance(event(5))
    assert position.advance(event(6))


def test_a_gap_moves_the_position_over_what_will_not_come() -> None:
    position = Position(1, "e1")
    position.advance({"type": "gap", "data": {"from": 2, "to": 7, "count": 6, "reason": "evicted"}})
    assert position.seq == 7


def test_who_has_no_position_takes_the_one_from_which_the_server_begins() -> None:
    position = Position()
    position.advance(connect("partial", head=9, queued=3, missed=2))
    assert (position.seq, position.epoch) == (4, "e1")


@pytest.mark.parametrize("frame", [event(3), {"type": "gap", "data": {"from": 3, "to": 4}}])
def test_numbers_that_are_left_out_are_a_fault_of_the_server(frame: dict[str, Any]) -> None:
    with pytest.raises(Hole, match="number 3 after 1"):
        Position(1, "e1").advance(frame)


def test_an_event_before_connect_is_a_fault_of_the_server() -> None:
    with pytest.raises(Hole):
        Position().advance(event(1))


def test_a_reset_begins_at_the_floor_of_the_new_epoch() -> None:
    position = Position(50, "e1")
    position.advance(connect("reset", epoch="e2", head=3, floor=1))
    assert (position.seq, position.epoch) == (1, "e2")
    assert position.advance(event(2))


@pytest.mark.parametrize(
    "case", json.loads(CLOSE_CODES.read_text()), ids=lambda case: f"{case['code']} {case['reason']}"
)
def test_what_a_client_does_after_a_close_is_what_all_clients_do(case: dict[str, Any]) -> None:
    assert then(case["code"], case["reason"]) == case["then"]


def test_waits_double_up_to_a_limit_and_start_over_after_success() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.seconds() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    backoff.reset()
    assert backoff.seconds() == 0.5


def test_a_wait_is_any_time_up_to_the_longest() -> None:
    assert Backoff(lambda: 0.0).seconds() == 0
    assert Backoff(lambda: 0.5).seconds() == 0.25


def test_the_first_wait_can_be_another_one() -> None:
    backoff = Backoff(lambda: 1.0, 1.0)
    assert [backoff.seconds() for _ in range(6)] == [1, 2, 4, 8, 16, 30]


def test_the_wait_the_server_asks_for_is_kept_within_a_limit() -> None:
    backoff = Backoff(lambda: 1.0)
    assert backoff.seconds(1500) == 1.5
    assert backoff.seconds(10**9) == 300
    assert backoff.seconds(None) == 0.5
