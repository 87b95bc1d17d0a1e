"""Tables for people: aligned by what a terminal shows, cut to its width, and whole in a pipe. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

from web.commands.look import PLAIN, Look, Painted
from web.commands.text import printable

BETWEEN: Final = 2
"""Spaces between two columns."""

COLUMN_MIN: Final = 4
"""Narrowest that a column is cut to. A terminal that is narrower still wraps the lines."""

READABLE_MIN: Final = 8
"""Narrowest that is of use. Where not all columns have that, those at the right are left out."""

COLUMNS_MIN: Final = 2
"""Columns that are shown on any terminal."""

CUT: Final = "\u2026"
"""Stands where a text was cut."""

STATES: Final = {
    "running": "green",
    "restarting": "yellow",
    "quarantined": "red",
    "passive": "dim",
    "acknowledged": "green",
    "pending": "yellow",
    "lost": "red",
}
"""The colours of states."""


def state(name: str) -> Painted:
    """A state, in its colour."""
    return Painted(name, STATES.get(name, ""))


def table(head: Sequence[str], rows: Sequence[Sequence[object]], look: Look = PLAIN) -> str:
    """Columns aligned at the left, two spaces apart; without rows only the head.

    Args:
        rows: cells of any kind, shown as text; a `Painted` one in its colour.
        look: where its width does not suffice, columns without content are left out, then those at the right, until
            none of the others must be cut to less than is of use, and then the widest ones are cut.
    """
    cells = [list(head), *([printable(str(cell)) for cell in row] for row in rows)]
    names = [["bold"] * len(head), *([cell.name if isinstance(cell, Painted) else "" for cell in row] for row in rows)]
    wide = [[cells_of(text) for text in row] for row in cells]
    widths = [max(row[column] for row in wide) for column in range(len(head))]
    shown = list(range(len(head)))
    if look.width is not None and _total(widths, shown) > look.width:
        shown = [column for column in shown if len(rows) == 0 or any(row[column] for row in wide[1:])]
        least = [min(one, READABLE_MIN) for one in widths]
        while len(shown) > COLUMNS_MIN and _total(least, shown) > look.width:
            shown.pop()
        _narrow(widths, shown, look.width)
    return "\n".join(
        _line([(row[column], row_wide[column], widths[column], row_names[column]) for column in shown], look)
        for row, row_wide, row_names in zip(cells, wide, names, strict=True)
    )


def cells_of(text: str) -> int:
    """Columns that a terminal shows a printable text in."""
    if text.isascii():
        return len(text)
    from wcwidth import wcswidth  # noqa: PLC0415 - most texts are ASCII

    return max(0, wcswidth(text))


def cut(text: str, width: int) -> str:
    """The text in at most so many columns; if it was cut, in exactly so many, with a mark."""
    if cells_of(text) <= width:
        return text
    kept = text[: width - 1]
    while cells_of(kept) > width - 1:
        kept = kept[:-1]
    return kept + CUT + " " * (width - 1 - cells_of(kept))


def _total(widths: Sequence[int], shown: Sequence[int]) -> int:
    return sum(widths[column] for column in shown) + BETWEEN * (len(shown) - 1)


def _narrow(widths: list[int], shown: Sequence[int], width: int) -> None:
    """Cut the widest columns, all to the same width, until the line fits."""
    while (excess := _total(widths, shown) - width) > 0:
        widest = max(widths[column] for column in shown)
        if widest <= COLUMN_MIN:
            return
        those = [column for column in shown if widths[column] == widest]
        below = max([COLUMN_MIN, *(widths[column] for column in shown if widths[column] < widest)])
        step = min(widest - below, max(1, excess // len(those)))
        for column in those[: max(1, excess)]:
            widths[column] -= step


def _line(cells: Sequence[tuple[str, int, int, str]], look: Look) -> str:
    parts: list[str] = []
    for text, wide, width, name in cells:
        shown, taken = (text, wide) if wide <= width else (cut(text, width), width)
        parts.append(look.painted(shown, name if shown else "") + " " * (width - taken + BETWEEN))
    return "".join(parts).rstrip()
