"""Which sockets can be read or written, for many at once: epoll where there is one, anything else elsewhere.

Both report a socket for as long as it is ready, so nothing is lost when the hub leaves something for later.
"""

from __future__ import annotations

import select
import selectors
from collections.abc import Sequence
from typing import Final, Protocol

import trio

READ: Final = 1
"""Bytes, the peer's end or an error wait: reading tells which. The value is epoll's."""

WRITE: Final = 4
"""The socket takes bytes again. The value is epoll's."""

EVENTS_MAX: Final = 256
"""Sockets reported at once. Reason: actors and HTTP get their turn. Beyond: the next time."""

LOOK_SECONDS: Final = 0.01
"""Between two looks at sockets on platforms where nothing waits for them. Reason: frames of clients are never
urgent."""


class Poller(Protocol):
    """What the hub waits with."""

    def add(self, fd: int) -> None:
        """Report when `fd` can be read."""

    def watch(self, fd: int, *, read: bool = True, write: bool = False) -> None:
        """Report from now on when it can be read, or written; its end is reported in any case where there is epoll."""

    def remove(self, fd: int) -> None:
        """Forget it; before it is closed."""

    async def wait(self) -> Sequence[tuple[int, int]]:
        """Pairs of a descriptor and `READ`, `WRITE` or both, at most `EVENTS_MAX`; possibly none. A checkpoint."""

    def look(self) -> Sequence[tuple[int, int]]:
        """As `wait`, but what is ready now; no checkpoint."""

    def close(self) -> None:
        """Let go of everything."""


class EpollPoller:
    """Linux: one epoll, itself waited for by Trio."""

    def __init__(self) -> None:
        self._epoll = select.epoll()

    def add(self, fd: int) -> None:
        self._epoll.register(fd, READ)

    def watch(self, fd: int, *, read: bool = True, write: bool = False) -> None:
        self._epoll.modify(fd, (READ if read else 0) | (WRITE if write else 0))

    def remove(self, fd: int) -> None:
        self._epoll.unregister(fd)

    async def wait(self) -> Sequence[tuple[int, int]]:
        await trio.lowlevel.wait_readable(self._epoll.fileno())
        return self.look()

    def look(self) -> Sequence[tuple[int, int]]:
        return self._epoll.poll(0, EVENTS_MAX)

    def close(self) -> None:
        self._epoll.close()


class SelectorPoller:
    """Anywhere: looks again and again. Only reading and catching up wait for it; events are written without."""

    def __init__(self, selector: selectors.BaseSelector) -> None:
        self._selector = selector

    def add(self, fd: int) -> None:
        self._selector.register(fd, selectors.EVENT_READ)

    def watch(self, fd: int, *, read: bool = True, write: bool = False) -> None:
        self._selector.modify(fd, (selectors.EVENT_READ if read else 0) | (selectors.EVENT_WRITE if write else 0))

    def remove(self, fd: int) -> None:
        self._selector.unregister(fd)

    async def wait(self) -> Sequence[tuple[int, int]]:
        await trio.sleep(LOOK_SECONDS)
        return self.look()

    def look(self) -> Sequence[tuple[int, int]]:
        found = self._selector.select(0) if self._selector.get_map() else []
        return [
            (key.fd, (READ if events & selectors.EVENT_READ else 0) | (WRITE if events & selectors.EVENT_WRITE else 0))
            for key, events in found[:EVENTS_MAX]
        ]

    def close(self) -> None:
        self._selector.close()


def open_poller() -> Poller:
    """The best poller of this platform."""
    return EpollPoller() if hasattr(select, "epoll") else SelectorPoller(selectors.DefaultSelector())
