"""`avicenna-live drain`: ends a server in order, from afar."""

from __future__ import annotations

import argparse

from web.commands.answers import Draining
from web.commands.confirming import add_yes_option, confirm
from web.commands.declaring import Commands, declare
from web.commands.finding import add_client_options, client_of
from web.commands.printing import say, say_json
from web.commands.text import printable


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = declare(
        commands,
        "drain",
        "end the server in order",
        "drain",
        "drain --yes --url https://live.example.org --token-file operator.token",
        description="End the server as SIGTERM does: it takes nothing new, tells its followers to come back, stores "
        "what it has accepted, and exits within 10 s. Whatever supervises it decides whether it starts again.",
    )
    add_yes_option(parser)
    add_client_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Ask for the end."""
    client = client_of(arguments, "operate")
    confirm(arguments, lambda: f"End the server at {client.url}?")
    _, answer = client.request("POST", "drain", answer=Draining)
    if arguments.json:
        say_json(answer)
    else:
        say(printable(f"the server at {client.url} is draining, and ends within 10 s"))
    return 0
