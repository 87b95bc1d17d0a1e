"""Reading and writing a socket that does not block, from a task. Less than Trio's streams do, at half their cost.

One task at a time reads a socket, and one writes it. `close` wakes them.
"""

from __future__ import annotations

import socket

import trio


class Gone(Exception):
    """The connection is gone, or this side has closed it."""


async def receive(sock: socket.socket, bytes_max: int) -> bytes:
    """What has come; empty: the peer has ended its side. No checkpoint if something is there.

    Raises:
        Gone: nothing more can be received.

    Cancellation: nothing is lost.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    while True:
        try:
            return sock.recv(bytes_max)
        except BlockingIOError:
            pass
        except OSError:
            raise Gone from None
        try:
            await trio.lowlevel.wait_readable(sock)
        except trio.ClosedResourceError:
            raise Gone from None


async def send_some(sock: socket.socket, data: bytes | memoryview) -> int:
    """Send what the socket takes, at least a byte; how many bytes that were. No checkpoint if it takes some at once.

    Raises:
        Gone: nothing more can be sent.

    Cancellation: nothing has been sent.
    """
    await trio.lowlevel.checkpoint_if_cancelled()
    while True:
        try:
            return sock.send(data)
        except BlockingIOError:
            pass
        except OSError:
            raise Gone from None
        try:
            await trio.lowlevel.wait_writable(sock)
        except trio.ClosedResourceError:
            raise Gone from None


def close(sock: socket.socket) -> None:
    """Close it, if it is open; whoever waits for it is told that it is gone."""
    if sock.fileno() >= 0:
        trio.lowlevel.notify_closing(sock)
        sock.close()
