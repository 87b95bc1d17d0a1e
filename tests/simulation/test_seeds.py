"""What `make simulate SEEDS=...` and `make mutants ARGS=...` take, and what they refuse."""

from __future__ import annotations

import sys
from argparse import ArgumentTypeError

import pytest

from tests.mutants.__main__ import main as plant
from tests.simulation.__main__ import SEEDS_MAX, seeds_of
from tests.simulation.__main__ import main as simulate


@pytest.mark.parametrize(
    ("text", "seeds"), [("7", [7]), ("0-2", [0, 1, 2]), ("3,8,20-21", [3, 8, 20, 21]), ("0-1,0", [0, 1])]
)
def test_seeds_are_numbers_and_ranges(text: str, seeds: list[int]) -> None:
    assert seeds_of(text) == seeds


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("5-3", "the range 5-3 ends before it begins"),
        (f"0-{SEEDS_MAX}", f"at most {SEEDS_MAX} seeds"),
        (f"0-{SEEDS_MAX - 1},7", f"at most {SEEDS_MAX} seeds"),
        *((text, "must be numbers and ranges") for text in ("", "-5", "3-", "1,,2", "1-2-3", "all", "1" * 30)),
    ],
)
def test_what_names_no_seeds_or_too_many_is_refused(text: str, why: str) -> None:
    with pytest.raises(ArgumentTypeError, match=why):
        seeds_of(text)


@pytest.mark.parametrize(
    ("words", "why"),
    [
        ("7 --processes 0", "'0' must be a number from 1 on"),
        ("7 --engine nats", "--engine nats is for histories of several servers"),
        ("7 --plain --nodes", "--plain is for histories of one server"),
    ],
)
def test_options_that_cannot_be_are_refused_by_name(
    words: str, why: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["simulate", *words.split()])
    with pytest.raises(SystemExit):
        simulate()
    assert why in capsys.readouterr().err


def test_words_that_describe_no_bug_are_refused(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", ["mutants", "epooch", "kez"])
    with pytest.raises(SystemExit):
        plant()
    assert "no description of a bug holds epooch or kez" in capsys.readouterr().err
