"""An answer that is not there yet: given once, by one who works for it, and waited for by as many as like."""

from __future__ import annotations

from typing import Any, Generic, TypeVar

import trio

Answer = TypeVar("Answer")


class Pending(Generic[Answer]):
    """Where one answer will be, or the error in its place. It outlives whoever asked.

    `answer` and `refuse` are called on Trio's thread, and never wait. The first of them counts.
    """

    __slots__ = ("_answer", "_error", "done", "is_there", "settled_at")

    def __init__(self) -> None:
        self.done = trio.Event()
        """Set once there is an answer or an error."""
        self.is_there = False
        """Whether there is an answer or an error."""
        self._answer: Any = None
        self._error: Exception | None = None
        self.settled_at = 0.0
        """When the answer was given, on Trio's clock; 0: not yet, or whoever gave it has not said."""

    def answer(self, answer: Answer, at: float = 0.0) -> None:
        """Give the answer, and wake whoever waits.

        Args:
            at: see `settled_at`.
        """
        if not self.is_there:
            self._answer, self.settled_at, self.is_there = answer, at, True
            self.done.set()

    def refuse(self, error: Exception) -> None:
        """Give an error in the place of the answer, and wake whoever waits."""
        if not self.is_there:
            self._error, self.is_there = error, True
            self.done.set()

    def result(self) -> Answer:
        """The answer, which is there.

        Raises:
            Exception: the error that was given instead.
        """
        assert self.is_there, "whoever does not wait has looked"
        if self._error is not None:
            raise self._error
        answer: Answer = self._answer
        return answer

    async def wait(self) -> Answer:
        """The answer. Several tasks may wait, also after it is there.

        Raises:
            Exception: the error that was given instead.

        Cancellation: stops waiting; what was asked for goes on, and a later `wait` still gets its answer.
        """
        await self.done.wait()
        return self.result()
