"""The rules of a client that follows a diagnosis: position, repeats, and when to come back."""

from __future__ import annotations

from typing import Any

import pytest

from web.commands.following import Backoff, Position, comes_back


def connect(resume: str, *, epoch: str = "e1", head: int = 9, floor: int = 0) -> dict[str, Any]:
    return {"type": "connect", "data": {"resume": resume, "epoch": epoch, "head": head, "floor": floor}}


def event(seq: int) -> dict[str, Any]:
    return {"type": "feedback_update", "seq": seq, "data": {}}


def test_without_a_position_the_server_is_told_where_to_start() -> None:
    assert Position().query("new") == {"start": "new"}


def test_a_position_is_resumed_with_its_epoch_and_start_is_left_out() -> None:
    position = Position()
    position.advance(connect("fresh"))
    position.advance(event(3))
    assert position.query("new") == {"after": "3", "epoch": "e1"}


def test_an_event_at_or_below_the_position_is_a_repeat() -> None:
    position = Position(5, "e1")
    assert not position.advance(event(5))
    assert position.advance(event(6))


def test_a_gap_and_live_move_the_position_over_what_will_not_come() -> None:
    position = Position(1, "e1")
    position.advance({"type": "gap", "data": {"from": 2, "to": 7, "count": 6, "reason": "evicted"}})
    assert position.seq == 7
    position.advance({"type": "live", "data": {"seq": 9}})
    assert position.seq == 9


def test_a_reset_begins_at_the_floor_of_the_new_epoch() -> None:
    position = Position(50, "e1")
    position.advance(connect("reset", epoch="e2", head=3, floor=1))
    assert (position.seq, position.epoch) == (1, "e2")
    assert position.advance(event(2))


@pytest.mark.parametrize("code", [401, 404, 1000, 1001, 1002, 1007, 1008, 1009, 4000, 4999])
def test_a_refusal_or_a_fault_of_the_client_is_not_retried(code: int) -> None:
    assert not comes_back(code)


@pytest.mark.parametrize("code", [429, 503, 1006, 1011, 1012, 1013])
def test_a_server_that_broke_restarts_or_is_busy_is_tried_again(code: int) -> None:
    assert comes_back(code)


def test_waits_double_up_to_a_limit_and_start_over_after_success() -> None:
    backoff = Backoff(lambda: 1.0)
    assert [backoff.seconds() for _ in range(8)] == [0.5, 1, 2, 4, 8, 16, 30, 30]
    backoff.reset()
    assert backoff.seconds() == 0.5


def test_jitter_takes_up_to_half_of_a_wait() -> None:
    assert Backoff(lambda: 0.0).seconds() == 0.25


def test_the_wait_the_server_asks_for_is_kept_within_a_limit() -> None:
    backoff = Backoff(lambda: 1.0)
    assert backoff.seconds(1500) == 1.5
    assert backoff.seconds(10**9) == 300
    assert backoff.seconds(None) == 0.5
