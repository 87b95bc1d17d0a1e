"""How a command ends when it cannot do what was asked: one line on stderr and an exit code.

CommandFailed            exit 1: the server or the machine said no, or something is damaged
+-- Shown                what is wrong is in the output already; the exit code says of what kind it is
+-- Unreachable          exit 3: no server answers: start it, or correct --url
`-- RefusedByServer      the server answered with a problem document, or ended a connection: its code says what to do,
                         and decides the exit code
UsageError               exit 2: the command line or a setting is wrong
"""

from __future__ import annotations

from typing import Final

DONE: Final = 0
FAILED: Final = 1
WRONG_USAGE: Final = 2
NOBODY_THERE: Final = 3
REFUSED: Final = 4
NOT_FOUND: Final = 5
CONFLICT: Final = 6
"""A conflict with what is there, or a limit that is reached."""

CLOSED_PIPE: Final = 141
"""Whoever read the output has gone (`actors list | head -1`): what a shell reports for a process that SIGPIPE ended."""

MEANINGS: Final = {
    DONE: "done",
    FAILED: "not done, or something is damaged",
    WRONG_USAGE: "wrongly asked, or a setting is wrong",
    NOBODY_THERE: "no server answers",
    REFUSED: "refused: the token or its rights do not do (401, 403)",
    NOT_FOUND: "there is no such thing (404)",
    CONFLICT: "a conflict, or a limit is reached (409, 413, 429)",
}
"""The exit codes."""

WRONG_VALUE: Final = "invalid_field"
"""The server's code for a wrong value. The command was wrongly asked then."""

_EXIT_CODE_OF: Final = {
    WRONG_VALUE: WRONG_USAGE,
    "unauthenticated": REFUSED,
    "token_expired": REFUSED,
    "forbidden": REFUSED,
    "origin_not_allowed": REFUSED,
    "not_found": NOT_FOUND,
    "key_reused": CONFLICT,
    "mailbox_full": CONFLICT,
    "rate_limited": CONFLICT,
    "too_large": CONFLICT,
    "replaced": CONFLICT,
}
"""By the server's code. Any other code: 1."""

USAGE: Final = "wrong_usage"
"""The code of a `UsageError`, as programs read it."""

UNREACHABLE: Final = "unreachable"

_CODE_OF: Final = {WRONG_USAGE: USAGE, NOBODY_THERE: UNREACHABLE}
"""What programs read, by the exit code, where no server said anything."""


class CommandFailed(Exception):
    """What was asked did not happen; the text is for the person who asked."""

    exit_code: int = FAILED
    code: str = "failed"
    """For programs."""

    @property
    def detail(self) -> str:
        """The text without the code."""
        return str(self)


class Shown(CommandFailed):
    """The output says what is wrong, or the lines on stderr do: people need no further line, programs get an object."""

    def __init__(self, text: str, exit_code: int = FAILED) -> None:
        super().__init__(text)
        self.exit_code = exit_code
        self.code = _CODE_OF.get(exit_code, CommandFailed.code)


class Unreachable(CommandFailed):
    """No server answers at the URL, or the connection broke before the answer."""

    exit_code = NOBODY_THERE
    code = UNREACHABLE


class RefusedByServer(CommandFailed):
    """The server refused, with a code of PROTOCOL section 7, or ended a connection for good."""

    def __init__(self, code: str, detail: str, text: str | None = None) -> None:
        """Tell of a refusal.

        Args:
            text: for people; `None`: code and detail.
        """
        super().__init__(f"{code}: {detail}" if text is None else text)
        self.code = code
        self._detail = detail
        self.exit_code = _EXIT_CODE_OF.get(code, FAILED)

    @property
    def detail(self) -> str:
        """What the server said."""
        return self._detail


class UsageError(Exception):
    """The command cannot be tried as it was given."""


def error_object(code: str, detail: str, exit_code: int) -> dict[str, object]:
    """A failure for programs: what `--json` prints as the last line of stderr."""
    return {"error": {"code": code, "detail": detail, "exit_code": exit_code}}
