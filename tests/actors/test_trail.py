"""The access trail on its way to the store."""

from __future__ import annotations

from typing import Any, cast

import trio
from trio.testing import MockClock

from actors.access_trail import AccessTrail
from actors.upkeep import restart_on_crash
from storage.store import Store
from tests.actors.world import DIAGNOSIS, Bug, FaultyStore, Reader, WorldClock, memory_store


async def test_rows_that_wait_at_a_crash_are_stored_by_the_next_run_and_a_flush_sees_it(
    autojump_clock: MockClock,
) -> None:
    store = FaultyStore(memory_store())
    trail = AccessTrail(cast(Store, store), WorldClock())
    store.fail("record_accesses", Bug())
    reader: Any = Reader()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(restart_on_crash, "access trail", trail.run, WorldClock(), lambda: 1.0)
        trail.note("connect", DIAGNOSIS, reader.subscriber)
        with trio.fail_after(30):
            await trail.flush()
        assert [row.what for row in await store.inner.accesses()] == ["connect"]
        nursery.cancel_scope.cancel()
