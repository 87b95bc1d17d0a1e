"""The task of each request, and the messages for it. One task and no channel, so that a request costs little."""

from __future__ import annotations

import logging
from collections import deque
from collections.abc import Awaitable, Callable
from typing import Final

import trio
from hypercorn.config import Config
from hypercorn.trio.task_group import TaskGroup
from hypercorn.typing import AppWrapper, ASGIReceiveEvent, ASGISendEvent, Scope

MESSAGES_MAX: Final = 10
"""Messages that wait for one application, of at most 16 KiB each. Beyond: its peer is not read from."""

_DISCONNECTS: Final = frozenset({"http.disconnect", "websocket.disconnect"})

logger = logging.getLogger("avicenna.http")


async def _nothing() -> None:
    """Nobody has to be asked."""


class Inbox:
    """What a connection has for the application that serves its request."""

    __slots__ = ("_ask", "_changed", "_messages")

    def __init__(self, ask: Callable[[], Awaitable[None]] = _nothing) -> None:
        """`ask` is called whenever the application waits for a message that is not there yet."""
        self._ask = ask
        self._messages: deque[ASGIReceiveEvent] = deque()
        self._changed = trio.lowlevel.ParkingLot()

    async def put(self, message: ASGIReceiveEvent) -> None:
        """Add a message; waits while too many are unread, but for the last one, the peer's end."""
        while len(self._messages) >= MESSAGES_MAX and message["type"] not in _DISCONNECTS:
            await self._changed.park()
        self._messages.append(message)
        self._tell()

    async def receive(self) -> ASGIReceiveEvent:
        """The next message. No checkpoint if there is one."""
        if not self._messages:
            await self._ask()
        while not self._messages:
            await self._changed.park()
        self._tell()
        return self._messages.popleft()

    def _tell(self) -> None:
        if self._changed:  # almost always nobody waits, and this check costs a quarter of the call
            self._changed.unpark_all()


class Tasks(TaskGroup):
    """The tasks of one connection."""

    ask: Callable[[], Awaitable[None]]
    """Has the peer send the body it holds back. Set by the connection, which makes its protocol after this."""

    async def spawn_app(
        self,
        app: AppWrapper,
        config: Config,
        scope: Scope,
        send: Callable[[ASGISendEvent | None], Awaitable[None]],
    ) -> Callable[[ASGIReceiveEvent], Awaitable[None]]:
        """Have the application serve one request; returns what tells it more."""
        inbox = Inbox(self._ask)
        self.spawn(_serve, app, scope, inbox, send)
        return inbox.put

    async def _ask(self) -> None:
        await self.ask()  # looked up each time, so that the connection can let go of its protocol


async def _serve(
    app: AppWrapper, scope: Scope, inbox: Inbox, send: Callable[[ASGISendEvent | None], Awaitable[None]]
) -> None:
    """Cancellation: the connection is over, or the server is."""
    await trio.lowlevel.checkpoint_if_cancelled()  # of a server whose time is up nothing more is begun
    try:
        await app(scope, inbox.receive, send, trio.to_thread.run_sync, trio.from_thread.run)
    except Exception as error:
        logger.error("the application failed over a request", exc_info=error)
    await send(None)
