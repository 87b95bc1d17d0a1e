"""Text that is safe to print. Pure."""

from __future__ import annotations

import json
from typing import Final

JOINERS: Final = "\u200c\u200d"
"""Invisible, harmless, and needed to write Persian and Arabic: printed as they are."""


def printable(text: str) -> str:
    """The text with everything escaped that could move a terminal's cursor or hide what stands beside it."""
    if text.isascii() and text.isprintable():
        return text
    return "".join(
        character if character.isprintable() or character in JOINERS else character.encode("unicode_escape").decode()
        for character in text
    )


def compact(value: object) -> str:
    """A value as one printable line of JSON."""
    return printable(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def size(count: float) -> str:
    """Bytes, for people."""
    for unit in ("B", "KiB", "MiB", "GiB"):
        if count < 1024:
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1024
    return f"{count:.1f} TiB"


def duration(seconds: float) -> str:
    """A time, for people: `3d 04:05:06`."""
    days, rest = divmod(int(seconds), 86_400)
    clock = f"{rest // 3600:02d}:{rest // 60 % 60:02d}:{rest % 60:02d}"
    return f"{days}d {clock}" if days else clock
