"""Taking a WebSocket's socket out of Hypercorn: what the route is handed, and how lean it runs until then."""

from __future__ import annotations

import socket
from typing import Final, Protocol

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable
from quart.wrappers import Websocket
from quart_trio.asgi import TrioASGIWebsocketConnection
from werkzeug.datastructures import Headers

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


class LeanWebsocket(TrioASGIWebsocketConnection):
    """Runs a route in the task that called it, and starts a reader only if the route accepts.

    A route that adopts never does. Reason: three tasks fewer for every connect.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        """Serve one WebSocket."""
        websocket = self._create_websocket_from_scope(send)
        self._receive = receive
        async with trio.open_nursery() as self._nursery:
            await self.handle_websocket(self._nursery, websocket, send)

    async def accept_connection(self, send: ASGISendCallable, headers: Headers, subprotocol: str | None) -> None:
        """Answer over the ASGI channel, and read what comes over it from now on."""
        if not self._accepted:
            self._nursery.start_soon(self.handle_messages, self._nursery, self._receive)
        await super().accept_connection(send, headers, subprotocol)
