"""The process of the store: it has the database, and workers ask it (`storage.remote`)."""

from __future__ import annotations

import logging
import signal
import socket
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Final

import trio

from storage.clock import SystemClock
from storage.errors import CannotOpen, StoreBroken
from storage.remote.server import StoreServer
from web.identity.keyring import load_keys, will_make_key
from web.identity.keys import KeyUnusable
from web.server import database
from web.server.logs import set_up_logging
from web.server.settings import Settings
from web.server.workers import orders
from web.server.workers.line import Line

STORE_SOCKET: Final = "store.sock"
"""Name of the Unix socket within the data directory (0600) at which workers ask."""

LEAVE_SECONDS_MAX: Final = 9.0
"""Longest time from the signal until workers have gone. Beyond: they are cut off. Reason: they store what is left, and
end by themselves within 9 s, also where the parent was killed and all drain at once."""

logger = logging.getLogger("avicenna.server")


def socket_of(settings: Settings) -> Path:
    """Where workers ask."""
    return settings.data / STORE_SOCKET


def run(settings: Settings, listener: socket.socket, line: Line, nodes: Sequence[str]) -> int:
    """Serve the store until the parent ends it, or is gone; the exit code.

    Args:
        listener: where workers connect. Takes it.
        line: to the parent.
        nodes: the workers that serve already.
    """
    set_up_logging(settings)
    database.share_the_processor()
    try:
        trio.run(_serve, settings, listener, line, nodes)
    except BaseExceptionGroup as group:
        broken, rest = group.split(StoreBroken)
        if rest is not None:
            logger.critical("the process of the store failed unexpectedly", exc_info=rest)
        else:
            logger.critical("storage failed: %s", broken)
        return 1
    except (CannotOpen, KeyUnusable, OSError) as failure:
        logger.critical("cannot start: %s", failure)
        return database.CANNOT_START
    except StoreBroken as failure:
        logger.critical("storage failed: %s", failure)
        return 1
    return 0


async def _serve(settings: Settings, listener: socket.socket, line: Line, nodes: Sequence[str]) -> None:
    makes_key = will_make_key(settings)
    if not makes_key:
        load_keys(settings)
    async with database.open_engine(settings, SystemClock()) as (store, _), trio.open_nursery() as nursery:
        database.sweep_up(settings)
        if makes_key:
            load_keys(settings)
        server = StoreServer(store, lambda node: line.say(orders.UNCONFIRMED, node), nodes)
        line.when_gone(server.is_gone)
        nursery.start_soon(server.run, [trio.SocketListener(trio.socket.from_stdlib_socket(listener))])
        nursery.start_soon(_end_when_broken, store.broke, nursery.cancel_scope)
        line.answer_with(store.statistics)
        end, token = trio.Event(), trio.lowlevel.current_trio_token()
        line.when_told_to_end(partial(token.run_sync_soon, end.set))
        # A service manager sends these to all processes at once, and workers that drain still need the store.
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, signal.SIG_IGN)
        database.settle_memory()
        line.say(orders.READY)
        await end.wait()
        with trio.move_on_after(LEAVE_SECONDS_MAX):
            await server.left()
        line.say_last_figures()
        nursery.cancel_scope.cancel()


async def _end_when_broken(broke: trio.Event, scope: trio.CancelScope) -> None:
    await broke.wait()
    scope.cancel()
