"""What the log says while a disk keeps somebody waiting: one line when it begins, and one when it ends."""

from __future__ import annotations

import pytest

from storage.stall import LOOK_SECONDS, STALLED_SECONDS, STEP_SECONDS_MAX, Stall


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    return [record.getMessage() for record in caplog.records]


def test_a_wait_that_lasts_is_logged_once_and_its_end_with_its_length(caplog: pytest.LogCaptureFixture) -> None:
    stall, now = Stall(100.0), 100.0
    began = stall.ran(now)
    for _ in range(10):
        now += LOOK_SECONDS
        stall.look(now, began)
    assert said(caplog) == ["the disk has not answered for 2 s: who waits for it is told so"]
    stall.look(now, None)
    stall.look(now + LOOK_SECONDS, None)
    assert said(caplog)[1:] == ["the disk answers again, after 5.0 s"]


def test_time_in_which_the_process_did_not_run_counts_little_and_backwards_not_at_all(
    caplog: pytest.LogCaptureFixture,
) -> None:
    stall = Stall(100.0)
    began = stall.ran(100.0)
    stall.look(100_000.0, began)
    assert stall.ran(100_000.0) - began == STEP_SECONDS_MAX < STALLED_SECONDS
    stall.look(50.0, began)
    assert stall.ran(50.0) - began == STEP_SECONDS_MAX
    assert said(caplog) == []
