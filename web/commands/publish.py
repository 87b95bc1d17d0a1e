"""`avicenna-live publish`: sends one update of a diagnosis, with the fields of PROTOCOL section 7 as options.

With `--stream` it sends those that standard input says (`publish_stream`).
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any, Final

from web.commands import publish_stream
from web.commands.answers import Receipt
from web.commands.arguments import fraction, idempotency_key, json_object, reference, whole
from web.commands.declaring import Commands, declare
from web.commands.finding import add_client_options, client_of
from web.commands.printing import say, say_json
from web.commands.text import printable

SAMPLE_SIZE_MAX: Final = 2**53 - 1
"""Largest integer that every JSON reader keeps exactly."""

OBJECT: Final = "an object; @FILE: from a file; -: from standard input"

RECOMMENDATION_FIELDS: Final = ("new_data", "old_data", "reason")
EFFECTIVENESS_FIELDS: Final = (
    "recommendation_id",
    "new_effectiveness",
    "confidence",
    "sample_size",
    "old_effectiveness",
    "herb",
)
FEEDBACK_FIELDS: Final = ("feedback_id", "rating", "effectiveness", "recommendation_id", "comment")


def add_to(commands: Commands) -> None:
    """Declare the command."""
    parser = declare(
        commands,
        "publish",
        "send an update of a diagnosis, or many",
        "publish feedback 42 --feedback-id 7 --rating 5",
        "publish recommendation 42 --new-data @new.json",
        "publish --stream < updates.ndjson",
    )
    parser.add_argument(
        "--stream",
        action="store_true",
        help="publish what standard input says, one JSON object a line with its type and fields; in place of KIND",
    )
    add_client_options(parser)
    parser.set_defaults(run=partial(_run_stream, parser))
    kinds = parser.add_subparsers(metavar="KIND", action=Kinds)

    one = _kind(
        kinds,
        "recommendation",
        "the recommendations changed",
        RECOMMENDATION_FIELDS,
        """publish recommendation 42 --new-data '{"herb":"saffron"}' --reason "new evidence\"""",
        "publish recommendation 42 --new-data @new.json --old-data @old.json",
        "publish recommendation 42 --new-data - < new.json",
    )
    one.add_argument("--new-data", type=json_object, required=True, metavar="JSON", help=f"the new state, {OBJECT}")
    one.add_argument("--old-data", type=json_object, metavar="JSON", help=f"the state before, {OBJECT}")
    one.add_argument("--reason", metavar="TEXT")
    add_client_options(one)

    one = _kind(
        kinds,
        "effectiveness",
        "a measured effectiveness changed",
        EFFECTIVENESS_FIELDS,
        "publish effectiveness 42 --recommendation-id 5 --new-effectiveness 0.85",
    )
    one.add_argument("--recommendation-id", type=reference, required=True, metavar="R")
    one.add_argument("--new-effectiveness", type=fraction, required=True, metavar="0-1")
    one.add_argument("--confidence", type=fraction, metavar="0-1")
    one.add_argument("--sample-size", type=whole(0, SAMPLE_SIZE_MAX), metavar="N")
    one.add_argument("--old-effectiveness", type=fraction, metavar="0-1")
    one.add_argument("--herb", metavar="TEXT")
    add_client_options(one)

    one = _kind(
        kinds,
        "feedback",
        "feedback arrived",
        FEEDBACK_FIELDS,
        "publish feedback 42 --feedback-id 7 --rating 5",
        'publish feedback 42 --feedback-id 7 --rating 4 --comment "slept well" --idempotency-key visit-7',
    )
    one.add_argument("--feedback-id", type=reference, required=True, metavar="F")
    one.add_argument("--rating", type=whole(1, 5), required=True, metavar="1-5")
    one.add_argument("--effectiveness", type=fraction, metavar="0-1")
    one.add_argument("--recommendation-id", type=reference, metavar="R")
    one.add_argument("--comment", metavar="TEXT")
    add_client_options(one)


class Kinds(argparse._SubParsersAction):  # type: ignore[type-arg]  # it is generic for the checker alone
    """The kinds of updates. What stands before one is for `--stream`: the options of a kind come behind it."""

    def __call__(
        self,
        parser: argparse.ArgumentParser,
        namespace: argparse.Namespace,
        values: Any,
        option_string: str | None = None,
    ) -> None:
        given = [name for name, value in vars(namespace).items() if name != "run" and value]
        if given:
            parser.error(f"--{given[0].replace('_', '-')} must not stand before a KIND")
        super().__call__(parser, namespace, values, option_string)


def _run_stream(parser: argparse.ArgumentParser, arguments: argparse.Namespace) -> int:
    if not arguments.stream:
        parser.error("the following arguments are required: KIND, or --stream")
    return publish_stream.run(arguments)


def _kind(kinds: Commands, name: str, what: str, names: tuple[str, ...], *examples: str) -> argparse.ArgumentParser:
    parser = declare(kinds, name, what, *examples)
    parser.add_argument("id", metavar="ID", help="the diagnosis")
    parser.add_argument(
        "--idempotency-key",
        type=idempotency_key,
        metavar="KEY",
        help="the same key never makes two events within 24 hours",
    )
    parser.set_defaults(run=run, kind=name, names=names)
    return parser


def run(arguments: argparse.Namespace) -> int:
    """Publish, and print the receipt."""
    key = arguments.idempotency_key
    _, receipt = client_of(arguments, "broadcast").request(
        "POST",
        "ws",
        f"broadcast-{arguments.kind}-update",
        answer=Receipt,
        body=body_of(arguments),
        headers={} if key is None else {"Idempotency-Key": key},
    )
    if arguments.json:
        say_json(receipt)
    else:
        say(printable(receipt_line(receipt)))
    return 0


def body_of(arguments: argparse.Namespace) -> dict[str, Any]:
    """The request body: the fields that were given."""
    given = {name: getattr(arguments, name) for name in arguments.names}
    return {"diagnosis_id": arguments.id} | {name: value for name, value in given.items() if value is not None}


def receipt_line(receipt: Mapping[str, Any]) -> str:
    """A receipt, for people."""
    who = receipt["subscribers"]
    before = " (published before with this key)" if receipt["replayed"] else ""
    return (
        f"diagnosis {receipt['diagnosis_id']}: #{receipt['seq']} stored{before}; "
        f"{receipt['clients_notified']} connected, {who['online']} of {who['known']} subscribers online"
        + (f", {who['at_risk']} far behind" if who["at_risk"] else "")
    )
