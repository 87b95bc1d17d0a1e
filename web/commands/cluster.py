"""`avicenna-live cluster`: look after an installation on NATS JetStream, beside the servers that run on it.

The settings say where it is, as those of a server do.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import TypeVar

from storage.errors import NotThere, StorageError
from web.commands.database import check_text, show_dropped
from web.commands.declaring import Commands, declare, declare_group
from web.commands.failures import DONE, CommandFailed, Shown, Unreachable, UsageError
from web.commands.finding import add_data_options, local_settings
from web.commands.printing import say, say_json
from web.commands.text import printable
from web.server.settings import DATABASE_FILE, Settings

Answer = TypeVar("Answer")


def add_to(commands: Commands) -> None:
    """Declare the group."""
    group = declare_group(
        commands,
        "cluster",
        "look after several servers on NATS JetStream",
        "cluster check --config avicenna.toml",
        "cluster transfer --from /srv/avicenna --config avicenna.toml",
    )
    checking = declare(
        group,
        "check",
        "check the streams, and all that is in them",
        "cluster check --config avicenna.toml",
        "cluster check --drop-damaged 42 --config avicenna.toml",
        description="Check that the streams are as they should be and their servers up to date, that every event is "
        "there and whole, and that no cursor and no idempotency key names what was never numbered. Servers may run "
        "meanwhile. The exit code is 1 if something is wrong.",
    )
    checking.add_argument(
        "--drop-damaged",
        action="append",
        metavar="ID",
        help="instead: drop the events of this diagnosis up to the last damaged one. May be given several times",
    )
    add_data_options(checking)
    checking.set_defaults(run=check)

    renewing = declare(
        group,
        "renew",
        "begin new epochs: the last step of a restore",
        "cluster renew --config avicenna.toml",
        description="Give every diagnosis a new epoch, in one step. Events and numbers stay; clients come back, and "
        "get all that is retained anew. To be run after streams were restored: numbers may be given again that clients "
        "have seen with other events.",
    )
    add_data_options(renewing)
    renewing.add_argument("--why", metavar="TEXT", default="streams were restored", help="for the audit trail")
    renewing.set_defaults(run=renew)

    moving = declare(
        group,
        "transfer",
        "move a SQLite database into an empty installation",
        "cluster transfer --from /srv/avicenna --config avicenna.toml",
        description="Move everything that a SQLite database holds into an installation in which nothing was ever "
        "done. Its server must be stopped. Epochs, numbers, cursors, keys and trails stay as they are, so clients go "
        "on where they were. All is read back and compared. The database stays as it is.",
    )
    moving.add_argument("--from", dest="source", type=Path, required=True, metavar="DIR", help="its data directory")
    add_data_options(moving)
    moving.set_defaults(run=transfer)


def check(arguments: argparse.Namespace) -> int:
    """Check, or drop what is damaged of some diagnoses; exit 1 if there are problems, or one is not registered."""
    chosen = _settings(arguments)
    from web.commands import offline_nats  # noqa: PLC0415 - starts the event loop's packages, which few commands need

    if arguments.drop_damaged:
        wanted = list(dict.fromkeys(arguments.drop_damaged))
        outcomes = _done(lambda: offline_nats.drop_damaged(chosen, wanted))
        return show_dropped(wanted, outcomes, as_json=arguments.json)
    problems = _done(lambda: offline_nats.check(chosen))
    if arguments.json:
        say_json({"status": "damaged" if problems else "ok", "problems": list(problems)})
    else:
        say(check_text(problems))
    if problems:
        raise Shown(f"something is wrong: {problems[0]}" + (f", and {len(problems) - 1} more" if problems[1:] else ""))
    return DONE


def renew(arguments: argparse.Namespace) -> int:
    """Begin new epochs."""
    chosen = _settings(arguments)
    from web.commands import offline_nats  # noqa: PLC0415 - as in `check`

    generation = _done(lambda: offline_nats.renew(chosen, arguments.why))
    if arguments.json:
        say_json({"generation": generation})
    else:
        say(f"every diagnosis has a new epoch, of the generation {generation}: clients begin anew")
    return DONE


def transfer(arguments: argparse.Namespace) -> int:
    """Move a database."""
    chosen, database = _settings(arguments), arguments.source / DATABASE_FILE
    if not database.exists():
        raise CommandFailed(f"there is no database in {arguments.source}; name its directory with --from")
    from web.commands import offline_nats  # noqa: PLC0415 - as in `check`

    moved = _done(lambda: offline_nats.transfer(chosen, database))
    if arguments.json:
        say_json({"installation": chosen.nats_name, "from": str(database), **asdict(moved)})
    else:
        say(
            printable(
                f"moved {database} to {chosen.nats_name}: {moved.diagnoses} diagnoses, {moved.events} events, "
                f"{moved.keys} keys, {moved.cursors} cursors, {moved.revocations} revocations, "
                f"{moved.audit_rows} audit rows, {moved.access_rows} access rows; read back, and the same"
            )
        )
    return DONE


def _settings(arguments: argparse.Namespace) -> Settings:
    chosen = local_settings(arguments)
    if not chosen.shares_engine:
        raise UsageError(
            "engine must be nats for this command: name the settings with --config, or AVICENNA_ENGINE=nats"
        )
    return chosen


def _done(work: Callable[[], Answer]) -> Answer:
    try:
        return work()
    except NotThere as error:
        raise Unreachable(str(error)) from None
    except StorageError as error:
        raise CommandFailed(str(error)) from None
