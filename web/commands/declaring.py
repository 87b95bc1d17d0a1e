"""How a command is declared: with `--json`, and a description and examples, which its `--help` shows."""

from __future__ import annotations

import argparse
import textwrap
from collections.abc import Sequence
from typing import Final, TypeAlias

NAME: Final = "avicenna-live"

LINE_MAX: Final = 78
"""Longest line of a description. Reason: it fits a terminal of 80 columns."""

PRINTS_JSON: Final = "print JSON, for programs; a failure is an object on stderr"
FAILS_IN_JSON: Final = "a failure is JSON, for programs: an object on stderr, the last line"
"""Of a command that prints no results."""

Commands: TypeAlias = "argparse._SubParsersAction[argparse.ArgumentParser]"
"""Where a command is declared."""


def declare(
    commands: Commands, name: str, what: str, *examples: str, description: str | None = None, json: str = PRINTS_JSON
) -> argparse.ArgumentParser:
    """Declare a command. It takes `--json`, as every command does.

    Args:
        what: what it does, in a few words: its line in the list of commands.
        examples: command lines, each with or without a comment (`line  # comment`). The name of the program and its
            space are put before each.
        description: what a person should know before the first use; `None`: `what` says it.
        json: what `--json` does.
    """
    parser = _declared(commands, name, what, examples, description)
    parser.add_argument("--json", action="store_true", help=json)
    return parser


def declare_group(commands: Commands, name: str, what: str, *examples: str) -> Commands:
    """Declare a command that has commands of its own. Arguments as `declare`."""
    return _declared(commands, name, what, examples, None).add_subparsers(metavar="COMMAND", required=True)


def examples_text(examples: Sequence[str]) -> str | None:
    """The end of a help text; `None`: no examples."""
    if not examples:
        return None
    return "\n".join(("examples:", *(f"  {NAME} {one}" for one in examples)))


def _declared(
    commands: Commands, name: str, what: str, examples: Sequence[str], description: str | None
) -> argparse.ArgumentParser:
    return commands.add_parser(
        name,
        help=what,
        description=_filled(description or f"{what[0].upper()}{what[1:]}."),
        epilog=examples_text(examples),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )


def _filled(text: str) -> str:
    return "\n\n".join(textwrap.fill(paragraph, LINE_MAX) for paragraph in text.split("\n\n"))
