"""What the parent tells a child when it starts it, and what a child says back. Pure.

An order is one line of JSON on the child's standard input, which then stays open: its end means that the parent is
gone, and the child drains. A child says lines of words on its standard output.
"""

from __future__ import annotations

from typing import Final

import msgspec

READY: Final = "ready"
"""The child serves; of a worker a URL follows."""

DRAIN: Final = "drain"
"""A worker: an operator has asked for the drain of the whole server."""

UNCONFIRMED: Final = "unconfirmed"
"""The store: a worker, whose name follows, did not confirm a change in time."""

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
    public: tuple[int, ...] = ()
    """Descriptors of listeners for everybody."""
    operators: tuple[int, ...] = ()
    """Descriptors of listeners for operators."""


def written(order: Order) -> bytes:
    """The line that gives an order."""
    return msgspec.json.encode(order) + b"\n"


def read(line: bytes) -> Order:
    """The order that a line gives.

    Raises:
        msgspec.DecodeError: it gives none.
    """
    return msgspec.json.decode(line, type=Order)
