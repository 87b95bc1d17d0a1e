"""When a client sends too much: arithmetic."""

from __future__ import annotations

import random

import pytest

from web.edge.flood import FrameRate


def closed_after(per_second: float, seconds: float, *, jitter: float = 0.0) -> float | None:
    """When a client that sends at this rate is closed, `None`: not within so many seconds."""
    shake = random.Random(7)
    rate = FrameRate(0.0)
    for number in range(int(per_second * seconds)):
        at = number / per_second + shake.random() * jitter
        if rate.exceeded(at, 20):
            return at
    return None


@pytest.mark.parametrize("per_second", [21, 25, 100, 5000])
def test_a_flood_is_closed_after_five_seconds(per_second: float) -> None:
    at = closed_after(per_second, 20)
    assert at is not None
    assert 5 <= at < 6


@pytest.mark.parametrize("per_second", [1, 19, 20])
@pytest.mark.parametrize("jitter", [0.0, 0.04])
def test_a_busy_client_is_not(per_second: float, jitter: float) -> None:
    assert closed_after(per_second, 600, jitter=jitter) is None


def test_bursts_with_pauses_are_not() -> None:
    rate = FrameRate(0.0)
    assert not any(rate.exceeded(second * 6.0 + n / 1000, 20) for second in range(50) for n in range(100))
