"""Data directories that are full before a server starts on them, made with the server's own store."""

from __future__ import annotations

import secrets
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from storage.clock import SystemClock
from storage.records import Appended, CursorMove, NewAuditRow, NewEvent, Seq, SubscriberId
from storage.sqlite.opening import open_store
from storage.sqlite.store import SqliteStore
from web.server.settings import DATABASE_FILE

AT_ONCE: Final = 512
"""Changes on their way to the store at the same time."""

BODY: Final = b'{"new_data":{"x":"%b"},"changed_fields":["x"]}' % (b"y" * 30_000)

Fill = Callable[[SqliteStore], Awaitable[None]]


def fill(data: Path, how: Fill) -> None:
    """Make the database of a data directory, and fill it."""
    data.mkdir(mode=0o700, parents=True, exist_ok=True)

    async def run() -> None:
        new_epoch = partial(secrets.token_hex, 8)
        async with open_store(data / DATABASE_FILE, clock=SystemClock(), new_epoch=new_epoch) as store:
            await how(store)

    trio.run(run)


async def _all(acts: Sequence[Callable[[], Awaitable[object]]]) -> None:
    for begin in range(0, len(acts), AT_ONCE):
        async with trio.open_nursery() as acts_nursery:
            for act in acts[begin : begin + AT_ONCE]:
                acts_nursery.start_soon(act)


def diagnoses(count: int, name: str = "many") -> Fill:
    """Many diagnoses of many owners."""

    async def how(store: SqliteStore) -> None:
        await _all([partial(store.register, f"{name}-{number}", f"owner-{number}", []) for number in range(count)])

    return how


def outboxes(count: int) -> Fill:
    """Diagnoses `big-N` with a hundred events of 30 KB each."""

    async def how(store: SqliteStore) -> None:
        await diagnoses(count, "big")(store)
        for number in range(count):
            pending = store.append_nowait(f"big-{number}", [NewEvent("recommendation_update", BODY)] * 100)
            assert all(isinstance(one, Appended) for one in await pending.wait()), "there is room"

    return how


def subscribers(name: str, count: int) -> Fill:
    """A diagnosis of `owner-NAME` with many known subscribers, each with a device."""

    async def how(store: SqliteStore) -> None:
        epoch = (await store.register(name, f"owner-{name}", [])).diagnosis.epoch
        now = store.moment().reckoned
        moves = [
            CursorMove(name, SubscriberId(f"known-{number // 10}", f"d{number % 10}"), epoch, Seq(0), now)
            for number in range(count)
        ]
        for begin in range(0, count, 1000):
            await store.move_cursors(moves[begin : begin + 1000])

    return how


def audit_rows(who: str, count: int) -> Fill:
    """Rows of the audit trail that name one person."""

    async def how(store: SqliteStore) -> None:
        row = NewAuditRow(who, "actor.restart", "wild", diagnosis_id="wild")
        await _all([partial(store.record, row)] * count)

    return how
