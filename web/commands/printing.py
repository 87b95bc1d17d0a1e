"""What the commands print: tables and lines for people, JSON for programs. Nothing here waits or knows a server."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
from collections.abc import Sequence
from typing import Any, Final

from web.commands.failures import CommandFailed

JOINERS: Final = "\u200c\u200d"
"""Invisible, harmless, and needed to write Persian and Arabic: printed as they are."""

LAST_WORDS_SECONDS_MAX: Final = 1.0
"""Longest time the end of a command waits for its last line to be read."""


def printable(text: str) -> str:
    """The text with everything escaped that could move a terminal's cursor or hide what stands beside it."""
    return "".join(
        character if character.isprintable() or character in JOINERS else character.encode("unicode_escape").decode()
        for character in text
    )


def compact(value: object) -> str:
    """A value as one printable line of JSON."""
    return printable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def say(text: str) -> None:
    """Print one line now: a reader of a pipe sees it without waiting for more.

    Raises:
        BrokenPipeError: nobody reads any more.
        CommandFailed: it cannot be written (a full disk).
    """
    # A terminal may not know every character (LC_ALL=C): an escape is better than a crash.
    encoding = sys.stdout.encoding or "utf-8"
    try:
        print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)
    except BrokenPipeError:
        raise
    except OSError as error:
        discard_output()
        raise CommandFailed(f"cannot write the output: {error.strerror}") from None


def discard_output() -> None:
    """Send what is not written yet, and what comes, nowhere. Else the interpreter tries it again at exit."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def say_aside(text: str) -> None:
    """Print one line on stderr, where it disturbs no program that reads the output."""
    print(printable(text), file=sys.stderr, flush=True)


def say_at_last(text: str) -> None:
    """As `say_aside`, before the command ends: a reader that does not read (a full pipe, Ctrl-S) does not keep the
    command."""
    try:
        # Past the stream: where a thread hangs within it, the interpreter cannot end.
        descriptor = sys.stderr.fileno()
    except io.UnsupportedOperation:  # no file: writing to it never blocks
        say_aside(text)
        return
    line = f"{printable(text)}\n"

    def write() -> None:
        with contextlib.suppress(OSError):
            data = line.encode(sys.stderr.encoding, "backslashreplace")
            while data:
                data = data[os.write(descriptor, data) :]

    writing = threading.Thread(target=write, daemon=True)
    writing.start()
    writing.join(LAST_WORDS_SECONDS_MAX)


def say_json(value: Any) -> None:
    """Print a value for programs, on one line, in ASCII."""
    say(json.dumps(value))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned at the left, two spaces apart; without rows only the head."""
    cells = [list(head), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)
