"""What the client needs of an event loop and a WebSocket library: implemented once for Trio, once for asyncio.

`link.py` is written against this alone. A shell belongs to one `Follower` from its `async with` to the end of it.
"""

from __future__ import annotations

import inspect
from collections.abc import Awaitable, Callable
from typing import Any, Final, Protocol, Self, TypeVar

from avicenna_live.core import Request

OPEN_SECONDS_MAX: Final = 10.0
"""Longest wait for TCP, TLS and the answer to the upgrade. Beyond: the server counts as unreachable."""

CLOSE_SECONDS_MAX: Final = 2.0
"""Longest wait for the answer to our Close. Beyond: the socket is dropped."""

MESSAGE_BYTES_MAX: Final = 4 * 1024 * 1024
"""Largest frame that is taken: 64 KiB of a broadcast with every character escaped, and more."""

T = TypeVar("T")


class Socket(Protocol):
    """One open WebSocket. Both functions raise `Closed` when it is over."""

    async def receive(self) -> str | bytes:
        """The next message. May be cancelled."""

    async def send(self, message: str) -> None:
        """Send a text; it is in the socket's buffer when this returns."""


Conversation = Callable[[Socket], Awaitable[int | None]]
"""What is done with an open WebSocket; returns the code to close it with, `None`: drop it."""


class Event(Protocol):
    """Set once; wakes all who wait."""

    def set(self) -> object:
        """Wake all who wait, now and later."""

    async def wait(self) -> object:
        """Return once it is set."""


class Task(Protocol):
    """A function that runs in the background."""

    def cancel(self) -> object:
        """End it at its next wait."""


class Shell(Protocol):
    """An event loop and its WebSocket library."""

    async def __aenter__(self) -> Self:
        """Begin; tasks may be started from now on."""

    async def __aexit__(self, *_: object) -> None:
        """End; every task has ended before (`stop`)."""

    def event(self) -> Event:
        """A new event that is not set."""

    async def checkpoint(self) -> None:
        """Let others run, and be cancelled if that is due."""

    def now(self) -> float:
        """Monotonic seconds."""

    async def sleep(self, seconds: float) -> None:
        """Wait so long."""

    async def within(self, seconds: float, call: Callable[[], Awaitable[T]]) -> T:
        """Call and wait for at most so long. Raises `TimeoutError`."""

    async def race(self, *calls: Callable[[], Awaitable[None]]) -> None:
        """Call all at once; when one returns or raises, cancel the others, and raise what the first one raised."""

    async def converse(self, url: str, request: Request, conversation: Conversation) -> None:
        """Open a WebSocket, call `conversation` with it, and close it as this says.

        Args:
            url: of the server: scheme, host and port.
            conversation: raises no `Exception`.

        Raises:
            Unreachable: no connection came about.
            Refused: the upgrade was answered with an HTTP status.
        """

    def start(self, call: Callable[[], Awaitable[None]]) -> Task:
        """Run a function in the background, out of reach of whatever cancels the caller. It must not raise."""

    async def stop(self, *tasks: Any) -> None:
        """Wait until these tasks have ended, at most `CLOSE_SECONDS_MAX`, then cancel them.

        Cancellation: the caller's waits until all have ended.
        """

    def call_soon(self, call: Callable[[], object]) -> None:
        """Call from the loop's thread, if the loop still runs. May be called from any thread."""


async def settled(value: T | Awaitable[T]) -> T:
    """What a function of the app returned, which may be async."""
    return await value if inspect.isawaitable(value) else value
