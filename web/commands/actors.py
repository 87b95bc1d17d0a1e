"""`avicenna-live actors`: looks at diagnosis actors, restarts and stops them. Needs the scope `operate`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

from web.commands.answers import Actor
from web.commands.declaring import Commands, declare, declare_group
from web.commands.finding import add_client_options, client_of
from web.commands.lists import add_list_options, is_found, show_list
from web.commands.look import PLAIN, Look, Painted, look_of
from web.commands.printing import say, say_json
from web.commands.tables import state, table
from web.commands.text import printable

STATES = ("running", "restarting", "quarantined", "passive")

HEAD = ("DIAGNOSIS", "STATE", "INCARNATION", "CONNECTIONS", "MAILBOX", "HEAD", "CRASHES", "LAST CRASH", "DAMAGE")


def add_to(commands: Commands) -> None:
    """Declare the command."""
    actions = declare_group(
        commands, "actors", "look at diagnosis actors, restart and stop them", "actors list", "actors show 42"
    )

    listing = declare(
        actions,
        "list",
        "one line for each diagnosis",
        "actors list --state quarantined",
        "actors list --search ward- --limit 20",
        "actors list --json",
    )
    listing.add_argument("--state", choices=STATES, help="only actors in this state")
    listing.add_argument("--search", metavar="TEXT", help="only diagnoses with this text in their ids")
    listing.add_argument("--damaged", action="store_true", help="only diagnoses whose events are damaged")
    add_list_options(listing, "actors")
    add_client_options(listing)
    listing.set_defaults(run=show_all)

    showing = declare(actions, "show", "one actor, and the subscribers that are furthest behind", "actors show 42")
    restarting = declare(
        actions,
        "restart",
        "begin a new incarnation; connections stay open",
        "actors restart 42",
        description="Begin a new incarnation of an actor. Connections stay open, and nothing is lost or repeated. It "
        "also releases a quarantine.",
    )
    stopping = declare(
        actions,
        "stop",
        "let it leave memory; connections stay open, the next message wakes it",
        "actors stop 42",
    )
    for action, run in ((showing, show), (restarting, restart), (stopping, stop)):
        action.add_argument("id", metavar="ID")
        add_client_options(action)
        action.set_defaults(run=run)


def show_all(arguments: argparse.Namespace) -> int:
    """List all actors."""
    filtered = arguments.state or arguments.search or arguments.damaged
    return show_list(
        arguments,
        client_of(arguments, "operate"),
        "actors",
        item=Actor,
        mark=lambda one: one["diagnosis_id"],
        text=lambda items, look: table(HEAD, [_row(one) for one in items], look),
        wanted=partial(_is_wanted, arguments) if filtered else None,
    )


def _is_wanted(arguments: argparse.Namespace, actor: Actor) -> bool:
    return (
        arguments.state in (None, actor["state"])
        and (not arguments.search or is_found(arguments.search, actor["diagnosis_id"]))
        and (not arguments.damaged or actor.get("damage") is not None)
    )


def show(arguments: argparse.Namespace) -> int:
    """Show one actor."""
    _, actor = client_of(arguments, "operate").request("GET", "actors", arguments.id, answer=Actor)
    if arguments.json:
        say_json(actor)
    else:
        say(actor_text(actor, look_of(arguments)))
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
        now, incarnation, connections = actor["state"], actor["incarnation"], actor["subscribers"]
        said = f"actor {arguments.id}: {now}, incarnation {incarnation}, {connections} connections open"
        say(printable(said))
    return 0


def actor_text(actor: Mapping[str, Any], look: Look = PLAIN) -> str:
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
    text = table(HEAD, [_row(actor)], look)
    return f"{text}\n\n{table(('USER', 'DEVICE', 'ONLINE', 'CURSOR', 'BEHIND'), rows, look)}" if rows else text


def _row(actor: Mapping[str, Any]) -> tuple[object, ...]:
    mailbox, crash = actor["mailbox"], actor["last_crash"]
    return (
        actor["diagnosis_id"],
        state(actor["state"]),
        actor["incarnation"],
        actor["subscribers"],
        f"{mailbox['depth']}/{mailbox['limit']}",
        actor["head"],
        actor["restarts"],
        "" if crash is None else f"{crash['at']} {crash['error']}",
        Painted(actor.get("damage") or "", "red"),
    )
