"""`avicenna-live check`, `backup`, `restore`, `new-database`: look after the database, beside a server or without one.

A server that `--url` or `AVICENNA_URL` names is asked, whatever lies in the data directory here. Else the lock file of
the data directory decides: the server that holds it is asked, and without one the database is opened here.
"""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Final

from storage.errors import InUse, NoSuchDiagnosis, NotDamaged, StorageError
from storage.records import Dropped
from web.commands.answers import Checked, CopyMade, Health
from web.commands.client import Client
from web.commands.failures import FAILED, CommandFailed, Unreachable, UsageError
from web.commands.fetching import Copy, fetched
from web.commands.finding import (
    add_client_options,
    add_data_options,
    client_for,
    client_of,
    data_directory,
    find_of_directory,
    given_url,
)
from web.commands.printing import printable, say, say_json
from web.server.listening_file import LISTENING_FILE, NotListening
from web.server.settings import DATABASE_FILE

WORK_SECONDS_MAX: Final = 3600
"""Longest wait for a server that copies or checks its database. Beyond: it counts as unreachable."""

PROBLEMS_SHOWN_MAX: Final = 20
"""Problems printed for people. Beyond: counted; `--json` has them all."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the four commands."""
    checking = commands.add_parser("check", help="check the integrity of the database")
    checking.add_argument(
        "--drop-damaged",
        action="append",
        metavar="ID",
        help="instead: drop the events of this diagnosis up to the last damaged one; the server must be stopped. "
        "May be given several times",
    )
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
    add_data_options(restoring)
    restoring.set_defaults(run=restore)

    making = commands.add_parser(
        "new-database",
        help="make an empty database, where a start refuses to; the server must be stopped",
        description="A former database is not found again by that: put it back, or restore a backup, if you can.",
    )
    add_data_options(making)
    making.set_defaults(run=create)


def check(arguments: argparse.Namespace) -> int:
    """Check, or drop what is damaged of some diagnoses; exit 1 if there are problems, or one is not registered."""
    if arguments.drop_damaged:
        return _drop_damaged(arguments)
    problems = _checked_here(arguments) if given_url(arguments) is None else None
    if problems is None:
        problems = _checked_there(_server(arguments))
    if arguments.json:
        say_json({"status": "damaged" if problems else "ok", "problems": list(problems)})
    else:
        say(check_text(problems))
    return FAILED if problems else 0


def _drop_damaged(arguments: argparse.Namespace) -> int:
    if given_url(arguments) is not None:
        raise UsageError(
            "--drop-damaged is for a data directory whose server is stopped: leave out --url, AVICENNA_URL"
        )
    database = _existing(arguments)
    from web.commands import offline  # noqa: PLC0415 - as in `_checked_here`

    wanted = list(dict.fromkeys(arguments.drop_damaged))
    try:
        outcomes = offline.drop_damaged(database, wanted)
    except StorageError as error:
        raise CommandFailed(str(error)) from None
    if arguments.json:
        say_json([_dropped_object(*one) for one in zip(wanted, outcomes, strict=True)])
    else:
        for diagnosis_id, outcome in zip(wanted, outcomes, strict=True):
            say(printable(dropped_text(diagnosis_id, outcome)))
    return 0 if all(isinstance(one, Dropped | NotDamaged) for one in outcomes) else FAILED


def dropped_text(diagnosis_id: str, outcome: Dropped | StorageError) -> str:
    """What was dropped of one diagnosis, or why nothing was, for people."""
    match outcome:
        case Dropped(damage=damage, events=events, after=after, is_renewed=is_renewed):
            left = "nothing" if after.head == after.floor else f"{after.floor + 1} to {after.head}"
            numbers = "its numbers begin a new epoch: clients reload" if is_renewed else "its numbers go on"
            return f"diagnosis {diagnosis_id}: {damage}; dropped {events} events, left is {left}; {numbers}"
        case NoSuchDiagnosis():
            return f"diagnosis {diagnosis_id} is not registered"
        case NotDamaged():
            return f"diagnosis {diagnosis_id} is not damaged; nothing was dropped"
        case _:
            return f"diagnosis {diagnosis_id}: {outcome}"


