"""`avicenna-live disconnect`, `revoke`, `revocations`, `erase`: connections, tokens and traces of a person."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from functools import partial
from typing import Any

from web.commands.answers import Disconnected, Erased, Revocation
from web.commands.arguments import whole
from web.commands.confirming import add_yes_option, confirm
from web.commands.declaring import Commands, declare
from web.commands.failures import UsageError
from web.commands.finding import add_client_options, client_of
from web.commands.lists import add_list_options, show_list
from web.commands.look import PLAIN, Look
from web.commands.printing import say, say_aside, say_json
from web.commands.tables import table
from web.commands.text import printable

REVOCATION_MAX = 10**15 - 1


def add_to(commands: Commands) -> None:
    """Declare the four commands."""
    parting = declare(
        commands,
        "disconnect",
        "end connections of a subscriber to a diagnosis",
        "disconnect 42 --sub doctor-1",
        "disconnect 42 --sub doctor-1 --device phone --forget",
        "disconnect 42 --anonymous",
        description="End the connections of a user, or of one device of the user, to a diagnosis (1008 `disconnected "
        "by operator`). With --forget the server forgets their positions, too: when they come back they begin anew.",
    )
    parting.add_argument("id", metavar="ID", help="the diagnosis")
    whom = parting.add_mutually_exclusive_group(required=True)
    whom.add_argument("--sub", metavar="S", help="the user")
    whom.add_argument("--anonymous", action="store_true", help="those without a token")
    parting.add_argument("--device", metavar="D", help="only this device")
    parting.add_argument("--forget", action="store_true", help="forget their positions, too; asks first")
    add_yes_option(parting)
    add_client_options(parting)
    parting.set_defaults(run=disconnect)

    revoking = declare(
        commands,
        "revoke",
        "refuse tokens before their time",
        "revoke --sub doctor-1",
        "revoke --jti visit-7",
        description="Refuse all tokens that a user has now, or the one token with this id. Live connections close at "
        "once. Newer tokens of the user work.",
    )
    which = revoking.add_mutually_exclusive_group(required=True)
    which.add_argument("--sub", metavar="S", help="the user")
    which.add_argument("--jti", metavar="J", help="the `jti` of the token")
    add_client_options(revoking)
    revoking.set_defaults(run=revoke)

    listing = declare(
        commands,
        "revocations",
        "list the revocations in force, or lift one",
        "revocations",
        "revocations --sub doctor-1",
        "revocations --lift 7",
        description="List the revocations in force, oldest first. With --lift: have the server accept again what "
        "one of them refuses.",
    )
    listing.add_argument("--lift", type=whole(1, REVOCATION_MAX), metavar="N", help="lift the revocation with this id")
    listing.add_argument("--sub", metavar="S", help="only those of this user")
    listing.add_argument("--jti", metavar="J", help="only those of this token")
    add_list_options(listing, "revocations", order="N")
    add_client_options(listing)
    listing.set_defaults(run=revocations)

    erasing = declare(
        commands,
        "erase",
        "erase a person",
        "erase patient-1",
        "erase patient-1 --yes --json",
        description="Erase a person: end its connections, and drop its positions, its entries as a viewer, and its "
        "name in both trails. It cannot be undone. Its tokens still work: `revoke` them first.",
    )
    erasing.add_argument("sub", metavar="SUB", help="the `sub` of the person's tokens")
    add_yes_option(erasing)
    add_client_options(erasing)
    erasing.set_defaults(run=erase)


def disconnect(arguments: argparse.Namespace) -> int:
    """End connections."""
    client = client_of(arguments, "operate")
    whom = "anonymous subscribers" if arguments.anonymous else arguments.sub
    device = "" if arguments.device is None else f" ({arguments.device})"
    if arguments.forget:
        confirm(
            arguments,
            lambda: f"Disconnect {whom}{device} from diagnosis {arguments.id}, and forget what they have received?",
        )
    query = {"sub": arguments.sub, "device": arguments.device, "forget": "1" if arguments.forget else None}
    path = ("actors", arguments.id, "subscribers")
    _, done = client.request("DELETE", *path, query=query, answer=Disconnected)
    if arguments.json:
        say_json(done)
    else:
        forgotten = f", {done['forgotten']} positions forgotten" if arguments.forget else ""
        said = f"diagnosis {arguments.id}: {done['disconnected']} connections of {whom}{device} ended{forgotten}"
        say(printable(said))
    return 0


def revoke(arguments: argparse.Namespace) -> int:
    """Refuse tokens."""
    body = {"sub": arguments.sub} if arguments.jti is None else {"jti": arguments.jti}
    _, made = client_of(arguments, "operate").request("POST", "revocations", body=body, answer=Revocation)
    if arguments.json:
        say_json(made)
    else:
        say(printable(f"revocation {made['id']}: {_refused(made)} refused, if issued until {made['covers_until']}"))
    return 0


def revocations(arguments: argparse.Namespace) -> int:
    """List revocations, or lift one."""
    client = client_of(arguments, "operate")
    if arguments.lift is not None:
        if arguments.sub is not None or arguments.jti is not None:
            raise UsageError("--lift names one revocation, and goes together with neither --sub nor --jti")
        _, lifted = client.request("DELETE", "revocations", str(arguments.lift), answer=Revocation)
        if arguments.json:
            say_json(lifted)
        else:
            say(printable(f"revocation {lifted['id']} lifted: {_refused(lifted)} accepted again"))
        return 0
    filtered = arguments.sub is not None or arguments.jti is not None
    return show_list(
        arguments,
        client,
        "revocations",
        item=Revocation,
        mark=lambda one: one["id"],
        text=revocations_text,
        wanted=partial(_is_wanted, arguments) if filtered else None,
    )


def _is_wanted(arguments: argparse.Namespace, one: Revocation) -> bool:
    return arguments.sub in (None, one.get("sub")) and arguments.jti in (None, one.get("jti"))


def _refused(one: Mapping[str, Any]) -> str:
    return f"tokens of {one['sub']} are" if one.get("sub") is not None else f"the token {one.get('jti')} is"


def revocations_text(found: list[Revocation], look: Look = PLAIN) -> str:
    """Revocations, for people."""
    rows = [(one["id"], one.get("sub", ""), one.get("jti", ""), one["at"], one["covers_until"]) for one in found]
    return table(("ID", "USER", "TOKEN", "AT", "ISSUED UNTIL"), rows, look)


def erase(arguments: argparse.Namespace) -> int:
    """Erase a person."""
    sub = arguments.sub
    if not sub:
        raise UsageError("SUB must not be empty")
    client = client_of(arguments, "operate")
    confirm(arguments, lambda: f"Erase {sub} from connections, positions, viewers and both trails, for good?")
    _, done = client.request("DELETE", "subjects", query={"sub": sub}, answer=Erased)
    if arguments.json:
        say_json(done)
        return 0
    counted = ", ".join(
        f"{done[name]} {words}"  # type: ignore[literal-required] # the names are those of the answer
        for name, words in (
            ("connections", "connections ended"),
            ("cursors", "positions"),
            ("viewer_entries", "entries as a viewer"),
            ("audit_rows", "audit rows"),
            ("access_rows", "access rows"),
        )
    )
    say(printable(f"{sub} erased: {counted}"))
    if done["owned_total"]:
        owned = ", ".join(str(one) for one in done["owned"])
        say_aside(f"{done['owned_total']} diagnoses still name it their owner: {owned}")
    return 0
