"""Group commit: many operations in one transaction, and none of them at the mercy of another."""

from __future__ import annotations

import sqlite3
import threading
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import wait_all_tasks_blocked

from storage.belief import Moment
from storage.clock import Timekeeper
from storage.errors import Busy, Failed, KeyReused
from storage.pending import Pending
from storage.sqlite.bridge import Call, Database, open_database
from storage.sqlite.committer import QUEUE_OPERATIONS_MAX, Committer
from tests.storage.conftest import ManualClock


def add(db: sqlite3.Connection, now: Moment, number: int = 1) -> int:
    db.execute("INSERT INTO t VALUES (?)", (number,))
    return number


def adding(number: int) -> Callable[[sqlite3.Connection, Moment], int]:
    return lambda db, now: add(db, now, number)


@asynccontextmanager
async def committing(path: Path) -> AsyncIterator[Committer]:
    """A committer on an open database with one table."""
    path.parent.mkdir(parents=True)
    async with open_database(path) as database:
        await database.run(lambda db: db.execute("CREATE TABLE t (n INTEGER UNIQUE)").fetchall())
        committer = Committer(database, Timekeeper(ManualClock()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(committer.run)
            yield committer
            committer.close()


def numbers(path: Path) -> list[int]:
    connection = sqlite3.connect(path)
    try:
        return [number for (number,) in connection.execute("SELECT n FROM t ORDER BY n")]
    finally:
        connection.close()


async def test_whoever_closes_it_while_a_transaction_runs_waits_for_no_more_than_that(path: Path) -> None:
    release = threading.Event()

    async def let_go() -> None:
        await wait_all_tasks_blocked()  # it is closed by then
        release.set()

    with trio.fail_after(10):
        async with trio.open_nursery() as nursery, committing(path) as committer:
            committer.submit(lambda db, now: release.wait(10))
            await wait_all_tasks_blocked()
            nursery.start_soon(let_go)


async def test_operations_that_wait_together_share_a_transaction(path: Path) -> None:
    async with committing(path) as committer:
        pendings = [committer.submit(adding(number)) for number in range(100)]
        assert [await pending.wait() for pending in pendings] == list(range(100))
        statistics = committer.statistics()
    assert statistics.operations == 100
    assert statistics.commits <= 2
    assert statistics.batch_peak >= 99


async def test_the_next_transaction_begins_before_anybody_hears_of_the_last(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    happened: list[str] = []
    begin = Database.begin

    def noted(self: Database, ended: Callable[[], object], *rest: Any) -> Call[object]:
        happened.append("begun")
        return begin(self, ended, *rest)

    monkeypatch.setattr(Database, "begin", noted)
    release = threading.Event()

    def slow(db: sqlite3.Connection, now: Moment) -> bool:
        return release.wait(10)

    async def wait(pending: Pending[Any], name: str) -> None:
        await pending.wait()
        happened.append(name)

    async with committing(path) as committer, trio.open_nursery() as nursery:
        nursery.start_soon(wait, committer.submit(slow), "first")
        await trio.testing.wait_all_tasks_blocked()
        nursery.start_soon(wait, committer.submit(adding(1)), "second")
        await trio.testing.wait_all_tasks_blocked()
        release.set()
    assert happened == ["begun", "begun", "first", "second"]


async def test_an_operation_waits_a_turn_for_company_only_if_the_last_one_had_some(path: Path) -> None:
    async with committing(path) as committer:
        await committer.submit(adding(1)).wait()
        for number in (2, 3):  # 2 is alone again
            committer.submit(adding(number))
        await committer.settled().wait()
        assert committer.statistics().commits == 3
        for number in (4, 5):
            committer.submit(adding(number))
        await committer.settled().wait()
        assert committer.statistics().commits == 5, "the last one, 3, was alone"
        first = committer.submit(adding(6))
        committer.submit(adding(7))
        committer.submit(adding(8))
        await first.wait()
        await committer.settled().wait()
        assert committer.statistics().commits == 7
        committer.submit(adding(9))
        committer.submit(adding(10))
        await committer.settled().wait()
        assert committer.statistics().commits == 8
    assert numbers(path) == list(range(1, 11))


async def test_a_refused_operation_leaves_its_batch_alone(path: Path) -> None:
    def refuse(db: sqlite3.Connection, now: Moment) -> int:
        raise KeyReused("no")

    async with committing(path) as committer:
        good, bad, last = (committer.submit(work) for work in (adding(1), refuse, adding(2)))
        assert await good.wait() == 1
        with pytest.raises(KeyReused):
            await bad.wait()
        assert await last.wait() == 2
    assert numbers(path) == [1, 2]


@pytest.mark.parametrize("spoil", ["python", "constraint", "syntax"])
async def test_an_operation_that_fails_unexpectedly_never_poisons_its_batch(path: Path, spoil: str) -> None:
    def broken(db: sqlite3.Connection, now: Moment) -> int:
        add(db, now, 50)
        match spoil:
            case "python":
                raise RuntimeError("a bug")
            case "constraint":
                return add(db, now, 50)
            case _:
                db.execute("NONSENSE")
                return 0

    async with committing(path) as committer:
        pendings: list[Pending[int]] = [committer.submit(adding(n)) for n in range(10)]
        poisoned = committer.submit(broken)
        pendings += [committer.submit(adding(n)) for n in range(10, 20)]
        assert [await pending.wait() for pending in pendings] == list(range(20))
        with pytest.raises(Failed):
            await poisoned.wait()
    assert numbers(path) == list(range(20))


async def test_whoever_waits_is_told_when_a_transaction_fails_in_a_way_that_nothing_is_known_about(path: Path) -> None:
    def lost() -> str | None:
        raise RuntimeError("a bug")

    path.parent.mkdir(parents=True)
    async with open_database(path) as database:
        committer = Committer(database, Timekeeper(ManualClock()), lost)
        pendings = [committer.submit(lambda db, now: 1)]
        with pytest.raises(ExceptionGroup) as raised:
            async with trio.open_nursery() as nursery:
                nursery.start_soon(committer.run)
                pendings.append(committer.submit(lambda db, now: 2))
                with trio.CancelScope(shield=True), trio.fail_after(5):
                    for pending in pendings:
                        with pytest.raises(Failed):
                            await pending.wait()
    assert raised.group_contains(RuntimeError, match="a bug")
    with pytest.raises(Failed):
        await committer.submit(lambda db, now: 3).wait()


async def test_a_full_queue_refuses_at_once(path: Path) -> None:
    release = threading.Event()

    def slow(db: sqlite3.Connection, now: Moment) -> int:
        assert release.wait(10)
        return 0

    async with committing(path) as committer:
        first = committer.submit(slow)
        await trio.testing.wait_all_tasks_blocked()
        for number in range(QUEUE_OPERATIONS_MAX):
            committer.submit(adding(number))
        with pytest.raises(Busy):
            committer.submit(add)
        release.set()
        assert await first.wait() == 0
    assert numbers(path) == list(range(QUEUE_OPERATIONS_MAX))


async def test_what_is_queued_when_it_closes_is_still_stored(path: Path) -> None:
    async with committing(path) as committer:
        for number in range(300):
            committer.submit(adding(number))
    assert numbers(path) == list(range(300))
