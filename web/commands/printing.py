"""What the commands print: tables and lines for people, JSON for programs. Nothing here waits or knows a server."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any, Final

JOINERS: Final = "\u200c\u200d"
"""Invisible, harmless, and needed to write Persian and Arabic: printed as they are."""


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
    """Print one line now: whoever reads through a pipe sees it without waiting for more."""
    # A terminal may not know every character (LC_ALL=C): an escape is better than a crash.
    encoding = sys.stdout.encoding or "utf-8"
    print(text.encode(encoding, "backslashreplace").decode(encoding), flush=True)


def say_aside(text: str) -> None:
    """Print one line on stderr, where it disturbs no program that reads the output."""
    print(printable(text), file=sys.stderr, flush=True)


def say_json(value: Any) -> None:
    """Print a value for programs, on one line, in ASCII."""
    say(json.dumps(value))


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Columns aligned at the left, two spaces apart; without rows only the head."""
    cells = [list(head), *([printable(str(cell)) for cell in row] for row in rows)]
    widths = [max(len(row[column]) for row in cells) for column in range(len(head))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in cells)
    return "\n".join(lines)
