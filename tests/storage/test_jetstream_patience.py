"""How long appends and acts wait for an engine that does not answer, and what they are told then."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import count
from typing import Any, cast

import pytest
import trio
import trio.testing

from storage.clock import SystemClock, Timekeeper
from storage.errors import Busy, Failed, StorageError
from storage.jetstream.acting import Acting, Plan
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
            await self.wait()
        return None

    async def first(self, stream: str, subject: str) -> tuple[Found | None, int]:
        if not self._says_the_head:
            await self.wait()
        return None, 0

    async def store(self, messages: Sequence[Outgoing]) -> Any:
        self.sent += 1
        await self.wait()

    async def direct(self, stream: str, asked: object) -> Any:
        await self.wait()

    async def wait(self) -> None:
        await trio.sleep(ANSWER_SECONDS_MAX)
        raise Unanswered("no answer")


def engine_on(silent: Silent) -> Engine:
    """An engine that knows of one diagnosis."""
    ids = count()
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
    return engine


@pytest.mark.parametrize("says_the_head", [True, False])
@pytest.mark.parametrize("has_keys", [True, False])
async def test_an_append_is_answered_ten_seconds_after_it_was_handed_over_whatever_it_waits_behind(
    autojump_clock: trio.testing.MockClock, says_the_head: bool, has_keys: bool
) -> None:
    silent = Silent(says_the_head)
    engine = engine_on(silent)
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


@pytest.mark.parametrize("is_sent", [True, False])
async def test_acts_that_wait_for_the_engine_wait_together_and_not_each_in_turn(
    autojump_clock: trio.testing.MockClock, is_sent: bool
) -> None:
    silent = Silent(says_the_head=False)
    engine = engine_on(silent)
    engine.catch_up = silent.wait  # type: ignore[method-assign]
    acting, waited, said = Acting(engine), dict[float, float](), dict[float, type[StorageError]]()

    async def plan(number: int) -> Plan:
        if not is_sent:
            await silent.wait()
        return Plan("done")

    async def act(at: float) -> None:
        await trio.sleep(at)
        with pytest.raises((Busy, Failed)) as refused:
            await acting.hand_over(plan).wait()
        waited[at] = trio.current_time() - began_at - at
        said[at] = type(refused.value)

    began_at = trio.current_time()
    async with trio.open_nursery() as nursery:
        nursery.start_soon(acting.run)
        async with trio.open_nursery() as callers:
            for at in (0.0, 0.1, 1.0, 3.0, 9.9, 25.0):
                callers.start_soon(act, at)
        nursery.cancel_scope.cancel()
    assert all(0 <= seconds <= PATIENCE_SECONDS for seconds in waited.values()), waited
    assert waited[0.0] == PATIENCE_SECONDS
    assert said.pop(0.0) is (Failed if is_sent else Busy)
    assert set(said.values()) == {Busy}, "nothing of these was sent"
