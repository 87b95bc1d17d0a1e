"""How the commands print: lines for people, JSON for programs. Nothing here waits for a server, or knows one."""

from __future__ import annotations

import contextlib
import io
import json
import os
import sys
import threading
from typing import Any, Final

from web.commands.failures import CommandFailed
from web.commands.text import printable

LAST_WORDS_SECONDS_MAX: Final = 1.0
"""Longest time the end of a command waits for its last line to be read."""


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
