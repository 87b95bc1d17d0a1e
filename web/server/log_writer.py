"""Writing log lines without ever waiting for their reader: a bounded queue, and a thread that writes.

A pipe that nobody reads, or a terminal that is stopped (Ctrl-S), blocks the thread and nothing else. Lines that do not
fit are dropped and counted, and the count is a line of its own once the log flows again.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final

HELD_BYTES_MAX: Final = 4 * 1024 * 1024
"""Lines that are not written yet. Reason: some twenty thousand of them. Beyond: dropped, and counted."""

LINGER_SECONDS: Final = 0.02
"""Lines are collected for so long and written together. Reason: waking a thread for each line costs a request more than
writing it."""

FLUSH_SECONDS_MAX: Final = 1.0
"""Longest time the end of the process waits for what is not written yet."""


class LogWriter(logging.Handler):
    """Writes what is logged to a file descriptor, on a thread of its own.

    Ownership: the descriptor stays its maker's. The thread is a daemon: it never keeps the process alive.
    """

    def __init__(self, fd: int, dropped: Callable[[int], str]) -> None:
        """Write to `fd` from now on.

        Args:
            dropped: the line that says how many lines were dropped.
        """
        super().__init__()
        self._fd = fd
        self._dropped_line = dropped
        self._waiting: deque[bytes] = deque()
        self._held_bytes = 0
        """Bytes of lines that wait, and of lines that are being written."""
        self._dropped = 0
        self._changed = threading.Condition()
        self._is_hurried = False
        """Somebody waits for the queue to be empty."""
        self._is_writing = False
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line; it is formatted here, where the request it belongs to is known. Never waits."""
        try:
            line = self.format(record).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - a line that cannot be formatted must not fail what it tells of
            line = b"a log line could not be formatted\n"
        with self._changed:
            if self._held_bytes + len(line) > HELD_BYTES_MAX:
                self._dropped += 1
                return
            self._waiting.append(line)
            self._held_bytes += len(line)
            if len(self._waiting) == 1:
                self._changed.notify_all()

    def flush(self) -> None:
        """Wait until all lines are written, `FLUSH_SECONDS_MAX` at most."""
        with self._changed:
            self._is_hurried = True
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._waiting and not self._is_writing, FLUSH_SECONDS_MAX)
            self._is_hurried = False

    def _run(self) -> None:
        while True:
            lines, dropped = self._take()
            self._write(memoryview(b"".join(lines)))
            if dropped:
                self._write(memoryview(self._dropped_line(dropped).encode() + b"\n"))
            with self._changed:
                self._held_bytes -= sum(map(len, lines))
                self._is_writing = False
                self._changed.notify_all()

    def _write(self, data: memoryview) -> None:
        # Whoever has closed the other end wants no lines; there is nobody to tell.
        with contextlib.suppress(OSError):
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except BlockingIOError:  # somebody who shares the descriptor has made it so
                    time.sleep(LINGER_SECONDS)

    def _take(self) -> tuple[list[bytes], int]:
        """All lines that wait, once there are some and they have had company; and how many did not fit behind them."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._dropped)
            self._changed.wait_for(lambda: self._is_hurried, LINGER_SECONDS)
            lines = list(self._waiting)
            self._waiting.clear()
            dropped, self._dropped = self._dropped, 0
            self._is_writing = True
        return lines, dropped
