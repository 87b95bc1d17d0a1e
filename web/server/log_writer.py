"""Writing log lines without ever waiting for their reader: a bounded queue, and a thread that formats and writes.

A pipe that nobody reads, or a terminal that is stopped (Ctrl-S), blocks the thread and nothing else. Lines that do not
fit are dropped and counted, and the count is a line of its own once the log flows again.

Lines are written in the order in which they are logged, those of `LINGER_SECONDS` together. A warning, and whatever is
worse, is written at once, behind all that was logged before it. A process that is killed loses what waits.
"""

from __future__ import annotations

import contextlib
import logging
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Final, NamedTuple

from web.contract.log_fields import FIELDS, REQUEST_ID, current_request

HELD_BYTES_MAX: Final = 4 * 1024 * 1024
"""Memory of lines that are not written yet. Reason: some thousands of them. Beyond: dropped, and counted."""

RECORD_BYTES: Final = 512
"""Memory of a record, beside its texts."""

LINGER_SECONDS: Final = 0.05
"""Lines are collected for so long and written together. Reason: waking a thread for each line costs a request more than
writing it."""

_LASTING: Final = frozenset({str, int, float, bool, type(None)})
"""Kinds of values that are later what they are now."""

FLUSH_SECONDS_MAX: Final = 1.0
"""Longest time the end of the process waits for what is not written yet."""


class LogStatistics(NamedTuple):
    """How a log is doing."""

    held_bytes: int = 0
    """Memory of lines that are not written yet."""
    dropped: int = 0
    """Lines that did not fit, since the start."""


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
        self._waiting: deque[logging.LogRecord | bytes] = deque()
        """Lines, in order; a record is still to be formatted."""
        self._held_bytes = 0
        """Memory of lines that wait, and of lines that are being written."""
        self._dropped = 0
        """Lines that were dropped, and that no line has told of yet."""
        self._dropped_ever = 0
        self._lock = threading.RLock()
        self._changed = threading.Condition(self._lock)
        """With that lock, which alone costs less to hold."""
        self._is_hurried = False
        """Somebody waits for the queue to be empty."""
        self._is_urgent = False
        """A line in the queue is to be written now."""
        self._is_writing = False
        threading.Thread(target=self._run, name="log-writer", daemon=True).start()

    def handle(self, record: logging.LogRecord) -> bool:
        """Queue a line. There are no filters, and the lock of the base class would guard nothing."""
        self.emit(record)
        return True

    def emit(self, record: logging.LogRecord) -> None:
        """Queue a line. Never waits.

        It is formatted later, on the thread, if it is the same then; otherwise now, and also if it has an exception: a
        traceback holds all that the functions in it know.
        """
        if _is_lasting(record):
            record.__dict__.setdefault(REQUEST_ID, current_request.get())
            line: logging.LogRecord | bytes = record
        else:
            line = self._formatted(record)
        size = _size_of(line)
        with self._lock:
            if self._held_bytes + size > HELD_BYTES_MAX:
                self._dropped += 1
                self._dropped_ever += 1
                return
            self._waiting.append(line)
            self._held_bytes += size
            if record.levelno >= logging.WARNING:
                self._is_urgent = True
                self._changed.notify_all()
            elif len(self._waiting) == 1:
                self._changed.notify_all()

    def statistics(self) -> LogStatistics:
        """How it is doing."""
        return LogStatistics(self._held_bytes, self._dropped_ever)

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
            self._write(memoryview(b"".join(map(self._formatted, lines))))
            if dropped:
                self._write(memoryview(self._dropped_line(dropped).encode() + b"\n"))
            with self._changed:
                self._held_bytes -= sum(map(_size_of, lines))
                self._is_writing = False
                self._changed.notify_all()

    def _formatted(self, line: logging.LogRecord | bytes) -> bytes:
        if isinstance(line, bytes):
            return line
        try:
            return self.format(line).encode("utf-8", "backslashreplace") + b"\n"
        except Exception:  # noqa: BLE001 - a line that cannot be formatted must not fail what it tells of
            return b"a log line could not be formatted\n"

    def _write(self, data: memoryview) -> None:
        # Whoever has closed the other end wants no lines; there is nobody to tell.
        with contextlib.suppress(OSError):
            while data:
                try:
                    data = data[os.write(self._fd, data) :]
                except BlockingIOError:  # somebody who shares the descriptor has made it so
                    time.sleep(LINGER_SECONDS)

    def _take(self) -> tuple[list[logging.LogRecord | bytes], int]:
        """All lines that wait, once there are some and they have had company; and how many did not fit behind them."""
        with self._changed:
            self._changed.wait_for(lambda: self._waiting or self._dropped)
            self._changed.wait_for(lambda: self._is_hurried or self._is_urgent, LINGER_SECONDS)
            self._is_urgent = False
            lines = list(self._waiting)
            self._waiting.clear()
            dropped, self._dropped = self._dropped, 0
            self._is_writing = True
        return lines, dropped


def _is_lasting(record: logging.LogRecord) -> bool:
    """Whether the line of a record is the same whenever it is formatted."""
    if record.exc_info is not None or type(record.msg) is not str:
        return False
    values = record.args or ()
    if type(values) is not tuple or FIELDS in record.__dict__:
        return False
    return _LASTING.issuperset(map(type, values))


def _size_of(line: logging.LogRecord | bytes) -> int:
    """Memory of a line, about."""
    if isinstance(line, bytes):
        return len(line)
    size = RECORD_BYTES + len(line.msg)
    for value in line.args or ():
        if type(value) is str:
            size += len(value)
    return size
