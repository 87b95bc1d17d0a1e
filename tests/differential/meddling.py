"""A relay in front of a server that spoils what passes: as a short way would that is wrong in one respect."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from functools import partial

import trio


def untouched(data: bytes) -> bytes:
    """Nothing is spoiled."""
    return data


@dataclass(frozen=True)
class Meddling:
    """What is spoiled, of each packet."""

    asked: Callable[[bytes], bytes] = untouched
    answered: Callable[[bytes], bytes] = untouched
    stays: bool = True
    """The connection stays open behind the first answer."""


@asynccontextmanager
async def meddled(port: int, meddling: Meddling) -> AsyncIterator[int]:
    """The port of a relay to the server at this port."""

    async def carry(
        source: trio.SocketStream, to: trio.SocketStream, spoil: Callable[[bytes], bytes], *, stays: bool
    ) -> None:
        with suppress(trio.BrokenResourceError, trio.ClosedResourceError):
            while data := await source.receive_some(65536):
                await to.send_all(spoil(bytes(data)))
                if not stays:
                    break
            await to.send_eof()
            if not stays:
                await trio.aclose_forcefully(to)
                await trio.aclose_forcefully(source)

    async def relay(client: trio.SocketStream) -> None:
        async with await trio.open_tcp_stream("127.0.0.1", port) as server, client, trio.open_nursery() as both:
            both.start_soon(lambda: carry(client, server, meddling.asked, stays=True))
            both.start_soon(lambda: carry(server, client, meddling.answered, stays=meddling.stays))

    async with trio.open_nursery() as relays:
        listeners = await relays.start(partial(trio.serve_tcp, relay, 0, host="127.0.0.1"))
        yield listeners[0].socket.getsockname()[1]
        relays.cancel_scope.cancel()
