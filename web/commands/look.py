"""How output looks: colours and width, as the terminal, the environment and `--color` want it.

What wins, in this order: `--color always` and `never`; NO_COLOR (https://no-color.org); CLICOLOR_FORCE and CLICOLOR=0
(https://bixense.com/clicolors); else colours are for terminals. A width is only for terminals: a pipe gets whole lines.
"""

from __future__ import annotations

import argparse
import os
import shutil
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Final, TextIO

COLOUR_WHEN: Final = ("auto", "always", "never")

DUMB: Final = frozenset({"", "dumb"})
"""Terminals, by TERM, that only print."""

SGR: Final = {"bold": "1", "dim": "2", "red": "31", "green": "32", "yellow": "33", "inverse": "7"}
"""Parameters of the escape sequence that begins each look (ECMA-48, SGR)."""


@dataclass(frozen=True, slots=True)
class Look:
    """What a stream takes."""

    width: int | None = None
    """Columns of the terminal; `None`: it is none, nothing is cut."""
    colour: bool = False

    def painted(self, text: str, name: str) -> str:
        """The text in one of the looks of `SGR`; as it is, without colours or where the name is empty."""
        return f"\x1b[{SGR[name]}m{text}\x1b[0m" if self.colour and name else text


PLAIN: Final = Look()


@dataclass(frozen=True, slots=True)
class Painted:
    """A cell of a table that has a colour."""

    value: object
    name: str
    """A key of `SGR`; empty: none."""

    def __str__(self) -> str:
        return str(self.value)


def add_colour_option(group: argparse._ActionsContainer) -> None:
    """Declare `--color`."""
    group.add_argument(
        "--color",
        choices=COLOUR_WHEN,
        help="colours: auto (default) uses them on a terminal, unless NO_COLOR is set; CLICOLOR_FORCE=1 uses them "
        "everywhere",
    )


def look_of(arguments: argparse.Namespace, stream: TextIO | None = None) -> Look:
    """How a stream is written to.

    Args:
        stream: `None`: stdout.
    """
    stream = sys.stdout if stream is None else stream
    is_terminal = stream.isatty()
    colour = wants_colour(getattr(arguments, "color", None) or "auto", os.environ, is_terminal=is_terminal)
    return Look(shutil.get_terminal_size().columns if is_terminal else None, colour)


def wants_colour(when: str, environment: Mapping[str, str], *, is_terminal: bool) -> bool:
    """Whether to use colours. An empty variable counts as unset."""
    if when != "auto":
        return when == "always"
    if environment.get("NO_COLOR"):
        return False
    if environment.get("CLICOLOR_FORCE", "0") not in ("", "0"):
        return True
    return is_terminal and environment.get("CLICOLOR") != "0" and environment.get("TERM", "") not in DUMB
