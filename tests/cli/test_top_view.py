"""What `top` draws for a snapshot, and what its keys do. No terminal, no server."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from web.commands.tables import cells_of
from web.commands.text import duration, size
from web.commands.top_view import COLUMNS, Row, Snapshot, View, rows_of_screen, short

FIGURES: dict[str, Any] = {
    "version": "1",
    "uptime_seconds": 61.0,
    "diagnoses": 3,
    "followers": 7,
    "actors": 2,
    "events": 9,
    "deliveries": 90,
    "ring_bytes": 2048,
    "stalls": 0,
    "store_waiting_seconds": 0.0,
    "clock_held_since": None,
}


def row(diagnosis_id: int | str, **values: Any) -> Row:
    given: dict[str, Any] = {
        "state": "running",
        "connections": 0,
        "queued": 0,
        "lag": 0,
        "mailbox": 0,
        "head": 0,
        "events_per_second": 0.0,
        "crashes": 0,
        "trouble": "",
    }
    return Row(diagnosis_id, **(given | values))


def snapshot(*rows: Row, failure: str = "", **figures: Any) -> Snapshot:
    return Snapshot("http://x", FIGURES | figures, rows, 1.5, 200.0, 5.0, failure)


def text_of(view: View, shown: Snapshot, width: int = 100, height: int = 24) -> list[str]:
    return ["".join(text for text, _ in line) for line in view.lines(shown, width=width, height=height, now=7.0)]


def ids(view: View, shown: Snapshot) -> list[int | str]:
    return [one.diagnosis_id for one in view.rows(shown)]


ROWS = snapshot(
    row(10, connections=5, queued=1),
    row(9, connections=5, state="quarantined", trouble="event 3 fails its checksum"),
    row("ward-a", connections=9, events_per_second=1.5),
)


def test_the_busiest_come_first_and_equal_ones_in_the_order_of_their_ids() -> None:
    assert ids(View(), ROWS) == ["ward-a", 9, 10]


def test_keys_sort_reverse_and_go_back() -> None:
    view = View()
    orders = []
    for key in ("s", "S", "r", "<", "<"):
        assert view.pressed(key, 10)
        orders.append(ids(view, ROWS))
    assert orders == [
        [10, 9, "ward-a"],  # by queued
        ["ward-a", 9, 10],  # by connections
        [10, 9, "ward-a"],  # reversed
        [9, 10, "ward-a"],  # by state: what needs an eye first
        [9, 10, "ward-a"],  # by id
    ]
    assert not view.pressed("q", 10)


def test_a_search_takes_letters_and_is_left_by_escape() -> None:
    view = View()
    for key in ("/", "W", "q", "backspace", "A"):
        assert view.pressed(key, 10)
    assert ids(view, ROWS) == ["ward-a"]
    assert text_of(view, ROWS)[3].startswith("search: WA")
    view.pressed("enter", 10)
    assert not view.typing
    view.pressed("escape", 10)
    assert len(ids(view, ROWS)) == 3


def test_what_is_wrong_is_said() -> None:
    lines = text_of(View(), snapshot(row(1, trouble="event 3 fails"), failure="cannot reach x"), width=120)
    assert lines[3] == "cannot reach x"
    assert lines[4].rstrip().endswith("TROUBLE")
    assert lines[5].endswith("event 3 fails")
    second = text_of(View(), snapshot(clock_held_since="2026-01-02T03:04:05.000Z", store_waiting_seconds=4.0))[1]
    assert second.startswith("clock not believed since 2026-01-02T03:04:05.000Z  disk waits 4.0 s  3 diagnoses")


def test_figures_of_the_server_and_how_old_they_are() -> None:
    shown = snapshot(row(1), row(2, state="passive"))
    lines = ["".join(text for text, _ in line) for line in View().lines(shown, width=120, height=24, now=5.9)]
    assert lines[:3] == [
        "avicenna-live 1  http://x  up 00:01:01",
        "3 diagnoses  7 followers  1.5 events/s  200.0 deliveries/s  2 in memory  2.0 KiB of events  0 cut off",
        "1 running  0 restarting  0 quarantined  1 passive  ",
    ]
    lines = ["".join(text for text, _ in line) for line in View().lines(shown, width=120, height=24, now=65.0)]
    assert lines[2].endswith("(of 60 s ago)")


def test_scrolling_stays_within_the_rows() -> None:
    view, shown = View(), snapshot(*(row(number) for number in range(100)))
    page = rows_of_screen(24)
    for key, first in (("up", 0), ("page down", page), ("end", 100 - page), ("down", 100 - page), ("home", 0)):
        view.rows(shown)
        view.pressed(key, page)
        lines = text_of(view, shown)
        assert view.first == first, key
        assert lines[5].startswith(f"{first} ")
        assert f"{first + 1}-{first + page} of 100" in lines[-1]


def test_a_narrow_screen_shows_whole_columns_and_the_one_that_rows_are_sorted_by() -> None:
    titles = [column.title for column in COLUMNS]
    lines = text_of(View(titles.index("CRASH")), snapshot(row("ward-1", crashes=7), row("ward-2")), width=39, height=10)
    assert lines[4].split() == ["DIAGNOSIS", "STATE", "CONN", "CRASHv"]
    assert lines[5].split() == ["ward-1", "running", "0", "7"]
    assert lines[-1].startswith("q quit  s sort")
    assert lines[-1].endswith("\u2026 1-2 of 2")


def test_an_id_cannot_move_the_cursor() -> None:
    assert any("a\\x1b[2J" in line for line in text_of(View(), snapshot(row("a\x1b[2J"))))


@given(
    names=st.lists(st.one_of(st.integers(0, 10**15), st.text(min_size=1, max_size=64)), unique=True, max_size=30),
    width=st.integers(1, 200),
    height=st.integers(1, 60),
    trouble=st.text(max_size=80),
)
def test_every_screen_fits(names: list[int | str], width: int, height: int, trouble: str) -> None:
    shown = snapshot(*(row(one, head=10**14, trouble=trouble) for one in names), failure=trouble)
    lines = View(search="").lines(shown, width=width, height=height, now=7.0)
    assert len(lines) <= height
    for line in lines:
        assert sum(cells_of(text) for text, _ in line) <= width


@pytest.mark.parametrize(
    ("number", "shown"),
    [(0, "0"), (99_999, "99999"), (100_000, "100k"), (1_234_567, "1.2M"), (10**15, "1.0P"), (0.25, "0.2")],
)
def test_numbers_are_short(number: float, shown: str) -> None:
    assert short(number) == shown


def test_sizes_and_times_are_for_people() -> None:
    assert [size(one) for one in (0, 1023, 1536, 3 * 2**30, 2**41)] == [
        "0 B",
        "1023 B",
        "1.5 KiB",
        "3.0 GiB",
        "2.0 TiB",
    ]
    assert [duration(one) for one in (0, 3661.9, 90_061)] == ["00:00:00", "01:01:01", "1d 01:01:01"]


def test_every_column_is_as_wide_as_its_title_and_the_arrow_of_its_order() -> None:
    for number, column in enumerate(COLUMNS):
        head = text_of(View(number), ROWS)[4]
        assert f"{column.title}{'v' if column.falls else '^'}" in head
