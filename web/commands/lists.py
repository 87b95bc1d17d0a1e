"""Lists: read page by page, filtered here where the server has no filter, and shown up to a limit."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping
from itertools import islice
from typing import Final, TypeVar

from web.commands.arguments import whole
from web.commands.client import PAGE_ITEMS_MAX, Client
from web.commands.failures import DONE
from web.commands.look import Look, look_of
from web.commands.printing import say, say_aside, say_json

Item = TypeVar("Item")

ITEMS_MAX: Final = 1_000_000

AFTER: Final = "after"


def add_list_options(
    parser: argparse.ArgumentParser, what: str, *, default: int | None = None, order: str | None = "ID"
) -> None:
    """Declare how much of a list is shown.

    Args:
        what: the items, in the plural.
        default: of `--limit`; `None`: all.
        order: what `--after` takes, as the list is ordered by it; `None`: there is no `--after`.
    """
    shown = "all" if default is None else default
    parser.add_argument(
        "--limit",
        type=whole(1, ITEMS_MAX),
        default=default,
        metavar="N",
        help=f"at most so many {what}; default {shown}",
    )
    if order is not None:
        parser.add_argument("--after", default="", metavar=order, help=f"only {what} behind this one in the list")


def show_list(
    arguments: argparse.Namespace,
    client: Client,
    *path: str,
    item: type[Item],
    mark: Callable[[Item], object],
    text: Callable[[list[Item], Look], str],
    as_json: Callable[[list[Item]], object] = list,
    query: Mapping[str, str | None] | None = None,
    wanted: Callable[[Item], bool] | None = None,
    page_items: int = PAGE_ITEMS_MAX,
) -> int:
    """Print the items that the options ask for, and on stderr that there are more, if there are; the exit code.

    Raises as `Client.request`.

    Args:
        mark: what `--after` takes to go on behind an item.
        text: the items, for people.
        as_json: the items, for programs.
        wanted: the filter of this side; `None`: all.
        page_items: asked for at once, at most.
    """
    limit: int | None = arguments.limit
    if limit is not None and wanted is None:
        page_items = min(page_items, limit + 1)
    after = getattr(arguments, AFTER, "") or None
    found = client.items(*path, item=item, query=query, page_items=page_items, after=after)
    # One more than is shown tells whether there are more.
    items = list(islice((one for one in found if wanted is None or wanted(one)), None if limit is None else limit + 1))
    shown = items[:limit]
    if arguments.json:
        say_json(as_json(shown))
    else:
        say(text(shown, look_of(arguments)))
    if len(items) > len(shown):
        go_on = f", or go on with --after {mark(shown[-1])}" if hasattr(arguments, AFTER) else ""
        say_aside(f"there are more than these {limit}: raise --limit{go_on}")
    return DONE


def is_found(text: str, diagnosis_id: int | str) -> bool:
    """Whether an id has this text in it, whatever its case."""
    return text.lower() in str(diagnosis_id).lower()
