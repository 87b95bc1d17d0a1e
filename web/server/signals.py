"""What signals mean to a server.

SIGTERM, SIGINT: the first one begins the drain, a second one ends the process at once, until it is gone.
SIGHUP: the keys are read anew. SIGUSR1, SIGUSR2: nothing.

An operator's request to drain counts as the first one.

A terminal that goes away sends SIGHUP, too. Then it begins the drain: a server that was started there must not stay
behind. Where SIGHUP is ignored (`nohup`), it stays ignored.

The handlers are ours. Trio restores the former ones when its run is over; a process that then still waits for its log
would turn SIGINT into an exception, print that, and wait for the reader that does not read.
"""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from types import FrameType, TracebackType
from typing import Final, Self

ENDING: Final = (signal.SIGTERM, signal.SIGINT)

IGNORED: Final = (signal.SIGUSR1, signal.SIGUSR2)
"""Other servers open their logs anew, or print figures, at these: whoever sends one here means no harm."""

TERMINAL: Final = "/dev/tty"
"""The terminal of this process, whichever that is; it cannot be opened if there is none, or it has gone."""


class Signals:
    """Takes the signals while a server runs, and until the process ends; on the main thread."""

    def __init__(self) -> None:
        self.first: str | None = None
        """What began the end, as the log names it; `None`: nothing yet."""
        self._came: Callable[[str], object] = lambda _: None
        self._reload: Callable[[], object] = lambda: None
        self._is_over = False
        self._had_terminal = False
        self._former: dict[signal.Signals, signal._HANDLER] = {}

    def __enter__(self) -> Self:
        self._had_terminal = _has_terminal()
        for number in ENDING:
            self._former[number] = signal.signal(number, self._take)
        for number in IGNORED:
            self._former[number] = signal.signal(number, signal.SIG_IGN)
        if signal.getsignal(signal.SIGHUP) is not signal.SIG_IGN:
            self._former[signal.SIGHUP] = signal.signal(signal.SIGHUP, self._hang_up)
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

    def when_to_reload(self, reload: Callable[[], object]) -> None:
        """Call this whenever the keys are to be read anew; within a signal handler, as `when_first_comes` says."""
        self._reload = reload

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

    def _hang_up(self, number: int, frame: FrameType | None) -> None:
        if self._had_terminal and not _has_terminal():
            self._take(number, frame)
        elif self.first is None and not self._is_over:
            self._reload()


def _has_terminal() -> bool:
    try:
        descriptor = os.open(TERMINAL, os.O_RDWR | os.O_NOCTTY | os.O_CLOEXEC)
    except OSError:
        return False
    os.close(descriptor)
    return True
