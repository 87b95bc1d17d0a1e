"""`avicenna-live top`: shows what is going on in a server, live, in the terminal."""

from __future__ import annotations

import argparse
import sys

from web.commands.declaring import Commands, declare
from web.commands.failures import UsageError
from web.commands.finding import add_client_options, client_of
from web.commands.look import look_of
from web.commands.top_feed import PollingFeed
from web.commands.top_view import COLUMNS, View

_SORTS = [column.title.lower() for column in COLUMNS]


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = declare(
        commands,
        "top",
        "show what is going on, live, in the terminal",
        "top",
        "top --search ward- --sort lag",
        "top --url https://live.example.org --token-file operator.token",
        description="Show the server and its actors, live, in the terminal, until q. The keys: s and S sort by the "
        "next or the former column, r reverses, / searches in the ids (Escape ends that), and arrows, PgUp, PgDn, "
        "Home and End move.",
    )
    parser.add_argument(
        "--sort",
        choices=_SORTS,
        default="conn",
        help="sort by this column at first; default conn",
    )
    parser.add_argument("--search", default="", metavar="TEXT", help="show only ids with this text in them, at first")
    add_client_options(parser, json=False)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show it until `q`."""
    if not (sys.stdout.isatty() and sys.stdin.isatty()):
        raise UsageError("top needs a terminal; `status` and `actors list` print once what it shows")
    feed = PollingFeed(client_of(arguments, "operate"))
    from web.commands import top_screen  # noqa: PLC0415 - curses is of no use to other commands

    view = View(_SORTS.index(arguments.sort), search=arguments.search)
    with top_screen.terminal(colour=look_of(arguments).colour) as screen:
        feed.start()
        top_screen.show(screen, feed, view)
    return 0
