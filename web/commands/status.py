"""`avicenna-live status`: what a running server holds."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from web.commands.answers import Status
from web.commands.finding import add_client_options, client_of
from web.commands.printing import say, say_json, table


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser("status", help="show diagnoses, connections and queues")
    add_client_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    _, status = client_of(arguments, "operate").request("GET", "ws", "status", answer=Status)
    if arguments.json:
        say_json(status)
    else:
        say(status_text(status))
    return 0


def status_text(status: Mapping[str, Any]) -> str:
    """The status, for people: totals, then a line for each diagnosis where something is going on or is damaged."""
    totals = [(name.replace("_", " "), value) for name, value in status.items() if not isinstance(value, dict | None)]
    totals += [(f"node {name}", value) for name, value in status.get("node", {}).items() if value is not None]
    connections = status.get("connections_by_diagnosis", {})
    queued = status.get("queued_messages_by_diagnosis", {})
    damage = status.get("damage_by_diagnosis", {})
    rows = [(one, connections.get(one, 0), queued.get(one, 0)) for one in sorted({*connections, *queued})]
    tables = [table(("WHAT", "VALUE"), totals)]
    tables += [table(("DIAGNOSIS", "CONNECTIONS", "QUEUED"), rows)] if rows else []
    tables += [table(("DIAGNOSIS", "DAMAGE"), sorted(damage.items()))] if damage else []
    return "\n\n".join(tables)
