"""What every route needs, wired once in the composition root and handed over: no module holds a server."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import trio

from actors.registry import Registry
from storage.clock import Clock
from storage.store import Store
from web.acts import Acts
from web.connection_log import ConnectionLog
from web.edge.hub import Hub
from web.edge.open_connections import OpenConnections
from web.expiry import Expiry
from web.jwks import RemoteKeys
from web.limits import Limits
from web.revoked import Revoked
from web.settings import Settings
from web.tokens import Verifier
from web.turns import Turns


@dataclass(frozen=True, slots=True)
class Services:
    """The parts of one server."""

    settings: Settings
    store: Store
    """The store with a deadline: a request waits for the disk for `storage_seconds_max` at most."""
    acts: Acts
    registry: Registry
    verifier: Verifier
    revoked: Revoked
    remote_keys: RemoteKeys | None
    """Keys from a JWKS URL; `None`: none is configured."""
    expiry: Expiry
    limits: Limits
    hub: Hub
    """Has the sockets of all who follow by WebSocket."""
    decoding_turns: Turns
    """Turns for decoding broadcasts, by user."""
    open_connections: OpenConnections
    """Counts all connections, whatever they are for."""
    connection_log: ConnectionLog
    """Is told how connections end."""
    clock: Clock
    jitter: Callable[[], float]
    """Random numbers from 0 up to 1."""
    stopping: trio.Event
    """Set once the server is to stop: it is not ready any more, and drains."""
    new_id: Callable[[], str]
    """A short text that never repeats, for a request."""
    started_at: float
    """On the monotonic clock."""
