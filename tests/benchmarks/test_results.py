"""The arithmetic of the benchmarks."""

from __future__ import annotations

from benchmarks.results import FIGURES, Figure, Target, medians, ratio, table, verdict

LOWER = Figure("delay", "delay", targets=(Target(0.5, "fastapi"),))
HIGHER = Figure("rate", "rate", more_is_better=True, targets=(Target(0.5, "fastapi"),))


def test_the_median_of_each_figure_is_taken() -> None:
    assert medians({"avicenna": {"delay": [3.0, 1.0, 2.0]}}) == {"avicenna": {"delay": 2.0}}


def test_a_ratio_compares_within_a_round_before_it_takes_the_median() -> None:
    assert ratio([1.0, 20.0, 3.0], [2.0, 10.0, 6.0]) == 0.5


def test_a_target_is_an_upper_limit_unless_more_is_better() -> None:
    rounds = {"avicenna": {"delay": [4.0], "rate": [4.0]}, "fastapi": {"delay": [10.0], "rate": [10.0]}}

    assert verdict(LOWER, LOWER.targets[0], rounds) is True
    assert verdict(HIGHER, HIGHER.targets[0], rounds) is False


def test_a_target_beside_a_server_that_was_not_measured_is_neither_met_nor_missed() -> None:
    assert verdict(LOWER, LOWER.targets[0], {"avicenna": {"delay": [4.0]}}) is None


def test_the_table_names_a_missed_target() -> None:
    name = "connects_per_second"
    assert any(figure.name == name for figure in FIGURES)

    assert "MISSED" in table({"avicenna": {name: [1.0]}, "fastapi": {name: [10.0]}})
