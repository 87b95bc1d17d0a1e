"""`GET /ws/status`, `/healthz`, `/readyz`: what is going on here (PROTOCOL section 8)."""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable, Mapping, Sequence
from importlib.metadata import version
from math import inf
from typing import Final

import trio

from actors.peers import Nodes
from actors.registry import Registry
from storage.bus import Bus
from storage.clock import Clock
from storage.errors import Failed
from storage.records import Outbox, Seq
from storage.stall import LOOK_SECONDS, STALLED_SECONDS
from storage.store import DiagnosisStore, Store, StoreUpkeep
from web.contract import wire
from web.contract.errors import RETRY_AFTER_SECONDS, Problem, retry_after
from web.contract.exchange import Answer, Handlers, Request, answer
from web.contract.principals import Principal
from web.identity.rights import may_operate

PAGE_DIAGNOSES: Final = 250
"""Diagnoses read from the store at once. Reason: commits wait for a page, some milliseconds."""

DIAGNOSES_AT_ONCE: Final = 1000
"""Diagnoses looked at between two checkpoints."""

KEPT_SECONDS: Final = 1.0
"""How old the figures of diagnoses may be whose outbox is not in memory."""


ASK_SECONDS_MAX: Final = 2.0
"""Longest wait for other servers to say how many connections they have. Beyond: without theirs."""

CONNECTIONS_OPEN: Final = "connections open"
"""The topic of the question how many connections are open."""

AWAY_SECONDS: Final = 3.0
"""So long a store does not answer until this server is not ready. Reason: most elections are over sooner."""


class Figures:
    """What is going on in one server, in numbers; what is said of all diagnoses is read once for all who ask."""

    def __init__(
        self, store: Store, registry: Registry, clock: Clock, node: Callable[[], Awaitable[Mapping[str, object]]]
    ) -> None:
        """Figures of these.

        Args:
            node: totals of the server, by name.
        """
        self._store = store
        self._registry = registry
        self._clock = clock
        self._node_figures = node
        self._reading = trio.Lock()
        self._read_at = -inf
        self._outboxes: list[Outbox] = []

    @property
    def is_stalled(self) -> bool:
        """Whether the disk keeps somebody waiting."""
        return self._store.statistics().waiting_seconds >= STALLED_SECONDS

    @property
    def is_away(self) -> bool:
        """Whether the store has not answered for so long that new clients are better served elsewhere."""
        since = self._store.statistics().away_since
        return since is not None and self._clock.monotonic() - since >= AWAY_SECONDS

    async def for_(self, who: Principal) -> dict[str, object]:
        """Totals for anonymous, one's own diagnoses for a user, everything for an operator.

        While the disk does not answer, an operator gets those figures for which memory suffices.
        """
        if who.sub is None:
            return self._totals(*await self._registry.connections_everywhere())
        if not may_operate(who):
            return await self._of(await _outboxes(self._store, who.sub))
        figures: dict[str, object] | None = None
        async with trio.open_nursery() as asking_nursery:

            async def give_up() -> None:
                while True:
                    if self.is_stalled:
                        asking_nursery.cancel_scope.cancel()
                    await trio.sleep(LOOK_SECONDS)

            asking_nursery.start_soon(give_up)
            with contextlib.suppress(Failed):
                everything = await self._of(await self._all_outboxes())
                figures = everything | {"node": await self._node() | await _keys(self._store)}
            asking_nursery.cancel_scope.cancel()
        return figures or await self._in_memory()

    async def _all_outboxes(self) -> Sequence[Outbox]:
        """All outboxes, by id, at most `KEPT_SECONDS` old; read anew also when their number has changed."""
        async with self._reading:
            is_old = self._clock.monotonic() - self._read_at >= KEPT_SECONDS
            if is_old or self._store.statistics().diagnoses != len(self._outboxes):
                self._outboxes = await _outboxes(self._store, None)
                self._read_at = self._clock.monotonic()
        return self._outboxes

    def _totals(self, connections: Mapping[str, int], nodes: Nodes) -> dict[str, object]:
        return {
            "nodes": nodes._asdict(),
            "total_diagnoses": self._store.statistics().diagnoses,
            "total_connections": sum(connections.values()),
        }

    async def _in_memory(self) -> dict[str, object]:
        registry = self._registry
        queued = {one: count for one in registry.loaded if (count := registry.unacknowledged(one))}
        return {
            **self._totals(registry.connections, Nodes(registry.nodes_known, 1)),
            "connections_by_diagnosis": registry.connections,
            "queued_messages_by_diagnosis": queued,
            "damage_by_diagnosis": {one: damage.what for one, damage in self._store.damaged.items()},
            "node": await self._node(),
        }

    async def _node(self) -> dict[str, object]:
        return {**await self._node_figures(), "check_pending": self._store.is_check_pending}

    async def _of(self, outboxes: Sequence[Outbox]) -> dict[str, object]:
        """The figures of some diagnoses."""
        connections, nodes = await self._registry.connections_everywhere()
        seen: dict[str, int] = {}
        queued: dict[str, int] = {}
        damage: dict[str, str] = {}
        damaged = self._store.damaged
        for number, outbox in enumerate(outboxes, start=1):
            diagnosis_id = outbox.diagnosis_id
            if diagnosis_id in connections:
                seen[diagnosis_id] = connections[diagnosis_id]
            if diagnosis_id in damaged:
                damage[diagnosis_id] = damaged[diagnosis_id].what
            # What is in memory here does not know what was acknowledged elsewhere.
            in_memory = None if self._store.shared else self._registry.unacknowledged(diagnosis_id)
            if count := _queued(outbox) if in_memory is None else in_memory:
                queued[diagnosis_id] = count
            if number % DIAGNOSES_AT_ONCE == 0:
                await trio.lowlevel.checkpoint()
        return {
            "nodes": nodes._asdict(),
            "total_diagnoses": len(outboxes),
            "total_connections": sum(seen.values()),
            "connections_by_diagnosis": seen,
            "queued_messages_by_diagnosis": queued,
            "damage_by_diagnosis": damage,
        }


