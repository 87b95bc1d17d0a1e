"""`avicenna-live audit`, `accesses`: read both trails, newest first. They need the scope `operate`."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Final, TypeVar

from web.commands.answers import Access, Act
from web.commands.declaring import Commands, declare
from web.commands.finding import add_client_options, client_of
from web.commands.lists import add_list_options, show_list
from web.commands.look import PLAIN, Look
from web.commands.tables import table
from web.commands.text import compact

Row = TypeVar("Row", Act, Access)

ROWS_DEFAULT: Final = 100

PAGE_ROWS: Final = 100
"""Rows asked for at once. Reason: a row may hold what two bodies of 64 KiB held."""

CHANGE_CHARACTERS_MAX: Final = 120
"""Longest text in the last column, for people. Beyond: cut; `--json` has all of it."""

ACTS_HEAD: Final = ("ID", "AT", "ACTOR", "ACTION", "TARGET", "CHANGE")
ACCESSES_HEAD: Final = ("ID", "AT", "WHAT", "DIAGNOSIS", "USER", "DEVICE")


def add_to(commands: Commands) -> None:
    """Declare both commands."""
    acts = declare(
        commands,
        "audit",
        "show what operators and registrars have done, newest first",
        "audit --diagnosis 42",
        "audit --actor op --action outbox.purge --since 2026-01-31T12:00:00Z",
    )
    acts.add_argument("--actor", metavar="S", help="only what this user did")
    acts.add_argument("--action", metavar="A", help="only this act, such as diagnosis.register")
    _add_filters(acts)
    acts.set_defaults(run=show_acts)

    accesses = declare(
        commands,
        "accesses",
        "show who followed which diagnosis when, newest first",
        "accesses --user doctor-1 --limit 20",
        "accesses --diagnosis 42 --what connect",
    )
    accesses.add_argument("--user", metavar="S", help="only what this user followed")
    accesses.add_argument("--what", choices=("connect", "disconnect"), help="only the beginnings, or the ends")
    _add_filters(accesses)
    accesses.set_defaults(run=show_accesses)


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--diagnosis", metavar="ID", help="only what concerns this diagnosis")
    parser.add_argument("--since", metavar="TIME", help="only from this time on, such as 2026-01-31T12:00:00Z")
    parser.add_argument("--until", metavar="TIME", help="only before this time")
    add_list_options(parser, "rows", default=ROWS_DEFAULT, order="N")
    add_client_options(parser)


def show_acts(arguments: argparse.Namespace) -> int:
    """Show rows of the audit trail."""
    return _show(arguments, "audit", Act, acts_text, {"actor": arguments.actor, "action": arguments.action})


def show_accesses(arguments: argparse.Namespace) -> int:
    """Show rows of the access trail."""
    return _show(arguments, "accesses", Access, accesses_text, {"user_id": arguments.user, "what": arguments.what})


def _show(
    arguments: argparse.Namespace,
    trail: str,
    row: type[Row],
    text: Callable[[list[Row], Look], str],
    query: Mapping[str, str | None],
) -> int:
    wanted = {"diagnosis_id": arguments.diagnosis, "since": arguments.since, "until": arguments.until, **query}
    client = client_of(arguments, "operate")
    return show_list(
        arguments,
        client,
        trail,
        item=row,
        mark=lambda one: one["id"],
        text=text,
        query=wanted,
        page_items=PAGE_ROWS,
    )


def acts_text(rows: Sequence[Mapping[str, Any]], look: Look = PLAIN) -> str:
    """Rows of the audit trail, for people."""
    return table(
        ACTS_HEAD,
        [(one["id"], one["at"], one["actor"], one["action"], one["target"], _change(one)) for one in rows],
        look,
    )


def accesses_text(rows: Sequence[Mapping[str, Any]], look: Look = PLAIN) -> str:
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
        look,
    )


def _change(act: Mapping[str, Any]) -> str:
    """What an act found, and what it left; one of the two is often nothing."""
    before, after = act["before"], act["after"]
    left = "nothing" if after is None else compact(after)
    text = left if before is None else f"{compact(before)} -> {left}"
    if before is None and after is None:
        text = ""
    return text if len(text) <= CHANGE_CHARACTERS_MAX else text[: CHANGE_CHARACTERS_MAX - 3] + "..."
