"""The whole command line: finds the subcommand, runs it, and turns its failure into one line and an exit code.

With `--json` the line is an object, `{"error": {"code", "detail", "exit_code"}}`, and the last one of stderr. Reason:
whatever reads stdout gets results and nothing else, also where a command fails after its first output.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from functools import partial
from importlib.metadata import version
from typing import Any, NoReturn, Protocol

from web.commands import (
    actors,
    cluster,
    database,
    diagnoses,
    doctor,
    drain,
    health,
    outbox,
    publish,
    reload,
    serve,
    status,
    subscribers,
    tail,
    token,
    top,
    trails,
)
from web.commands.declaring import NAME, Commands, examples_text
from web.commands.failures import (
    CLOSED_PIPE,
    MEANINGS,
    USAGE,
    WRONG_USAGE,
    CommandFailed,
    Shown,
    UsageError,
    error_object,
)
from web.commands.helping import Helping
from web.commands.printing import discard_output, say_at_last


class Command(Protocol):
    """A file that has commands."""

    def add_to(self, commands: Commands) -> None:
        """Declare them."""


def run(argv: Sequence[str] | None = None, *further: Command) -> int:
    """Run one command; its exit code.

    Args:
        further: commands beside those of this room; the help names them behind `serve`.
    """
    argv = sys.argv[1:] if argv is None else argv
    as_json = "--json" in argv
    try:
        arguments = _parsed(parser(*further), argv)
        command: Callable[[argparse.Namespace], int] = arguments.run
        code = command(arguments)
        if code:
            raise Shown(MEANINGS.get(code, f"exit code {code}"), code)
        return code
    except WronglyWritten as error:
        if not as_json:
            error.parser.print_usage(sys.stderr)
        _say_failure(f"{error.parser.prog}: error: {error}", USAGE, str(error), WRONG_USAGE, as_json=as_json)
        raise SystemExit(WRONG_USAGE) from None
    except UsageError as error:
        _say_failure(f"{NAME}: {error}", USAGE, str(error), WRONG_USAGE, as_json=as_json)
        return WRONG_USAGE
    except CommandFailed as error:
        if as_json or not isinstance(error, Shown):
            _say_failure(f"{NAME}: {error}", error.code, error.detail, error.exit_code, as_json=as_json)
        return error.exit_code
    except BrokenPipeError:
        # The reader of our output has gone (`tail 42 | head -1`): nothing can be printed any more, not even at exit.
        discard_output()
        return CLOSED_PIPE


def _parsed(whole: argparse.ArgumentParser, argv: Sequence[str]) -> argparse.Namespace:
    """The arguments. Raises `SystemExit` where a help was wanted and has been printed, and as `say`."""
    try:
        return whole.parse_args(argv)
    except SystemExit:
        sys.stdout.flush()
        raise


def _say_failure(line: str, code: str, detail: str, exit_code: int, *, as_json: bool) -> None:
    say_at_last(json.dumps(error_object(code, detail, exit_code)) if as_json else line)


class WronglyWritten(Exception):
    """A command line that cannot be read; the text says why."""

    def __init__(self, parser: argparse.ArgumentParser, text: str) -> None:
        super().__init__(text)
        self.parser = parser


class Parser(argparse.ArgumentParser):
    """Takes options by their full names only, so that a new option never changes what an old line means."""

    def __init__(self, **options: Any) -> None:
        super().__init__(**{"allow_abbrev": False, **options})

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[argparse.Namespace, list[str]]:  # type: ignore[override]
        """Read the arguments of one command; whatever it does not know is refused with its own usage.

        Raises:
            WronglyWritten: it does not take one of them.
        """
        known, left = super().parse_known_args(args, namespace)
        if left:
            self.error(f"unrecognized arguments: {' '.join(left)}")
        return known, left

    def error(self, message: str) -> NoReturn:
        """Say what is wrong.

        Raises:
            WronglyWritten: always.
        """
        raise WronglyWritten(self, message)


def parser(*further: Command) -> argparse.ArgumentParser:
    """The commands and their options."""
    whole: argparse.ArgumentParser = Parser(
        prog=NAME,
        description="Live updates of diagnoses: numbered, stored, and delivered in order.",
        epilog="\n\n".join((_exit_codes(), *filter(None, [examples_text(EXAMPLES)]))),
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    whole.add_argument("--version", action="version", version=f"{NAME} {version(NAME)}")
    commands = whole.add_subparsers(metavar="COMMAND", required=True)
    helping = Helping(partial(parser, *further))
    looking = (status, health, top, actors, outbox)
    acting = (subscribers, trails, drain, reload)
    for command in (
        serve,
        *further,
        token,
        diagnoses,
        publish,
        tail,
        *looking,
        *acting,
        database,
        cluster,
        doctor,
        helping,
    ):
        command.add_to(commands)
    return whole


def _exit_codes() -> str:
    return "\n".join(("exit codes:", *(f"  {code}  {meaning}" for code, meaning in MEANINGS.items())))


EXAMPLES = (
    "serve",
    "diagnoses add 42 --owner doctor-1",
    "publish feedback 42 --feedback-id 7 --rating 5",
    "help actors restart",
)
