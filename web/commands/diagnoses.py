"""`avicenna-live diagnoses`: registers, lists and removes diagnoses."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial

from web.commands.answers import Diagnosis, Named
from web.commands.declaring import Commands, declare, declare_group
from web.commands.finding import add_client_options, client_of
from web.commands.lists import add_list_options, is_found, show_list
from web.commands.look import PLAIN, Look
from web.commands.printing import say, say_json
from web.commands.tables import table
from web.commands.text import printable


def add_to(commands: Commands) -> None:
    """Declare the command."""
    actions = declare_group(
        commands,
        "diagnoses",
        "register, list and remove diagnoses",
        "diagnoses add 42 --owner doctor-1",
        "diagnoses list",
    )

    adding = declare(
        actions,
        "add",
        "register a diagnosis, or replace its owner and viewers",
        "diagnoses add 42 --owner doctor-1",
        "diagnoses add 42 --owner doctor-1 --viewer patient-1 --viewer nurse-2",
        description="Register a diagnosis, or replace its owner and viewers. Connections of those who may not follow "
        "it any more are closed.",
    )
    adding.add_argument("id", metavar="ID")
    adding.add_argument("--owner", required=True, metavar="S", help="the `sub` of the user it belongs to")
    adding.add_argument("--viewer", action="append", default=[], metavar="V", help="who may follow it too; repeatable")
    add_client_options(adding)
    adding.set_defaults(run=add)

    listing = declare(
        actions, "list", "list the diagnoses", "diagnoses list --owner doctor-1", "diagnoses list --limit 20 --json"
    )
    listing.add_argument("--owner", metavar="S", help="only those that belong to this user")
    listing.add_argument("--viewer", metavar="S", help="only those that this user may follow, too")
    listing.add_argument("--search", metavar="TEXT", help="only those with this text in their ids")
    add_list_options(listing, "diagnoses")
    add_client_options(listing)
    listing.set_defaults(run=show)

    removing = declare(
        actions,
        "remove",
        "delete a diagnosis and its events; its connections are closed",
        "diagnoses remove 42",
    )
    removing.add_argument("id", metavar="ID")
    add_client_options(removing)
    removing.set_defaults(run=remove)


def add(arguments: argparse.Namespace) -> int:
    """Register a diagnosis."""
    body = {"owner": arguments.owner, "viewers": arguments.viewer}
    client = client_of(arguments, "register")
    status, answer = client.request("PUT", "diagnoses", arguments.id, body=body, answer=Named)
    if arguments.json:
        say_json(answer)
    else:
        viewers = f", viewers {', '.join(arguments.viewer)}" if arguments.viewer else ""
        done = "registered" if status == 201 else "updated"
        say(printable(f"diagnosis {arguments.id} {done}: owner {arguments.owner}{viewers}"))
    return 0


def show(arguments: argparse.Namespace) -> int:
    """List all diagnoses the token may see."""
    filtered = arguments.owner is not None or arguments.viewer is not None or arguments.search
    return show_list(
        arguments,
        client_of(arguments, "register"),
        "diagnoses",
        item=Diagnosis,
        mark=lambda one: one["diagnosis_id"],
        text=diagnoses_text,
        wanted=partial(_is_wanted, arguments) if filtered else None,
    )


def diagnoses_text(found: Sequence[Diagnosis], look: Look = PLAIN) -> str:
    """Diagnoses, for people."""
    rows = [(one["diagnosis_id"], one["owner"], ", ".join(one["viewers"]), one["created_at"]) for one in found]
    return table(("DIAGNOSIS", "OWNER", "VIEWERS", "CREATED"), rows, look)


def _is_wanted(arguments: argparse.Namespace, one: Diagnosis) -> bool:
    return (
        arguments.owner in (None, one["owner"])
        and (arguments.viewer is None or arguments.viewer in one["viewers"])
        and (not arguments.search or is_found(arguments.search, one["diagnosis_id"]))
    )


def remove(arguments: argparse.Namespace) -> int:
    """Delete a diagnosis."""
    _, answer = client_of(arguments, "register").request("DELETE", "diagnoses", arguments.id, answer=Named)
    if arguments.json:
        say_json(answer)
    else:
        say(printable(f"diagnosis {arguments.id} removed"))
    return 0
