"""What processes on one store tell and ask each other, beside what the store tells: bytes, by topic.

Nothing that must not be lost travels here: what is published arrives at most once, and an answer may be missing. What
must arrive everywhere is an act, which the store tells (`storage.changes`).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from typing import Final, Protocol

import trio

SILENT_SECONDS_MAX: Final = 5.0
"""A node that was not heard of for so long is not there any more."""

Heard = Callable[[str, bytes], None]
"""Called with the node that has published, and what. Must not raise or wait."""

Answers = Callable[[str, bytes], Awaitable[bytes]]
"""Called with the node that asks, and what, in a task of its own; the answer."""


class Bus(Protocol):
    """One node's way to the others."""

    @property
    def node(self) -> str:
        """The name of this node: another one after each start of the process."""

    def others(self) -> Sequence[str]:
        """The other nodes that were heard of within `SILENT_SECONDS_MAX`."""

    def publish(self, topic: str, data: bytes) -> None:
        """Tell the other nodes that have subscribed; never waits."""

    def subscribe(self, topic: str, heard: Heard) -> Callable[[], None]:
        """Be told what others publish, until the function returned is called."""

    def answer(self, topic: str, answers: Answers) -> None:
        """Answer what others ask, from now on. To be called once for a topic."""

    async def ask(self, topic: str, data: bytes, seconds: float) -> Mapping[str, bytes]:
        """Ask all others: the answers of those who answered within `seconds`, by node.

        Cancellation: stops waiting; what was asked for goes on.
        """


class NoBus:
    """The bus of a process that is alone."""

    node = "alone"

    def others(self) -> Sequence[str]:
        return ()

    def publish(self, topic: str, data: bytes) -> None:
        """Nobody is there."""

    def subscribe(self, topic: str, heard: Heard) -> Callable[[], None]:
        return _nothing

    def answer(self, topic: str, answers: Answers) -> None:
        """Nobody asks."""

    async def ask(self, topic: str, data: bytes, seconds: float) -> Mapping[str, bytes]:
        return {}


def _nothing() -> None:
    """Undoes a subscription to nothing."""


class MemoryNetwork:
    """What the buses of several nodes in one process have between them, for tests."""

    def __init__(self, answers_nursery: trio.Nursery) -> None:
        """A network without nodes; whoever is asked works in this nursery."""
        self._answers_nursery = answers_nursery
        self._buses: dict[str, MemoryBus] = {}
        self._last_heard_of: dict[str, float] = {}
        """When nodes were heard of for the last time that are gone now."""

    def join(self, node: str) -> MemoryBus:
        """The bus of a new node."""
        bus = self._buses[node] = MemoryBus(node, self)
        self._last_heard_of.pop(node, None)
        return bus

    def kill(self, node: str) -> None:
        """Have a node vanish as a process does that is killed: the others take it for alive for a while."""
        del self._buses[node]
        self._last_heard_of[node] = trio.current_time()

    def others(self, node: str) -> Sequence[str]:
        """Whom a node takes for alive beside itself."""
        now = trio.current_time()
        silent = [one for one, at in self._last_heard_of.items() if now - at < SILENT_SECONDS_MAX]
        return sorted(one for one in (*self._buses, *silent) if one != node)

    def publish(self, by: MemoryBus, topic: str, data: bytes) -> None:
        """Tell all that listen."""
        for bus in [one for one in self._buses.values() if one is not by]:
            bus.hear(by.node, topic, data)

    async def ask(self, by: MemoryBus, topic: str, data: bytes, seconds: float) -> Mapping[str, bytes]:
        """Ask all others, and wait for the last."""
        asked, answered = self.others(by.node), dict[str, bytes]()
        all_have = trio.Event()

        def answer(node: str, given: bytes) -> None:
            answered[node] = given
            if len(answered) == len(asked):
                all_have.set()

        for node in asked:
            if (bus := self._buses.get(node)) is not None:
                self._answers_nursery.start_soon(bus.be_asked, by.node, topic, data, partial(answer, node))
        if asked:
            with trio.move_on_after(seconds):
                await all_have.wait()
        return dict(answered)


class MemoryBus:
    """A `Bus` within one process."""

    def __init__(self, node: str, network: MemoryNetwork) -> None:
        self.node = node
        self._network = network
        self._heard: dict[str, list[Heard]] = {}
        self._answers: dict[str, Answers] = {}

    def others(self) -> Sequence[str]:
        return self._network.others(self.node)

    def publish(self, topic: str, data: bytes) -> None:
        self._network.publish(self, topic, data)

    def subscribe(self, topic: str, heard: Heard) -> Callable[[], None]:
        self._heard.setdefault(topic, []).append(heard)

        def undo() -> None:
            self._heard[topic].remove(heard)
            if not self._heard[topic]:
                del self._heard[topic]

        return undo

    def answer(self, topic: str, answers: Answers) -> None:
        assert topic not in self._answers, "a topic has one that answers"
        self._answers[topic] = answers

    async def ask(self, topic: str, data: bytes, seconds: float) -> Mapping[str, bytes]:
        return await self._network.ask(self, topic, data, seconds)

    def hear(self, node: str, topic: str, data: bytes) -> None:
        """Another node has published."""
        for heard in list(self._heard.get(topic, ())):
            heard(node, data)

    async def be_asked(self, node: str, topic: str, data: bytes, answer: Callable[[bytes], None]) -> None:
        """Another node asks."""
        if (answers := self._answers.get(topic)) is not None:
            answer(await answers(node, data))
