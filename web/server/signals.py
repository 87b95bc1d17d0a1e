"""SIGTERM, SIGINT, SIGHUP: the first one begins the drain, a second one ends the process at once, until it is gone.

An operator's request to drain counts as the first one.

SIGHUP is the end of the terminal: where it is ignored (`nohup`), it stays ignored.

The handlers are ours. Trio restores the former ones when its run is over; a process that then still waits for its log
would turn SIGINT into an exception, print that, and wait for the reader that does not read.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Final, Self

TAKEN: Final = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


class Signals:
    """Takes the signals while a server runs, and until the process ends; on the main thread."""

    def __init__(self) -> None:
        self.first: str | None = None
        """What began the end, as the log names it; `None`: nothing yet."""
        self._came: Callable[[str], object] = lambda _: None
        self._is_over = False
        self._former: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        for number in TAKEN:
            if number is signal.SIGHUP and signal.getsignal(number) is signal.SIG_IGN:
                continue
            self._former[number] = signal.signal(number, self._take)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Nothing is left to drain: from now on the first signal, too, ends the process."""
        self._is_over = True

    def give_back(self) -> None:
        """This process goes on: signals mean what they meant before."""
        for number, handler in self._former.items():
            signal.signal(number, handler)

    def when_first_comes(self, came: Callable[[str], object]) -> None:
        """Call this with the name of the first signal when it comes, or now if it has.

        Args:
            came: is called within a signal handler: in the middle of anything. Must not raise.
        """
        self._came = came
        if self.first is not None:
            came(self.first)

    def begin(self, reason: str) -> None:
        """Begin the drain as the first signal does; nothing, if it has begun."""
        if self.first is None and not self._is_over:
            self.first = reason
            self._came(reason)

    def _take(self, number: int, frame: FrameType | None) -> None:
        if self.first is not None or self._is_over:
            os._exit(128 + number)  # without a word to the log, which may be what hangs
        self.first = signal.Signals(number).name
        self._came(self.first)
