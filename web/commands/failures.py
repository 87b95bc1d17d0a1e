"""How a command ends when it cannot do what was asked: one line on stderr and an exit code.

CommandFailed            exit 1: the server or the machine said no
+-- Unreachable          exit 3: no server answers: start it, or correct --url
`-- RefusedByServer      the server answered with a problem document: its code says what to do;
                         exit 2 where it judged an option to be wrong
UsageError               exit 2: the command line or a setting is wrong
"""

from __future__ import annotations

from typing import Final

FAILED: Final = 1
WRONG_USAGE: Final = 2
NOBODY_THERE: Final = 3

WRONG_VALUE: Final = "invalid_field"
"""The server's code for a wrong value. The command was wrongly asked then."""


class CommandFailed(Exception):
    """What was asked did not happen; the text is for the person who asked."""

    exit_code: int = FAILED


class Unreachable(CommandFailed):
    """No server answers at the URL, or the connection broke before the answer."""

    exit_code = NOBODY_THERE


class RefusedByServer(CommandFailed):
    """The server refused, with a code of PROTOCOL section 7."""

    def __init__(self, code: str, detail: str, status: int) -> None:
        super().__init__(f"{code}: {detail}")
        self.code = code
        self.status = status
        if code == WRONG_VALUE:
            self.exit_code = WRONG_USAGE


class UsageError(Exception):
    """The command cannot be tried as it was given."""
