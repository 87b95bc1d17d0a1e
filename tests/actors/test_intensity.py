"""How many crashes are too many, and how long to wait."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from actors.intensity import BACKOFF_MAX_SECONDS, Intensity
from actors.upkeep import describe


def test_three_crashes_in_a_minute_are_tolerated_and_the_fourth_is_not() -> None:
    intensity = Intensity(3, 60.0)
    assert [intensity.crashed(now) for now in (0.0, 1.0, 2.0, 3.0)] == [False, False, False, True]


def test_crashes_that_lie_a_window_back_do_not_count() -> None:
    intensity = Intensity(3, 60.0)
    assert not any(intensity.crashed(20.0 * number) for number in range(50))


def test_the_first_restart_is_immediate_and_later_ones_wait_longer() -> None:
    intensity = Intensity(100, 60.0)
    waits = []
    for _ in range(10):
        intensity.crashed(0.0)
        waits.append(intensity.backoff_seconds(lambda: 1.0))
    assert waits[0] == 0.0
    assert waits[1:] == sorted(waits[1:])
    assert waits[-1] == BACKOFF_MAX_SECONDS


def test_a_release_forgets_all_crashes() -> None:
    intensity = Intensity(0, 60.0)
    assert intensity.crashed(0.0)
    intensity.reset()
    assert intensity.crashed(1.0)
    assert intensity.backoff_seconds(lambda: 0.5) == 0.0


@given(crashes=st.integers(1, 60), jitter=st.floats(0, 1, exclude_max=True))
def test_a_backoff_is_never_longer_than_its_limit(crashes: int, jitter: float) -> None:
    intensity = Intensity(1000, 60.0)
    for _ in range(crashes):
        intensity.crashed(0.0)
    assert 0 <= intensity.backoff_seconds(lambda: jitter) <= BACKOFF_MAX_SECONDS


@pytest.mark.guarantee(14)
def test_a_crash_is_described_by_kind_and_place_without_its_text() -> None:
    try:
        raise ValueError("a payload")
    except ValueError as error:
        described = describe(error)
    assert described.startswith("ValueError at test_a_crash_is_described")
    assert "payload" not in described
