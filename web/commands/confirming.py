"""The question before something is destroyed."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import Final

from web.commands.failures import CommandFailed, UsageError
from web.commands.text import printable

YES: Final = frozenset({"y", "yes"})


def add_yes_option(parser: argparse.ArgumentParser) -> None:
    """Declare `--yes`."""
    parser.add_argument("--yes", action="store_true", help="do not ask; needed where there is no terminal to ask on")


def must_ask(arguments: argparse.Namespace) -> bool:
    """Whether there is a question to ask; called before anything is sent.

    Raises:
        UsageError: nobody can be asked, and `--yes` was not given.
    """
    if arguments.yes:
        return False
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        raise UsageError("this destroys something, and there is no terminal to ask on: give --yes")
    return True


def ask(question: str) -> None:
    """Ask on the terminal, and go on if the answer is yes.

    Raises:
        CommandFailed: it is another one.
    """
    print(f"{printable(question)} [y/N] ", end="", file=sys.stderr, flush=True)
    if sys.stdin.readline().strip().lower() not in YES:
        raise CommandFailed("nothing was done")


def confirm(arguments: argparse.Namespace, question: Callable[[], str]) -> None:
    """Ask, unless `--yes` was given.

    Args:
        question: is only called if the question is asked; may ask the server for what is at stake.

    Raises:
        UsageError, CommandFailed: as `must_ask` and `ask`, or as `question`.
    """
    if must_ask(arguments):
        ask(question())
