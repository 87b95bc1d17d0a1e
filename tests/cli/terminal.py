"""A command on a terminal of its own (a pty): what it draws, which keys it gets, and how it leaves the terminal."""

from __future__ import annotations

import errno
import fcntl
import os
import pty
import re
import select
import signal
import struct
import termios
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Final

import pyte

from tests.logbook import LOGBOOK

SECONDS_MAX: Final = 40
"""Longest wait for something a command is to draw."""

ESCAPES: Final = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]|\x1b[()][A-Z0-9]|\x1b[=>78]")

CHANGING_LOOKS: Final = {"NO_COLOR", "CLICOLOR", "CLICOLOR_FORCE", "COLUMNS", "LINES", "FORCE_COLOR"}
"""Variables of whoever runs the tests that a command would obey."""


class Terminal:
    """The other end of the terminal of a running command."""

    def __init__(self, pid: int, master: int, columns: int, lines: int) -> None:
        self.pid = pid
        self._master = master
        self._status: int | None = None
        self.written = ""
        """All that was written to it."""
        self.screen = pyte.Screen(columns, lines)
        """What somebody sees who looks at it; of a terminal of the kind `linux`."""
        self._stream = pyte.Stream(self.screen)

    def until(self, *texts: str) -> str:
        """What is written from now until all of these have come, in any order; escapes are left out."""
        return self.until_fits(lambda new: all(one in new for one in texts), str(texts))

    def until_fits(self, fits: Callable[[str], bool], what: str) -> str:
        """What is written from now until it is what is wanted; escapes are left out."""
        new, deadline = "", time.monotonic() + SECONDS_MAX
        while not fits(plain(new)):
            assert time.monotonic() < deadline, f"{what} did not come: {new!r}"
            new += self._read(0.1)
        return plain(new)

    def until_seen(self, *texts: str) -> None:
        """Wait until the screen shows all of these at once."""
        deadline = time.monotonic() + SECONDS_MAX
        while not all(one in (seen := "\n".join(self.screen.display)) for one in texts):
            assert time.monotonic() < deadline, f"{texts} were not seen:\n{seen}"
            self._read(0.1)

    def type(self, keys: str) -> None:
        """Press keys."""
        os.write(self._master, keys.encode())

    def signal(self, number: signal.Signals) -> None:
        """Send a signal to the command."""
        os.kill(self.pid, number)

    def go_away(self) -> None:
        """End the terminal, as the end of its window or its connection does."""
        os.close(self._master)
        self._master = os.open(os.devnull, os.O_RDONLY)

    def resize(self, columns: int, lines: int) -> None:
        """Give it another size; the system tells the command."""
        self.screen.resize(lines, columns)
        set_size(self._master, columns, lines)

    def modes(self) -> list[object]:
        """How the terminal treats what is typed."""
        return termios.tcgetattr(self._master)

    def until_ended(self) -> int:
        """The exit code, negative for a signal; all that was written is read."""
        deadline = time.monotonic() + SECONDS_MAX
        while not self.has_ended():
            assert time.monotonic() < deadline, f"it did not end: {self.written!r}"
            self._read(0.1)
        while self._read(0):
            pass
        assert self._status is not None
        return os.waitstatus_to_exitcode(self._status)

    def has_ended(self) -> bool:
        """Whether the command has ended."""
        if self._status is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            self._status = status if pid else None
        return self._status is not None

    def _read(self, seconds: float) -> str:
        if not select.select([self._master], [], [], seconds)[0]:
            return ""
        try:
            data = os.read(self._master, 65536)
        except OSError as error:
            if error.errno != errno.EIO:
                raise
            time.sleep(seconds)  # nobody has the other end any more: the command is about to end
            return ""
        if not data:
            time.sleep(seconds)  # it was made to go away
        LOGBOOK.write(data)
        text = data.decode(errors="replace")
        self.written += text
        self._stream.feed(text)
        return text


def plain(text: str) -> str:
    """The text without what moves the cursor or colours."""
    return ESCAPES.sub("", text)


def set_size(terminal: int, columns: int, lines: int) -> None:
    """Give a terminal a size."""
    fcntl.ioctl(terminal, termios.TIOCSWINSZ, struct.pack("HHHH", lines, columns, 0, 0))


@contextmanager
def on_terminal(
    command: Sequence[object], variables: Mapping[str, str] | None = None, *, columns: int = 80, lines: int = 24
) -> Iterator[Terminal]:
    """Run a command on a terminal; killed at the end if it still runs.

    Args:
        variables: of its environment, beside ours.
    """
    argv = [str(one) for one in command]
    environment = {name: value for name, value in os.environ.items() if name not in CHANGING_LOOKS}
    environment |= {"TERM": "xterm-256color", "LANG": "C.UTF-8", **(variables or {})}
    pid, master = pty.fork()
    if pid == 0:
        # A shell without job control has its background processes ignore SIGINT, and they hand that on.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        set_size(0, columns, lines)
        os.execvpe(argv[0], argv, environment)
    terminal = Terminal(pid, master, columns, lines)
    try:
        yield terminal
    finally:
        if not terminal.has_ended():
            os.kill(pid, signal.SIGKILL)
            terminal.until_ended()
        os.close(master)
