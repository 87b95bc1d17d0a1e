"""The connections that are open, whoever has their sockets: they are counted from accept until the socket is closed."""

from __future__ import annotations

import socket


class OpenConnections:
    """How many connections one server has open: those of requests, those given away, and those being refused."""

    def __init__(self) -> None:
        self.count = 0

    def counted(self, sock: socket.socket) -> socket.socket:
        """The same connection, counted until it is closed.

        Ownership: takes the socket; what is returned is the caller's.
        """
        counted = _Counted(sock.family, sock.type, sock.proto, sock.detach())
        counted.setblocking(False)
        counted.counter = self
        self.count += 1
        return counted


class _Counted(socket.socket):
    """A socket that says when it is closed."""

    __slots__ = ("counter",)

    counter: OpenConnections

    def close(self) -> None:
        if self.fileno() >= 0:
            self.counter.count -= 1
        super().close()
