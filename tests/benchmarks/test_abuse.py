"""The abuses of `make bench-abuse`, some of them for a moment; and how their targets are judged."""

from __future__ import annotations

from math import inf, nan
from pathlib import Path

import msgspec
import pytest

from benchmarks.abuse import Side, Watched, misses, table, watch
from benchmarks.abuses import ABUSES
from benchmarks.frozen import CannotFreeze


@pytest.fixture(autouse=True)
def compiled(load_generator: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The neighbour is the load generator."""
    monkeypatch.setattr("benchmarks.place.BUILT", load_generator.parent)


@pytest.mark.parametrize("name", ["pings", "malformed", "unread-log"])
def test_the_neighbour_of_an_abuse_is_watched(name: str) -> None:
    found = watch(name, None, 0.5)

    assert (found.quiet.refused, found.abused.refused, found.abused.lost) == (0, 0, 0)
    assert 0 < found.quiet.publish_p50 <= found.quiet.publish_p99 < inf
    assert 0 < found.abused.publish_p50 <= found.abused.publish_p99 < inf
    assert found.abused.connects_per_second > 0
    assert found.closed_seconds <= found.exit_seconds < 10


def test_the_neighbour_of_a_disk_that_hangs_is_disconnected_before_the_disk_goes_on() -> None:
    try:
        found = watch("hung-disk", None, 0.5)
    except CannotFreeze as why:
        pytest.skip(str(why))

    assert found.abused.refused > 0
    assert found.closed_seconds < 10 < found.exit_seconds


SIDE = dict.fromkeys(Side.__dataclass_fields__, 0) | {"publish_p50": 1.0, "publish_p99": 4.0, "delivery_p99": 5.0}
WATCHED = {"grown_mib": 1.0, "closed_seconds": 0.1, "exit_seconds": 0.5}


def seen(**under_abuse: float) -> Watched:
    """A neighbour that noticed nothing of an abuse, but for these figures."""
    abused = {name: under_abuse.get(name, value) for name, value in SIDE.items()}
    ended = {name: under_abuse.get(name, value) for name, value in WATCHED.items()}
    return msgspec.convert({"quiet": SIDE, "abused": abused} | ended, Watched)


@pytest.mark.parametrize(
    ("name", "under_abuse", "missed"),
    [
        ("pings", {}, []),
        ("pings", {"publish_p99": 12.0, "delivery_p99": 15.0}, []),
        ("pings", {"publish_p99": 12.1}, ["publish p99"]),
        ("pings", {"delivery_p99": 15.1}, ["delivery p99"]),
        ("pings", {"grown_mib": 64.0}, []),
        ("pings", {"grown_mib": 64.1}, ["memory"]),
        ("bulk", {"grown_mib": 128.0}, []),
        ("pings", {"exit_seconds": 10.1}, ["exit"]),
        ("pings", {"refused": 1, "lost": 2}, ["1 refused", "2 lost"]),
        ("backup", {"publish_p99": 53.9}, []),
        ("backup", {"publish_p99": 54.1}, ["publish p99"]),
        ("hung-disk", {"publish_p99": nan, "refused": 9, "exit_seconds": inf}, []),
        ("hung-disk", {"closed_seconds": inf}, ["exit"]),
    ],
)
def test_a_target_that_is_missed_is_named(name: str, under_abuse: dict[str, float], missed: list[str]) -> None:
    found = seen(**under_abuse)

    assert misses(ABUSES[name], [found]) == missed
    assert f"| {'missed: ' + ', '.join(missed) if missed else 'met'} |" in table({name: [found]})


def test_of_several_rounds_the_median_counts() -> None:
    slow, fast = seen(publish_p99=40.0), seen(publish_p99=4.0)

    assert misses(ABUSES["pings"], [slow, fast, fast]) == []
    assert misses(ABUSES["pings"], [slow, slow, fast]) == ["publish p99"]
