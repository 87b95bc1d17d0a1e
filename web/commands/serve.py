"""`avicenna-live serve`: reads the settings and hands them to the composition root.

The server is imported when it is about to run: the other commands start without it.
"""

from __future__ import annotations

import argparse
import faulthandler
import logging
import os
import sys
from collections.abc import Mapping
from pathlib import Path

from web.commands.declaring import FAILS_IN_JSON, NAME, Commands, declare
from web.commands.failures import DONE, UsageError
from web.commands.printing import say, say_aside, say_json
from web.identity import keyring
from web.identity.keys import KeyUnusable
from web.server import greeting, settings

logger = logging.getLogger("avicenna.server")


def add_to(commands: Commands) -> None:
    """Declare the command."""
    serving = declare(
        commands,
        "serve",
        "run the server",
        "serve",
        "serve --host 0.0.0.0 --port 8000 --data /srv/avicenna",
        "serve --config avicenna.toml",
        "serve --config avicenna.toml --check",
        description="Run the server until SIGTERM, SIGINT or `drain`. Settings are options, variables of the "
        "environment (AVICENNA_PORT), or lines of a TOML file.",
        json=f"{FAILS_IN_JSON}; with --check the result, too. How log lines look is the setting log_format",
    )
    add_address(serving)
    serving.add_argument("--data", metavar="DIR", help="directory of the database and the key; default ./data")
    serving.add_argument("--engine", metavar="NAME", help="where all is kept: sqlite or nats; default sqlite")
    serving.add_argument(
        "--workers",
        metavar="N",
        help="processes that serve; default 1. max_connections holds for all of them together, limits of a user, a "
        "diagnosis or an address for each",
    )
    serving.add_argument("--config", type=Path, metavar="FILE", help="a TOML file with settings")
    serving.add_argument(
        "--check", action="store_true", help="read the settings, say what is wrong with them, and start nothing"
    )
    serving.set_defaults(run=serve)


def add_address(parser: argparse.ArgumentParser) -> None:
    """Declare where a server listens."""
    parser.add_argument("--host", metavar="H", help="address to listen on; default 127.0.0.1")
    parser.add_argument("--port", metavar="P", help="TCP port; default 8000, 0 takes any free one")


def serve(arguments: argparse.Namespace) -> int:
    """Serve until a signal."""
    options: dict[str, str | None] = {
        "host": arguments.host,
        "port": arguments.port,
        "data": arguments.data,
        "engine": arguments.engine,
        "workers": arguments.workers,
    }
    if arguments.check:
        return check(arguments.config, options, as_json=arguments.json)
    chosen = settings_of(arguments.config, options)
    from web.http import handed_over  # noqa: PLC0415 - see the docstring of this file
    from web.server import composition, service_manager  # noqa: PLC0415

    try:
        listeners = handed_over.take(os.environ, os.getpid())
    except handed_over.HandOverError as error:
        raise UsageError(str(error)) from None
    faulthandler.enable()  # a watchdog ends a hung process by SIGABRT: where it hung is on stderr then

    def say_next(_: str) -> None:
        if not (chosen.local_key and (chosen.data / keyring.KEY_FILE).exists()):
            return  # whoever has a token knows where from
        for line in greeting.next_steps(chosen, own_name()):
            logger.info("%s", line)

    manager = service_manager.find(os.environ, os.getpid())
    if chosen.workers > 1:
        from web.server.workers import parent  # noqa: PLC0415

        config = None if arguments.config is None else str(arguments.config)
        return parent.run(chosen, config, options, ready=say_next, handed_over=listeners, manager=manager)
    return composition.run(chosen, ready=say_next, handed_over=listeners, manager=manager)


def check(config: Path | None, options: Mapping[str, str | None], *, as_json: bool) -> int:
    """Say whether the settings are right, and what is wrong; opens nothing but the settings file."""
    try:
        keyring.see_that_keys_are_given(settings.load(os.environ, config=config, options=options))
    except (settings.SettingsError, KeyUnusable) as error:
        problems = error.problems if isinstance(error, settings.SettingsError) else (str(error),)
        if as_json:
            raise UsageError("; ".join(problems)) from None
        *others, last = problems
        for one in others:
            say_aside(f"{NAME}: {one}")
        raise UsageError(last) from None
    if as_json:
        say_json({"problems": []})
    else:
        say("the settings can be used")
    return DONE


def own_name() -> str:
    """How this command line was called."""
    return greeting.own_name(sys.argv[0], Path.cwd())


def settings_of(
    config: Path | None, options: Mapping[str, str | None], environment: Mapping[str, str] = os.environ
) -> settings.Settings:
    """The settings of a server. Raises `UsageError`, one of them cannot be used."""
    try:
        return settings.load(environment, config=config, options=options)
    except settings.SettingsError as error:
        raise UsageError(str(error)) from None
