"""`avicenna-live outbox`, `delivery`, `purge`: what a diagnosis retains, who has it, and dropping it."""

from __future__ import annotations

import argparse
from functools import partial
from typing import cast

from web.commands.answers import Actor, Delivered, Event, EventHead, Window
from web.commands.arguments import whole
from web.commands.client import Client
from web.commands.confirming import add_yes_option, confirm
from web.commands.declaring import Commands, declare
from web.commands.finding import add_client_options, client_of
from web.commands.following import EVENTS
from web.commands.lists import add_list_options, show_list
from web.commands.look import PLAIN, Look
from web.commands.printing import say, say_json
from web.commands.tables import state, table
from web.commands.text import compact, printable

SEQ_MAX = 10**15 - 1

STATES = ("acknowledged", "written", "pending", "lost")


def add_to(commands: Commands) -> None:
    """Declare the three commands."""
    showing = declare(
        commands,
        "outbox",
        "show the retained events of a diagnosis",
        "outbox 42",
        "outbox 42 --payload --type feedback_update",
        "outbox 42 --after 17 --limit 10 --json",
        description="Show the retained events of a diagnosis, oldest first. What they say is shown with --payload "
        "only: it is about a patient, and the audit trail then names who has read it.",
    )
    showing.add_argument("id", metavar="ID", help="the diagnosis")
    showing.add_argument("--type", choices=sorted(EVENTS), help="only events of this type")
    showing.add_argument("--payload", action="store_true", help="show what the events say")
    add_list_options(showing, "events", order="SEQ")
    add_client_options(showing)
    showing.set_defaults(run=show)

    tracing = declare(
        commands,
        "delivery",
        "show who has received an event of a diagnosis",
        "delivery 42 17",
        "delivery 42 17 --state pending",
        description="Show what became of one event, for every subscriber the server knows: acknowledged, written to "
        "a connection, pending, or lost (no longer retained, and never acknowledged).",
    )
    tracing.add_argument("id", metavar="ID", help="the diagnosis")
    tracing.add_argument("seq", type=whole(1, SEQ_MAX), metavar="SEQ", help="the number of the event")
    tracing.add_argument("--state", choices=STATES, help="only subscribers with this state")
    tracing.add_argument("--user", metavar="S", help="only this user's devices")
    add_list_options(tracing, "subscribers", order=None)
    add_client_options(tracing)
    tracing.set_defaults(run=trace)

    purging = declare(
        commands,
        "purge",
        "drop the retained events of a diagnosis",
        "purge 42",
        "purge 42 --yes",
        description="Drop the retained events of a diagnosis. Followers who have not received them are told a gap. "
        "Numbers go on. It cannot be undone.",
    )
    purging.add_argument("id", metavar="ID", help="the diagnosis")
    add_yes_option(purging)
    add_client_options(purging)
    purging.set_defaults(run=purge)


def show(arguments: argparse.Namespace) -> int:
    """Show the events."""
    kind, payload = arguments.type, arguments.payload
    item: type[EventHead] = Event if payload else EventHead
    return show_list(
        arguments,
        client_of(arguments, "operate"),
        *("actors", arguments.id, "outbox"),
        item=item,
        mark=lambda one: one["seq"],
        text=partial(events_text, payload=payload),
        query=None if payload else {"payload": "0"},
        wanted=None if kind is None else lambda one: one["type"] == kind,
    )


def events_text(events: list[EventHead], look: Look = PLAIN, *, payload: bool = False) -> str:
    """Events, for people."""
    head: tuple[str, ...] = ("SEQ", "AT", "TYPE")
    rows: list[tuple[object, ...]] = [(one["seq"], one["timestamp"], one["type"]) for one in events]
    if payload:
        head += ("PAYLOAD",)
        rows = [(*row, compact(cast(Event, one)["data"])) for row, one in zip(rows, events, strict=True)]
    return table(head, rows, look)


def trace(arguments: argparse.Namespace) -> int:
    """Show who has an event."""
    return show_list(
        arguments,
        client_of(arguments, "operate"),
        *("diagnoses", arguments.id, "delivery"),
        item=Delivered,
        mark=str,
        text=deliveries_text,
        query={"seq": str(arguments.seq)},
        wanted=partial(_is_wanted, arguments) if arguments.state or arguments.user is not None else None,
    )


def _is_wanted(arguments: argparse.Namespace, one: Delivered) -> bool:
    return arguments.state in (None, one["state"]) and arguments.user in (None, one["user_id"])


def deliveries_text(found: list[Delivered], look: Look = PLAIN) -> str:
    """What became of an event, for people."""
    rows = [
        (
            "(anonymous)" if one["user_id"] is None else one["user_id"],
            one["device"] or "",
            "yes" if one["online"] else "no",
            state(one["state"]),
            one["cursor"],
            one["acknowledged_at"] or "",
            one["acknowledged_by"] or "",
        )
        for one in found
    ]
    return table(("USER", "DEVICE", "ONLINE", "STATE", "CURSOR", "ACKNOWLEDGED", "BY"), rows, look)


def purge(arguments: argparse.Namespace) -> int:
    """Drop the events."""
    client = client_of(arguments, "operate")
    confirm(arguments, partial(_question, client, arguments.id))
    _, left = client.request("DELETE", "actors", arguments.id, "outbox", answer=Window)
    if arguments.json:
        say_json(left)
    else:
        say(printable(f"diagnosis {arguments.id}: purged; nothing up to #{left['head']} is retained, numbers go on"))
    return 0


def _question(client: Client, diagnosis_id: str) -> str:
    _, actor = client.request("GET", "actors", diagnosis_id, answer=Actor)
    if (damage := actor.get("damage")) is not None:
        return f"Drop the events of diagnosis {diagnosis_id}, which is damaged ({damage})?"
    count = actor["head"] - actor["floor"]
    return f"Drop the {count} retained {'event' if count == 1 else 'events'} of diagnosis {diagnosis_id}?"
