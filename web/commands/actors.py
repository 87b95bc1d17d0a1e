"""`avicenna-live actors`: looks at diagnosis actors, restarts and stops them. Needs the scope `operate`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from web.commands.answers import Actor
from web.commands.finding import add_client_options, client_of
from web.commands.printing import printable, say, say_json, table

HEAD = ("DIAGNOSIS", "STATE", "INCARNATION", "CONNECTIONS", "MAILBOX", "HEAD", "CRASHES", "LAST CRASH", "DAMAGE")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("actors", help="look at diagnosis actors, restart and stop them")
    actions = parser.add_subparsers(metavar="ACTION", required=True)

    listing = actions.add_parser("list", help="one line for each diagnosis")
    add_client_options(listing)
    listing.set_defaults(run=show_all)

    showing = actions.add_parser("show", help="one actor, and the subscribers that are furthest behind")
    restarting = actions.add_parser("restart", help="begin a new incarnation; connections stay open")
    stopping = actions.add_parser("stop", help="let it leave memory; connections stay open, the next message wakes it")
    for action, run in ((showing, show), (restarting, restart), (stopping, stop)):
        action.add_argument("id", metavar="ID")
        add_client_options(action)
        action.set_defaults(run=run)


def show_all(arguments: argparse.Namespace) -> int:
    """List all actors."""
    items = list(client_of(arguments, "operate").items("actors", item=Actor))
    if arguments.json:
        say_json(items)
    else:
        say(table(HEAD, [_row(one) for one in items]))
    return 0


def show(arguments: argparse.Namespace) -> int:
    """Show one actor."""
    _, actor = client_of(arguments, "operate").request("GET", "actors", arguments.id, answer=Actor)
    if arguments.json:
        say_json(actor)
    else:
        say(actor_text(actor))
    return 0


def restart(arguments: argparse.Namespace) -> int:
    """Begin a new incarnation; also releases a quarantine."""
    return _act(arguments, "restart")


def stop(arguments: argparse.Namespace) -> int:
    """Let an actor leave memory."""
    return _act(arguments, "stop")


def _act(arguments: argparse.Namespace, act: str) -> int:
    _, actor = client_of(arguments, "operate").request("POST", "actors", arguments.id, act, answer=Actor)
    if arguments.json:
        say_json(actor)
    else:
        state, incarnation, connections = actor["state"], actor["incarnation"], actor["subscribers"]
        said = f"actor {arguments.id}: {state}, incarnation {incarnation}, {connections} connections open"
        say(printable(said))
    return 0


def actor_text(actor: Mapping[str, Any]) -> str:
    """One actor, for people: its line, then who is furthest behind."""
    rows = [
        (
            one["user_id"] or "(anonymous)",
            one["device"] or "",
            "yes" if one["online"] else "no",
            one["cursor"],
            one["lag"],
        )
        for one in actor["lag"]
    ]
    text = table(HEAD, [_row(actor)])
    return f"{text}\n\n{table(('USER', 'DEVICE', 'ONLINE', 'CURSOR', 'BEHIND'), rows)}" if rows else text


def _row(actor: Mapping[str, Any]) -> tuple[object, ...]:
    mailbox, crash = actor["mailbox"], actor["last_crash"]
    return (
        actor["diagnosis_id"],
        actor["state"],
        actor["incarnation"],
        actor["subscribers"],
        f"{mailbox['depth']}/{mailbox['limit']}",
        actor["head"],
        actor["restarts"],
        "" if crash is None else f"{crash['at']} {crash['error']}",
        actor.get("damage") or "",
    )
