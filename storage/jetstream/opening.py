"""Opens the replicated store: the connection, the streams, and what is known of them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import asynccontextmanager
from datetime import datetime
from functools import partial
from typing import Any, Final

import trio

from storage.audit_rows import BARE_ROWS, AuditRows
from storage.belief import Kept
from storage.clock import Clock, Timekeeper
from storage.errors import CannotOpen, NewerVersion, NotThere
from storage.jetstream.engine import Engine
from storage.jetstream.layout import VERSION, Layout, differing, installation, version_and_generation
from storage.jetstream.store import JetStreamStore
from storage.nats.connection import Connection
from storage.nats.errors import JetStreamError, NatsError, Unanswered
from storage.nats.jetstream import EXPECTED_LAST, NO_STREAM, JetStream
from storage.nats.wire import Outgoing
from storage.records import IDEMPOTENCY_KEYS_MAX

OPEN_SECONDS_MAX: Final = 30.0
"""Until the servers take us, and streams are there. Reason: an election takes a part of it. Beyond: `CannotOpen`."""

CLOSE_SECONDS_MAX: Final = 2.0
"""How long the end of the store waits for what was handed over. Beyond: its outcome is unknown."""

CREATE_SECONDS: Final = 5.0
"""Until a stream is made, which asks all its servers."""


@asynccontextmanager
async def open_jetstream(
    connection: Connection,
    name: str,
    *,
    node: str,
    clock: Clock,
    new_epoch: Callable[[], str],
    new_id: Callable[[], str],
    jitter: Callable[[], float],
    replicas: int = 3,
    keys_max: int = IDEMPOTENCY_KEYS_MAX,
    rows: AuditRows = BARE_ROWS,
    must_exist: bool = False,
    compares_clocks: bool = False,
) -> AsyncIterator[JetStreamStore]:
    """The store of the installation of this name, over a connection that somebody keeps up.

    Args:
        node: the name of this process: another one after each start.
        new_id: makes names that never repeat, of letters and digits.
        jitter: draws from 0 to 1.
        replicas: how many servers hold each stream that is made.
        must_exist: no stream is made.
        compares_clocks: the clock is not believed if it differs much from that of the servers.

    Raises:
        NotThere: no server answers, or too few of them are there.
        CannotOpen: the servers do not take us, or the streams are not what they should be; the message says what to do.
    """
    layout = Layout(name)
    jetstream = JetStream(connection, new_id)
    engine = Engine(
        jetstream,
        layout,
        Timekeeper(clock),
        node=node,
        rows=rows,
        new_epoch=new_epoch,
        new_id=new_id,
        jitter=jitter,
    )
    await _until_there(engine, replicas, must_exist)
    if compares_clocks:
        engine.time = Timekeeper(clock, await engine.patiently(partial(_time_of_servers, engine)))
    async with trio.open_nursery() as nursery:
        store = JetStreamStore(engine, nursery, keys_max)
        await store.begin()
        try:
            yield store
        finally:
            if connection.up.is_set():
                with trio.move_on_after(CLOSE_SECONDS_MAX, shield=True):
                    await store.barrier()
            nursery.cancel_scope.cancel()


async def _until_there(engine: Engine, replicas: int, must_exist: bool) -> None:
    reason = "no server answers"
    with trio.move_on_after(OPEN_SECONDS_MAX):
        while True:
            try:
                await _have_streams(engine, replicas, must_exist)
                await engine.load()
            except Unanswered as error:
                reason = str(error)
            except NatsError as error:
                reason = str(error)
                if not engine.is_passing(error) and not _is_being_made(error):
                    raise CannotOpen(f"the streams of {engine.layout.name} cannot be used: {error}") from error
            else:
                return
            if engine.connection.refused is not None:
                raise CannotOpen(str(engine.connection.refused))
            await engine.wait_a_little()
    raise NotThere(f"the NATS servers are not ready: {reason}")


def _is_being_made(error: NatsError) -> bool:
    """Whether a stream is not there that was just made, here or by another process: not all servers know it yet."""
    return isinstance(error, JetStreamError) and error.err_code == NO_STREAM


async def _time_of_servers(engine: Engine) -> Kept:
    """What our clock is compared with. To be called patiently."""
    said = await engine.jetstream.api(f"STREAM.INFO.{engine.layout.main}")
    # As if it had been held: so it may be ahead no more than behind.
    return Kept(datetime.fromisoformat(said["ts"]).timestamp(), held=True)


async def _have_streams(engine: Engine, replicas: int, must_exist: bool) -> None:
    for wanted in engine.layout.streams(replicas):
        if must_exist and await engine.jetstream.config_of(wanted["name"]) is None:
            raise CannotOpen(
                f"there is no stream {wanted['name']}, and database_must_exist is set: restore the streams, or start "
                "once without it"
            )
        found = await engine.jetstream.have_stream(wanted, CREATE_SECONDS)
        judge(wanted, found)
    layout = engine.layout
    version = await engine.last(layout.main, layout.version)
    if version is None:
        try:
            await engine.jetstream.store([Outgoing(layout.version, installation(""), {EXPECTED_LAST: "0"})])
        except JetStreamError:
            version = await engine.last(layout.main, layout.version)
    if version is not None:
        written, _ = version_and_generation(version.data)
        if written != str(VERSION):
            raise NewerVersion(f"{layout.name} has the layout {written[:20]}, this version writes {VERSION}")


def judge(wanted: Mapping[str, Any], found: Mapping[str, Any]) -> None:
    """Whether a stream that was there is what it should be; its number of replicas is whoever made it to choose.

    Raises:
        CannotOpen: it is not.
    """
    others = {name: value for name, value in wanted.items() if name != "num_replicas"}
    if differences := differing(others, found):
        raise CannotOpen(f"the stream {wanted['name']} is not as it should be: {'; '.join(differences)}")
