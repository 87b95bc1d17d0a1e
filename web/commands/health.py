"""`avicenna-live health`: whether a server answers; for probes, which have no token."""

from __future__ import annotations

import argparse
from typing import TypedDict

from web.commands.client import Client, Credentials
from web.commands.declaring import Commands, declare
from web.commands.failures import DONE
from web.commands.finding import add_client_options, find
from web.commands.printing import say, say_json

SECONDS_MAX = 5.0
"""Longest wait for each part of the answer."""


class Health(TypedDict):
    """`GET /healthz` and `/readyz`."""

    status: str


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = declare(
        commands,
        "health",
        "ask whether the server answers",
        "health",
        "health --ready --url unix:/run/avicenna/operators.sock",
        description="Ask `/healthz`, without a token: for probes and the health check of a container. Exit code 0: "
        "it answers; 1: it answers otherwise; 3: it does not.",
    )
    parser.add_argument("--ready", action="store_true", help="ask /readyz: whether it does what it is for")
    add_client_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask and print."""
    found = find(arguments)
    client = Client(found.url, Credentials(), remark=found.remark)
    path = "readyz" if arguments.ready else "healthz"
    _, answer = client.request("GET", path, answer=Health, seconds_max=SECONDS_MAX)
    if arguments.json:
        say_json(answer)
    else:
        say(str(answer["status"]))
    return DONE
