"""The bus of the processes on one store (`storage.bus.Bus`): it goes through the store's process."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Protocol

import trio

from storage.bus import Answers, Heard
from storage.errors import StorageError
from storage.remote import calls
from storage.remote.calls import Frame


class Says(Protocol):
    """The stream to the store."""

    node: str

    @property
    def has_stream(self) -> bool:
        """Whether what is said gets there now."""

    def say(self, data: bytes) -> None:
        """Send something that is not answered; lost if the store is not there."""


class RemoteBus:
    """One process's way to the others."""

    def __init__(self, link: Says, nursery: trio.Nursery) -> None:
        self.node = link.node
        self.nodes: Sequence[str] = ()
        """All that are connected to the store, this one included."""
        self._link = link
        self._nursery = nursery
        self._heard: dict[str, list[Heard]] = {}
        self._answers: dict[str, Answers] = {}
        self._last_question = 0
        self._asked: dict[int, tuple[trio.Event, dict[str, bytes]]] = {}

    def greeting(self) -> Sequence[bytes]:
        """What a new stream must say first."""
        return [calls.encoded(0, calls.SUBSCRIBE, topic) for topic in self._heard]

    def others(self) -> Sequence[str]:
        return [one for one in self.nodes if one != self.node]

    def publish(self, topic: str, data: bytes) -> None:
        self._link.say(calls.encoded(0, calls.PUBLISH, (topic, data)))

    def subscribe(self, topic: str, heard: Heard) -> Callable[[], None]:
        if topic not in self._heard:
            self._link.say(calls.encoded(0, calls.SUBSCRIBE, topic))
        self._heard.setdefault(topic, []).append(heard)

        def undo() -> None:
            self._heard[topic].remove(heard)
            if not self._heard[topic]:
                del self._heard[topic]
                self._link.say(calls.encoded(0, calls.UNSUBSCRIBE, topic))

        return undo

    def answer(self, topic: str, answers: Answers) -> None:
        assert topic not in self._answers, "a topic has one that answers"
        self._answers[topic] = answers

    async def ask(self, topic: str, data: bytes, seconds: float) -> Mapping[str, bytes]:
        if not self._link.has_stream:
            return {}
        self._last_question += 1
        number = self._last_question
        done, answers = trio.Event(), dict[str, bytes]()
        self._asked[number] = done, answers
        try:
            self._link.say(calls.encoded(0, calls.ASK, (number, topic, data)))
            with trio.move_on_after(seconds):
                await done.wait()
            return dict(answers)
        finally:
            del self._asked[number]

    def take(self, frame: Frame) -> None:
        """Something of the bus has come from the store's process."""
        match frame.what:
            case "published":
                node, topic, data = calls.note_of(frame.content)
                for heard in list(self._heard.get(topic, ())):
                    heard(node, data)
            case "asked":
                self._nursery.start_soon(self._be_asked, *calls.question_of(frame.content))
            case "answered":
                number, node, answer = calls.answered_of(frame.content)
                if number in self._asked:
                    self._asked[number][1][node] = answer
            case "answers":
                if (asked := self._asked.get(calls.number_of(frame.content))) is not None:
                    asked[0].set()

    async def _be_asked(self, number: int, node: str, topic: str, data: bytes) -> None:
        answer = b""
        if (answers := self._answers.get(topic)) is not None:
            try:
                answer = await answers(node, data)
            except StorageError:
                answer = b""
        self._link.say(calls.encoded(0, calls.ANSWER, (number, answer)))
