"""The figures of the server that consoles and the status show, out of what all rooms say. Pure."""

from __future__ import annotations

from storage.histogram import Distribution
from web.contract import wire
from web.server.seen import Seen


def node_of(seen: Seen) -> dict[str, object]:
    """Those of `GET /ws/status`, by name (PROTOCOL section 8)."""
    actors = seen.actors
    return {
        "actors": actors.actors,
        "connections": actors.connections,
        "aborted": seen.hub.aborted + seen.connections.stalled,
        "requests": {"short": seen.ways.short, "long": seen.ways.long},
        "ring_bytes": actors.ring_bytes,
        "ring_bytes_exceeded": actors.ring_bytes > actors.ring_bytes_max,
        "storage_waiting_seconds": round(seen.store.waiting_seconds, 3),
    }


def figures_of(seen: Seen, clock_held_since: float | None) -> dict[str, object]:
    """Those of a console, by name (PROTOCOL section 8). What only grows begins with the server.

    Args:
        clock_held_since: as `Store.clock_held_since`.
    """
    actors, store = seen.actors, seen.store
    return {
        "version": seen.release,
        "uptime_seconds": round(seen.uptime_seconds),
        "diagnoses": store.diagnoses,
        "damaged": seen.damaged,
        "actors": actors.actors,
        "followers": actors.connections,
        "connections": seen.connections.count,
        "consoles": seen.consoles,
        "publishing_connections": seen.senders.connections,
        "events": actors.events,
        "deliveries": actors.deliveries,
        "delivered_bytes": actors.delivered_bytes,
        "gaps": actors.gaps,
        "evicted_unacknowledged": actors.evicted_unacknowledged,
        "mailbox_messages": actors.mailbox_depth,
        "ring_bytes": actors.ring_bytes,
        "ring_limit_bytes": actors.ring_bytes_max,
        "restarts": sum(actors.restarts.values()),
        "quarantines": actors.quarantines,
        "stalls": seen.hub.aborted + seen.connections.stalled,
        "refused_tokens": sum(seen.refused_tokens.values()),
        "store_queue": store.queue_depth,
        "store_waiting_seconds": round(store.waiting_seconds, 3),
        "clock_held_since": None if clock_held_since is None else wire.timestamp(clock_held_since),
        "wal_bytes": store.wal_bytes,
        "database_bytes": store.database_bytes,
        "commit_seconds": _spread(store.commit_seconds),
        "loop_lag_seconds": _spread(seen.loop_lag),
    }


def _spread(found: Distribution) -> dict[str, object]:
    return {"bounds": found.bounds, "counts": found.counts, "sum": round(found.sum, 6)}