class ConnectionsOpen:
    """How many connections are open, whatever they are for, at all servers on one store."""

    def __init__(self, bus: Bus, here: Callable[[], int]) -> None:
        """Answer others for this server, which has `here`."""
        self._bus = bus
        self._here = here
        bus.answer(CONNECTIONS_OPEN, self._answer)

    async def everywhere(self) -> int:
        """Those of this server, and of all others that answer in time."""
        others = await self._bus.ask(CONNECTIONS_OPEN, b"", ASK_SECONDS_MAX) if self._bus.others() else {}
        return self._here() + sum(int(one) for one in others.values() if one.isdigit())

    async def _answer(self, node: str, data: bytes) -> bytes:
        return str(self._here()).encode()


def status(
    figures: Figures,
    store: StoreUpkeep,
    clock: Clock,
    connections_open: ConnectionsOpen,
    is_escalated: Callable[[], Awaitable[bool]],
    is_ending: Callable[[], bool],
    began_at: float,
) -> Handlers:
    """The operations that only look.

    Args:
        is_escalated: whether so many diagnoses were quarantined lately that the server should get no new work.
        is_ending: whether the server ends.
        began_at: when the server began, on the monotonic clock.
    """
    release = version("avicenna-live")

    async def show_status(asked: Request) -> Answer:
        held_since = store.clock_held_since
        shown = {
            **await figures.for_(asked.who),
            "connections_open": await connections_open.everywhere(),
            "clock_held_since": None if held_since is None else wire.timestamp(held_since),
            "uptime_seconds": round(clock.monotonic() - began_at, 3),
            "version": release,
        }
        return answer(shown)

    async def healthy(asked: Request) -> Answer:
        return answer({"status": "ok"})

    async def ready(asked: Request) -> Answer:
        later = retry_after(RETRY_AFTER_SECONDS)
        if is_ending():
            raise Problem("draining", "the server is stopping", later)
        if store.statistics().broken is not None:
            raise Problem("storage_unavailable", "the store has failed: the server stops", later)
        if figures.is_away:
            raise Problem("storage_unavailable", "the store does not answer", later)
        if figures.is_stalled:
            raise Problem("storage_unavailable", "the disk does not answer", later)
        if await is_escalated():
            detail = "many diagnoses were quarantined lately: this server should get no new work"
            raise Problem("quarantined", detail, later)
        return answer({"status": "ready"})

    return {"getStatus": show_status, "getHealth": healthy, "getReadiness": ready}


async def _keys(store: StoreUpkeep) -> dict[str, object]:
    keys = await store.idempotency_keys()
    oldest = None if keys.oldest_seconds is None else round(keys.oldest_seconds, 3)
    return {
        "idempotency_keys": keys.count,
        "idempotency_keys_max": keys.limit,
        "idempotency_keys_oldest_seconds": oldest,
    }


async def _outboxes(store: DiagnosisStore, owner: str | None) -> list[Outbox]:
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
