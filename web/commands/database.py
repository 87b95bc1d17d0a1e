"""`avicenna-live check`, `backup`, `restore`, `new-database`: look after the database, beside a server or without one.

A server that `--url` or `AVICENNA_URL` names is asked, whatever lies in the data directory here. Else the lock file of
the data directory decides: the server that holds it is asked, and without one the database is opened here.
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Final

from storage.disk.unfinished import SUFFIX, temporary_name
from storage.errors import InUse, NoSuchDiagnosis, NotDamaged, StorageError
from storage.records import Dropped, Rehearsal
from web.commands.answers import Checked, CopyMade, Health
from web.commands.client import Client
from web.commands.declaring import Commands, declare
from web.commands.failures import DONE, CommandFailed, Shown, Unreachable, UsageError
from web.commands.fetching import Copy, fetched
from web.commands.finding import (
    add_client_options,
    add_data_options,
    client_for,
    client_of,
    data_directory,
    find_of_directory,
    given_url,
    local_settings,
)
from web.commands.printing import say, say_json
from web.commands.progress import progress, shows_progress, size_of_all, size_of_newest
from web.commands.text import printable
from web.server.listening_file import LISTENING_FILE, NotListening
from web.server.settings import BACKUPS_DIRECTORY, DATABASE_FILE

WORK_SECONDS_MAX: Final = 3600
"""Longest wait for a server that copies or checks its database. Beyond: it counts as unreachable."""

CLOCKS_APART_SECONDS: Final = 2.0
"""How far the time of a new file may be behind ours. Reason: a file system counts in steps of up to two seconds."""

PROBLEMS_SHOWN_MAX: Final = 20
"""Problems printed for people. Beyond: counted; `--json` has them all."""


def add_to(commands: Commands) -> None:
    """Declare the four commands."""
    checking = declare(
        commands,
        "check",
        "check the integrity of the database",
        "check",
        "check --data /srv/avicenna --json",
        "check --drop-damaged 42",
        description="Check the integrity of the database, through the server that uses it, or without one. The exit "
        "code is 1 if something is damaged.",
    )
    checking.add_argument(
        "--drop-damaged",
        action="append",
        metavar="ID",
        help="instead: drop the events of this diagnosis up to the last damaged one; the server must be stopped. "
        "May be given several times",
    )
    add_client_options(checking)
    checking.set_defaults(run=check)

    copying = declare(
        commands,
        "backup",
        "copy the database, consistently, while the server goes on",
        "backup /backups/avicenna-friday.db",
        "backup copy.db --data /srv/avicenna",
        description="Copy the database, consistently, through the server that uses it, or without one. Nobody waits "
        "for it.",
    )
    copying.add_argument("file", type=Path, metavar="FILE", help="the copy; must not exist")
    add_client_options(copying)
    copying.set_defaults(run=backup)

    restoring = declare(
        commands,
        "restore",
        "put a backup in the place of the database; the server must be stopped",
        "restore /backups/avicenna-friday.db --dry-run",
        "restore /backups/avicenna-friday.db --data /srv/avicenna",
        description="Put a backup in the place of the database. The former database is renamed, not deleted. Every "
        "diagnosis begins a new epoch: clients reload. With --dry-run: only check the backup, and say what would "
        "happen.",
    )
    restoring.add_argument("file", type=Path, metavar="FILE", help="the backup")
    restoring.add_argument("--dry-run", action="store_true", help="change nothing; a server may run meanwhile")
    add_data_options(restoring)
    restoring.set_defaults(run=restore)

    making = declare(
        commands,
        "new-database",
        "make an empty database, where a start refuses to; the server must be stopped",
        "new-database --data /srv/avicenna",
        description="A former database is not found again by that: put it back, or restore a backup, if you can.",
    )
    add_data_options(making)
    making.set_defaults(run=create)


def check(arguments: argparse.Namespace) -> int:
    """Check, or drop what is damaged of some diagnoses; exit 1 if there are problems, or one is not registered."""
    if arguments.drop_damaged:
        return _drop_damaged(arguments)
    problems = _checked_here(arguments) if _is_here(arguments) else None
    if problems is None:
        problems = _checked_there(_server(arguments), data_directory(arguments))
    if arguments.json:
        say_json({"status": "damaged" if problems else "ok", "problems": list(problems)})
    else:
        say(check_text(problems))
    if problems:
        raise Shown(
            f"the database is damaged: {problems[0]}" + (f", and {len(problems) - 1} more" if problems[1:] else "")
        )
    return DONE


def _drop_damaged(arguments: argparse.Namespace) -> int:
    if given_url(arguments) is not None:
        raise UsageError(
            "--drop-damaged is for a data directory whose server is stopped: leave out --url, AVICENNA_URL"
        )
    _refuse_streams(arguments)
    database = _existing(arguments)
    from web.commands import offline  # noqa: PLC0415 - as in `_checked_here`

    wanted = list(dict.fromkeys(arguments.drop_damaged))
    try:
        outcomes = offline.drop_damaged(database, wanted)
    except StorageError as error:
        raise CommandFailed(str(error)) from None
    return show_dropped(wanted, outcomes, as_json=arguments.json)


def show_dropped(wanted: Sequence[str], outcomes: Sequence[Dropped | StorageError], *, as_json: bool) -> int:
    """Say what was dropped of each diagnosis; exit 1 unless none of them is damaged any more."""
    if as_json:
        say_json([_dropped_object(*one) for one in zip(wanted, outcomes, strict=True)])
    else:
        for diagnosis_id, outcome in zip(wanted, outcomes, strict=True):
            say(printable(dropped_text(diagnosis_id, outcome)))
    left = [
        (one, outcome)
        for one, outcome in zip(wanted, outcomes, strict=True)
        if not isinstance(outcome, Dropped | NotDamaged)
    ]
    if left:
        raise Shown("; ".join(dropped_text(*one) for one in left))
    return DONE


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

    _show_lines()
    try:
        # Read page by page, in place: no file grows.
        with progress("checking", lambda: None, lambda: 0):
            return offline.check(database)
    except InUse:
        return None
    except StorageError as error:
        raise CommandFailed(str(error)) from None


def _checked_there(client: Client, directory: Path) -> Sequence[str]:
    with _watching("checking", directory, directory, f".check-*.db{SUFFIX}"):
        _, checked = client.request("POST", "check", seconds_max=WORK_SECONDS_MAX, answer=Checked)
    return checked["problems"]


def _watching(what: str, directory: Path, where: Path, pattern: str) -> AbstractContextManager[None]:
    """Show how far a copy of the database in `directory` is that fits a pattern, if it can be seen from here."""
    return progress(
        what,
        partial(size_of_newest, where, pattern, time.time() - CLOCKS_APART_SECONDS),
        partial(size_of_all, directory / DATABASE_FILE),
    )


def _show_lines() -> None:
    """Where no bar is shown, long work says a line every few seconds."""
    if not shows_progress():
        from web.commands import offline  # noqa: PLC0415 - as in `_checked_here`

        offline.show_progress()


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
    made = _copied_here(arguments, target) if _is_here(arguments) else None
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

    _show_lines()
    try:
        with _watching("copying", database.parent, target.parent, temporary_name(target).name):
            made = offline.backup(database, target)
    except InUse:
        return None
    except StorageError as error:
        raise CommandFailed(str(error)) from None
    return Copy(made.size_bytes, made.sha256)


def _copied_there(client: Client, directory: Path, target: Path) -> Copy:
    def ask() -> tuple[str, str]:
        with _watching("copying", directory, directory / BACKUPS_DIRECTORY, f".avicenna-*.db{SUFFIX}"):
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
    _refuse_streams(arguments)
    database, source = data_directory(arguments) / DATABASE_FILE, arguments.file
    from web.commands import offline  # noqa: PLC0415 - as in `_checked_here`

    written = partial(
        size_of_newest, database.parent, f".{DATABASE_FILE}.*{SUFFIX}", time.time() - CLOCKS_APART_SECONDS
    )
    try:
        with progress("restoring", written, partial(size_of_all, source)):
            if arguments.dry_run:
                rehearsal = offline.try_restore(database, source)
            else:
                aside = offline.restore(database, source)
    except StorageError as error:
        raise CommandFailed(str(error)) from None
    if arguments.dry_run:
        if arguments.json:
            say_json(_restored_object(database, source, rehearsal.aside, False) | {"in_use": rehearsal.is_in_use})
        else:
            say(printable(rehearsal_text(database, source, rehearsal)))
        return DONE
    if arguments.json:
        say_json(_restored_object(database, source, aside, True))
        return DONE
    say(printable(f"restored {database} from {source}; every diagnosis begins a new epoch"))
    if aside is not None:
        say(printable(f"the former database is {aside}"))
    return DONE


def _restored_object(database: Path, source: Path, aside: Path | str | None, restored: bool) -> dict[str, object]:
    former = None if aside is None else str(aside)
    return {"restored": restored, "database": str(database), "from": str(source), "former": former}


def rehearsal_text(database: Path, source: Path, rehearsal: Rehearsal) -> str:
    """What a restoration would do, for people."""
    former = (
        "there is no database that it would replace"
        if rehearsal.aside is None
        else f"the former database would be {rehearsal.aside}"
    )
    stop = "; a server uses the database now: stop it first" if rehearsal.is_in_use else ""
    return f"{source} can be restored as {database}; {former}{stop}. Nothing was changed"


def create(arguments: argparse.Namespace) -> int:
    """Make an empty database."""
    _refuse_streams(arguments)
    database = data_directory(arguments) / DATABASE_FILE
    from web.commands import offline  # noqa: PLC0415 - as in `_checked_here`

    try:
        offline.create(database)
    except StorageError as error:
        raise CommandFailed(str(error)) from None
    if arguments.json:
        say_json({"database": str(database)})
    else:
        say(printable(f"made an empty database, {database}"))
    return DONE


def _server(arguments: argparse.Namespace) -> Client:
    """The server to ask: the named one, else the one that uses the database, and no other."""
    if given_url(arguments) is not None:
        return client_of(arguments, "operate")
    try:
        return client_for(find_of_directory(arguments), arguments, "operate")
    except NotListening as failure:
        if local_settings(arguments).shares_engine:
            raise Unreachable(
                f"{failure}; without a server: avicenna-live cluster check, nats account backup DIR"
            ) from None
        raise Unreachable(f"another process uses the database, and {failure}; name the server with --url") from None


def _is_here(arguments: argparse.Namespace) -> bool:
    """Whether a database of this machine is meant that may be opened here."""
    return given_url(arguments) is None and not local_settings(arguments).shares_engine


def _refuse_streams(arguments: argparse.Namespace) -> None:
    """Refuse what only a database knows.

    Raises:
        UsageError: the settings name streams of NATS.
    """
    if local_settings(arguments).shares_engine:
        raise UsageError(
            "with engine = nats there is no database here: copies are made by nats account backup DIR, and put back by "
            "nats account restore DIR and then avicenna-live cluster renew"
        )


def _existing(arguments: argparse.Namespace) -> Path:
    database = data_directory(arguments) / DATABASE_FILE
    if not database.exists():
        raise CommandFailed(f"there is no database in {database.parent}; name the directory with --data")
    return database
