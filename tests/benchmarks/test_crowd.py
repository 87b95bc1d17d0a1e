"""The crowd of `make bench-crowd`, small: the command works, and what it promises is judged."""

from __future__ import annotations

import socket
from pathlib import Path

import msgspec
import pytest

from benchmarks.crowd import Found, Size, Slow, Window, check_size, measure, table, turns_of
from benchmarks.generator import Phase
from benchmarks.place import client_frame
from benchmarks.processes import CannotRun
from benchmarks.watched import Turn

SMALL = Size(diagnoses=20, slow=2, floods=2, seconds=6, stop_seconds=1, rest_seconds=0.5)


def test_a_small_crowd_loses_nothing_and_nobody_who_does_no_harm_is_cut(load_generator: Path) -> None:
    check_size(SMALL)

    found = measure(SMALL, load_generator, lambda text: None)

    assert found.broken == []
    assert (found.total("opened"), found.goodbyes) == (196, 196)
    assert found.total("accepted") > 100
    assert found.heads == found.total("accepted")
    assert found.total("delivered") == found.total("expected") > found.total("accepted")
    assert list(found.at_rest) == [20, 100, 200]
    assert found.slow_cut == 0
    assert "| healthy clients cut | 0 |" in table(found)


def test_a_slow_client_answers_every_ping_it_has_read() -> None:
    ours, theirs = socket.socketpair()
    with ours, theirs:
        slow = Slow(theirs, b"\x81\x7e\x00\x03abc\x89\x00\x89\x02h", 1.0, 1)
        ours.sendall(b"i\x81")
        slow.read_if_due(1.0)
        slow.read_if_due(1.5)

        assert ours.recv(100) == client_frame(10, b"") + client_frame(10, b"hi")

        ours.close()
        slow.read_if_due(2.0)
        assert not slow.is_cut
        slow.read_if_due(3.0)
        assert slow.is_cut


COUNTERS = [name for name in Phase.__struct_fields__ if not name.endswith("_ms")]


def found(**counts: int) -> Found:
    """A run in which all was well but for these counts."""
    well = dict.fromkeys(COUNTERS, 0) | {"opened": 180, "posted": 9, "accepted": 9, "expected": 90, "delivered": 90}
    return Found(size=SMALL, phases={"load": msgspec.convert(well | counts, Phase)}, heads=9, goodbyes=180)


@pytest.mark.parametrize(
    ("counts", "sentence"),
    [
        ({"closed": 2}, "2 healthy clients were cut"),
        ({"failed": 1}, "1 healthy clients could not connect"),
        ({"delivered": 89}, "1 deliveries were lost"),
        ({"duplicates": 1}, "1 deliveries were repeated"),
        ({"seq_breaks": 1}, "1 numbers were not one more than the one before"),
        ({"refused": 1}, "1 publishes were not answered 200"),
        ({"accepted": 8}, "8 publishes were accepted, and the heads sum up to 9"),
        ({"opened": 181}, "1 healthy clients got no Close at the end"),
    ],
)
def test_a_promise_that_is_broken_is_a_sentence(counts: dict[str, int], sentence: str) -> None:
    assert found().broken == []
    assert found(**counts).broken == [sentence]


def test_numbers_that_a_client_was_told_are_gone_are_not_lost() -> None:
    assert found(delivered=80, gaps=1, missed=10).broken == []


def test_a_slow_exit_is_a_broken_promise() -> None:
    slow = found()
    slow.exit_seconds = 10.1
    assert slow.broken == ["it took 10.1 s to exit"]


def turn(began_at: float, seconds: float) -> Turn:
    return Turn(began_at=began_at, seconds=seconds, cpu_seconds=0.01, step_seconds=0.01, task="hub")


def test_a_turn_counts_without_the_stop() -> None:
    turns = [turn(1.0, 0.05), turn(9.99, 12.02), turn(10.25, 12.0), turn(23.0, 0.04), turn(40.0, 0.5)]

    counted = turns_of(turns, Window(0.0, 30.0), stop=Window(10.0, 22.0))

    assert [one.seconds for one in counted] == pytest.approx([0.05, 0.02, 0.25, 0.04])


@pytest.mark.parametrize(
    "size", [Size(diagnoses=2, slow=2), Size(diagnoses=0), Size(seconds=30)], ids=["harm", "nobody", "time"]
)
def test_numbers_that_do_not_fit_together_are_refused(size: Size) -> None:
    with pytest.raises(CannotRun):
        check_size(size)
