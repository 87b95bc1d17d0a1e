"""The engine that several servers share: the store in streams of NATS JetStream, and the bus beside it."""

from __future__ import annotations

import logging
import secrets
import socket
import ssl
import stat
import string
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from random import SystemRandom
from typing import Final, TypeVar

import trio

from storage.audit_rows import AuditRows
from storage.bus import Bus
from storage.clock import Clock
from storage.disk import files
from storage.errors import CannotOpen, StoreBroken
from storage.jetstream.bus import NatsBus
from storage.jetstream.layout import Layout
from storage.jetstream.opening import open_jetstream
from storage.jetstream.store import JetStreamStore
from storage.names import new_id
from storage.nats.auth import Credentials, credentials_of_file
from storage.nats.connection import Address, Connection
from storage.nats.errors import BadCredentials
from storage.store import Store
from web.server.settings import Settings

CREDENTIALS_BYTES_MAX: Final = 64 * 1024
"""Largest file of credentials. Beyond: refused; it is none."""

TLS_SCHEME: Final = "tls://"

NODE_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "_-")

logger = logging.getLogger("avicenna.server")

Answer = TypeVar("Answer")


@asynccontextmanager
async def open_nats(settings: Settings, clock: Clock, rows: AuditRows) -> AsyncIterator[tuple[Store, Bus]]:
    """The store of the installation that these settings name, and the way to the other servers on it.

    Raises:
        CannotOpen: the message says why.
        StoreBroken: the engine has lost what it had acknowledged.
    """
    files.make_directory(settings.data)
    node = node_name(settings)
    async with open_store(settings, clock, rows, node) as (store, connection), trio.open_nursery() as bus_nursery:
        bus = NatsBus(connection, Layout(settings.nats_name), node, bus_nursery)
        bus_nursery.start_soon(bus.run)
        await store.audit(limit=1)  # what the servers do not let us subscribe to, they have said by then
        if connection.denied:
            raise CannotOpen(f"the NATS servers do not let us: {next(iter(connection.denied.values()))}")
        logger.info("this is node %s of %s", node, settings.nats_name)
        yield store, bus
        bus_nursery.cancel_scope.cancel()
    if store.broke.is_set():
        raise StoreBroken(store.statistics().broken)


@asynccontextmanager
async def open_store(
    settings: Settings, clock: Clock, rows: AuditRows, node: str
) -> AsyncIterator[tuple[JetStreamStore, Connection]]:
    """The store without a bus: nobody hears of this process. Raises `CannotOpen`."""
    connection = connection_of(settings, node)
    async with trio.open_nursery() as connection_nursery:
        connection_nursery.start_soon(connection.run)
        async with open_jetstream(
            connection,
            settings.nats_name,
            node=node,
            clock=clock,
            new_epoch=new_id,
            new_id=new_id,
            jitter=SystemRandom().random,
            replicas=settings.nats_replicas,
            keys_max=settings.idempotency_keys_max,
            rows=rows,
            must_exist=settings.database_must_exist,
            compares_clocks=True,
        ) as store:
            yield store, connection
        connection_nursery.cancel_scope.cancel()


def node_name(settings: Settings) -> str:
    """The name of this process: another one after each start."""
    name = settings.node_name or "".join(one for one in socket.gethostname() if one in NODE_CHARACTERS)[:48] or "node"
    return f"{name}-{secrets.token_hex(3)}"


def connection_of(settings: Settings, node: str) -> Connection:
    """A connection to the NATS servers of these settings, which nobody keeps up yet.

    Raises:
        CannotOpen: a file that the settings name cannot be used.
    """
    return Connection(
        [Address.parse(one) for one in settings.nats_url],
        name=node,
        new_id=new_id,
        jitter=SystemRandom().random,
        tls=_tls_of(settings),
        credentials=_credentials_of(settings.nats_credentials),
    )


def _tls_of(settings: Settings) -> ssl.SSLContext | None:
    has_scheme = any(one.startswith(TLS_SCHEME) for one in settings.nats_url)
    if not (has_scheme or settings.nats_ca or settings.nats_certificate):
        return None
    context = _read("nats_ca", settings.nats_ca, lambda: ssl.create_default_context(cafile=settings.nats_ca))
    certificate, key = settings.nats_certificate, settings.nats_certificate_key
    if certificate is not None and key is not None:
        _warn_unless_private(key)
        _read("nats_certificate", certificate, lambda: context.load_cert_chain(certificate, key))
    return context


def _read(setting: str, path: Path | None, read: Callable[[], Answer]) -> Answer:
    try:
        return read()
    except (OSError, ssl.SSLError) as error:
        raise CannotOpen(f"{setting}: {path} cannot be used: {error.strerror or error}") from None


def _credentials_of(path: Path | None) -> Credentials | None:
    if path is None:
        return None
    try:
        with path.open("rb") as file:
            content = file.read(CREDENTIALS_BYTES_MAX + 1)
        if len(content) > CREDENTIALS_BYTES_MAX:
            raise BadCredentials(f"it has more than {CREDENTIALS_BYTES_MAX} bytes")
        text = content.decode()
        found = credentials_of_file(text) if "BEGIN" in text else Credentials(text)
    except OSError as error:
        raise CannotOpen(f"nats_credentials: {path} cannot be read: {error.strerror}") from None
    except (BadCredentials, UnicodeDecodeError) as error:
        why = str(error) if isinstance(error, BadCredentials) else "it is no text"
        raise CannotOpen(f"nats_credentials: {path} cannot be used: {why}") from None
    _warn_unless_private(path)
    return found


def _warn_unless_private(path: Path) -> None:
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRWXG | stat.S_IRWXO):
        logger.warning("the secret %s is open to others than its owner (mode %s): make it 0600", path, f"{mode:04o}")
