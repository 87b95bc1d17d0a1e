"""How far long work is: a bar on stderr, where that is a terminal, and nothing anywhere else.

The work is watched from outside: its bar follows the size of the file that it writes. So a server that does the work
needs to tell nothing, and work in this process nothing either.
"""

from __future__ import annotations

import contextlib
import os
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Final

from web.commands.look import DUMB
from web.commands.text import duration, size

EVERY_SECONDS: Final = 0.1

BAR_MAX: Final = 40
"""Longest bar, in columns."""

CLEAR: Final = "\r\x1b[K"
"""To the beginning of the line, and erase it (ECMA-48, EL)."""


def shows_progress() -> bool:
    """Whether stderr is a terminal that a bar can be drawn on."""
    return sys.stderr.isatty() and os.environ.get("TERM", "") not in DUMB


@contextlib.contextmanager
def progress(what: str, written: Callable[[], int | None], total: Callable[[], int]) -> Iterator[None]:
    """Show a bar until the context ends; its line is empty then.

    Args:
        what: is done, in a word.
        written: bytes so far; `None`: it has not begun, or is over.
        total: bytes in the end, about.
    """
    if not shows_progress():
        yield
        return
    ended = threading.Event()
    drawing = threading.Thread(target=_draw, args=(what, written, total, ended), name="progress", daemon=True)
    drawing.start()
    try:
        yield
    finally:
        ended.set()
        drawing.join()


def _draw(what: str, written: Callable[[], int | None], total: Callable[[], int], ended: threading.Event) -> None:
    began = time.monotonic()
    with contextlib.suppress(OSError):  # the terminal has gone
        while not ended.wait(EVERY_SECONDS):
            elapsed = time.monotonic() - began
            width = shutil.get_terminal_size().columns
            sys.stderr.write(CLEAR + line(what, written(), total(), elapsed, width=width))
            sys.stderr.flush()
        sys.stderr.write(CLEAR)
        sys.stderr.flush()


def line(what: str, written: int | None, total: int, elapsed: float, *, width: int) -> str:
    """The line that is drawn: a bar, or without figures only how long it has taken. Pure.

    Args:
        elapsed: seconds since it began.
        width: columns of the terminal.
    """
    took = duration(elapsed)
    if written is None or total <= 0:
        return f"{what} ... {took}"[: width - 1]
    share = min(1.0, written / total)
    figures = f" {share:4.0%}  {size(written)} of {size(total)}  {took}"
    if share == 1.0:
        figures = f" 100%  {size(written)} written, to be checked  {took}"
    room = min(BAR_MAX, width - 1 - len(what) - len(figures) - len(" []"))
    filled = int(share * max(room, 0))
    bar = f" [{'=' * filled}{' ' * (room - filled)}]" if room > 0 else ""
    return f"{what}{bar}{figures}"[: width - 1]


def size_of_newest(directory: Path, pattern: str, since: float) -> int | None:
    """The size in bytes of the newest file that fits a pattern; `None`: there is none.

    Args:
        since: Unix time, in seconds. Files that were not written to since then are others'.
    """
    newest: os.stat_result | None = None
    with contextlib.suppress(OSError):
        for path in directory.glob(pattern):
            with contextlib.suppress(OSError):
                status = path.lstat()
                if status.st_mtime >= since and (newest is None or status.st_mtime > newest.st_mtime):
                    newest = status
    return None if newest is None else newest.st_size


def size_of_all(*paths: Path) -> int:
    """The sizes of files together, in bytes; of what is missing: 0."""
    total = 0
    for path in paths:
        with contextlib.suppress(OSError):
            total += path.stat().st_size
    return total
