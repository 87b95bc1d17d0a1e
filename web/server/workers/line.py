"""The line between a child and the parent: what the child is asked on its standard input, and what it says.

The parent asks it for its figures now and then, and gives it those of all children when it asks for them. Nothing here
waits for a parent that hangs: it asks nothing then.
"""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from typing import TYPE_CHECKING, Final

import msgspec
import trio

from web.server.workers import orders

if TYPE_CHECKING:
    from web.server.seen import Seen

ANSWER_SECONDS_MAX: Final = 2.0
"""Longest wait for the figures of all. Beyond: those that were given last, or those of this process. Reason: a parent
that hangs has hung for all of them."""

ORPHAN_SECONDS_MAX: Final = 1.0
"""A child whose parent is gone drains for so long. Beyond: it ends at once. Reason: whoever starts the server again
wants its port and its database."""

LATELY_SECONDS: Final = 1.0
"""How old figures may be for whoever asks often."""


class Line:
    """A child's end of the line. One per process."""

    def __init__(self) -> None:
        """Nothing is read before `listen`."""
        self._figures: Callable[[], object] | None = None
        self._token: trio.lowlevel.TrioToken | None = None
        self._is_gone: Callable[[str], None] = lambda _: None
        self._waiting = b""
        """Read, and no whole line yet."""
        self._end: Callable[[], object] = lambda: os.kill(os.getpid(), signal.SIGTERM)
        self._was_told_to_end = False
        self.is_replaced = False
        """Whether this process ends because another one serves in its place."""
        self._last_number = 0
        self._asked: dict[int, trio.Event] = {}
        self._given: Seen | None = None
        self._given_at = 0.0

    def say(self, word: str, rest: str = "") -> None:
        """Tell the parent something."""
        data = f"{word} {rest}".rstrip().encode() + b"\n"
        with suppress(OSError):  # it has gone, and this process ends
            while data:
                data = data[os.write(sys.stdout.fileno(), data) :]

    def order(self) -> bytes:
        """The first line that the parent says: waits for it."""
        while b"\n" not in self._waiting and (data := self._read()):
            self._waiting += data
        line, _, self._waiting = self._waiting.partition(b"\n")
        return line

    def listen(self) -> None:
        """Read what else the parent says, on a thread; drain once it says so, or is gone."""

        def read() -> None:
            while True:
                *lines, self._waiting = self._waiting.split(b"\n")
                for line in lines:
                    self._hear(*line.decode().partition(" ")[::2])
                if not (data := self._read()):
                    break
                self._waiting += data
            if self._was_told_to_end:
                os._exit(1)  # a second signal has ended the parent
            self._drain()
            time.sleep(ORPHAN_SECONDS_MAX)
            os._exit(1)

        threading.Thread(target=read, daemon=True).start()

    def when_told_to_end(self, end: Callable[[], object]) -> None:
        """Call this, on the thread that listens, once the parent has this process end, or is gone; before: SIGTERM."""
        self._end = end

    def answer_with(self, figures: Callable[[], object]) -> None:
        """Answer the parent with these from now on; within Trio."""
        self._figures = figures
        self._token = trio.lowlevel.current_trio_token()

    def when_gone(self, is_gone: Callable[[str], None]) -> None:
        """Call this with the name of each worker that has ended."""
        self._is_gone = is_gone

    def say_last_figures(self) -> None:
        """This process ends: what it has counted stays."""
        self._tell(0)

    async def everywhere(self, here: Callable[[], Seen]) -> Seen:
        """What is seen at all workers together.

        Args:
            here: at this one.
        """
        self._last_number += 1
        number = self._last_number
        given = self._asked[number] = trio.Event()
        try:
            self.say(orders.FIGURES, str(number))
            with trio.move_on_after(ANSWER_SECONDS_MAX):
                await given.wait()
        finally:
            del self._asked[number]
        return self._given or here()

    async def lately(self, here: Callable[[], Seen]) -> Seen:
        """As `everywhere`, but what was given less than a second ago is good enough."""
        if self._given is not None and trio.current_time() - self._given_at < LATELY_SECONDS:
            return self._given
        return await self.everywhere(here)

    def _read(self) -> bytes:
        return os.read(sys.stdin.fileno(), orders.LINE_BYTES_MAX)  # `sys.stdin` would be locked at the end

    def _hear(self, word: str, rest: str) -> None:
        if word == orders.END:
            self._was_told_to_end, self.is_replaced = True, rest == orders.REPLACED
            self._drain()
        elif self._token is not None:
            with suppress(trio.RunFinishedError):
                self._token.run_sync_soon(self._take, word, rest)

    def _drain(self) -> None:
        with suppress(trio.RunFinishedError):
            self._end()

    def _take(self, word: str, rest: str) -> None:
        match word:
            case orders.GONE:
                self._is_gone(rest)
            case orders.TELL:
                self._tell(int(rest))
            case orders.FIGURES:
                from web.server.seen import seen_of  # noqa: PLC0415 - a worker has it, and the store's process needs none

                number, figures = orders.number_and_figures(rest)
                with suppress(msgspec.DecodeError):  # the parent is of another version
                    self._given, self._given_at = seen_of(figures), trio.current_time()
                if (given := self._asked.get(number)) is not None:
                    given.set()

    def _tell(self, number: int) -> None:
        if self._figures is not None:
            self.say(orders.TOLD, orders.with_figures(number, self._figures()))
