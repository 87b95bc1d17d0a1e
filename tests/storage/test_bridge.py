"""The bridge does what aiosqlite asks of an event loop, and nothing is lost to cancellation."""

from __future__ import annotations

import asyncio
import inspect
import sqlite3
import sys
import threading
from pathlib import Path

import aiosqlite
import pytest
import trio
import trio.lowlevel

from storage.sqlite.bridge import open_database


def test_aiosqlite_still_has_what_the_bridge_relies_on() -> None:
    assert list(inspect.signature(aiosqlite.Connection._execute).parameters) == ["self", "fn", "args", "kwargs"]
    connection = aiosqlite.connect(":memory:")
    assert isinstance(connection._thread, threading.Thread)
    assert hasattr(aiosqlite.Connection, "_conn")


def test_asyncio_still_has_what_a_loop_of_our_own_needs() -> None:
    assert asyncio._get_running_loop() is None
    taken = inspect.signature(asyncio.AbstractEventLoop.call_soon).parameters
    assert list(taken) == ["self", "callback", "args", "context"]
    loop = asyncio.new_event_loop()
    try:
        asyncio._set_running_loop(loop)
        assert asyncio._get_running_loop() is loop
        asyncio._set_running_loop(None)
        assert asyncio.Future(loop=loop)._asyncio_future_blocking is False
    finally:
        loop.close()


def test_nothing_imports_trio_asyncio() -> None:
    assert "trio_asyncio" not in sys.modules


def insert(db: sqlite3.Connection, number: int) -> int:
    db.execute("CREATE TABLE IF NOT EXISTS t (n INTEGER)")
    db.execute("INSERT INTO t VALUES (?)", (number,))
    return number


def count(db: sqlite3.Connection) -> int:
    (found,) = db.execute("SELECT count(*) FROM t").fetchone()
    return int(found)


async def test_a_function_runs_on_the_database_thread_and_its_result_comes_back(tmp_path: Path) -> None:
    threads: list[int] = []

    def where(db: sqlite3.Connection) -> str:
        threads.append(threading.get_ident())
        return "done"

    async with open_database(tmp_path / "d.db") as database:
        assert await database.run(where) == "done"
    assert threads != [threading.get_ident()]


async def test_an_error_comes_back_as_it_was_raised_and_the_next_call_works(tmp_path: Path) -> None:
    async with open_database(tmp_path / "d.db") as database:
        with pytest.raises(sqlite3.OperationalError, match="no such table"):
            await database.run(count)
        assert await database.run(insert, 1) == 1


async def test_a_cancelled_caller_queues_nothing(tmp_path: Path) -> None:
    async with open_database(tmp_path / "d.db") as database:
        await database.run(insert, 1)
        with trio.CancelScope() as scope:
            scope.cancel()
            await database.run(insert, 2)
        assert scope.cancelled_caught
        assert await database.run(count) == 1


async def test_a_caller_that_is_cancelled_while_it_runs_gets_the_result(tmp_path: Path) -> None:
    started, release = threading.Event(), threading.Event()

    def slow(db: sqlite3.Connection) -> int:
        started.set()
        assert release.wait(10)
        return insert(db, 1)

    async with open_database(tmp_path / "d.db") as database:
        results: list[int] = []

        async def run() -> None:
            results.append(await database.run(slow))

        async with trio.open_nursery() as nursery:
            nursery.start_soon(run)
            await trio.to_thread.run_sync(started.wait)
            nursery.cancel_scope.cancel()
            release.set()
        assert results == [1]
        assert await database.run(count) == 1


async def test_the_end_of_a_call_is_told_before_any_task_runs_and_its_error_is_for_whoever_asks(tmp_path: Path) -> None:
    told: list[str] = []
    async with open_database(tmp_path / "d.db") as database:
        for function in (lambda db: insert(db, 7), lambda db: db.execute("NONSENSE").rowcount):
            call = database.begin(lambda: told.append("ended"), function)
            await call.done.wait()
            told.append("woken")
        with pytest.raises(sqlite3.OperationalError):
            call.result()
    assert told == ["ended", "woken"] * 2


async def test_calls_run_in_the_order_they_were_made(tmp_path: Path) -> None:
    order: list[int] = []

    def note(db: sqlite3.Connection, number: int) -> None:
        order.append(number)

    async def run(number: int) -> None:
        await trio.lowlevel.checkpoint()
        await database.run(note, number)

    async with open_database(tmp_path / "d.db") as database, trio.open_nursery() as nursery:
        for number in range(50):
            nursery.start_soon(run, number)
    assert sorted(order) == list(range(50))


async def test_closing_ends_the_thread_even_when_cancelled(tmp_path: Path) -> None:
    before = threading.active_count()
    with trio.CancelScope() as scope:
        async with open_database(tmp_path / "d.db") as database:
            await database.run(insert, 1)
            scope.cancel()
    with trio.fail_after(5):
        while threading.active_count() > before:
            await trio.sleep(0.01)
    connection = sqlite3.connect(tmp_path / "d.db")
    assert count(connection) == 1
    connection.close()
