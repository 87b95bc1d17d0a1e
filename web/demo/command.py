"""`avicenna-live demo`: a server on a temporary directory that shows itself, until Ctrl-C."""

from __future__ import annotations

import argparse
import os
import tempfile

from web.commands.declaring import FAILS_IN_JSON, Commands, declare
from web.commands.printing import say
from web.commands.serve import add_address, own_name, settings_of
from web.server.settings import variable_of


def add_to(commands: Commands) -> None:
    """Declare the command."""
    showing = declare(
        commands,
        "demo",
        "run a server that shows itself",
        "demo",
        "demo --port 8080",
        description="Run a server on a temporary directory, with a stream of sample updates, until Ctrl-C.",
        json=FAILS_IN_JSON,
    )
    add_address(showing)
    showing.set_defaults(run=demo)


def demo(arguments: argparse.Namespace) -> int:
    """Serve and publish samples until Ctrl-C; nothing is left behind."""
    with tempfile.TemporaryDirectory(prefix="avicenna-demo-") as directory:
        options = {
            "host": arguments.host,
            "port": arguments.port,
            "data": directory,
            "tcp": True,
            "allow_anonymous": True,
        }
        # The terminal is for the updates; requests and connections are shown beside them only if the operator asks.
        chosen = settings_of(None, options, {variable_of("log_level"): "warning"} | os.environ)
        from web.demo.show import Demo  # noqa: PLC0415 - the other commands start without the server

        code = Demo(chosen, own_name()).run()
    if not code:
        say("The demo is over, and its data is gone.")
    return code
