"""`AsyncBroadcaster.stream()`: many updates over one WebSocket, on asyncio or Trio.

What is decided is decided in `streaming.py`; here it is waited.
"""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from functools import partial
from typing import Final, Self

from avicenna_live.closing import NORMAL, NOTHING_HEARD, PROTOCOL_ERROR, Backoff, after
from avicenna_live.core import Request
from avicenna_live.errors import (
    BroadcastError,
    Closed,
    NoAnswer,
    ProtocolFault,
    Refused,
    Unauthenticated,
    Unreachable,
)
from avicenna_live.link import Signal
from avicenna_live.publishing import PASSING, Patience, Receipt
from avicenna_live.shell import Event, Shell, Socket, Task
from avicenna_live.streaming import Outcome, StreamCore
from avicenna_live.updates import Update, checked

ANSWER_SECONDS_MAX: Final = 60.0
"""Longest silence of a server that owes an answer. Reason: a full mailbox waits for 30 s. Beyond: a new connection."""

BACKOFF: Final = Backoff(0.25, 15.0)


class PublishStream:
    """Publishes over one WebSocket, and over the next one after a cut. Made by `AsyncBroadcaster.stream`."""

    def __init__(
        self,
        url: str,
        token: Callable[[], Awaitable[str]],
        patience: Callable[[], Patience],
        make_shell: Callable[[], Shell],
        random: Callable[[], float],
        *,
        renewable: bool,
    ) -> None:
        """Prepare; `async with` connects.

        Args:
            token: gives one for each connection.
            patience: for each update.
            random: from 0 up to 1.
            renewable: whether `token` may give another one than before.
        """
        self._url = url
        self._token = token
        self._patience = patience
        self._make_shell = make_shell
        self._random = random
        self._renewable = renewable
        self._core = StreamCore(renewable=renewable)
        self._outcomes: dict[str, Outcome] = {}
        self._events: dict[str, Event] = {}
        """Of those who wait, by id."""
        self._failure: Exception | None = None
        """Why nothing more can be published."""
        self._leaving = self._conversing = False
        self._failures = 0
        """Connections in a row that published nothing."""
        self._shell: Shell
        self._changed: Signal
        self._task: Task

    async def __aenter__(self) -> Self:
        """Begin to connect."""
        self._shell = self._make_shell()
        await self._shell.__aenter__()
        self._changed = Signal(self._shell.event)
        self._task = self._shell.start(self._run)
        return self

    async def __aexit__(self, *_: object) -> None:
        """Close the connection within 2 s. Whoever still waits is told `NoAnswer`."""
        self._leaving = True
        self._changed.notify()
        if not self._conversing:
            self._task.cancel()
        try:
            await self._shell.stop(self._task)
        finally:
            self._wake_all()
            await self._shell.__aexit__(None, None, None)

    async def publish(self, update: Update) -> Receipt:
        """Publish an update; returns once it is on disk. Many tasks may publish at once, and share what is on its way.

        Raises:
            BroadcastError: it was refused, or nobody knows after `patience_seconds`.
            TypeError: it is no update.

        Cancellation: the update may be published all the same.
        """
        checked(update)
        patience = self._patience()
        while True:
            outcome = await self._once(update, patience)
            if isinstance(outcome, Receipt):
                return outcome
            seconds = patience.wait(None) if outcome.status in PASSING else None
            if seconds is None:
                raise outcome
            await self._shell.sleep(seconds)

    async def _once(self, update: Update, patience: Patience) -> Outcome:
        """What became of one try, over as many connections as it takes."""
        if self._leaving or self._failure is not None:
            raise self._why_over(was_sent=False)
        publish_id, event = self._core.add(update), self._shell.event()
        self._events[publish_id] = event
        self._changed.notify()
        try:
            await self._shell.within(patience.left_seconds, event.wait)
        except TimeoutError:
            return NoAnswer(self._core.forget(publish_id))
        finally:
            del self._events[publish_id]
            was_sent = self._core.forget(publish_id)
        if (outcome := self._outcomes.pop(publish_id, None)) is not None:
            return outcome
        raise self._why_over(was_sent)

    def _why_over(self, was_sent: bool) -> Exception:
        """What is raised for an update that gets no outcome."""
        return self._failure or NoAnswer(was_sent)

    async def _run(self) -> None:
        try:
            while not self._leaving:
                await self._connect_once()
        except Exception as error:  # noqa: BLE001 - whatever a function of the app raises is told to those who wait
            self._failure = error
        finally:
            self._wake_all()

    def _wake_all(self) -> None:
        for event in self._events.values():
            event.set()

    async def _connect_once(self) -> None:
        core = self._core
        core.opened()
        wished: float | None = None
        try:
            headers = {"Authorization": f"Bearer {await self._token()}"}
            await self._shell.converse(self._url, Request("/publish", headers), self._conversation)
        except Refused as refused:
            core.code, core.reason = refused.status, "the server refuses the upgrade"
        except Unreachable:
            core.code = NOTHING_HEARD
        if self._leaving:
            return
        what = after(core.code, core.reason)
        if what == "ended" or (what == "needs_auth" and not self._renewable):
            kind = Unauthenticated if what == "needs_auth" else BroadcastError
            raise kind(0, "", f"the server ended the connection: {core.code} {core.reason}".rstrip())
        wished = core.wait_seconds
        seconds = BACKOFF.seconds(self._failures, self._random()) if wished is None else wished
        self._failures += 1
        await self._shell.sleep(seconds)

    async def _conversation(self, socket: Socket) -> int | None:
        self._conversing = True
        try:
            await self._shell.race(partial(self._read, socket), partial(self._write, socket))
        except Closed as closed:
            if closed.code != NOTHING_HEARD:
                self._core.code, self._core.reason = closed.code, closed.reason
            return None
        except TimeoutError:
            return None
        except ProtocolFault:
            return PROTOCOL_ERROR
        finally:
            self._conversing = False
        return NORMAL

    async def _read(self, socket: Socket) -> None:
        core = self._core
        while not core.is_spent:
            if core.expects:
                found = core.receive(await self._shell.within(ANSWER_SECONDS_MAX, socket.receive))
            else:
                found = core.receive(await socket.receive())
            if found is not None and (event := self._events.get(found[0])) is not None:
                self._failures = 0
                self._outcomes[found[0]] = found[1]
                event.set()
            self._changed.notify()

    async def _write(self, socket: Socket) -> None:
        while not self._leaving:
            if (frame := self._core.due()) is not None:
                await socket.send(frame)
            elif self._core.auth_due and self._renewable:
                self._core.auth_due = False
                await socket.send(json.dumps({"type": "auth", "token": await self._token()}))
            else:
                await self._changed.wait()
