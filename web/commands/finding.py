"""Which server a command talks to, and with which token: from its options, the environment and the data directory.

The server is the one `--url` or `AVICENNA_URL` names, else the one that runs on the data directory, which says where
it listens (`web.server.listening_file`). The data directory is the one `--data`, `AVICENNA_DATA` or the settings file
names, else `./data`.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import sys
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from web.commands.arguments import STANDARD_INPUT
from web.commands.client import Client, Credentials
from web.commands.failures import CommandFailed, UsageError
from web.commands.look import add_colour_option
from web.commands.printing import say_aside
from web.commands.transport import checked_url, socket_path_of
from web.identity import keyring
from web.identity.keys import KeyUnusable
from web.identity.rights import Scope
from web.identity.tokens import TOKEN_BYTES_MAX
from web.server import settings
from web.server.listening_file import NotListening, listening_urls, listening_workers
from web.server.settings import DATA_DEFAULT, TOKEN_VARIABLE, URL_VARIABLE, Settings, variable_of

URL_DEFAULT: Final = "http://127.0.0.1:8000"


@dataclass(frozen=True, slots=True)
class Found:
    """A server."""

    url: str
    remark: str = ""
    """How the URL was found; part of the message if no server answers there."""
    is_of_directory: bool = False
    """The server that runs on the data directory said so itself."""


def add_client_options(parser: argparse.ArgumentParser) -> None:
    """Declare what every command that talks to a server takes."""
    group = parser.add_argument_group("the server, and who you are")
    group.add_argument(
        "--url",
        help=f"the server: http://HOST[:PORT], https://HOST[:PORT] or unix:PATH; default {URL_VARIABLE}, "
        f"else where the server of the data directory listens, else {URL_DEFAULT}",
    )
    group.add_argument(
        "--token-file",
        metavar="FILE",
        help=f"a file with your token, {STANDARD_INPUT} for standard input; default the variable {TOKEN_VARIABLE}, "
        "else a token with the one right the command needs, made from the key in the data directory",
    )
    # Accepted but not shown: every user of a machine can see the arguments of its processes.
    group.add_argument("--token", help=argparse.SUPPRESS)
    add_data_options(group)
    add_colour_option(parser)


def add_data_options(parser: argparse._ActionsContainer) -> None:
    """Declare how the data directory of the server of this machine is found."""
    parser.add_argument(
        "--data",
        metavar="DIR",
        help=f"the server's data directory; default {variable_of('data')}, else ./{DATA_DEFAULT}",
    )
    parser.add_argument("--config", type=Path, metavar="FILE", help="the server's settings file, which may name it")


def client_of(arguments: argparse.Namespace, *scopes: Scope) -> Client:
    """The client that the options and the environment describe.

    Args:
        scopes: what the command needs; a token made here can do no more.

    Raises:
        UsageError: the URL, the token or a setting is wrong.
    """
    return client_for(find(arguments), arguments, *scopes)


def client_for(found: Found, arguments: argparse.Namespace, *scopes: Scope) -> Client:
    """A client of a server that was found. Raises as `client_of`."""
    token = _given_token(arguments)
    if token is None:
        return Client(found.url, _local_credentials(found, arguments, scopes), remark=found.remark)
    # Only a file can be read again: a pipe has been emptied.
    is_kept = arguments.token_file is not None and Path(arguments.token_file).is_file()
    newer_token = partial(_token_of_file, arguments.token_file) if is_kept else None
    return Client(found.url, Credentials(token, newer_token=newer_token), remark=found.remark)


def find(arguments: argparse.Namespace) -> Found:
    """The server to talk to. Raises as `client_of`."""
    url = given_url(arguments)
    if url is not None:
        return Found(url)
    try:
        return find_of_directory(arguments)
    except NotListening as failure:
        if failure.is_absent:
            return Found(URL_DEFAULT, f" ({failure}; name the server with --data or --url)")
        say_aside(f"{failure}; trying {URL_DEFAULT}")
        return Found(URL_DEFAULT, " (name the server with --data or --url)")


def find_of_directory(arguments: argparse.Namespace) -> Found:
    """The server that runs on the data directory.

    Raises:
        NotListening: none does, or it does not say where it listens.
        UsageError: a setting is wrong.
    """
    directory = data_directory(arguments)
    urls = listening_urls(directory, is_trusted=not merely_lies_here(directory, arguments))
    # Only the server's user can replace a Unix socket.
    url = next((one for one in urls if socket_path_of(one) is not None), urls[0])
    try:
        return Found(checked_url(url), f" (as it says in {directory})", is_of_directory=True)
    except UsageError as error:
        raise NotListening(f"{directory} names no server: {error}") from None


def workers_of_directory(arguments: argparse.Namespace) -> int:
    """How many processes serve for the server that runs on the data directory. Raises as `find_of_directory`."""
    directory = data_directory(arguments)
    return listening_workers(directory, is_trusted=not merely_lies_here(directory, arguments))


def given_url(arguments: argparse.Namespace) -> str | None:
    """The URL an option or the environment names, checked. Raises `UsageError`."""
    url = arguments.url if arguments.url is not None else os.environ.get(URL_VARIABLE) or None
    return None if url is None else checked_url(url)


def data_directory(arguments: argparse.Namespace) -> Path:
    """Where the server of this machine keeps its data. Raises as `local_settings`."""
    return local_settings(arguments).data


def local_settings(arguments: argparse.Namespace) -> Settings:
    """The settings of the server of this machine, as far as this command can see them.

    Raises:
        UsageError: a setting is wrong.
    """
    try:
        return settings.load(os.environ, config=arguments.config, options={"data": arguments.data})
    except settings.SettingsError as error:
        raise UsageError(str(error)) from None


def _given_token(arguments: argparse.Namespace) -> str | None:
    if arguments.token is not None and arguments.token_file is not None:
        raise UsageError("give --token or --token-file, not both")
    if arguments.token_file is not None:
        return _token_of_file(arguments.token_file)
    token: str | None = arguments.token if arguments.token is not None else os.environ.get(TOKEN_VARIABLE) or None
    return None if token is None else _checked(token)


def _token_of_file(file: str) -> str:
    return _checked(_read_token(file))


def _checked(token: str) -> str:
    if not token or not token.isascii() or not token.isprintable() or " " in token:
        raise UsageError("the token must be one word of ASCII characters")
    return token


def _read_token(file: str) -> str:
    try:
        if file == STANDARD_INPUT:
            content = sys.stdin.buffer.read(TOKEN_BYTES_MAX + 2)
        else:
            with Path(file).open("rb") as opened:
                content = opened.read(TOKEN_BYTES_MAX + 2)
    except OSError as error:
        raise UsageError(f"cannot read the token file {file}: {error.strerror}") from None
    return content.decode("latin-1").strip()


def _local_credentials(found: Found, arguments: argparse.Namespace, scopes: tuple[Scope, ...]) -> Credentials:
    directory = data_directory(arguments)
    if merely_lies_here(directory, arguments) and not (found.is_of_directory or _is_here(found.url)):
        return Credentials()
    try:
        key = keyring.load_key(directory)
    except KeyUnusable as refusal:
        raise CommandFailed(str(refusal)) from None
    except OSError as error:
        raise CommandFailed(
            f"cannot read the key in {directory}: {error.strerror}; give --token-file instead"
        ) from None
    return Credentials(key=key, scopes=scopes, key_file=directory / keyring.KEY_FILE)


def merely_lies_here(directory: Path, arguments: argparse.Namespace) -> bool:
    """Nobody named the directory, so its contents must belong to the server of this machine and not to a stranger."""
    return directory == DATA_DEFAULT and arguments.data is None


def _is_here(url: str) -> bool:
    """Whether a server at this URL is on this machine."""
    if socket_path_of(url) is not None:
        return True
    host = urlsplit(url).hostname or ""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host == "localhost"
