"""The open connections, whichever part of the server has their sockets: counted from accept until the socket is
closed."""

from __future__ import annotations

import socket
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar


class OpenConnections:
    """How many connections one server has open: those of requests, those given away, and those being refused."""

    def __init__(self, tell: Callable[[int], None] | None = None) -> None:
        """None is open.

        Args:
            tell: called with their number whenever it has changed; `None`: nobody is told.
        """
        self.count = 0
        self.stalled = 0
        """Connections that were cut because their peers accepted nothing of an answer, since the start."""
        self.of_address: Counter[str] = Counter()
        """Admitted connections of each address that counts."""
        self._tell = tell

    def counting(self, listener: socket.socket) -> Callable[[int], CountedSocket]:
        """Makes sockets out of the descriptors of what a listener has accepted; each is counted until it is closed."""
        family, kind, protocol = listener.family, listener.type, listener.proto

        class Counted(CountedSocket):
            """What all of them count in belongs to the class: each is one of ten thousand."""

            __slots__ = ()
            counter = self

        def counted(descriptor: int) -> CountedSocket:
            made = Counted(family, kind, protocol, descriptor)
            made.address = None
            self.count += 1
            if self._tell is not None:
                self._tell(self.count)
            return made

        return counted

    def admit(self, sock: CountedSocket, address: str) -> None:
        """Count it for its address, too."""
        sock.address = address
        self.of_address[address] += 1

    def left(self, address: str | None) -> None:
        """One of them is closed."""
        self.count -= 1
        if self._tell is not None:
            self._tell(self.count)
        if address is not None:
            self.of_address[address] -= 1
            if not self.of_address[address]:
                del self.of_address[address]

    def statistics(self) -> OpenStatistics:
        """How many there are."""
        return OpenStatistics(self.count, self.stalled)


@dataclass(frozen=True, slots=True)
class OpenStatistics:
    """The open connections of one server."""

    count: int
    """Open now, whatever they are for."""
    stalled: int
    """Cut since the start, since their peers accepted nothing of an answer."""


class CountedSocket(socket.socket):
    """A socket that says when it is closed."""

    __slots__ = ("address",)

    counter: ClassVar[OpenConnections]
    address: str | None

    def close(self) -> None:
        """Close it, and give its place back."""
        if self.fileno() >= 0:
            self.counter.left(self.address)
        super().close()
