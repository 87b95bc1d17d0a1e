"""The bus of the processes of an installation, over a real server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from random import Random
from uuid import uuid4

import pytest
import trio

from storage.bus import SILENT_SECONDS_MAX, Bus
from storage.jetstream.bus import NatsBus
from storage.jetstream.layout import Layout
from storage.nats.connection import Connection
from storage.nats.errors import NoResponders
from storage.nats.wire import Outgoing
from tests.cluster.servers import NatsServer
from tests.cluster.test_store import until

pytestmark = pytest.mark.cluster


@asynccontextmanager
async def bus(server: NatsServer, name: str, node: str) -> AsyncIterator[NatsBus]:
    """The way of one process to the others of its installation."""
    connection = Connection([server.address], name=node, new_id=lambda: uuid4().hex, jitter=Random(node).random)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        made = NatsBus(connection, Layout(name), node, nursery)
        with trio.fail_after(10):
            await connection.up.wait()
        async with trio.open_nursery() as beats:
            beats.start_soon(made.run)
            yield made
            beats.cancel_scope.cancel()
        await trio.sleep(0.05)  # what it has said last is written
        nursery.cancel_scope.cancel()


@pytest.fixture
async def three(one_nats_server: NatsServer) -> AsyncIterator[list[Bus]]:
    name = f"t{uuid4().hex[:20]}"
    async with (
        bus(one_nats_server, name, "a") as a,
        bus(one_nats_server, name, "b") as b,
        bus(one_nats_server, name, "c") as c,
    ):
        await until(lambda: all(len(one.others()) == 2 for one in (a, b, c)))
        yield [a, b, c]


async def settled(buses: list[Bus]) -> None:
    """Wait until the server knows what was subscribed to."""
    for one in buses:
        assert isinstance(one, NatsBus)
        with pytest.raises(NoResponders):
            await one._connection.request(Outgoing("nobody"))


async def test_what_is_published_is_heard_by_the_others_that_have_subscribed(three: list[Bus]) -> None:
    heard: list[tuple[str, str, bytes]] = []
    undo = [
        one.subscribe("a topic > of *", lambda node, data, at=one.node: heard.append((at, node, data)))  # type: ignore[misc]
        for one in three
    ]
    await settled(three)
    three[0].publish("a topic > of *", b"one")
    three[0].publish("another", b"nothing")
    await until(lambda: len(heard) == 2)
    assert sorted(heard) == [("b", "a", b"one"), ("c", "a", b"one")]
    undo[1]()
    await settled(three)
    three[0].publish("a topic > of *", b"two")
    await until(lambda: len(heard) == 3)
    assert heard[2] == ("c", "a", b"two")


async def test_all_others_are_asked_and_the_last_answer_is_waited_for(three: list[Bus]) -> None:
    def answering(one: Bus, seconds: float) -> None:
        async def answers(node: str, data: bytes) -> bytes:
            await trio.sleep(seconds)
            return f"{one.node} to {node}: ".encode() + data

        one.answer("topic", answers)

    for one, seconds in zip(three, (0.0, 0.1, 0.2), strict=True):
        answering(one, seconds)
    await settled(three)
    with trio.fail_after(10):
        assert await three[0].ask("topic", b"who?", 60) == {"b": b"b to a: who?", "c": b"c to a: who?"}
    assert set(await three[1].ask("topic", b"who?", 0.1)) <= {"a", "c"}


async def test_a_process_that_leaves_is_gone_at_once_and_one_that_vanishes_after_a_while(
    one_nats_server: NatsServer, three: list[Bus]
) -> None:
    assert isinstance(three[0], NatsBus)
    name = three[0]._layout.name
    async with bus(one_nats_server, name, "d"):
        await until(lambda: three[0].others() == ["b", "c", "d"])
    began = trio.current_time()
    await until(lambda: three[0].others() == ["b", "c"])
    assert trio.current_time() - began < SILENT_SECONDS_MAX
    three[0]._heard_at["e"] = trio.current_time() - SILENT_SECONDS_MAX  # it has not been heard of for so long
    assert three[0].others() == ["b", "c"]
    assert await three[0].ask("nobody answers this", b"", 0.01) == {}
