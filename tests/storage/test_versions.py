"""Databases of earlier versions: each opens, is brought up to date in one transaction, and keeps what it held."""

from __future__ import annotations

import itertools
import json
import shutil
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from storage.sqlite.opening import open_store
from storage.sqlite.schema import MIGRATIONS
from tests.storage.conftest import ManualClock
from tests.storage.databases.make import BEGAN_AT, HERE, described, key_is_known

VERSIONS = range(1, len(MIGRATIONS) + 1)


@pytest.fixture
def clock() -> ManualClock:
    """Soon after the databases were made: their keys still count."""
    clock = ManualClock()
    clock.now = BEGAN_AT + 3600
    return clock


def new_epoch_of(version: int) -> Any:
    names = (f"new-{version}-{number}" for number in itertools.count())
    return lambda: next(names)


@pytest.mark.parametrize("version", VERSIONS)
async def test_a_database_of_an_earlier_version_keeps_epochs_numbers_and_all_it_held(
    version: int, path: Path, clock: ManualClock
) -> None:
    held = json.loads((HERE / f"version-{version}.json").read_text())
    path.parent.mkdir(mode=0o700)
    shutil.copy(HERE / f"version-{version}.db", path)
    for _ in range(2):  # brought up to date once, and then opened like any other
        async with open_store(path, clock=clock, new_epoch=new_epoch_of(version)) as store:
            assert json.loads(json.dumps(await described(store))) == held
            assert await key_is_known(store, "full", "key-120")
            assert await store.check() == []


async def test_a_migration_that_fails_leaves_the_database_as_it_was(
    path: Path, clock: ManualClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    path.parent.mkdir(mode=0o700)
    shutil.copy(HERE / "version-1.db", path)
    monkeypatch.setattr(
        "storage.sqlite.schema.MIGRATIONS", (*MIGRATIONS[:-1], MIGRATIONS[-1] + "SELECT no_such_function();")
    )
    with pytest.raises(Exception, match="no_such_function"):
        async with open_store(path, clock=clock, new_epoch=new_epoch_of(1)):
            pass
    connection = sqlite3.connect(path)
    assert connection.execute("PRAGMA user_version").fetchone() == (1,)
    columns = [name for _, name, *_ in connection.execute("PRAGMA table_info(cursor)")]
    connection.close()
    assert "acknowledged_by" not in columns


async def test_what_an_earlier_version_did_not_keep_is_filled_in_where_it_can_be(
    path: Path, clock: ManualClock
) -> None:
    path.parent.mkdir(mode=0o700)
    shutil.copy(HERE / "version-1.db", path)
    async with open_store(path, clock=clock, new_epoch=new_epoch_of(1)) as store:
        assert {row.what: row.diagnosis_id for row in await store.audit()} == {
            "actor.restart": "full",
            "diagnosis.register": "full",
        }
        assert [one.covers_until - one.at for one in await store.revocations()] == [10, 10]
        assert {one.acknowledged_by for one in await store.cursors("full")} == {None}


def test_every_version_has_a_database_that_it_made() -> None:
    assert {f"version-{version}.db" for version in VERSIONS} <= {one.name for one in HERE.glob("*.db")}
