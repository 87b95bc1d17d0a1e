"""How long an append waits for an engine that does not answer, and what it is told then."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, cast

import pytest
import trio
import trio.testing

from storage.clock import SystemClock, Timekeeper
from storage.errors import Busy, Failed, StorageError
from storage.jetstream.acts import Registered
from storage.jetstream.appending import Appending
from storage.jetstream.engine import PATIENCE_SECONDS, Engine
from storage.jetstream.layout import Layout
from storage.nats.connection import ANSWER_SECONDS_MAX
from storage.nats.errors import Unanswered
from storage.nats.jetstream import Found, JetStream
from storage.nats.wire import Outgoing
from storage.records import Appended, Diagnosis, Epoch, NewEvent
from tests.storage.rows import ROWS


class Silent:
    """A JetStream that does not answer, but perhaps what the newest entry of a log is."""

    def __init__(self, says_the_head: bool) -> None:
        self._says_the_head = says_the_head
        self.up = trio.Event()
        self.up.set()
        self.sent = 0

    @property
    def connection(self) -> Silent:
        return self

    away_since: float | None = None

    async def last(self, stream: str, subject: str) -> Found | None:
        if not self._says_the_head:
            await self._wait()
        return None

    async def first(self, stream: str, subject: str) -> tuple[Found | None, int]:
        if not self._says_the_head:
            await self._wait()
        return None, 0

    async def store(self, messages: Sequence[Outgoing]) -> Any:
        self.sent += 1
        await self._wait()

    async def direct(self, stream: str, asked: object) -> Any:
        await self._wait()

    async def _wait(self) -> None:
        await trio.sleep(ANSWER_SECONDS_MAX)
        raise Unanswered("no answer")


@pytest.mark.parametrize("says_the_head", [True, False])
@pytest.mark.parametrize("has_keys", [True, False])
async def test_an_append_is_answered_ten_seconds_after_it_was_handed_over_whatever_it_waits_behind(
    autojump_clock: trio.testing.MockClock, says_the_head: bool, has_keys: bool
) -> None:
    silent, ids = Silent(says_the_head), count()
    engine = Engine(
        cast("JetStream", silent),
        Layout("test"),
        Timekeeper(SystemClock()),
        node="n",
        rows=ROWS,
        new_epoch=lambda: f"e{next(ids)}",
        new_id=lambda: f"i{next(ids)}",
        jitter=lambda: 0.5,
    )
    engine.known.take(Registered(Diagnosis("d", "amira", (), Epoch("e"), 1.0)), 1)
    engine.catch_up = trio.lowlevel.checkpoint  # type: ignore[method-assign]
    waited: dict[float, float] = {}
    said: list[Appended | StorageError] = []

    async def append(at: float) -> None:
        await trio.sleep(at)
        key = f"a-key-of-{at:08.3f}" if has_keys else None
        (outcome,) = await appending.hand_over("d", [NewEvent("feedback", b"1", key, b"1")]).wait()
        waited[at] = trio.current_time() - began_at - at
        said.append(outcome)

    async with trio.open_nursery() as nursery:
        appending, began_at = Appending(engine, nursery, 100), trio.current_time()
        for at in (0.0, 0.1, 1.0, 3.0, 7.0, 9.9, 25.0):
            nursery.start_soon(append, at)
    assert all(0 <= seconds <= PATIENCE_SECONDS for seconds in waited.values()), waited
    assert waited[0.0] == PATIENCE_SECONDS
    assert {type(one) for one in said} == ({Failed, Busy} if silent.sent else {Busy})
    assert appending.waiting == 0
