"""A child of `serve --workers`: it reads its order, and is what that says."""

from __future__ import annotations

import faulthandler
import logging
import os
import socket
import sys
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from functools import partial
from pathlib import Path

from storage.bus import Bus
from storage.clock import Clock
from storage.store import Store
from web.http.handed_over import HandedOver
from web.http.listening import for_accepted_sockets
from web.server import database, logs, settings
from web.server.settings import Settings
from web.server.workers import orders, store_process
from web.server.workers.counting import Counting
from web.server.workers.line import Line
from web.server.workers.orders import Order

logger = logging.getLogger("avicenna.server")


def main() -> int:
    """Obey the order on standard input."""
    faulthandler.enable()  # one that hangs is ended by SIGABRT: where it hung is on stderr then
    line = Line()
    order = orders.read(line.order())
    try:
        chosen = settings.load(
            os.environ, config=None if order.config is None else Path(order.config), options=order.options
        )
    except settings.SettingsError as error:  # they have changed since the parent began
        logs.set_up_logging(settings.Settings())
        logger.critical("cannot start: %s", error)
        return database.CANNOT_START
    line.listen()
    if order.node is None:
        assert order.store is not None, "the store has a listener"
        listener = socket.socket(fileno=order.store)
        return store_process.run(chosen, listener, line, order.nodes)
    return _work(chosen, order, order.node, line)


def _work(chosen: Settings, order: Order, node: str, line: Line) -> int:
    # The process of the store needs none of this, and is there sooner without.
    from storage.remote.client import open_remote  # noqa: PLC0415
    from web.server import composition  # noqa: PLC0415

    handed_over = HandedOver(_listeners(order.public), _listeners(order.operators))
    assert order.counting is not None, "a worker has been given it"

    @asynccontextmanager
    async def engine(settings: Settings, clock: Clock) -> AsyncIterator[tuple[Store, Bus]]:
        async with open_remote(store_process.socket_of(settings), node=node, clock=clock) as store:
            yield store, store.bus

    counting = Counting(order.counting, order.slots)
    worker = composition.Worker(
        engine=engine,
        begin_drain=partial(line.say, orders.DRAIN),
        when_told_to_end=line.when_told_to_end,
        is_replaced=lambda: line.is_replaced,
        others=line,
        age_seconds=time.monotonic() - order.began_at,
        workers=order.workers,
        is_replacement=order.is_replacement,
        tell_connections=partial(counting.put, order.slot),
        connections_elsewhere=partial(counting.elsewhere, order.slot),
    )
    return composition.run(chosen, ready=partial(line.say, orders.READY), handed_over=handed_over, worker=worker)


def _listeners(descriptors: tuple[int, ...]) -> tuple[socket.socket, ...]:
    found = tuple(socket.socket(fileno=one) for one in descriptors)
    for one in found:
        for_accepted_sockets(one)
    return found


if __name__ == "__main__":
    sys.exit(main())
