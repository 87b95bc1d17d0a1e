"""Accepting connections, whatever the kernel says about it."""

from __future__ import annotations

import errno
import logging
import os
import socket
from collections.abc import Awaitable, Callable
from typing import Final, NoReturn, TypeVar

import trio
from hypercorn.utils import parse_socket_addr

from web.http.nonblocking import close

Address = tuple[str, int]

ACCEPTED_AT_ONCE_MAX: Final = 32
"""Connections taken from one listener before others get their turn. Beyond: the next time."""

TURN_SECONDS_MAX: Final = 0.001
"""If a turn of the event loop takes longer, fewer connections are taken at once. Reason: a publish takes some ten
turns, and in each it waits behind the requests of newcomers."""

PAUSE_SECONDS: Final = 0.1
"""Wait after the kernel had no room for a connection before the next try."""

_NO_ROOM: Final = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM, errno.ENOBUFS})

logger = logging.getLogger("avicenna.http")


Connected = TypeVar("Connected", bound=socket.socket)

Handler = Callable[[Connected, Address | None], Awaitable[None]]
"""Serves a connection: a socket that does not block, which is the handler's from now on, and its peer's address
(`None`: a Unix socket has none)."""

Made = Callable[[int], Connected]
"""Makes the socket of a connection out of its descriptor."""


class Batch:
    """How many connections are taken at once: as many as leave turns short. Pure."""

    def __init__(self) -> None:
        self.size = ACCEPTED_AT_ONCE_MAX

    def turned(self, seconds: float) -> None:
        """Note how long the turn of the event loop took since the last connections were taken."""
        if seconds > TURN_SECONDS_MAX:
            self.size = max(1, self.size // 2)
        else:
            self.size = min(ACCEPTED_AT_ONCE_MAX, self.size + 1)


async def accept_from(
    listener: socket.socket, made: Made[Connected], handler: Handler[Connected], handler_nursery: trio.Nursery
) -> NoReturn:
    """Start a handler for every connection of a listener.

    Cancellation: closes the listener.
    """
    batch, family = Batch(), listener.family
    try:
        while True:
            await trio.lowlevel.wait_readable(listener)
            await _accept_some(listener, family, made, batch.size, handler, handler_nursery)
            began_at = trio.current_time()
            await trio.lowlevel.checkpoint()
            batch.turned(trio.current_time() - began_at)
    finally:
        close(listener)


async def _accept_some(
    listener: socket.socket,
    family: socket.AddressFamily,
    made: Made[Connected],
    at_once_max: int,
    handler: Handler[Connected],
    handler_nursery: trio.Nursery,
) -> None:
    for _ in range(at_once_max):
        try:
            # Not `accept`: it makes a socket of its own, which is a twentieth of what a connect costs.
            descriptor, address = listener._accept()  # type: ignore[attr-defined]
        except BlockingIOError:
            return
        except OSError as error:
            # Anything else is wrong with that one connection, not with the listener (accept(2)).
            if error.errno in _NO_ROOM:
                logger.error("no room for connections: %s", os.strerror(error.errno))
                await trio.sleep(PAUSE_SECONDS)
            return
        sock = made(descriptor)
        sock.setblocking(False)
        handler_nursery.start_soon(handler, sock, parse_socket_addr(family, address))
