"""What `make bench-cluster` says of figures: beside each other, and beside what is aimed at."""

from __future__ import annotations

from benchmarks.cluster import NATS, SQLITE, TARGETS, table


def test_a_target_says_whether_it_is_met_and_nothing_where_it_was_not_measured() -> None:
    nats = {"serial_p50_ms": 2.0, "appends_per_second": 900.0, "keyed_per_second": 800.0}
    said = [line for one in TARGETS if (line := one.line(nats, {"appends_per_second": 10_000.0}))]
    assert said == [
        "one append after another, p50 ms: 2, aimed at <= 3: met",
        "appends/s, of SQLite's: 0.09, aimed at >= 0.35: MISSED",
        "with keys, of without: 0.889, aimed at >= 0.75: met",
    ]


def test_the_table_has_a_column_for_each_and_leaves_out_what_nobody_measured() -> None:
    shown = table({NATS: {"serial_p50_ms": 2.0, "start_seconds": 1.5}, SQLITE: {"serial_p50_ms": 0.5}})
    assert shown.splitlines()[2:] == [
        "| one append after another, p50, ms | 2 | 0.5 |",
        "| start of a server with 10,000 diagnoses, s | 1.5 |  |",
    ]
