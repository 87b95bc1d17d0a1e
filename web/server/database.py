"""The database of a server: what is looked at before it is opened, how it is opened, and the process that has it.

The composition root needs it, and so does the process of the store (`web.server.workers.store_process`), which imports
nothing of what a server has beside it: so it is there sooner, and takes less memory.
"""

from __future__ import annotations

import gc
import logging
import shlex
import sys
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import Final

from storage.bus import Bus, NoBus
from storage.clock import Clock
from storage.disk import database_files
from storage.disk.unfinished import sweep
from storage.errors import CannotOpen
from storage.names import new_id
from storage.sqlite.opening import open_store
from storage.store import Store
from web.identity.keyring import KEY_FILE
from web.operating.audit_rows import AUDIT_ROWS
from web.operating.backups import CHECKS, PATTERN
from web.server.settings import BACKUPS_DIRECTORY, DATABASE_FILE, Settings

CANNOT_START: Final = 2
"""The exit code of a server that could not start, and would not if it were started again."""

GIL_SWITCH_SECONDS: Final = 0.0002
"""Reason: with the default of 5 ms a busy Trio thread stretches a commit on the database thread fivefold."""

COLLECT_AFTER_OBJECTS: Final = 10_000
"""New objects between two runs of the garbage collector. Reason: Werkzeug leaves a reference cycle of eight objects
for each request. Python's default of 700 to 2,000 slows connecting; more than this leaves megabytes of garbage."""

COLLECT_SURVIVORS_AFTER: Final = 4
"""Such runs until one looks at all that was new since the last of its kind. Reason: nobody is served during a run, and
4,000 connections that come leave 200,000 objects within 20 runs, which take 40 to 90 ms to look at."""

COLLECT_ALL_AFTER: Final = 250
"""Runs of that kind until one looks at everything: after ten million new objects at the earliest."""

logger = logging.getLogger("avicenna.server")


@asynccontextmanager
async def open_engine(settings: Settings, clock: Clock) -> AsyncIterator[tuple[Store, Bus]]:
    """The store that these settings name, and the way to other processes on it.

    Raises:
        CannotOpen: the message says why.
        StoreBroken: storage failed while it was used.
    """
    if settings.shares_engine:
        # What only this engine needs is imported where it is wanted: a start takes as long as its imports.
        from web.server.nats_engine import open_nats  # noqa: PLC0415

        async with open_nats(settings, clock, AUDIT_ROWS) as opened:
            yield opened
        return
    check_database(settings)
    async with open_store(
        settings.data / DATABASE_FILE,
        clock=clock,
        new_epoch=new_id,
        durability=settings.durability,
        on_damage=settings.damaged_database,
        keys_max=settings.idempotency_keys_max,
        rows=AUDIT_ROWS,
    ) as store:
        yield store, NoBus()


def check_database(settings: Settings) -> None:
    """Refuse to begin an empty database where there was one, or must be one.

    Raises:
        CannotOpen: it is missing or empty; the message names the command that makes one.
    """
    data = settings.data
    # The key first: whoever makes both at this moment makes it last.
    has_key = (data / KEY_FILE).exists()
    if not (has_key or settings.database_must_exist) or database_files.has_database(data / DATABASE_FILE):
        return
    why = "though its key is there" if has_key else "and database_must_exist is set"
    directory = shlex.quote(str(data))
    kept = [str(one) for one in database_files.kept_of(data / DATABASE_FILE)]
    raise CannotOpen(
        f"there is no database in {data}, {why}: is the volume mounted? "
        f"{'A former one is kept: ' + ', '.join(kept) + '. ' if kept else ''}Put the database back, or a backup: "
        f"avicenna-live restore FILE --data {directory}; or make an empty one: "
        f"avicenna-live new-database --data {directory}"
    )


def sweep_up(settings: Settings) -> None:
    """Remove what processes that were killed have left behind."""
    for left in (
        *sweep(settings.data, f"{DATABASE_FILE}.*", CHECKS),
        *sweep(settings.data / BACKUPS_DIRECTORY, PATTERN),
    ):
        logger.warning("removed %s: the process that wrote it was killed", left)


def share_the_processor() -> None:
    """Have the threads of this process take turns as often as a database beside a busy loop needs it."""
    sys.setswitchinterval(GIL_SWITCH_SECONDS)


def settle_memory() -> None:
    """What is alive now lives as long as the server: the collector need not look at it again."""
    gc.collect()
    gc.freeze()
    gc.set_threshold(COLLECT_AFTER_OBJECTS, COLLECT_SURVIVORS_AFTER, COLLECT_ALL_AFTER)
