"""`avicenna-live diagnoses`: registers, lists and removes diagnoses."""

from __future__ import annotations

import argparse

from web.commands.answers import Diagnosis, Named
from web.commands.finding import add_client_options, client_of
from web.commands.printing import printable, say, say_json, table


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("diagnoses", help="register, list and remove diagnoses")
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    adding = actions.add_parser("add", help="register a diagnosis, or replace its owner and viewers")
    adding.add_argument("id", metavar="ID")
    adding.add_argument("--owner", required=True, metavar="S", help="the `sub` of the user it belongs to")
    adding.add_argument("--viewer", action="append", default=[], metavar="V", help="who may follow it too; repeatable")
    add_client_options(adding)
    adding.set_defaults(run=add)

    listing = actions.add_parser("list", help="list the diagnoses")
    add_client_options(listing)
    listing.set_defaults(run=show)

    removing = actions.add_parser("remove", help="delete a diagnosis and its events; its connections are closed")
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
    items = list(client_of(arguments, "register").items("diagnoses", item=Diagnosis))
    if arguments.json:
        say_json(items)
    else:
        rows = [(one["diagnosis_id"], one["owner"], ", ".join(one["viewers"]), one["created_at"]) for one in items]
        say(table(("DIAGNOSIS", "OWNER", "VIEWERS", "CREATED"), rows))
    return 0


def remove(arguments: argparse.Namespace) -> int:
    """Delete a diagnosis."""
    _, answer = client_of(arguments, "register").request("DELETE", "diagnoses", arguments.id, answer=Named)
    if arguments.json:
        say_json(answer)
    else:
        say(printable(f"diagnosis {arguments.id} removed"))
    return 0
