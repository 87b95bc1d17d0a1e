"""The arithmetic of the benchmarks."""

from __future__ import annotations

from benchmarks.results import FIGURES, Figure, Target, medians, ratio, reached, table, targets, verdict

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


def test_a_target_may_stand_beside_another_figure_of_a_peer() -> None:
    bulk = Figure("bulk", "bulk", more_is_better=True, targets=(Target(3, "fastapi", beside_figure="post"),))
    rounds = {"avicenna": {"bulk": [40.0, 90.0]}, "fastapi": {"post": [10.0, 30.0]}}

    assert reached(bulk, bulk.targets[0], rounds) == 3.5


def test_the_table_of_targets_says_for_each_way_what_is_met() -> None:
    name = "posts_per_second"
    rounds = {"avicenna": {name: [150.0]}, "avicenna-long": {name: [30.0]}, "fastapi": {name: [100.0]}}

    short, long = (row for row in targets(rounds, ["avicenna", "avicenna-long"]) if "POST/s" in row[0])

    assert short[2:] == ["150", "fastapi 100", "1.50", ">= 1.3", "met", ">= 2", "not met"]
    assert long[2:] == ["30", "fastapi 100", "0.30", ">= 1.3", "not met", ">= 2", "not met"]


def test_a_target_that_was_not_measured_says_so() -> None:
    (row,) = (row for row in targets({}, ["avicenna"]) if "10,000 followers" in row[0])
    assert row.count("not measured") == 2


def test_an_absolute_target_shows_what_was_taken_off() -> None:
    rounds = {"avicenna": {"single_above_sync_ms": [0.8], "sync_p50_ms": [1.2]}}

    (row,) = (row for row in targets(rounds, ["avicenna"]) if "fdatasync" in row[0])

    assert row[2:] == ["0.8", "1.2", "", "<= 1", "met", "<= 0.5", "not met"]
