"""The bus of the processes of an installation (`storage.bus.Bus`), over plain messages of NATS.

Each message arrives once or never. A process says each second that it is there. Its name goes with whatever it says,
and tells its own messages from those of others.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from typing import Final

import trio

from storage.bus import SILENT_SECONDS_MAX, Answers, Heard
from storage.jetstream.layout import Layout
from storage.nats.connection import Connection
from storage.nats.errors import NatsError
from storage.nats.wire import Message, Outgoing

BEAT_SECONDS: Final = 1.0
"""Between two signs of life."""

NODE: Final = "Av-Node"
"""The header with the name of whoever says something."""

REPLY: Final = "Av-Reply"
"""The header with the subject for answers. The protocol's own would bring a message where nobody listens."""

assert BEAT_SECONDS * 3 <= SILENT_SECONDS_MAX, "two signs of life may be lost"


class NatsBus:
    """One process's way to the others."""

    def __init__(self, connection: Connection, layout: Layout, node: str, nursery: trio.Nursery) -> None:
        """Nobody hears of this process, and it of nobody, before `run`.

        Args:
            nursery: where questions of others are answered.
        """
        self.node = node
        self._connection = connection
        self._layout = layout
        self._answers_nursery = nursery
        self._heard_at: dict[str, float] = {}
        self._answers: set[str] = set()
        self._asked: dict[str, tuple[trio.Event, dict[str, bytes], int]] = {}
        self._questions = 0
        connection.subscribe(layout.beat, self._hear_beat)
        connection.subscribe(layout.leaving, self._hear_leaving)
        connection.subscribe(layout.answers_to(node, "*"), self._hear_answer)

    async def run(self) -> None:
        """Tell the others that this process is there, until cancelled; then, that it leaves."""
        try:
            while True:
                self._say(self._layout.beat)
                await trio.sleep(BEAT_SECONDS)
        finally:
            self._say(self._layout.leaving)

    def others(self) -> Sequence[str]:
        since = trio.current_time() - SILENT_SECONDS_MAX
        self._heard_at = {node: at for node, at in self._heard_at.items() if at > since}
        return sorted(self._heard_at)

    def publish(self, topic: str, data: bytes) -> None:
        self._say(self._layout.topic(topic), data)

    def subscribe(self, topic: str, heard: Heard) -> Callable[[], None]:
        def hear(message: Message) -> None:
            if (node := self._other(message)) is not None:
                heard(node, message.data)

        return self._connection.subscribe(self._layout.topic(topic), hear)

    def answer(self, topic: str, answers: Answers) -> None:
        assert topic not in self._answers, "a topic has one that answers"
        self._answers.add(topic)

        def hear(message: Message) -> None:
            reply = message.headers.get(REPLY)
            if reply is not None and (node := self._other(message)) is not None:
                self._answers_nursery.start_soon(self._answer, answers, node, message.data, reply)

        self._connection.subscribe(self._layout.question(topic), hear)

    async def _answer(self, answers: Answers, node: str, data: bytes, reply: str) -> None:
        self._say(reply, await answers(node, data))

    async def ask(self, topic: str, data: bytes, seconds: float) -> Mapping[str, bytes]:
        count = len(self.others())
        if not count:
            await trio.lowlevel.checkpoint()
            return {}
        self._questions += 1
        number, all_have, answered = str(self._questions), trio.Event(), dict[str, bytes]()
        self._asked[number] = all_have, answered, count
        try:
            reply = self._layout.answers_to(self.node, number)
            self._say(self._layout.question(topic), data, {REPLY: reply})
            with trio.move_on_after(seconds):
                await all_have.wait()
        finally:
            del self._asked[number]
        return dict(answered)

    def _say(self, subject: str, data: bytes = b"", headers: Mapping[str, str] | None = None) -> None:
        with suppress(NatsError):  # it arrives once or never
            self._connection.publish(Outgoing(subject, data, {NODE: self.node, **(headers or {})}))

    def _other(self, message: Message) -> str | None:
        """Who has said this; `None`: this process itself."""
        node = message.headers.get(NODE)
        return None if node == self.node else node

    def _hear_beat(self, message: Message) -> None:
        if (node := self._other(message)) is not None:
            self._heard_at[node] = trio.current_time()

    def _hear_leaving(self, message: Message) -> None:
        if (node := self._other(message)) is not None:
            self._heard_at.pop(node, None)

    def _hear_answer(self, message: Message) -> None:
        asked, node = self._asked.get(message.subject.rpartition(".")[2]), self._other(message)
        if asked is not None and node is not None:
            all_have, answered, count = asked
            answered[node] = message.data
            if len(answered) >= count:
                all_have.set()
