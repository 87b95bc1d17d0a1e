"""`avicenna-live serve` and `demo`: read the settings and hand them to the composition root.

The server is imported when it is about to run: the other commands start without it.
"""

from __future__ import annotations

import argparse
import logging
import os
import sys
import tempfile
from collections.abc import Mapping
from pathlib import Path

from web import greeting, keyring, settings
from web.commands.failures import UsageError
from web.commands.printing import say
from web.settings import variable_of

logger = logging.getLogger("avicenna.server")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare both commands."""
    serving = commands.add_parser("serve", help="run the server")
    _add_address(serving)
    serving.add_argument("--data", metavar="DIR", help="directory of the database and the key; default ./data")
    serving.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with settings")
    serving.set_defaults(run=serve)

    showing = commands.add_parser(
        "demo",
        help="run a server that shows itself",
        description="Run a server on a temporary directory, with a stream of sample updates, until Ctrl-C.",
    )
    _add_address(showing)
    showing.set_defaults(run=demo)


def _add_address(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--host", metavar="H", help="address to listen on; default 127.0.0.1")
    parser.add_argument("--port", metavar="P", help="TCP port; default 8000, 0 takes any free one")


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    chosen = _settings(arguments.config, {"host": arguments.host, "port": arguments.port, "data": arguments.data})
    from web import composition  # noqa: PLC0415 - see the docstring of this file

    def say_next(_: str) -> None:
        if not (chosen.local_key and (chosen.data / keyring.KEY_FILE).exists()):
            return  # whoever has a token knows where from
        for line in greeting.next_steps(chosen, _own_name()):
            logger.info("%s", line)

    return composition.run(chosen, ready=say_next)


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
        chosen = _settings(None, options, {variable_of("log_level"): "warning"} | os.environ)
        from web.demo.show import Demo  # noqa: PLC0415 - see the docstring of this file

        code = Demo(chosen, _own_name()).run()
    if not code:
        say("The demo is over, and its data is gone.")
    return code


def _own_name() -> str:
    return greeting.own_name(sys.argv[0], Path.cwd())


def _settings(
    config: Path | None, options: dict[str, object], environment: Mapping[str, str] = os.environ
) -> settings.Settings:
    try:
        return settings.load(environment, config=config, options=options)
    except settings.SettingsError as error:
        raise UsageError(str(error)) from None
