"""What the parent tells a child when it starts it, and what a child says back. Pure.

An order is one line of JSON on the child's standard input, which then stays open: its end means that the parent is
gone, and the child drains. More lines of words follow on it; a child says such lines on its standard output.
"""

from __future__ import annotations

from base64 import b64decode, b64encode
from typing import Final

import msgspec

READY: Final = "ready"
"""The child serves; of a worker a URL follows."""

DRAIN: Final = "drain"
"""A worker: an operator has asked for the drain of the whole server."""

UNCONFIRMED: Final = "unconfirmed"
"""The store: a worker, whose name follows, did not confirm a change in time."""

END: Final = "end"
"""The parent has a child drain. Not a signal: a service manager sends that to all processes at once, besides.
`REPLACED` may follow."""

REPLACED: Final = "replaced"
"""Another child serves in the place of the one that is to end."""

TELL: Final = "tell"
"""The parent asks a child for its figures; a number follows."""

TOLD: Final = "told"
"""A child's figures; the number under which they were asked for, and the figures follow."""

FIGURES: Final = "figures"
"""A worker asks for the figures of all, and is given them; its number for that follows, and then the figures."""

GONE: Final = "gone"
"""To the store: a worker, whose name follows, has ended."""

STORE: Final = "store"
"""The name of the process of the store."""

LINE_BYTES_MAX: Final = 64 * 1024
"""Longest line of an order, and of what a child says. Beyond: it is not read."""


class Order(msgspec.Struct, frozen=True, kw_only=True):
    """What one child is to be."""

    node: str | None
    """The name of a worker; `None`: the process of the store."""
    config: str | None
    """The file of settings, if one was named."""
    options: dict[str, str | None]
    """Settings of the command line."""
    store: int | None = None
    """Of the store: the descriptor of the listener that workers ask at."""
    nodes: tuple[str, ...] = ()
    """Of the store: the workers that serve already."""
    public: tuple[int, ...] = ()
    """Descriptors of listeners for everybody."""
    operators: tuple[int, ...] = ()
    """Descriptors of listeners for operators."""
    began_at: float = 0.0
    """When the server has begun, on the monotonic clock of the machine, which its processes share."""
    is_replacement: bool = False
    """Another one serves until this one does: it must be as able."""
    workers: int = 1
    """How many there are."""
    counting: int | None = None
    """Of a worker: the descriptor of the memory in which all count their connections."""
    slots: int = 0
    """How many numbers there are."""
    slot: int = 0
    """Of a worker: which of them is its own."""


def written(order: Order) -> bytes:
    """The line that gives an order."""
    return msgspec.json.encode(order) + b"\n"


def read(line: bytes) -> Order:
    """The order that a line gives.

    Raises:
        msgspec.DecodeError: it gives none.
    """
    return msgspec.json.decode(line, type=Order)


packed: Final = msgspec.msgpack.Encoder().encode
"""Figures as bytes; `web.server.seen` reads them."""


def with_figures(number: int, figures: object) -> str:
    """What follows `TOLD` or `FIGURES`."""
    return f"{number} {b64encode(packed(figures)).decode()}"


def number_and_figures(rest: str) -> tuple[int, bytes]:
    """What `with_figures` has put together; the figures packed.

    Raises:
        ValueError: it is something else.
    """
    number, _, figures = rest.partition(" ")
    return int(number), b64decode(figures, validate=True)
