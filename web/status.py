"""`GET /ws/status`, `/healthz`, `/readyz`: what is going on here (PROTOCOL section 8)."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from importlib.metadata import version
from math import inf
from typing import Final

import trio
from quart import Blueprint, Response

from storage.errors import Failed
from storage.records import Outbox, Seq
from storage.stall import LOOK_SECONDS, STALLED_SECONDS
from storage.store import Store
from web import wire
from web.access import authenticate
from web.bodies import answer
from web.errors import RETRY_AFTER_SECONDS, Problem, retry_after
from web.rights import may_operate
from web.services import Services
from web.tokens import Principal

PAGE_DIAGNOSES: Final = 250
"""Diagnoses read from the store at once. Reason: commits wait for a page, some milliseconds."""

DIAGNOSES_AT_ONCE: Final = 1000
"""Diagnoses looked at between two checkpoints."""

KEPT_SECONDS: Final = 1.0
"""How old the figures of diagnoses may be whose outbox is not in memory."""


def status(services: Services) -> Blueprint:
    """The routes that only look."""
    blueprint = Blueprint("status", __name__)
    release = version("avicenna-live")
    overview = Overview(services)

    @blueprint.get("/ws/status")
    async def show_status() -> Response:
        who = authenticate(services, anonymous_allowed=services.settings.allow_anonymous)
        held_since = services.store.clock_held_since
        shown = {
            **await _figures_or_memory(services, overview, who),
            "connections_open": services.open_connections.count,
            "clock_held_since": None if held_since is None else wire.timestamp(held_since),
            "uptime_seconds": round(services.clock.monotonic() - services.started_at, 3),
            "version": release,
        }
        return answer(shown)

    @blueprint.get("/healthz")
    async def healthy() -> Response:
        return answer({"status": "ok"})

    @blueprint.get("/readyz")
    async def ready() -> Response:
        if services.stopping.is_set():
            raise Problem("draining", "the server is stopping", retry_after(RETRY_AFTER_SECONDS))
        if services.store.statistics().broken is not None:
            raise Problem(
                "storage_unavailable", "the store has failed: the server stops", retry_after(RETRY_AFTER_SECONDS)
            )
        if _is_stalled(services):
            raise Problem("storage_unavailable", "the disk does not answer", retry_after(RETRY_AFTER_SECONDS))
        if services.registry.escalated:
            detail = "many diagnoses were quarantined lately: this server should get no new work"
            raise Problem("quarantined", detail, retry_after(RETRY_AFTER_SECONDS))
        return answer({"status": "ready"})

    return blueprint


class Overview:
    """The outboxes of all registered diagnoses, read once for all who ask within `KEPT_SECONDS`."""

    def __init__(self, services: Services) -> None:
        self._store = services.store
        self._clock = services.clock
        self._reading = trio.Lock()
        self._read_at = -inf
        self._outboxes: list[Outbox] = []

    async def outboxes(self) -> Sequence[Outbox]:
        """All outboxes, by id, at most `KEPT_SECONDS` old; read anew also when their number has changed."""
        async with self._reading:
            is_old = self._clock.monotonic() - self._read_at >= KEPT_SECONDS
            if is_old or self._store.statistics().diagnoses != len(self._outboxes):
                self._outboxes = await _outboxes(self._store, None)
                self._read_at = self._clock.monotonic()
        return self._outboxes


def _is_stalled(services: Services) -> bool:
    return services.store.statistics().waiting_seconds >= STALLED_SECONDS


async def _figures_or_memory(services: Services, overview: Overview, who: Principal) -> dict[str, object]:
    """Totals for anonymous, one's own diagnoses for a user, everything for an operator.

    While the disk does not answer, an operator gets those figures for which memory suffices.
    """
    if who.sub is None:
        return _totals(services)
    if not may_operate(who):
        return await _of(await _outboxes(services.store, who.sub), services, services.registry.connections)
    figures: dict[str, object] | None = None
    async with trio.open_nursery() as asking_nursery:

        async def give_up() -> None:
            while True:
                if _is_stalled(services):
                    asking_nursery.cancel_scope.cancel()
                await trio.sleep(LOOK_SECONDS)

        asking_nursery.start_soon(give_up)
        with contextlib.suppress(Failed):
            everything = await _of(await overview.outboxes(), services, services.registry.connections)
            figures = everything | {"node": _node(services) | await _keys(services.store)}
        asking_nursery.cancel_scope.cancel()
    return figures or _figures_in_memory(services)


def _totals(services: Services) -> dict[str, object]:
    return {
        "total_diagnoses": services.store.statistics().diagnoses,
        "total_connections": sum(services.registry.connections.values()),
    }


def _figures_in_memory(services: Services) -> dict[str, object]:
    queued = {one: count for one in services.registry.loaded if (count := services.registry.unacknowledged(one))}
    return {
        **_totals(services),
        "connections_by_diagnosis": services.registry.connections,
        "queued_messages_by_diagnosis": queued,
        "damage_by_diagnosis": {one: damage.what for one, damage in services.store.damaged.items()},
        "node": _node(services),
    }


def _node(services: Services) -> dict[str, object]:
    return {
        "actors": services.registry.actors,
        "connections": sum(services.registry.connections.values()),
        "aborted": services.hub.aborted + services.open_connections.stalled,
        "ring_bytes": services.registry.ring_bytes,
        "ring_bytes_exceeded": services.registry.ring_bytes > services.registry.ring_bytes_max,
        "storage_waiting_seconds": round(services.store.statistics().waiting_seconds, 3),
        "check_pending": services.store.is_check_pending,
    }


async def _keys(store: Store) -> dict[str, object]:
    keys = await store.idempotency_keys()
    oldest = None if keys.oldest_seconds is None else round(keys.oldest_seconds, 3)
    return {
        "idempotency_keys": keys.count,
        "idempotency_keys_max": keys.limit,
        "idempotency_keys_oldest_seconds": oldest,
    }


async def _of(outboxes: Sequence[Outbox], services: Services, connections: Mapping[str, int]) -> dict[str, object]:
    """The figures of some diagnoses."""
    seen: dict[str, int] = {}
    queued: dict[str, int] = {}
    damage: dict[str, str] = {}
    damaged = services.store.damaged
    for number, outbox in enumerate(outboxes, start=1):
        diagnosis_id = outbox.diagnosis_id
        if diagnosis_id in connections:
            seen[diagnosis_id] = connections[diagnosis_id]
        if diagnosis_id in damaged:
            damage[diagnosis_id] = damaged[diagnosis_id].what
        in_memory = services.registry.unacknowledged(diagnosis_id)
        if count := _queued(outbox) if in_memory is None else in_memory:
            queued[diagnosis_id] = count
        if number % DIAGNOSES_AT_ONCE == 0:
            await trio.lowlevel.checkpoint()
    return {
        "total_diagnoses": len(outboxes),
        "total_connections": sum(seen.values()),
        "connections_by_diagnosis": seen,
        "queued_messages_by_diagnosis": queued,
        "damage_by_diagnosis": damage,
    }


async def _outboxes(store: Store, owner: str | None) -> list[Outbox]:
    found: list[Outbox] = []
    while True:
        after = found[-1].diagnosis_id if found else ""
        page = await store.outboxes(owner=owner, after=after, limit=PAGE_DIAGNOSES)
        found.extend(page)
        if len(page) < PAGE_DIAGNOSES:
            return found


def _queued(outbox: Outbox) -> int:
    """Retained events some known subscriber has not acknowledged; all of them while nobody is known."""
    lowest = outbox.window.floor if outbox.lowest_cursor is None else outbox.lowest_cursor
    return outbox.window.head - Seq(max(lowest, outbox.window.floor))