def _dropped_object(diagnosis_id: str, outcome: Dropped | StorageError) -> dict[str, object]:
    if not isinstance(outcome, Dropped):
        return {"diagnosis_id": diagnosis_id, "dropped": 0, "why": dropped_text(diagnosis_id, outcome)}
    after = outcome.after
    return {
        "diagnosis_id": diagnosis_id,
        "dropped": outcome.events,
        "damage": outcome.damage,
        "epoch": after.epoch,
        "head": after.head,
        "floor": after.floor,
        "new_epoch": outcome.is_renewed,
    }


def _checked_here(arguments: argparse.Namespace) -> Sequence[str] | None:
    """The problems; `None`: a server uses the database."""
    database = _existing(arguments)
    from web.commands import offline  # noqa: PLC0415 - starts the event loop's packages, which most commands never need

    offline.show_progress()
    try:
        return offline.check(database)
    except InUse:
        return None
    except StorageError as error:
        raise CommandFailed(str(error)) from None


def _checked_there(client: Client) -> Sequence[str]:
    _, checked = client.request("POST", "check", seconds_max=WORK_SECONDS_MAX, answer=Checked)
    return checked["problems"]


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
    target = arguments.file
    made = _copied_here(arguments, target) if given_url(arguments) is None else None
    if made is None:
        made = _copied_there(_server(arguments), data_directory(arguments), target)
    if arguments.json:
        say_json({"path": str(target), "bytes": made.size_bytes, "sha256": made.sha256})
    else:
        say(printable(f"{target}: {made.size_bytes} bytes, sha256 {made.sha256}"))
    return 0


def _copied_here(arguments: argparse.Namespace, target: Path) -> Copy | None:
    """The copy; `None`: a server uses the database."""
    database = _existing(arguments)
    if target.exists():
        raise CommandFailed(f"{target} exists already; name another file")
    from web.commands import offline  # noqa: PLC0415 - as in `_checked_here`

    offline.show_progress()
    try:
        made = offline.backup(database, target)
    except InUse:
        return None
    except StorageError as error:
        raise CommandFailed(str(error)) from None
    return Copy(made.size_bytes, made.sha256)


def _copied_there(client: Client, directory: Path, target: Path) -> Copy:
    def ask() -> tuple[str, str]:
        _, made = client.request("POST", "backup", seconds_max=WORK_SECONDS_MAX, answer=CopyMade)
        return made["path"], made["sha256"]

    file = directory / LISTENING_FILE
    if not os.path.lexists(file):
        # No server runs on this directory: a copy that a server elsewhere made could neither be fetched nor removed.
        client.request("GET", "healthz", answer=Health)
        raise CommandFailed(
            f"there is no {file}: name the server's data directory with --data, the copy is fetched from there"
        )
    return fetched(ask, directory, target)


def restore(arguments: argparse.Namespace) -> int:
    """Put a backup in place."""
    database = data_directory(arguments) / DATABASE_FILE
    from web.commands import offline  # noqa: PLC0415 - as in `_checked_here`

    try:
        aside = offline.restore(database, arguments.file)
    except StorageError as error:
        raise CommandFailed(str(error)) from None
    say(f"restored {database} from {arguments.file}; every diagnosis begins a new epoch")
    if aside is not None:
        say(f"the former database is {aside}")
    return 0


def create(arguments: argparse.Namespace) -> int:
    """Make an empty database."""
    database = data_directory(arguments) / DATABASE_FILE
    from web.commands import offline  # noqa: PLC0415 - as in `_checked_here`

    try:
        offline.create(database)
    except StorageError as error:
        raise CommandFailed(str(error)) from None
    say(f"made an empty database, {database}")
    return 0


def _server(arguments: argparse.Namespace) -> Client:
    """The server to ask: the named one, else the one that uses the database, and no other."""
    if given_url(arguments) is not None:
        return client_of(arguments, "operate")
    try:
        return client_for(find_of_directory(arguments), arguments, "operate")
    except NotListening as failure:
        raise Unreachable(f"another process uses the database, and {failure}; name the server with --url") from None


def _existing(arguments: argparse.Namespace) -> Path:
    database = data_directory(arguments) / DATABASE_FILE
    if not database.exists():
        raise CommandFailed(f"there is no database in {database.parent}; name the directory with --data")
    return database
