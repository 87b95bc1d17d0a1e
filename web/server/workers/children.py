"""One child of the parent: started, listened to, ended."""

from __future__ import annotations

import logging
import signal
import sys
from collections.abc import Callable, Sequence
from subprocess import PIPE
from typing import Final

import trio

from web.server.workers import orders
from web.server.workers.orders import Order

START_SECONDS_MAX: Final = 60.0
"""Longest time until a child serves. Beyond: it is ended. Reason: a store may have its pages to check."""

logger = logging.getLogger("avicenna.server")


class Child:
    """A process, from its start to its end."""

    def __init__(self, name: str, process: trio.Process) -> None:
        self.name = name
        self.ready = trio.Event()
        """Set once it serves."""
        self.ended = trio.Event()
        """Set once it is gone."""
        self._process = process

    @property
    def pid(self) -> int:
        """Its number."""
        return self._process.pid

    @property
    def code(self) -> int | None:
        """Its exit code, negative: the signal that ended it; `None`: it runs."""
        return self._process.returncode

    def end(self) -> None:
        """Have it drain, as by SIGTERM."""
        if self._process.returncode is None:
            self._process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End it at once."""
        if self._process.returncode is None:
            self._process.kill()

    async def run(self, said: Callable[[Child, str, str], None]) -> None:
        """Listen to it until it is gone.

        Args:
            said: called with each word it says but `READY`, and what follows the word.
        """
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
            self.ended.set()


async def start(order: Order, descriptors: Sequence[int]) -> Child:
    """Start a process that obeys an order.

    Args:
        descriptors: those that it inherits, under the same numbers.
    """
    name = order.node or orders.STORE
    process = await trio.lowlevel.open_process(
        [sys.executable, "-m", "web.server.workers", name],  # the name is for people who look at processes
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
    return Child(name, process)
