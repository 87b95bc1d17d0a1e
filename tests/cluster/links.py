"""TCP connections that can be cut: a proxy for each way from one to another, on 127.0.0.1.

A way that is cut swallows nothing and refuses nobody: what is on it waits, as in a network whose packets get lost and
are sent again. Once it is mended, what waited goes on.
"""

from __future__ import annotations

import socket
from collections.abc import Iterable, Mapping
from typing import Final

import trio

BYTES_MAX: Final = 64 * 1024
"""Read at once."""


class Links:
    """All ways of an installation; those who stand at their ends have names of one letter."""

    def __init__(self, nursery: trio.Nursery) -> None:
        """No way yet; the nursery is for those who pass on what comes."""
        self._nursery = nursery
        self._listeners: dict[tuple[str, str], socket.socket] = {}
        self._targets: dict[tuple[str, str], int] = {}
        self._whole: dict[tuple[str, str], trio.Event] = {}

    def lead_to(self, targets: Mapping[str, int], sources: Iterable[str]) -> None:
        """Make a way from each of these to each of the others, which listen at these ports.

        To be called from a thread that the event loop has started: who listens here may be waited for there.
        """
        for source in sources:
            for target, port in targets.items():
                if source != target:
                    self._targets[source, target] = port
                    self._listeners[source, target] = socket.create_server(("127.0.0.1", 0), backlog=128)
                    trio.from_thread.run_sync(self._begin, (source, target))

    def _begin(self, way: tuple[str, str]) -> None:
        self._whole[way] = trio.Event()
        self._whole[way].set()
        self._nursery.start_soon(self._listen, way)

    def port(self, source: str, target: str) -> int:
        """Where the one finds the other."""
        port: int = self._listeners[source, target].getsockname()[1]
        return port

    def url(self, source: str, target: str) -> str:
        """The same for a NATS client."""
        return f"nats://127.0.0.1:{self.port(source, target)}"

    def cut(self, one: str, others: Iterable[str]) -> None:
        """Let nothing pass between the one and the others, either way."""
        for way in self._between(one, others):
            self._whole[way] = trio.Event()

    def mend(self) -> None:
        """Let everything pass."""
        for event in self._whole.values():
            event.set()

    def _between(self, one: str, others: Iterable[str]) -> list[tuple[str, str]]:
        ways = [way for other in others for way in ((one, other), (other, one))]
        return [way for way in ways if way in self._whole and self._whole[way].is_set()]

    async def _listen(self, way: tuple[str, str]) -> None:
        async with trio.open_nursery() as nursery:
            with self._listeners[way] as listener:
                listening = trio.SocketListener(trio.socket.from_stdlib_socket(listener))
                while True:
                    nursery.start_soon(self._connected, way, await listening.accept())

    async def _connected(self, way: tuple[str, str], coming: trio.SocketStream) -> None:
        async with coming:
            await self._whole[way].wait()
            try:
                going = await trio.open_tcp_stream("127.0.0.1", self._targets[way])
            except OSError:
                return
            async with going, trio.open_nursery() as nursery:
                for one, other in ((coming, going), (going, coming)):
                    nursery.start_soon(self._pass_on, way, one, other, nursery.cancel_scope)

    async def _pass_on(
        self, way: tuple[str, str], one: trio.SocketStream, other: trio.SocketStream, ended: trio.CancelScope
    ) -> None:
        """Pass on what one says to the other, until either has ended the connection."""
        try:
            while data := await one.receive_some(BYTES_MAX):
                await self._whole[way].wait()
                await other.send_all(data)
            await self._whole[way].wait()
        except trio.BrokenResourceError:  # it has ended it without a word
            pass
        ended.cancel()
