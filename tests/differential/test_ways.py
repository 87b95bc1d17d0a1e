"""The same bytes have the same answers, the same end and the same effects, whichever way a request goes."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.differential.pair import Difference, running_pair
from tests.differential.tables import TABLES, steps_of


def test_there_are_at_least_150_cases_and_none_twice() -> None:
    for table in TABLES.values():
        assert len(set(map(repr, table.cases.values()))) > len(table.cases) - 10
    assert sum(len(table.cases) for table in TABLES.values()) >= 150


@pytest.mark.parametrize("name", TABLES)
async def test_written_cases_are_answered_alike(name: str, tmp_path: Path) -> None:
    table = TABLES[name]
    found: list[Difference] = []
    async with running_pair(tmp_path, table.settings, is_hasty=table.is_hasty) as pair:
        for title, case in table.cases.items():
            found += await pair.differences_of(title, steps_of(case))
            found += await pair.differences_stored(title)
        found += await pair.differences_shown(name)
    found += pair.differences_left(name)
    assert not found, "\n".join(map(str, found))
