"""The interval of a comparison of two builds."""

from __future__ import annotations

import pytest

from benchmarks.compare import interval


def test_equal_ratios_have_an_interval_without_width() -> None:
    assert interval([1.1] * 10) == pytest.approx((1.1, 1.1, 1.1))


def test_the_interval_is_students_of_the_logarithms() -> None:
    # By hand: logarithms -0.1 and 0.1, mean 0, deviation sqrt(0.02), half width 12.706 * 0.1.
    middle, low, high = interval([0.904837418, 1.105170918])
    assert (middle, low, high) == pytest.approx((1.0, 1 / 3.5630, 3.5630), rel=1e-3)


def test_more_pairs_make_it_narrower() -> None:
    few, many = interval([0.9, 1.1] * 2), interval([0.9, 1.1] * 20)
    assert many[2] - many[1] < few[2] - few[1]
