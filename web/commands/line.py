"""The whole command line: finds the subcommand, runs it, and turns its failure into one line and an exit code."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from importlib.metadata import version
from typing import Any, Final, Protocol

from web.commands import actors, database, diagnoses, publish, serve, status, tail, token, trails
from web.commands.failures import FAILED, WRONG_USAGE, CommandFailed, UsageError
from web.commands.printing import discard_output, say_at_last

NAME: Final = "avicenna-live"


class Command(Protocol):
    """A file that has commands."""

    def add_to(self, commands: argparse._SubParsersAction[Any]) -> None:
        """Declare them."""


def run(argv: Sequence[str] | None = None, *further: Command) -> int:
    """Run one command; its exit code.

    Args:
        further: commands beside those of this room; the help names them behind `serve`.
    """
    arguments = parser(*further).parse_args(argv)
    command: Callable[[argparse.Namespace], int] = arguments.run
    try:
        return command(arguments)
    except UsageError as error:
        say_at_last(f"{NAME}: {error}")
        return WRONG_USAGE
    except CommandFailed as error:
        say_at_last(f"{NAME}: {error}")
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`tail 42 | head -1`): nothing can be printed any more, not even at exit.
        discard_output()
        return FAILED


class Parser(argparse.ArgumentParser):
    """Takes options by their full names only, so that a new option never changes what an old line means."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})


def parser(*further: Command) -> argparse.ArgumentParser:
    """The commands and their options."""
    top = Parser(prog=NAME, description="Live updates of diagnoses: numbered, stored, and delivered in order.")
    top.add_argument("--version", action="version", version=f"{NAME} {version(NAME)}")
    commands = top.add_subparsers(metavar="COMMAND", required=True)
    for command in (serve, *further, token, diagnoses, publish, tail, actors, status, trails, database):
        command.add_to(commands)
    return top
