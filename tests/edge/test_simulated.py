"""A hub serves what it is handed: sockets, a poller and a clock that no kernel knows of."""

from __future__ import annotations

from collections.abc import Sequence

import trio
from trio.testing import MockClock, wait_all_tasks_blocked

from tests.actors.world import WorldClock
from tests.edge.echo import Echo
from tests.edge.raw import client_frame
from web.websocket import frames
from web.websocket.hub import Hub
from web.websocket.poller import READ, WRITE


class Simulated:
    """A socket and the poller that watches it."""

    def __init__(self) -> None:
        self.arriving = b""
        self.taken = b""
        self.room = 1000
        """Bytes that it takes until it is full."""
        self.is_open = True
        self._watched = 0
        self._changed = trio.Event()

    # The peer

    def say(self, data: bytes) -> None:
        self.arriving += data
        self._changed.set()

    def make_room(self, size: int) -> None:
        self.room += size
        self._changed.set()

    # The socket

    def fileno(self) -> int:
        return 7 if self.is_open else -1

    def send(self, data: bytes | memoryview, /) -> int:
        if not self.room:
            raise BlockingIOError
        taken = bytes(data[: self.room])
        self.taken += taken
        self.room -= len(taken)
        return len(taken)

    def recv(self, bytes_max: int, /) -> bytes:
        if not self.arriving:
            raise BlockingIOError
        data, self.arriving = self.arriving[:bytes_max], self.arriving[bytes_max:]
        return data

    def setsockopt(self, level: int, option: int, value: int | bytes, /) -> None:
        """There is nothing to set."""

    def shutdown(self, how: int, /) -> None:
        """Its peer does not end."""

    # The poller

    def add(self, fd: int) -> None:
        self._watched = READ

    def watch(self, fd: int, *, read: bool = True, write: bool = False) -> None:
        self._watched = (READ if read else 0) | (WRITE if write else 0)
        self._changed.set()

    def remove(self, fd: int) -> None:
        self._watched = 0

    async def wait(self) -> Sequence[tuple[int, int]]:
        while not (ready := self.look()):
            self._changed = trio.Event()
            await self._changed.wait()
        await trio.lowlevel.checkpoint()
        return ready

    def look(self) -> Sequence[tuple[int, int]]:
        events = self._watched & ((READ if self.arriving else 0) | (WRITE if self.room else 0))
        return [(7, events)] if events else []

    def close(self) -> None:
        self.is_open = False


async def test_a_hub_serves_a_socket_that_no_kernel_knows_of(autojump_clock: MockClock) -> None:
    there = Simulated()
    hub = Hub(there, clock=WorldClock(), jitter=lambda: 0.5, unsent=lambda _: 0, unread=lambda _: 0)
    async with trio.open_nursery() as nursery:
        await nursery.start(hub.run)
        Echo(hub).open(there, b"head")
        there.say(client_frame(0x1, b"hello"))
        await wait_all_tasks_blocked()
        assert there.taken == b"head" + frames.text_frame(b"hello")
        there.taken, there.room = b"", 3
        there.say(client_frame(0x1, b"a socket that is full"))
        await wait_all_tasks_blocked()
        assert len(there.taken) == 3
        there.make_room(1000)
        await wait_all_tasks_blocked()
        assert there.taken == frames.text_frame(b"a socket that is full")
        there.taken = b""
        await trio.sleep(hub.limits.silence_seconds + 1)
        assert there.taken[:1] == b"\x89", "a client that is silent gets a Ping"
        await trio.sleep(300)
        assert (there.is_open, hub.connections, hub.counts.aborted) == (False, 0, 1)
        nursery.cancel_scope.cancel()
