"""`/actors`: look at diagnosis actors, restart and stop them, look after their outboxes and subscribers.

Everything here needs the scope `operate`, and every act leaves one audit row (PROTOCOL section 8), stored before it is
done or with it: what leaves no row is not done.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from functools import partial
from math import inf
from typing import Final, cast

from actors.acts import Acts
from actors.messages import Forget, Forgotten, Inspect, Purge
from actors.peers import ActorAt
from actors.registry import Registry
from actors.slot import WORST_FIRST, ActorState
from actors.statistics import LAG_SHOWN, ActorStatistics, Lag
from actors.transport import Ending
from actors.which import OfUser
from storage.errors import OutboxDamaged
from storage.records import Cursor, Diagnosis, Event, Seq, SubscriberId, Window
from storage.store import CursorStore, Store
from web.contract import wire
from web.contract.errors import Problem
from web.contract.exchange import Answer, Handlers, Request, answer
from web.contract.paging import PAGE_BYTES_MAX, Shown, page_of
from web.contract.principals import Principal
from web.contract.records import DEVICE, DEVICE_RULE, diagnosis_id_as_json, diagnosis_id_of
from web.http.bodies import whole_request
from web.identity import rights
from web.identity.access import Access, require
from web.operating.audit_rows import act, disconnected_object, positions, row_of

_WORST: Final[dict[str, int]] = {state: place for place, state in enumerate(WORST_FIRST)}
"""One that a newer version has is taken for no trouble."""


ACTORS_AT_ONCE: Final = 50
"""Resting diagnoses whose cursors are read from the store at once. Reason: commits wait for that, some milliseconds."""


def actors(access: Access, acts: Acts, registry: Registry, store: Store) -> Handlers:
    """The operations on actors, their outboxes and subscribers."""

    async def named(asked: Request) -> Diagnosis:
        """The diagnosis in the path."""
        return await store.get(diagnosis_id_of(asked.parameters["diagnosis_id"]))

    async def announce(who: Principal, what: str, before: ActorStatistics, state: ActorState, incarnation: int) -> None:
        """Store the row of an act that follows: what is, and what will be."""
        announced = act(
            who,
            what,
            diagnosis_id=before.diagnosis_id,
            state=before.state,
            incarnation=before.incarnation,
            next_state=state,
            next_incarnation=incarnation,
        )
        access.judge_token(who)
        await acts.store.record(row_of(announced))

    async def actor_as_answer(diagnosis: Diagnosis) -> Answer:
        try:
            window = (await store.read_after(diagnosis.diagnosis_id, Seq(0), 0)).window
        except OutboxDamaged as damaged:
            window = damaged.damage.window(diagnosis.epoch)
        diagnosis_id = diagnosis.diagnosis_id
        elsewhere = await registry.actors_elsewhere([diagnosis_id])
        (behind,) = await _behind(registry, store, [diagnosis_id])
        online = await _online_elsewhere(registry, [(diagnosis_id, window, behind)])
        return answer(_actor(registry, diagnosis_id, window, behind, elsewhere[diagnosis_id], online))

    async def list_actors(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        page = page_of(asked.query)
        outboxes = await store.outboxes(after=page.after, limit=page.limit + 1)
        shown, wanted = Shown(), [one.diagnosis_id for one in outboxes[: page.limit]]
        elsewhere = await registry.actors_elsewhere(wanted)
        for first in range(0, len(wanted), ACTORS_AT_ONCE):
            behind = await _behind(registry, store, wanted[first : first + ACTORS_AT_ONCE])
            some = [
                (one.diagnosis_id, one.window, cursors) for one, cursors in zip(outboxes[first:], behind, strict=False)
            ]
            online = await _online_elsewhere(registry, some)
            for diagnosis_id, window, cursors in some:
                if not shown.is_full:
                    shown.add(_actor(registry, diagnosis_id, window, cursors, elsewhere[diagnosis_id], online))
            if shown.is_full:
                break
        return answer(page.answer(outboxes, shown, lambda one: one.diagnosis_id))

    async def show_actor(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        return await actor_as_answer(await named(asked))

    async def restart(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        await whole_request(asked)
        diagnosis = await named(asked)
        before = registry.statistics_of(diagnosis.diagnosis_id)

        async def carry_out() -> None:
            await announce(asked.who, "actor.restart", before, ActorState.RUNNING, before.incarnation + 1)
            await registry.restart(diagnosis.diagnosis_id)
            # Answered once the new incarnation has loaded its outbox and finished what was in hand.
            await registry.ask(diagnosis.diagnosis_id, Inspect())

        await acts.carry_through(carry_out)
        return await actor_as_answer(diagnosis)

    async def stop(asked: Request) -> Answer:
        require(asked.who, rights.OPERATE)
        await whole_request(asked)
        diagnosis = await named(asked)
        before = registry.statistics_of(diagnosis.diagnosis_id)

        async def carry_out() -> None:
            await announce(asked.who, "actor.stop", before, ActorState.PASSIVE, before.incarnation)
            await registry.stop(diagnosis.diagnosis_id)

        await acts.carry_through(carry_out)
        return await actor_as_answer(diagnosis)

    async def show_outbox(asked: Request) -> Answer:
        who = asked.who
        require(who, rights.OPERATE)
        diagnosis_id, page = (await named(asked)).diagnosis_id, page_of(asked.query)
        if (payload := asked.query.get("payload", "1")) not in ("0", "1"):
            raise Problem("invalid_field", "payload must be 0 or 1")
        found = await store.read_after(diagnosis_id, Seq(page.after_number), page.limit + 1, PAGE_BYTES_MAX)
        show = partial(wire.event_object if payload == "1" else wire.event_head, diagnosis_id)
        shown = page.of(found.events, show, lambda event: str(event.seq))
        if payload == "1" and found.events:
            count = len(cast("list[object]", shown["items"]))
            await record_reading(who, diagnosis_id, found.window, found.events[:count])
        return answer(shown)

    async def record_reading(who: Principal, diagnosis_id: str, window: Window, events: Sequence[Event]) -> None:
        """Store the row of a reading that follows."""
        reading = act(who, "outbox.read", diagnosis_id=diagnosis_id, **positions(window))
        read = reading.adding(first=events[0].seq, last=events[-1].seq, events=len(events))
        access.judge_token(who)
        await store.record(row_of(read))

    async def purge(asked: Request) -> Answer:
        who = asked.who
        require(who, rights.OPERATE)
        await whole_request(asked)
        diagnosis_id = (await named(asked)).diagnosis_id
        message = Purge(act(who, "outbox.purge", diagnosis_id=diagnosis_id), access.judge_of(who, rights.may_operate))

        async def purge_damaged() -> Window:
            access.judge_token(who)
            return (await acts.store.purge(diagnosis_id, message.act)).after

        try:
            window = await access.told(who, acts.ask(diagnosis_id, message))
        except OutboxDamaged:
            # No actor has it in memory: the store drops the damage with the events, if it can.
            window = await acts.carry_through(purge_damaged)
        return answer(_window(diagnosis_id, window))

    async def disconnect(asked: Request) -> Answer:
        who, query = asked.who, asked.query
        require(who, rights.OPERATE)
        await whole_request(asked)
        diagnosis_id = (await named(asked)).diagnosis_id
        sub, device, forget = query.get("sub"), query.get("device"), query.get("forget", "0")
        if device is not None and not DEVICE.fullmatch(device):
            raise Problem("invalid_field", f"device {DEVICE_RULE}")
        if forget not in ("0", "1"):
            raise Problem("invalid_field", "forget must be 0 or 1")

        meant = OfUser(sub, device)

        parting = act(who, "subscriber.disconnect", diagnosis_id=diagnosis_id, sub=sub, device=device)

        async def disconnect_all() -> Forgotten:
            elsewhere = await registry.count_elsewhere(diagnosis_id, meant)
            access.judge_token(who)
            connections = elsewhere + registry.count_where(diagnosis_id, meant)
            await acts.store.record(row_of(parting.adding(connections=connections)))
            ended = await registry.end_where(diagnosis_id, meant, Ending.DISCONNECTED)
            return Forgotten(ended + await registry.disconnect_elsewhere(diagnosis_id, meant, forget=False), 0)

        async def forget_all() -> Forgotten:
            elsewhere = await registry.count_elsewhere(diagnosis_id, meant)
            message = Forget(meant, parting, access.judge_of(who, rights.may_operate), elsewhere)
            done = await registry.ask(diagnosis_id, message)
            ended = await registry.disconnect_elsewhere(diagnosis_id, meant, forget=True)
            return Forgotten(done.connections + ended, done.cursors)

        if forget == "1":
            done = await access.told(who, acts.carry_through(forget_all))
        else:
            done = await acts.carry_through(disconnect_all)
        return answer(disconnected_object(done.connections, done.cursors))

    return {
        "listActors": list_actors,
        "getActor": show_actor,
        "restartActor": restart,
        "stopActor": stop,
        "getOutbox": show_outbox,
        "purgeOutbox": purge,
        "disconnectSubscribers": disconnect,
    }


async def _behind(registry: Registry, store: CursorStore, diagnosis_ids: Sequence[str]) -> list[Sequence[Cursor]]:
    """The cursors that are furthest behind in each of these diagnoses, of those that rest; of others: none."""
    resting = [one for one in diagnosis_ids if registry.window(one) is None]
    found = dict(zip(resting, await store.furthest_behind(resting, LAG_SHOWN), strict=True)) if resting else {}
    return [found.get(one, ()) for one in diagnosis_ids]


async def _online_elsewhere(
    registry: Registry, some: Sequence[tuple[str, Window, Sequence[Cursor]]]
) -> Collection[tuple[str, SubscriberId]]:
    """Which of the subscribers that are shown with their lag have a connection at other processes, by diagnosis."""
    if registry.nodes_known == 1:
        return ()
    return await registry.online_elsewhere(
        [(one, [lag.subscriber for lag in _lag_shown(registry, one, window, cursors)]) for one, window, cursors in some]
    )


def _lag_shown(registry: Registry, diagnosis_id: str, outbox: Window, behind: Sequence[Cursor]) -> Sequence[Lag]:
    statistics = registry.statistics_of(diagnosis_id)
    stored = outbox if statistics.damage is None else statistics.damage.window(outbox.epoch)
    return _lag_of(behind, statistics.window or stored) if statistics.lag is None else statistics.lag


def _actor(
    registry: Registry,
    diagnosis_id: str,
    outbox: Window,
    behind: Sequence[Cursor],
    elsewhere: Mapping[str, ActorAt],
    online: Collection[tuple[str, SubscriberId]],
) -> dict[str, object]:
    """An actor as PROTOCOL section 8 shows it; of a resting one, window and lag come from the store.

    Of a damaged one they are what is left once the damage is dropped.

    Args:
        behind: its lowest cursors in the store.
        elsewhere: this actor at other processes.
        online: as `_online_elsewhere`.
    """
    statistics = registry.statistics_of(diagnosis_id)
    nodes = {registry.node: registry.actor_at(diagnosis_id), **elsewhere}
    damage = statistics.damage
    stored = outbox if damage is None else damage.window(outbox.epoch)
    window = statistics.window or stored
    together = _together(list(nodes.values()))
    shown: dict[str, object] = {
        **_window(diagnosis_id, window),
        **_node(together),
        "restarts": together.restarts,
        "damage": None if damage is None else damage.what,
        "recent_restarts": [
            {
                "incarnation": one.incarnation,
                "at": wire.timestamp(one.at),
                "reason": one.reason,
                "error": one.error,
            }
            for one in statistics.recent
        ],
        "lag": [
            {
                "user_id": one.subscriber.sub,
                "device": one.subscriber.device,
                "online": one.online or (diagnosis_id, one.subscriber) in online,
                "cursor": one.cursor,
                "lag": one.events,
            }
            for one in _lag_shown(registry, diagnosis_id, outbox, behind)
        ],
    }
    if registry.nodes_known > 1:
        shown["nodes"] = [{"node": name} | _node(one) for name, one in nodes.items()]
    return shown


def _node(one: ActorAt) -> dict[str, object]:
    """What is shown of an actor at one process."""
    crash = None if one.crashed_at is None else {"at": wire.timestamp(one.crashed_at), "error": one.crash}
    return {
        "state": one.state,
        "incarnation": one.incarnation,
        "subscribers": one.connections,
        "mailbox": {"depth": one.mailbox_depth, "limit": one.mailbox_limit},
        "last_crash": crash,
    }


def _together(actors: Sequence[ActorAt]) -> ActorAt:
    """An actor at several processes: the worst state, the highest incarnation, the last crash, and sums."""
    last = max(actors, key=lambda one: -inf if one.crashed_at is None else one.crashed_at)
    return ActorAt(
        min((one.state for one in actors), key=lambda state: _WORST.get(state, len(_WORST))),
        max(one.incarnation for one in actors),
        sum(one.connections for one in actors),
        sum(one.mailbox_depth for one in actors),
        sum(one.mailbox_limit for one in actors),
        sum(one.restarts for one in actors),
        last.crashed_at,
        last.crash,
    )


def _lag_of(cursors: Sequence[Cursor], window: Window) -> tuple[Lag, ...]:
    positions = [(one, one.seq if one.epoch == window.epoch else Seq(0)) for one in cursors]
    # Of a damaged diagnosis less may be left than somebody has acknowledged.
    lags = [(one.subscriber, seq, max(0, window.head - seq)) for one, seq in positions]
    return tuple(Lag(subscriber, online=False, cursor=seq, events=events) for subscriber, seq, events in lags)


def _window(diagnosis_id: str, window: Window) -> dict[str, object]:
    return {"diagnosis_id": diagnosis_id_as_json(diagnosis_id), **positions(window)}
