"""`avicenna-live audit`, `accesses`: read both trails, newest first. They need the scope `operate`."""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import Any, Final, TypeVar

from web.commands.answers import Access, Act
from web.commands.arguments import whole
from web.commands.finding import add_client_options, client_of
from web.commands.printing import compact, say, say_aside, say_json, table

Row = TypeVar("Row", Act, Access)

ROWS_DEFAULT: Final = 100
ROWS_MAX: Final = 1_000_000

PAGE_ROWS: Final = 100
"""Rows asked for at once. Reason: a row may hold what two bodies of 64 KiB held."""

CHANGE_CHARACTERS_MAX: Final = 120
"""Longest text in the last column, for people. Beyond: cut; `--json` has all of it."""

ACTS_HEAD: Final = ("ID", "AT", "ACTOR", "ACTION", "TARGET", "CHANGE")
ACCESSES_HEAD: Final = ("ID", "AT", "WHAT", "DIAGNOSIS", "USER", "DEVICE")


def add_to(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare both commands."""
    acts = commands.add_parser("audit", help="show what operators and registrars have done, newest first")
    acts.add_argument("--actor", metavar="S", help="only what this user did")
    acts.add_argument("--action", metavar="A", help="only this act, such as diagnosis.register")
    _add_filters(acts)
    acts.set_defaults(run=show_acts)

    accesses = commands.add_parser("accesses", help="show who followed which diagnosis when, newest first")
    accesses.add_argument("--user", metavar="S", help="only what this user followed")
    accesses.add_argument("--what", choices=("connect", "disconnect"), help="only the beginnings, or the ends")
    _add_filters(accesses)
    accesses.set_defaults(run=show_accesses)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--diagnosis", metavar="ID", help="only what concerns this diagnosis")
    parser.add_argument("--since", metavar="TIME", help="only from this time on, such as 2026-01-31T12:00:00Z")
    parser.add_argument("--until", metavar="TIME", help="only before this time")
    parser.add_argument(
        "--limit",
        type=whole(1, ROWS_MAX),
        default=ROWS_DEFAULT,
        metavar="N",
        help=f"at most so many rows; default {ROWS_DEFAULT}",
    )
    add_client_options(parser)


def show_acts(arguments: argparse.Namespace) -> int:
    """Show rows of the audit trail."""
    rows = _rows(arguments, "audit", Act, {"actor": arguments.actor, "action": arguments.action})
    if arguments.json:
        say_json(rows)
    else:
        say(acts_text(rows))
    return 0


def show_accesses(arguments: argparse.Namespace) -> int:
    """Show rows of the access trail."""
    rows = _rows(arguments, "accesses", Access, {"user_id": arguments.user, "what": arguments.what})
    if arguments.json:
        say_json(rows)
    else:
        say(accesses_text(rows))
    return 0


def _rows(arguments: argparse.Namespace, trail: str, row: type[Row], query: Mapping[str, str | None]) -> list[Row]:
    wanted = {"diagnosis_id": arguments.diagnosis, "since": arguments.since, "until": arguments.until, **query}
    # One more than is shown tells whether there are more.
    found = client_of(arguments, "operate").items(trail, item=row, query=wanted, page_items=PAGE_ROWS)
    rows = list(islice(found, arguments.limit + 1))
    if len(rows) > arguments.limit:
        say_aside(f"older rows are not shown; --limit {arguments.limit} can be raised")
    return rows[: arguments.limit]


def acts_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the audit trail, for people."""
    return table(
        ACTS_HEAD,
        [(one["id"], one["at"], one["actor"], one["action"], one["target"], _change(one)) for one in rows],
    )


def accesses_text(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of the access trail, for people."""
    return table(
        ACCESSES_HEAD,
        [
            (
                one["id"],
                one["at"],
                one["what"],
                one["diagnosis_id"],
                "(anonymous)" if one["user_id"] is None else one["user_id"],
                one["device"] or "",
            )
            for one in rows
        ],
    )


def _change(act: Mapping[str, Any]) -> str:
    """What an act found, and what it left; one of the two is often nothing."""
    before, after = act["before"], act["after"]
    left = "nothing" if after is None else compact(after)
    text = left if before is None else f"{compact(before)} -> {left}"
    if before is None and after is None:
        text = ""
    return text if len(text) <= CHANGE_CHARACTERS_MAX else text[: CHANGE_CHARACTERS_MAX - 3] + "..."
