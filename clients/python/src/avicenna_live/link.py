"""Keeps one diagnosis connected in the background: connects, reads ahead, acknowledges, comes back.

Written against `shell.py` alone: what is decided is decided in `core.py`, and what waits is waited for here.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Final

from avicenna_live.closing import NORMAL, NOTHING_HEARD, PROTOCOL_ERROR, REPLACED
from avicenna_live.core import Core, Request
from avicenna_live.credentials import Credentials
from avicenna_live.errors import Closed, Ended, NoToken, ProtocolFault, Refused, Unreachable
from avicenna_live.items import Position
from avicenna_live.shell import Event, Shell, Socket, Task

LATE_SECONDS: Final = 1.0
"""A timer that comes so much too late says that the event loop stood still, and nothing about the network."""


class Silence(Exception):
    """Nothing was heard for too long."""


class Signal:
    """Wakes all who wait for a change. Between the look at what changes and the wait there must be no checkpoint."""

    def __init__(self, make: Callable[[], Event]) -> None:
        self._make = make
        self._event = make()

    def notify(self) -> None:
        """Wake all who wait."""
        self._event.set()
        self._event = self._make()

    async def wait(self) -> None:
        """Return at the next `notify`."""
        await self._event.wait()


class Link:
    """The connection of one `follow`, and all that come after it."""

    def __init__(
        self,
        core: Core,
        shell: Shell,
        credentials: Credentials,
        url: str,
        remember: Callable[[Position], None],
        forget: Callable[[Link], None],
    ) -> None:
        """Begin to connect.

        Args:
            url: of the server: scheme, host and port.
            remember: is told each position that the consumer has reached.
            forget: is told the end.
        """
        self.core = core
        self.changed = Signal(shell.event)
        """Something has come, is finished, is to be done or is over."""
        self.leaving = False
        self._shell: Final = shell
        self._credentials = credentials
        self._version = credentials.version
        """Of the token that was used last."""
        self._url = url
        self._remember = remember
        self._forget = forget
        self._conversing = False
        self.task: Task = shell.start(self._run)

    @property
    def over(self) -> bool:
        """Whether nothing more will come."""
        return self.leaving or self.core.failure is not None

    def note(self) -> None:
        """The core has changed."""
        if self.core.position is not None:
            self._remember(self.core.position)
        self.changed.notify()

    def leave(self) -> None:
        """Close the connection, and come back no more."""
        if self.leaving:
            return
        self.leaving = True
        self.changed.notify()
        if not self._conversing:
            self.task.cancel()

    def abandon(self) -> None:
        """`leave`, from whatever thread."""
        self._shell.call_soon(self.leave)

    def replace(self) -> None:
        """`leave`, as another `follow` of this diagnosis takes over."""
        if not self.over:
            self.core.fail(Ended(REPLACED, "replaced", "another follow of this Follower took over"))
        self.leave()

    async def stopped(self) -> None:
        """Return when the connection is closed, after `CLOSE_SECONDS_MAX` at most."""
        await self._shell.stop(self.task)

    async def _run(self) -> None:
        try:
            while not self.over:
                await self._pause()
                await self._connect_once()
        except Exception as error:  # noqa: BLE001 - whatever a function of the app raises is the consumer's
            self.core.fail(error)
        finally:
            if not self.over:
                # On asyncio: a function of the app has waited for a task that somebody else cancelled.
                self.core.fail(RuntimeError("the task of this connection was cancelled"))
            self._forget(self)
            self.note()

    async def _pause(self) -> None:
        """Wait until the next attempt is due."""
        seconds = self.core.wait_seconds
        if seconds is None:
            while self._version == self._credentials.version:
                await self.changed.wait()
        elif seconds:
            # Nothing ends this wait but leaving, which cancels the task.
            await self._shell.sleep(seconds)

    async def _connect_once(self) -> None:
        core = self.core
        core.connecting()
        try:
            request: Request = core.request(await self._token())
            await self._shell.converse(self._url, request, self._conversation)
        except Refused as refused:
            core.refused(refused.status, refused.retry_after)
        except Unreachable as unreachable:
            core.given_up(str(unreachable))
        except NoToken:
            core.no_token()
        if core.connected and not self.over:
            core.closed(NOTHING_HEARD, "")

    async def _token(self) -> str | None:
        self._version = self._credentials.version
        return await self._credentials.token()

    async def _conversation(self, socket: Socket) -> int | None:
        """One connection; returns the code to close it with, `None`: there is nobody to say it to."""
        self.core.opened()
        self._conversing = True
        try:
            return await self._converse(socket)
        except Exception as error:  # noqa: BLE001 - whatever a function of the app raises is the consumer's
            self.core.fail(error)
            return NORMAL
        finally:
            self._conversing = False

    async def _converse(self, socket: Socket) -> int | None:
        core = self.core
        try:
            await self._shell.race(partial(self._read, socket), partial(self._write, socket))
        except Closed as closed:
            core.closed(closed.code, closed.reason)
            return None
        except Silence:
            core.given_up(f"nothing heard for {core.silence_seconds_max:g} s", NOTHING_HEARD)
            return None
        except ProtocolFault as fault:
            core.given_up(f"the server sent {fault}", PROTOCOL_ERROR)
            return PROTOCOL_ERROR
        return NORMAL

    async def _read(self, socket: Socket) -> None:
        core = self.core
        while True:
            while core.full:
                await self.changed.wait()
            core.receive(await self._heard(socket))
            self.note()

    async def _heard(self, socket: Socket) -> str | bytes:
        """The next message. Raises `Silence`."""
        patience = self.core.silence_seconds_max
        begin = self._shell.now()
        try:
            return await self._shell.within(patience, socket.receive)
        except TimeoutError:
            if self._shell.now() - begin < patience + LATE_SECONDS:
                raise Silence from None
        # The event loop stood still, and what has arrived meanwhile is still to be looked at.
        try:
            return await self._shell.within(LATE_SECONDS, socket.receive)
        except TimeoutError:
            raise Silence from None

    async def _write(self, socket: Socket) -> None:
        """Send what is due, until leaving."""
        core = self.core
        while True:
            if (frame := core.ack()) is not None:
                await socket.send(frame)
            elif self.leaving:
                return
            elif core.admitted and (core.auth_due or self._version != self._credentials.version):
                try:
                    token = await self._token()
                except NoToken:
                    core.no_auth()
                else:
                    # Whoever began as nobody stays nobody.
                    await socket.send(core.auth(token or ""))
            else:
                await self.changed.wait()
