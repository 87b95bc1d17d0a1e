"""How a command is declared: with a description and examples, which its `--help` shows."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Final, TypeAlias

NAME: Final = "avicenna-live"

LINE_MAX: Final = 78
"""Longest line of a description. Reason: it fits a terminal of 80 columns."""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command is declared."""


def declare(
    commands: Commands, name: str, what: str, *examples: str, description: str | None = None
) -> argparse.ArgumentParser:
    """Declare a command.

    Args:
        what: what it does, in a few words: its line in the list of commands.
        examples: command lines, each with or without a comment (`line  # comment`). The name of the program and its
            space are put before each.
        description: what a person should know before the first use; `None`: `what` says it.
    """
    return commands.add_parser(
        name,
        help=what,
        description=_filled(description or f"{what[0].upper()}{what[1:]}."),
        epilog=examples_text(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def declare_group(commands: Commands, name: str, what: str, *examples: str) -> Commands:
    """Declare a command that has commands of its own. Arguments as `declare`."""
    parser = declare(commands, name, what, *examples)
    return parser.add_subparsers(metavar="COMMAND", required=True)


def examples_text(examples: Sequence[str]) -> str | None:
    """The end of a help text; `None`: no examples."""
    if not examples:
        return None
    return "\n".join(("examples:", *(f"  {NAME} {one}" for one in examples)))


def _filled(text: str) -> str:
    return "\n\n".join(textwrap.fill(paragraph, LINE_MAX) for paragraph in text.split("\n\n"))
