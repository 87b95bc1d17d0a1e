"""`avicenna-live token`: makes a token with the local key, and prints it and nothing else."""

from __future__ import annotations

import argparse
import secrets
import time
from typing import Final

from web import tokens
from web.commands.arguments import whole
from web.commands.client import data_directory
from web.commands.failures import CommandFailed, UsageError
from web.commands.printing import say, say_aside

TTL_SECONDS_DEFAULT: Final = 3600
TTL_SECONDS_MAX: Final = 10 * 366 * 86_400
"""Longest life of a token. Beyond: refused; nobody remembers one for longer."""


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    parser = commands.add_parser(
        "token",
        help="make a token",
        description="Make a token with the key in the server's data directory; the key is made if there is none.",
    )
    parser.add_argument("--sub", required=True, metavar="S", help="whom it names")
    parser.add_argument(
        "--scope",
        default="",
        metavar="LIST",
        help="rights beyond one's own diagnoses, separated by spaces: monitor broadcast register operate",
    )
    parser.add_argument(
        "--ttl",
        type=whole(1, TTL_SECONDS_MAX),
        default=TTL_SECONDS_DEFAULT,
        metavar="SECONDS",
        help=f"how long it is valid; default {TTL_SECONDS_DEFAULT}",
    )
    parser.add_argument("--data", metavar="DIR", help="the server's data directory")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make and print a token."""
    if not arguments.sub:
        raise UsageError("--sub must not be empty")
    directory = data_directory(arguments.data)
    try:
        key, created = tokens.load_or_create_key(directory)
    except OSError as error:
        raise CommandFailed(f"cannot use the key in {directory}: {error.strerror}") from None
    if created:
        say_aside(f"made a new token key in {directory}")
    token = tokens.issue(
        key,
        sub=arguments.sub,
        scope=" ".join(arguments.scope.split()),
        ttl_seconds=arguments.ttl,
        now=time.time(),
        token_id=secrets.token_hex(8),
    )
    say(token)
    return 0
