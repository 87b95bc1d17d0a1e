"""What `avicenna-live cluster` does: it is a process of its own on the streams, beside the servers that run."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Final, TypeVar

import trio

from storage.clock import SystemClock
from storage.errors import CannotCopy, CannotOpen, NotThere, StorageError, first_of
from storage.jetstream.layout import Layout, differing
from storage.jetstream.store import JetStreamStore
from storage.jetstream.transferring import Transfer, Transferred
from storage.names import new_id
from storage.nats.errors import NatsError
from storage.nats.jetstream import JetStream
from storage.records import Dropped
from storage.sqlite.opening import open_store
from storage.sqlite.runs import SELF
from web.commands.offline import drop_each
from web.operating.audit_rows import AUDIT_ROWS
from web.server import nats_engine
from web.server.settings import Settings

Answer = TypeVar("Answer")

DIFFERENCES_NAMED_MAX: Final = 10
"""Of what has not arrived. Beyond: counted."""


def renew(settings: Settings, why: str) -> str:
    """Begin a new generation, whose name is returned. Raises `CannotOpen`, `Busy` or `Failed`."""

    async def run() -> str:
        async with _opened(settings) as store:
            return await store.renew(SELF, why)

    return _run(run)


def check(settings: Settings) -> Sequence[str]:
    """The problems of an installation; empty: none. Raises `CannotOpen` (`NotThere`) or `Failed`."""

    async def run() -> Sequence[str]:
        async with _opened(settings) as store:
            return await store.check()

    return _run(run)


def drop_damaged(settings: Settings, diagnosis_ids: Sequence[str]) -> Sequence[Dropped | StorageError]:
    """Drop what is damaged of some diagnoses; of each what was done, or why nothing was. Raises as `check`."""

    async def run() -> Sequence[Dropped | StorageError]:
        async with _opened(settings) as store:
            return await drop_each(store, diagnosis_ids)

    return _run(run)


def look(settings: Settings, seconds: float) -> tuple[str, Sequence[str]]:
    """The server that takes us, and what is wrong with the streams; makes none.

    Raises:
        CannotOpen: no server takes us within so many seconds, or it does not let us look.
    """

    async def run() -> tuple[str, Sequence[str]]:
        connection = nats_engine.connection_of(settings, nats_engine.node_name(settings))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(connection.run)
            with trio.move_on_after(seconds):
                await connection.up.wait()
            if not connection.up.is_set():
                raise NotThere(str(connection.refused or "no NATS server answers"))
            jetstream, problems = JetStream(connection, new_id), list[str]()
            try:
                for wanted in Layout(settings.nats_name).streams(settings.nats_replicas):
                    if (found := await jetstream.config_of(wanted["name"])) is not None:
                        problems += [f"stream {wanted['name']}: {one}" for one in differing(wanted, found)]
            except NatsError as error:
                raise CannotOpen(str(error)) from error
            server = connection.server
            nursery.cancel_scope.cancel()
        return server, problems

    return _run(run)


def transfer(settings: Settings, database: Path) -> Transferred:
    """Move a database into an installation in which nothing was done; how much there was.

    Raises `CannotOpen` (`InUse`: a server runs on the database), `CannotCopy` or `OutboxDamaged`.
    """
    clock = SystemClock()

    async def run() -> Transferred:
        async with open_store(database, clock=clock, new_epoch=new_id, rows=AUDIT_ROWS) as source:
            async with _opened(settings) as begun:
                moving = Transfer(source, begun.engine)
                moved = await moving.run()
            async with _opened(settings) as target:
                if found := await moving.differences(target):
                    more = f", and {len(found) - DIFFERENCES_NAMED_MAX} more" if found[DIFFERENCES_NAMED_MAX:] else ""
                    named = ", ".join(found[:DIFFERENCES_NAMED_MAX])
                    raise CannotCopy(f"not all has arrived as it was: {named}{more}; delete the streams, and try again")
        return moved

    return _run(run)


def _run(work: Callable[[], Awaitable[Answer]]) -> Answer:
    """What a work in an event loop of its own answers, and what it raises, without the groups of its nurseries."""
    try:
        return trio.run(work)
    except BaseExceptionGroup as group:
        first = first_of(group)
        if isinstance(first, StorageError):
            raise first from None
        raise


@asynccontextmanager
async def _opened(settings: Settings) -> AsyncIterator[JetStreamStore]:
    async with nats_engine.open_store(settings, SystemClock(), AUDIT_ROWS, nats_engine.node_name(settings)) as opened:
        yield opened[0]
