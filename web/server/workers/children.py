"""One child of the parent: started, listened to, asked, ended."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable
from contextlib import suppress
from subprocess import PIPE
from typing import Final

import trio

from web.server.workers import orders
from web.server.workers.orders import Order

START_SECONDS_MAX: Final = 60.0
"""Longest time until a child serves. Beyond: it is ended. Reason: a store may have its pages to check."""

PROGRAM: Final = "web.server.workers"
"""The module that is a child."""

logger = logging.getLogger("avicenna.server")


class Child:
    """A process, from its start to its end."""

    def __init__(self, name: str, process: trio.Process, slot: int) -> None:
        self.name = name
        self.slot = slot
        """As in its order."""
        self.ready = trio.Event()
        """Set once it serves."""
        self.ended = trio.Event()
        """Set once it is gone."""
        self.is_ending = False
        """Whether it was told to."""
        self._process = process
        self._out: list[bytes] = []
        self._stirred = trio.Event()
        self._asked = 0
        """The number of the question it has not answered, or has answered last."""
        self._wanted = 0
        """The number of the next question."""
        self._told = 0
        self.silent = 0
        """How often it was looked whether it has answered, and it had not."""
        self.is_aborted = False
        self._has_told = trio.Event()

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative: the signal that ended it; `None`: it runs."""
        return self._process.returncode

    def end(self, *, is_replaced: bool = False) -> None:
        """Have it drain; whether another one serves in its place.

        One that does not serve yet is killed: it may wait in vain for a store.
        """
        self.is_ending = True
        if self.ready.is_set():
            self.say(orders.END, orders.REPLACED if is_replaced else "")
        else:
            self.kill()

    def abort(self) -> None:
        """End it at once, and have it print where it hangs."""
        self.is_aborted = True
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGABRT)

    def kill(self) -> None:
        """End it at once."""
        if self._process.returncode is None:
            self._process.kill()

    def say(self, word: str, rest: str = "") -> None:
        """Tell it something, as soon as it reads."""
        self._out.append(f"{word} {rest}".rstrip().encode() + b"\n")
        self._stirred.set()

    def ask(self, number: int) -> None:
        """Ask for its figures. One that does not answer has one question before it, however often it is asked."""
        self._wanted = number
        if self._asked == self._told:
            self._asked = number
            self.say(orders.TELL, str(number))

    def has_told(self, number: int) -> None:
        """It has answered this question."""
        self._told, self.silent = max(self._told, number), 0
        if number == self._asked and self._wanted > number:
            self.ask(self._wanted)
        self._has_told.set()
        self._has_told = trio.Event()

    async def until_told(self, number: int) -> None:
        """Wait until it has answered this question, or is gone."""
        while self._told < number and not self.ended.is_set():
            await self._has_told.wait()

    async def run(self, said: Callable[[Child, str, str], None], gone: Callable[[], None] = lambda: None) -> None:
        """Listen to it until it is gone.

        Args:
            said: called with each word it says but `READY`, and what follows the word.
            gone: called right before `ended` is set: before another one is started.
        """
        async with trio.open_nursery() as nursery:
            nursery.start_soon(self._write)
            await self._listen(said, gone)
            nursery.cancel_scope.cancel()

    async def _write(self) -> None:
        stdin = self._process.stdin
        assert stdin is not None, "it is started with a pipe"
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while True:
                await self._stirred.wait()
                self._stirred = trio.Event()
                out, self._out = self._out, []
                await stdin.send_all(b"".join(out))

    async def _listen(self, said: Callable[[Child, str, str], None], gone: Callable[[], None]) -> None:
        stdout = self._process.stdout
        assert stdout is not None, "it is started with a pipe"
        try:
            waiting = b""
            async for data in stdout:
                *lines, waiting = (waiting + data).split(b"\n")
                for line in lines:
                    word, _, rest = line.decode(errors="replace").partition(" ")
                    if word == orders.READY:
                        self.ready.set()
                    said(self, word, rest)
                if len(waiting) > orders.LINE_BYTES_MAX:
                    break
            await self._process.wait()
        finally:
            self.kill()
            with trio.CancelScope(shield=True):
                await self._process.wait()
                if self._process.stdin is not None:
                    await self._process.stdin.aclose()
                await stdout.aclose()
            gone()
            self.ended.set()
            self._has_told.set()


async def start(order: Order) -> Child:
    """Start a process that obeys an order, and inherits the descriptors that it names, under the same numbers."""
    descriptors = [*order.public, *order.operators]
    descriptors += [one for one in (order.store, order.counting) if one is not None]
    name = order.node or orders.STORE
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", PROGRAM, name],  # the name is for people who look at processes
        stdin=PIPE,
        stdout=PIPE,
        pass_fds=tuple(descriptors),
        # Its own group: a Ctrl-C at the terminal is the parent's, which ends its children in order.
        process_group=0,
    )
    assert process.stdin is not None, "it is started with a pipe"
    try:
        await process.stdin.send_all(orders.written(order))
    except trio.BrokenResourceError:
        logger.error("a process has ended before it was told what to be")
    return Child(name, process, order.slot)
