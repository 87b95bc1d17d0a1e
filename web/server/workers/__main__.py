"""A child of `serve --workers`: it reads its order, and is what that says."""

from __future__ import annotations

import os
import signal
import socket
import sys
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress
from functools import partial
from pathlib import Path

from storage.bus import Bus
from storage.clock import Clock
from storage.remote.client import open_remote
from storage.store import Store
from web.http.handed_over import HandedOver
from web.http.listening import for_accepted_sockets
from web.server import composition, settings
from web.server.settings import Settings
from web.server.workers import orders, store_process
from web.server.workers.orders import Order


def main() -> int:
    """Obey the order on standard input."""
    order = orders.read(sys.stdin.buffer.readline(orders.LINE_BYTES_MAX))
    chosen = settings.load(
        os.environ, config=None if order.config is None else Path(order.config), options=order.options
    )
    _end_with_the_parent()
    if order.node is None:
        assert order.store is not None, "the store has a listener"
        listener = socket.socket(fileno=order.store)
        return store_process.run(chosen, listener, say)
    return _work(chosen, order, order.node)


def say(word: str, rest: str = "") -> None:
    """Tell the parent something."""
    with suppress(OSError):  # it has gone, and this process ends
        os.write(sys.stdout.fileno(), f"{word} {rest}".rstrip().encode() + b"\n")


def _work(chosen: Settings, order: Order, node: str) -> int:
    handed_over = HandedOver(_listeners(order.public), _listeners(order.operators))

    @asynccontextmanager
    async def engine(settings: Settings, clock: Clock) -> AsyncIterator[tuple[Store, Bus]]:
        async with open_remote(store_process.socket_of(settings), node=node, clock=clock) as store:
            yield store, store.bus

    worker = composition.Worker(engine, partial(say, orders.DRAIN))
    return composition.run(chosen, ready=partial(say, orders.READY), handed_over=handed_over, worker=worker)


def _listeners(descriptors: tuple[int, ...]) -> tuple[socket.socket, ...]:
    found = tuple(socket.socket(fileno=one) for one in descriptors)
    for one in found:
        for_accepted_sockets(one)
    return found


def _end_with_the_parent() -> None:
    """Drain once standard input ends: the parent is gone then."""

    def wait() -> None:
        while os.read(sys.stdin.fileno(), 1):
            pass
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=wait, daemon=True).start()


if __name__ == "__main__":
    sys.exit(main())
