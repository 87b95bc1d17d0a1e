"""`avicenna-live token`: makes a token with the local key, and prints it and nothing else."""

from __future__ import annotations

import argparse
import shlex
import time
from typing import Final

from storage.disk import database_files
from storage.errors import InUse, StorageError
from storage.names import new_id
from web.commands.arguments import whole
from web.commands.declaring import Commands, declare
from web.commands.failures import CommandFailed, UsageError
from web.commands.finding import add_data_options, local_settings
from web.commands.printing import say, say_aside, say_json
from web.contract.records import SUB_RULE, is_name
from web.contract.wire import timestamp
from web.identity import keyring, tokens
from web.identity.keys import KeyUnusable, load_key_file
from web.identity.rights import SCOPES
from web.server.settings import DATABASE_FILE, Settings

TTL_SECONDS_DEFAULT: Final = 3600
TTL_SECONDS_MAX: Final = 366 * 86_400
"""Longest life a server can be told to accept. Beyond: refused."""


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = declare(
        commands,
        "token",
        "make a token",
        "token --sub doctor-1",
        'token --sub analytics --scope "broadcast" --ttl 86400',
        description="Make a token with the key in the server's data directory, and print it. If the directory holds no "
        "key yet, one is made, as the server would.",
    )
    parser.add_argument("--sub", required=True, metavar="S", help="whom it names")
    parser.add_argument(
        "--scope",
        default="",
        metavar="LIST",
        help=f"rights beyond one's own diagnoses, separated by spaces: {' '.join(SCOPES)}",
    )
    parser.add_argument(
        "--ttl",
        type=whole(1, TTL_SECONDS_MAX),
        default=TTL_SECONDS_DEFAULT,
        metavar="SECONDS",
        help=f"how long it is valid; default {TTL_SECONDS_DEFAULT}",
    )
    parser.add_argument("--kid", metavar="K", help="use the configured HS256 key with this name, not the local one")
    add_data_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Make and print a token."""
    if not arguments.sub:
        raise UsageError("--sub must not be empty")
    if not is_name(arguments.sub):
        raise UsageError(f"--sub must be {SUB_RULE}")
    scopes = arguments.scope.split()
    for scope in scopes:
        if scope not in SCOPES:
            raise UsageError(f"--scope must be some of {', '.join(SCOPES)}; it names {scope!a}")
    chosen = local_settings(arguments)
    if arguments.ttl > chosen.token_lifetime_seconds_max:
        raise UsageError(
            f"--ttl must be at most {chosen.token_lifetime_seconds_max} (token_lifetime_seconds_max): "
            "the server would refuse the token"
        )
    key = _local_key(chosen) if arguments.kid is None else _named_key(chosen, arguments.kid)
    now = time.time()
    token = tokens.issue(
        key,
        sub=arguments.sub,
        scope=" ".join(scopes),
        ttl_seconds=arguments.ttl,
        now=now,
        token_id=new_id(),
        kid=arguments.kid,
    )
    if arguments.json:
        say_json(
            {
                "token": token,
                "sub": arguments.sub,
                "scope": " ".join(scopes),
                "expires_at": timestamp(now + arguments.ttl),
            }
        )
    else:
        say(token)
    return 0


def _local_key(chosen: Settings) -> bytes:
    directory = chosen.data
    # A missing directory is more likely a slip than a server to come: no server would verify with a key in it.
    if not directory.is_dir():
        server = f"avicenna-live serve --data {shlex.quote(str(directory))}"
        raise CommandFailed(f"there is no {directory}: `{server}` makes it, or name another with --data")
    try:
        if keyring.load_key(directory) is None and not database_files.has_database(directory / DATABASE_FILE):
            _make_database(chosen)
        key, created = keyring.load_or_create_key(directory)
    except KeyUnusable as refusal:
        raise CommandFailed(str(refusal)) from None
    except OSError as error:
        raise CommandFailed(f"cannot use the key in {directory}: {error.strerror}") from None
    if created:
        say_aside(f"made a new token key in {directory}")
    return key


def _make_database(chosen: Settings) -> None:
    """The database, which is made before the key: a key without a database would stop the next start."""
    database = chosen.data / DATABASE_FILE
    if chosen.database_must_exist:
        make = f"avicenna-live new-database --data {shlex.quote(str(chosen.data))}"
        raise CommandFailed(f"there is no database in {chosen.data}, and database_must_exist is set: {make}")
    from web.commands import offline  # noqa: PLC0415 - starts the event loop's packages, which is seldom needed

    try:
        offline.create(database)
    except InUse:
        return  # a server is making both at this moment
    except StorageError as error:
        if not database_files.has_database(database):
            raise CommandFailed(str(error)) from None


def _named_key(chosen: Settings, kid: str) -> bytes:
    for spec in chosen.token_keys:
        if spec.kid == kid and spec.algorithm == tokens.LOCAL_ALGORITHM:
            try:
                secret: bytes = load_key_file(spec).material
            except KeyUnusable as refusal:
                raise CommandFailed(str(refusal)) from None
            return secret
    raise UsageError("--kid must name an HS256 key of token_keys")
