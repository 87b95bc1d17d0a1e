"""Reading and writing a socket that does not block, from a task. Less than Trio's streams do, at half their cost.

One task at a time reads a socket, and one writes it. `close` wakes them.
"""

from __future__ import annotations

import socket
from collections.abc import Awaitable, Callable
from functools import partial
from typing import TypeVar

import trio

Done = TypeVar("Done")


class Gone(Exception):
    """The connection is gone, or this side has closed it."""


async def receive(sock: socket.socket, bytes_max: int) -> bytes:
    """What has come; empty: the peer has ended its side. No checkpoint if something is there.

    Raises:
        Gone: nothing more can be received.

    Cancellation: nothing is lost.
    """
    return await _when_ready(sock, partial(sock.recv, bytes_max), trio.lowlevel.wait_readable)


async def send_some(sock: socket.socket, data: bytes | memoryview) -> int:
    """Send what the socket takes, at least a byte; how many bytes that were. No checkpoint if it takes some at once.

    Raises:
        Gone: nothing more can be sent.

    Cancellation: nothing has been sent.
    """
    return await _when_ready(sock, partial(sock.send, data), trio.lowlevel.wait_writable)


async def _when_ready(
    sock: socket.socket, attempt: Callable[[], Done], ready: Callable[[socket.socket], Awaitable[None]]
) -> Done:
    await trio.lowlevel.checkpoint_if_cancelled()
    while True:
        try:
            return attempt()
        except BlockingIOError:
            pass
        except OSError:
            raise Gone from None
        try:
            await ready(sock)
        except trio.ClosedResourceError:
            raise Gone from None


def close(sock: socket.socket) -> None:
    """Close it, if it is open; whoever waits for it is told that it is gone."""
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()
