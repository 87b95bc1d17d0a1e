"""What nodes tell and ask each other through a bus."""

from __future__ import annotations

import pytest
import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from storage.bus import SILENT_SECONDS_MAX, MemoryBus, MemoryNetwork, NoBus


class Ear:
    """Takes note of what a node hears."""

    def __init__(self) -> None:
        self.heard: list[tuple[str, bytes]] = []

    def __call__(self, node: str, data: bytes) -> None:
        self.heard.append((node, data))


def buses(nursery: trio.Nursery) -> tuple[MemoryNetwork, list[MemoryBus]]:
    network = MemoryNetwork(nursery)
    return network, [network.join(node) for node in ("a", "b", "c")]


async def test_what_is_published_is_heard_by_the_others_that_have_subscribed(nursery: trio.Nursery) -> None:
    _, (a, b, c) = buses(nursery)
    ears = [Ear(), Ear(), Ear(), Ear()]
    undo = [bus.subscribe("topic", ear) for bus, ear in zip((a, b, c, c), ears, strict=True)]
    a.publish("topic", b"one")
    a.publish("else", b"nothing")
    undo[1]()
    b.publish("topic", b"two")
    assert [ear.heard for ear in ears] == [[("b", b"two")], [("a", b"one")], *[[("a", b"one"), ("b", b"two")]] * 2]


async def test_all_others_are_asked_and_the_last_answer_is_waited_for(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    _, (a, b, c) = buses(nursery)

    def answering(bus: MemoryBus, seconds: float) -> None:
        async def answers(node: str, data: bytes) -> bytes:
            await trio.sleep(seconds)
            return bus.node.encode() + b" to " + node.encode() + b": " + data

        bus.answer("topic", answers)

    for bus, seconds in ((a, 9), (b, 1), (c, 3)):
        answering(bus, seconds)
    began = trio.current_time()
    assert await a.ask("topic", b"who?", 5) == {"b": b"b to a: who?", "c": b"c to a: who?"}
    assert trio.current_time() - began == pytest.approx(3)
    assert set(await b.ask("topic", b"who?", 5)) == {"c"}
    assert trio.current_time() - began == pytest.approx(8)


async def test_whoever_asks_and_leaves_does_not_call_back_what_it_asked_for(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    _, (a, b, _) = buses(nursery)
    done: list[bytes] = []

    async def answers(node: str, data: bytes) -> bytes:
        await trio.sleep(1)
        done.append(data)
        return b""

    b.answer("topic", answers)
    with trio.move_on_after(0.5):
        await a.ask("topic", b"do it", 60)
    await trio.sleep(1)
    assert done == [b"do it"]


async def test_a_node_that_vanishes_is_taken_for_alive_for_a_while(
    autojump_clock: MockClock, nursery: trio.Nursery
) -> None:
    network, (a, b, c) = buses(nursery)
    assert a.others() == ["b", "c"]
    network.kill("c")
    ear = Ear()
    c.subscribe("topic", ear)
    b.publish("topic", b"anybody?")
    assert ear.heard == []
    assert a.others() == ["b", "c"]
    await trio.sleep(SILENT_SECONDS_MAX)
    assert a.others() == ["b"]


async def test_a_process_that_is_alone_hears_nothing_and_waits_for_nobody() -> None:
    bus, ear = NoBus(), Ear()
    undo = bus.subscribe("topic", ear)
    bus.publish("topic", b"hello")
    assert await bus.ask("topic", b"who?", 60) == {}
    undo()
    assert (list(bus.others()), ear.heard) == ([], [])


async def test_nobody_is_waited_for_where_nobody_else_is(nursery: trio.Nursery) -> None:
    bus = MemoryNetwork(nursery).join("a")
    assert await bus.ask("topic", b"who?", 60) == {}
    await wait_all_tasks_blocked()
