"""An answer that is not there yet: given once, by one who works for it, and waited for by as many as like."""

from __future__ import annotations

from typing import Generic, TypeVar, cast

import trio

Answer = TypeVar("Answer")


class Pending(Generic[Answer]):
    """Where one answer will be, or the error in its place. It outlives whoever asked.

    `answer` and `refuse` are called on Trio's thread, and never wait. The first of them counts.
    """

    __slots__ = ("_answer", "_error", "done", "settled_at")

    def __init__(self) -> None:
        self.done = trio.Event()
        """Set once there is an answer or an error."""
        self._answer: Answer | None = None
        self._error: Exception | None = None
        self.settled_at = 0.0
        """When the answer or the error was given, on Trio's clock; 0: not yet."""

    def answer(self, answer: Answer) -> None:
        """Give the answer, and wake whoever waits."""
        if not self.done.is_set():
            self._answer = answer
            self.settled_at = trio.current_time()
            self.done.set()

    def refuse(self, error: Exception) -> None:
        """Give an error in the place of the answer, and wake whoever waits."""
        if not self.done.is_set():
            self._error = error
            self.settled_at = trio.current_time()
            self.done.set()

    @property
    def is_there(self) -> bool:
        """Whether there is an answer or an error."""
        return self.done.is_set()

    def result(self) -> Answer:
        """The answer, which is there.

        Raises:
            Exception: the error that was given instead.
        """
        assert self.is_there, "whoever does not wait has looked"
        if self._error is not None:
            raise self._error
        return cast(Answer, self._answer)

    async def wait(self) -> Answer:
        """The answer. Several tasks may wait, also after it is there.

        Raises:
            Exception: the error that was given instead.

        Cancellation: stops waiting; what was asked for goes on, and a later `wait` still gets its answer.
        """
        await self.done.wait()
        return self.result()
