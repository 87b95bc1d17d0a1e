"""`avicenna-live check`, `backup`, `restore`: look after the database, with or without a running server.

Who holds the lock file decides: a server that does is asked over HTTP, else the database is opened here.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Final, TypeVar

from storage import files
from storage.errors import InUse, StorageError
from web.commands.client import add_client_options, client_of, data_directory
from web.commands.failures import FAILED, CommandFailed
from web.commands.printing import printable, say, say_json
from web.settings import DATABASE_FILE

Answer = TypeVar("Answer")

PROBLEMS_SHOWN_MAX: Final = 20
"""Problems printed for people. Beyond: counted; `--json` has them all."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the three commands."""
    checking = commands.add_parser("check", help="check the integrity of the database")
    add_client_options(checking)
    checking.set_defaults(run=check)

    copying = commands.add_parser("backup", help="copy the database, consistently, while the server goes on")
    copying.add_argument("file", type=Path, metavar="FILE", help="the copy; must not exist")
    add_client_options(copying)
    copying.set_defaults(run=backup)

    restoring = commands.add_parser(
        "restore",
        help="put a backup in the place of the database; the server must be stopped",
        description="The former database is renamed, not deleted. Every diagnosis begins a new epoch: clients reload.",
    )
    restoring.add_argument("file", type=Path, metavar="FILE", help="the backup")
    restoring.add_argument("--data", metavar="DIR", help="the server's data directory")
    restoring.set_defaults(run=restore)


def check(arguments: argparse.Namespace) -> int:
    """Check; exit 1 if there are problems."""
    database = _existing(arguments.data)
    from web import offline  # noqa: PLC0415 - starts the event loop's packages, which most commands never need

    def ask() -> list[str]:
        _, answer = client_of(arguments).request("POST", "check")
        return list(answer["problems"])

    problems = _here_or_there(lambda: offline.check(database), ask)
    if arguments.json:
        say_json({"status": "damaged" if problems else "ok", "problems": list(problems)})
    else:
        say(check_text(problems))
    return FAILED if problems else 0


def check_text(problems: Sequence[str]) -> str:
    """The outcome, for people."""
    if not problems:
        return "ok"
    lines = [printable(one) for one in problems[:PROBLEMS_SHOWN_MAX]]
    if len(problems) > PROBLEMS_SHOWN_MAX:
        lines.append(f"and {len(problems) - PROBLEMS_SHOWN_MAX} more")
    return "\n".join(lines)


def backup(arguments: argparse.Namespace) -> int:
    """Make a copy."""
    database, target = _existing(arguments.data), arguments.file
    if target.exists():
        raise CommandFailed(f"{target} exists already; name another file")
    from web import offline  # noqa: PLC0415 - as in `check`

    def copy() -> dict[str, Any]:
        made = offline.backup(database, target)
        return {"path": made.path, "bytes": made.size_bytes, "sha256": made.sha256}

    def ask() -> dict[str, Any]:
        _, answer = client_of(arguments).request("POST", "backup")
        return _fetched(answer, target)

    shown = _here_or_there(copy, ask)
    if arguments.json:
        say_json(shown)
    else:
        say(printable(f"{shown['path']}: {shown['bytes']} bytes, sha256 {shown['sha256']}"))
    return 0


def _fetched(answer: dict[str, Any], target: Path) -> dict[str, Any]:
    """Put the copy a server of this machine made where it is wanted."""
    made = Path(answer["path"])
    files.copy_private(made, target)
    size, digest = files.settle_copy(target)
    if digest != answer["sha256"]:
        target.unlink()
        raise CommandFailed(f"{target} is not what the server wrote to {made}")
    made.unlink(missing_ok=True)
    return {"path": str(target), "bytes": size, "sha256": digest}


def restore(arguments: argparse.Namespace) -> int:
    """Put a backup in place."""
    database = data_directory(arguments.data) / DATABASE_FILE
    from web import offline  # noqa: PLC0415 - as in `check`

    try:
        aside = offline.restore(database, arguments.file)
    except StorageError as error:
        raise CommandFailed(str(error)) from None
    say(f"restored {database} from {arguments.file}; every diagnosis begins a new epoch")
    if aside is not None:
        say(f"the former database is {aside}")
    return 0


def _here_or_there(here: Callable[[], Answer], there: Callable[[], Answer]) -> Answer:
    """Do it here, or through the server that holds the database."""
    try:
        try:
            return here()
        except InUse:
            return there()
    except StorageError as error:
        raise CommandFailed(str(error)) from None


def _existing(option: str | None) -> Path:
    database = data_directory(option) / DATABASE_FILE
    if not database.exists():
        raise CommandFailed(f"there is no database in {database.parent}; name the directory with --data")
    return database
