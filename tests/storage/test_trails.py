"""The queries of both trails: by which index SQLite finds their rows."""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from contextlib import closing

import pytest

from storage.records import TrailFilter
from storage.sqlite import trails
from storage.sqlite.schema import MIGRATIONS

WHO, WHAT, DIAGNOSIS = {"who": "amira"}, {"what": "connect"}, {"diagnosis_id": "42"}
TIMES = {"since": 1.0, "until": 2.0}


@pytest.fixture
def db() -> Iterator[sqlite3.Connection]:
    with closing(sqlite3.connect(":memory:")) as connection:
        for step in MIGRATIONS:
            connection.executescript(step)
        yield connection


def plan(db: sqlite3.Connection, trail: str, **wanted: object) -> str:
    """How SQLite answers the query of a trail."""
    asked: list[str] = []
    db.set_trace_callback(asked.append)
    read = trails.audit if trail == "audit" else trails.accesses
    read(db, 1000, 100, TrailFilter(**wanted))  # type: ignore[arg-type]
    db.set_trace_callback(None)
    return "; ".join(row[3] for row in db.execute(f"EXPLAIN QUERY PLAN {asked[0]}"))


@pytest.mark.parametrize(("trail", "by_who"), [("audit", "audit_by_who"), ("access", "access_by_sub")])
@pytest.mark.parametrize("times", [{}, TIMES], ids=["at any time", "within a time"])
def test_rows_are_found_by_the_narrowest_index_and_need_no_sorting(
    trail: str, by_who: str, times: dict[str, object], db: sqlite3.Connection
) -> None:
    for wanted, indexes in (
        (WHO, [by_who]),
        (WHAT, [f"{trail}_by_what"]),
        (DIAGNOSIS, [f"{trail}_by_diagnosis"]),
        (WHO | WHAT, [by_who]),
        (DIAGNOSIS | WHAT, [f"{trail}_by_diagnosis"]),
        (WHO | DIAGNOSIS | WHAT, [by_who, f"{trail}_by_diagnosis"]),
    ):
        found = plan(db, trail, **wanted, **times)
        assert any(f"USING INDEX {index} (" in found for index in indexes), found
        assert "TEMP B-TREE" not in found


@pytest.mark.parametrize("trail", ["audit", "access"])
def test_a_page_without_a_filter_is_read_from_where_it_begins(trail: str, db: sqlite3.Connection) -> None:
    assert plan(db, trail) == f"SEARCH {trail} USING INTEGER PRIMARY KEY (rowid<?)"
