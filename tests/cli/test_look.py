"""Colours and widths: what the environment and the terminal want."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.commands.look import Look, Painted, wants_colour
from web.commands.tables import CUT, cells_of, cut, table
from web.commands.text import printable


@pytest.mark.parametrize(
    ("when", "environment", "is_terminal", "wanted"),
    [
        ("auto", {"TERM": "xterm"}, True, True),
        ("auto", {"TERM": "xterm"}, False, False),
        ("auto", {"TERM": "dumb"}, True, False),
        ("auto", {}, True, False),
        ("auto", {"TERM": "xterm", "NO_COLOR": "1"}, True, False),
        ("auto", {"TERM": "xterm", "NO_COLOR": ""}, True, True),
        ("auto", {"CLICOLOR_FORCE": "1"}, False, True),
        ("auto", {"CLICOLOR_FORCE": "0"}, False, False),
        ("auto", {"CLICOLOR_FORCE": "1", "NO_COLOR": "1"}, True, False),
        ("auto", {"TERM": "xterm", "CLICOLOR": "0"}, True, False),
        ("always", {"NO_COLOR": "1"}, False, True),
        ("never", {"CLICOLOR_FORCE": "1", "TERM": "xterm"}, True, False),
    ],
)
def test_who_decides_about_colours(when: str, environment: dict[str, str], is_terminal: bool, wanted: bool) -> None:
    assert wants_colour(when, environment, is_terminal=is_terminal) is wanted


def test_a_cell_has_its_colour_and_the_head_is_bold() -> None:
    rows = [("a", Painted("on", "green")), ("bb", Painted("", "red"))]
    assert table(("X", "STATE"), rows, Look(colour=True)).splitlines() == [
        "\x1b[1mX\x1b[0m   \x1b[1mSTATE\x1b[0m",
        "a   \x1b[32mon\x1b[0m",
        "bb",
    ]
    assert "\x1b" not in table(("X", "STATE"), rows, Look())


def test_a_line_that_does_not_fit_loses_empty_columns_first_and_then_its_longest_ends() -> None:
    rows = [("42", "", "a long text that is cut", "kept")]
    assert table(("ID", "EMPTY", "TEXT", "D"), rows, Look(width=80)).splitlines()[0] == (
        "ID  EMPTY  TEXT                     D"
    )
    assert table(("ID", "EMPTY", "TEXT", "D"), rows, Look(width=22)).splitlines() == [
        "ID  TEXT          D",
        f"42  a long text{CUT}  kept",
    ]


def test_wide_characters_keep_the_columns_aligned() -> None:
    first, second = table(("A", "B"), [("漢字", "x"), ("abcd", "y")]).splitlines()[1:]
    assert cells_of(first[: first.index("x")]) == second.index("y")
    assert cut("漢字漢字", 4) == f"漢{CUT} "


texts = st.text(max_size=30)


@given(rows=st.lists(st.tuples(texts, texts, texts), max_size=5), width=st.integers(10, 60))
def test_no_line_is_wider_than_the_terminal(rows: list[tuple[str, str, str]], width: int) -> None:
    for line in table(("ONE", "TWO", "THREE"), rows, Look(width=width)).splitlines():
        assert cells_of(line) <= width


@given(text=st.text(max_size=40), width=st.integers(1, 50))
def test_what_is_cut_has_exactly_the_width(text: str, width: int) -> None:
    shown = printable(text)
    result = cut(shown, width)
    assert result == shown if cells_of(shown) <= width else cells_of(result) == width
