"""`avicenna-live top`: shows what is going on in a server, live, in the terminal."""

from __future__ import annotations

import argparse
import sys
from dataclasses import asdict

from web.commands.declaring import Commands, declare
from web.commands.failures import DONE, UsageError
from web.commands.finding import add_client_options, client_of
from web.commands.look import look_of
from web.commands.printing import say_json
from web.commands.top_feed import ConsoleFeed
from web.commands.top_view import COLUMNS, Snapshot, View

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
        "top --json --sort lag",
        description="Show the server and its actors, live, in the terminal, until q. The keys: s and S sort by the "
        "next or the former column, r reverses, / searches in the ids (Escape ends that), and arrows, PgUp, PgDn, "
        "Home and End move.",
        json="print once what it shows, as one object; needs no terminal. A failure is an object on stderr",
    )
    parser.add_argument(
        "--sort",
        choices=_SORTS,
        default="conn",
        help="sort by this column at first; default conn",
    )
    parser.add_argument("--search", default="", metavar="TEXT", help="show only ids with this text in them, at first")
    add_client_options(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Show it until `q`."""
    if not (arguments.json or (sys.stdout.isatty() and sys.stdin.isatty())):
        raise UsageError("top needs a terminal; with --json it prints once what it shows")
    view = View(_SORTS.index(arguments.sort), search=arguments.search)
    feed = ConsoleFeed(client_of(arguments, "operate"))
    if arguments.json:
        feed.next_turn()  # a rate is between two
        say_json(_object(feed.latest(), view))
        return DONE
    from web.commands import top_screen  # noqa: PLC0415 - curses is of no use to other commands

    with top_screen.terminal(colour=look_of(arguments).colour) as screen:
        feed.start()
        top_screen.show(screen, feed, view)
    return DONE


def _object(snapshot: Snapshot, view: View) -> dict[str, object]:
    rates = {
        "events_per_second": round(snapshot.events_per_second, 3),
        "deliveries_per_second": round(snapshot.deliveries_per_second, 3),
    }
    return {"node": {**snapshot.figures, **rates}, "rows": [asdict(one) for one in view.rows(snapshot)]}
