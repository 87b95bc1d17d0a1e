"""Taking a WebSocket's socket out of Hypercorn: what its route is handed."""

from __future__ import annotations

from typing import Final, Protocol

from quart.wrappers import Websocket

HANDLE: Final = "avicenna.adoption"
"""Where `scope["state"]` of a WebSocket holds its `Adoption`."""


class NotAdoptable(Exception):
    """The connection cannot be taken any more: its peer left, or said something before it was answered.

    Whatever there was to say to the peer has been said: the route returns.
    """


class AdoptedSocket(Protocol):
    """A connected socket that does not block: what its adopter needs of it. A simulation hands in its own."""

    def fileno(self) -> int:
        """Its number, under which a poller reports it; -1 once it is closed."""

    def send(self, data: bytes | memoryview, /) -> int:
        """Take some bytes; how many. Raises `BlockingIOError`: none now; another `OSError`: none any more."""

    def recv(self, bytes_max: int, /) -> bytes:
        """Bytes that have come; none: the peer has ended. Raises as `send`."""

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """As of `socket.socket`."""

    def shutdown(self, how: int, /) -> None:
        """As of `socket.socket`."""

    def close(self) -> None:
        """Close it."""


class Owner(Protocol):
    """The connection a socket is taken from."""

    def give_away(self) -> AdoptedSocket:
        """The socket. Raises `NotAdoptable`."""


class Adoption:
    """A WebSocket whose handshake is proper and not yet answered, ready to be taken over.

    In `websocket.scope["state"][HANDLE]` of a route. The route that calls `adopt` writes the 101 itself, and returns:
    Hypercorn sees a connection that is closed, and everything it holds for it goes.
    """

    def __init__(self, owner: Owner, key: bytes) -> None:
        self.key = key
        """`Sec-WebSocket-Key`."""
        self._owner: Owner | None = owner

    def adopt(self) -> AdoptedSocket:
        """Take the socket; nothing has been written to it yet, and nothing read beyond the request.

        Ownership: the caller's, who closes it. It is non-blocking, and Trio knows nothing of it.

        Raises:
            NotAdoptable: the peer left or spoke first, or it was taken before.
        """
        owner, self._owner = self._owner, None
        if owner is None:
            raise NotAdoptable
        return owner.give_away()

    def expire(self) -> None:
        """The connection is over."""
        self._owner = None


def adoption_of(websocket: Websocket) -> Adoption:
    """The handle of the WebSocket a route serves."""
    found = websocket.scope["state"][HANDLE]
    assert isinstance(found, Adoption)
    return found
