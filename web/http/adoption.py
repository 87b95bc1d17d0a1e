"""Taking a WebSocket's socket out of Hypercorn: what its route is handed."""

from __future__ import annotations

import socket
from typing import Final, Protocol

from quart.wrappers import Websocket

HANDLE: Final = "avicenna.adoption"
"""Where `scope["state"]` of a WebSocket holds its `Adoption`."""


class NotAdoptable(Exception):
    """The connection cannot be taken any more: its peer left, or said something before it was answered.

    Whatever there was to say to the peer has been said: the route returns.
    """


class Owner(Protocol):
    """The connection a socket is taken from."""

    def give_away(self) -> socket.socket:
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

    def adopt(self) -> socket.socket:
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
