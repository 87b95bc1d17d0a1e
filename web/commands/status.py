"""`avicenna-live status`: what a running server holds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from web.commands.answers import Status
from web.commands.declaring import Commands, declare
from web.commands.finding import add_client_options, client_of
from web.commands.look import PLAIN, Look, Painted, look_of
from web.commands.printing import say, say_json
from web.commands.tables import table


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = declare(commands, "status", "show diagnoses, connections and queues", "status", "status --json")
    add_client_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    _, status = client_of(arguments, "operate").request("GET", "ws", "status", answer=Status)
    if arguments.json:
        say_json(status)
    else:
        say(status_text(status, look_of(arguments)))
    return 0


def status_text(status: Mapping[str, Any], look: Look = PLAIN) -> str:
    """The status, for people: totals, then a line for each diagnosis where something is going on or is damaged."""
    totals = [(name.replace("_", " "), value) for name, value in status.items() if not isinstance(value, dict | None)]
    for name, value in status.get("node", {}).items():
        if isinstance(value, dict):
            totals += [(f"node {name} {part}", count) for part, count in value.items()]
        elif value is not None:
            totals.append((f"node {name}", value))
    connections = status.get("connections_by_diagnosis", {})
    queued = status.get("queued_messages_by_diagnosis", {})
    damage = status.get("damage_by_diagnosis", {})
    rows = [(one, connections.get(one, 0), queued.get(one, 0)) for one in sorted({*connections, *queued})]
    damaged = [(one, Painted(what, "red")) for one, what in sorted(damage.items())]
    tables = [table(("WHAT", "VALUE"), totals, look)]
    tables += [table(("DIAGNOSIS", "CONNECTIONS", "QUEUED"), rows, look)] if rows else []
    tables += [table(("DIAGNOSIS", "DAMAGE"), damaged, look)] if damage else []
    return "\n\n".join(tables)
