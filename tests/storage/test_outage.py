"""What the log says about a disk that takes nothing."""

from __future__ import annotations

import pytest

from storage.errors import Busy
from storage.sqlite.disk_log import SILENT_SECONDS, Outage

FULL = Busy("the disk is full")


def said(caplog: pytest.LogCaptureFixture) -> list[str]:
    """The lines since this was last asked."""
    lines = [record.getMessage() for record in caplog.records]
    caplog.clear()
    return lines


def test_an_outage_is_told_once_when_it_begins_and_once_when_it_is_over(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    outage.is_over(1.0)
    assert said(caplog) == []
    for now in range(100, 200):
        outage.goes_on(FULL, float(now))
    assert said(caplog) == ["nothing is stored until further notice: the disk is full"]
    for now in range(200, 210):
        outage.is_over(float(now))
    assert said(caplog) == ["what comes is stored again, after 100.0 s"]
    outage.goes_on(FULL, 300.0)
    assert len(said(caplog)) == 1


def test_a_disk_that_takes_and_refuses_in_turns_does_not_fill_the_log(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    for step in range(10_000):
        now = step * SILENT_SECONDS / 1000
        outage.goes_on(FULL, now)
        outage.is_over(now)
    assert len(said(caplog)) == 20


def test_an_outage_that_began_too_soon_after_the_last_is_told_once_it_lasts(caplog: pytest.LogCaptureFixture) -> None:
    outage = Outage()
    outage.goes_on(FULL, 0.0)
    outage.is_over(1.0)
    outage.goes_on(FULL, 2.0)
    assert len(said(caplog)) == 2
    outage.goes_on(FULL, SILENT_SECONDS)
    assert len(said(caplog)) == 1
