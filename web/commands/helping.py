"""`avicenna-live help` and `completion`: what the command line says of itself."""

from __future__ import annotations

import argparse
import contextlib
import io
from collections.abc import Callable, Iterator
from typing import Any, Final

from web.commands.declaring import Commands, declare
from web.commands.failures import DONE
from web.commands.printing import say, say_json

SHELLS: Final = ("bash", "zsh", "fish")

FILES: Final = {"FILE": "file", "DIR": "directory"}
"""What the values of options are whose names of values are these."""


class Helping:
    """The commands that need the whole command line."""

    def __init__(self, parser: Callable[[], argparse.ArgumentParser]) -> None:
        """Declare commands about this command line."""
        self._parser = parser

    def add_to(self, commands: Commands) -> None:
        """Declare both."""
        helping = declare(
            commands,
            "help",
            "show the help of a command",
            "help",
            "help actors restart",
            description="Show what --help shows.",
        )
        helping.add_argument("words", nargs="*", metavar="COMMAND", help="a command; without one: all of them")
        helping.set_defaults(run=self._help)

        completing = declare(
            commands,
            "completion",
            "print a script that completes commands in a shell",
            "completion bash > ~/.local/share/bash-completion/completions/avicenna-live",
            'completion zsh > "${fpath[1]}/_avicenna-live"',
            "completion fish > ~/.config/fish/completions/avicenna-live.fish",
            description="Print a script for a shell, which then completes commands and options with Tab. It holds all "
            "of them: the shell starts nothing when it completes. Print it anew after an update.",
        )
        completing.add_argument("shell", choices=SHELLS, metavar="SHELL", help="bash, zsh or fish")
        completing.set_defaults(run=self._complete)

    def _help(self, arguments: argparse.Namespace) -> int:
        if not arguments.json:
            self._parser().parse_args([*arguments.words, "--help"])
            return DONE
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed), contextlib.suppress(SystemExit):
            self._parser().parse_args([*arguments.words, "--help"])
        say_json({"help": printed.getvalue()})
        return DONE

    def _complete(self, arguments: argparse.Namespace) -> int:
        import shtab  # noqa: PLC0415 - no other command needs it

        parser = self._parser()
        for action in _actions_of(parser):
            if isinstance(action, argparse._SubParsersAction):
                # A shell shows one line of each command: that of the list of commands, not the first of its help.
                for command in action.choices.values():
                    command.description = None
            kind = FILES.get(action.metavar) if isinstance(action.metavar, str) else None
            if kind is not None:
                action.complete = shtab.FILE if kind == "file" else shtab.DIRECTORY  # type: ignore[attr-defined] # as shtab wants
        script = shtab.complete(parser, shell=arguments.shell)
        if arguments.json:
            say_json({"shell": arguments.shell, "script": script})
        else:
            say(script)
        return DONE


def _actions_of(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    for action in parser._actions:
        yield action
        if isinstance(action, argparse._SubParsersAction):
            below: dict[str, Any] = action.choices
            for one in dict.fromkeys(below.values()):
                yield from _actions_of(one)
