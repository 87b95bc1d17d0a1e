"""`GET /ws/status`, `/healthz`, `/readyz`: what is going on here (PROTOCOL section 8)."""

from __future__ import annotations

from importlib.metadata import version

from quart import Blueprint, Response

from storage.records import Outbox, Seq
from web import wire
from web.access import authenticate
from web.bodies import answer
from web.errors import RETRY_AFTER_SECONDS, Problem, retry_after
from web.rights import may_operate
from web.services import Services
from web.tokens import Principal

PAGE_DIAGNOSES = 1000
"""Diagnoses read from the store at once."""


def status(services: Services) -> Blueprint:
    """The routes that only look."""
    blueprint = Blueprint("status", __name__)
    release = version("avicenna-live")

    @blueprint.get("/ws/status")
    async def show_status() -> Response:
        who = authenticate(services, anonymous_allowed=services.settings.allow_anonymous)
        held_since = services.store.clock_held_since
        shown = {
            **await _figures(services, who),
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
        if services.registry.escalated:
            detail = "many diagnoses were quarantined lately: this server should get no new work"
            raise Problem("quarantined", detail, retry_after(RETRY_AFTER_SECONDS))
        return answer({"status": "ready"})

    return blueprint


async def _figures(services: Services, who: Principal) -> dict[str, object]:
    """Totals for anonymous, one's own diagnoses for a user, everything for an operator."""
    connections = services.registry.connections
    if who.sub is None:
        return {
            "total_diagnoses": await services.store.count_diagnoses(),
            "total_connections": sum(connections.values()),
        }
    outboxes = await _outboxes(services, None if may_operate(who) else who.sub)
    ids = [one.diagnosis.diagnosis_id for one in outboxes]
    seen = {diagnosis_id: connections[diagnosis_id] for diagnosis_id in ids if diagnosis_id in connections}
    in_memory = services.registry.unacknowledged
    queued = {one.diagnosis.diagnosis_id: in_memory.get(one.diagnosis.diagnosis_id, _queued(one)) for one in outboxes}
    figures: dict[str, object] = {
        "total_diagnoses": len(ids),
        "total_connections": sum(seen.values()),
        "connections_by_diagnosis": seen,
        "queued_messages_by_diagnosis": {diagnosis_id: count for diagnosis_id, count in queued.items() if count},
    }
    if may_operate(who):
        figures["node"] = {
            "actors": services.registry.actors,
            "connections": sum(connections.values()),
            "aborted": services.hub.aborted,
        }
    return figures


async def _outboxes(services: Services, owner: str | None) -> list[Outbox]:
    found: list[Outbox] = []
    while True:
        after = found[-1].diagnosis.diagnosis_id if found else ""
        page = await services.store.outboxes(owner=owner, after=after, limit=PAGE_DIAGNOSES)
        found.extend(page)
        if len(page) < PAGE_DIAGNOSES:
            return found


def _queued(outbox: Outbox) -> int:
    """Retained events some known subscriber has not acknowledged; all of them while nobody is known."""
    lowest = outbox.window.floor if outbox.lowest_cursor is None else outbox.lowest_cursor
    return outbox.window.head - Seq(max(lowest, outbox.window.floor))
