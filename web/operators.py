"""`/actors`: look at diagnosis actors, restart and stop them, look after their outboxes and subscribers.

Everything here needs the scope `operate`, and every act leaves one audit row (PROTOCOL section 8), stored before it is
done or with it: what leaves no row is not done.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

from quart import Blueprint, Response, request

from actors.messages import Forget, Forgotten, Inspect, Purge
from actors.registry import LAG_SHOWN, ActorStatistics, Lag
from actors.subscriber import Ending, Subscriber
from actors.supervisor import ActorState
from storage.errors import NoSuchDiagnosis, OutboxDamaged
from storage.records import Cursor, Diagnosis, NewAuditRow, Purged, Seq, SubscriberId, Window
from web import rights, wire
from web.access import ask_for, authenticate_for
from web.bodies import answer, whole_request
from web.errors import Problem
from web.judging import judge_of, judge_token
from web.paging import PAGE_BYTES_MAX, Shown, page_of
from web.records import DEVICE, DEVICE_RULE, diagnosis_id_as_json, diagnosis_id_of
from web.services import Services
from web.tokens import Principal


def operators(services: Services) -> Blueprint:
    """The routes of the operators."""
    blueprint = Blueprint("operators", __name__)

    @blueprint.get("/actors")
    async def list_actors() -> Response:
        authenticate_for(services, rights.OPERATE)
        page = page_of(request.args)
        outboxes = await services.store.outboxes(after=page.after, limit=page.limit + 1)
        shown = Shown()
        for one in outboxes[: page.limit]:
            if shown.is_full:
                break
            shown.add(await _actor(services, one.diagnosis_id, one.window))
        return answer(page.answer(outboxes, shown, lambda one: one.diagnosis_id))

    @blueprint.get("/actors/<diagnosis_id>")
    async def show_actor(diagnosis_id: str) -> Response:
        authenticate_for(services, rights.OPERATE)
        diagnosis = await services.store.get(diagnosis_id_of(diagnosis_id))
        return await _answer_with_actor(services, diagnosis)

    @blueprint.post("/actors/<diagnosis_id>/restart")
    async def restart(diagnosis_id: str) -> Response:
        who = authenticate_for(services, rights.OPERATE)
        await whole_request()
        diagnosis = await services.store.get(diagnosis_id_of(diagnosis_id))
        before = services.registry.statistics_of(diagnosis.diagnosis_id)

        async def carry_out() -> None:
            await _announce(services, who, "actor.restart", before, ActorState.RUNNING, before.incarnation + 1)
            await services.registry.restart(diagnosis.diagnosis_id)
            # Answered once the new incarnation has loaded its outbox and finished what was in hand.
            await services.registry.ask(diagnosis.diagnosis_id, Inspect())

        await services.acts.carry_through(carry_out)
        return await _answer_with_actor(services, diagnosis)

    @blueprint.post("/actors/<diagnosis_id>/stop")
    async def stop(diagnosis_id: str) -> Response:
        who = authenticate_for(services, rights.OPERATE)
        await whole_request()
        diagnosis = await services.store.get(diagnosis_id_of(diagnosis_id))
        before = services.registry.statistics_of(diagnosis.diagnosis_id)

        async def carry_out() -> None:
            await _announce(services, who, "actor.stop", before, ActorState.PASSIVE, before.incarnation)
            await services.registry.stop(diagnosis.diagnosis_id)

        await services.acts.carry_through(carry_out)
        return await _answer_with_actor(services, diagnosis)

    @blueprint.get("/actors/<diagnosis_id>/outbox")
    async def show_outbox(diagnosis_id: str) -> Response:
        authenticate_for(services, rights.OPERATE)
        diagnosis = await services.store.get(diagnosis_id_of(diagnosis_id))
        page = page_of(request.args)
        found = await services.store.read_after(
            diagnosis.diagnosis_id, Seq(page.after_number), page.limit + 1, PAGE_BYTES_MAX
        )
        return answer(
            page.of(
                found.events,
                lambda event: wire.event_object(diagnosis.diagnosis_id, event),
                lambda event: str(event.seq),
            )
        )

    @blueprint.delete("/actors/<diagnosis_id>/outbox")
    async def purge(diagnosis_id: str) -> Response:
        who = authenticate_for(services, rights.OPERATE)
        await whole_request()
        diagnosis = await services.store.get(diagnosis_id_of(diagnosis_id))
        purge = Purge(partial(_purging, who, diagnosis.diagnosis_id), judge_of(services, who, rights.may_operate))
        try:
            window = await ask_for(services, who, diagnosis.diagnosis_id, purge)
        except OutboxDamaged:
            # No actor has it in memory: the store drops the damage with the events, if it can.
            window = await services.acts.carry_through(partial(_purge_damaged, services, who, diagnosis, purge))
        return answer(_window(diagnosis.diagnosis_id, window))

    @blueprint.delete("/actors/<diagnosis_id>/subscribers")
    async def disconnect(diagnosis_id: str) -> Response:
        who = authenticate_for(services, rights.OPERATE)
        await whole_request()
        diagnosis = await services.store.get(diagnosis_id_of(diagnosis_id))
        sub, device, forget = request.args.get("sub"), request.args.get("device"), request.args.get("forget", "0")
        if device is not None and not DEVICE.fullmatch(device):
            raise Problem("invalid_field", f"device {DEVICE_RULE}")
        if forget not in ("0", "1"):
            raise Problem("invalid_field", "forget must be 0 or 1")
        return await _disconnect(services, who, diagnosis.diagnosis_id, sub, device, forget=forget == "1")

    return blueprint


async def _purge_damaged(services: Services, who: Principal, diagnosis: Diagnosis, purge: Purge) -> Window:
    judge_token(services, who)
    purged = await services.acts.store.purge(diagnosis.diagnosis_id, purge.audit)
    return purged.after


async def _disconnect(
    services: Services, who: Principal, diagnosis_id: str, sub: str | None, device: str | None, *, forget: bool
) -> Response:
    def meant(subscriber_id: SubscriberId) -> bool:
        return subscriber_id.sub == sub and device in (None, subscriber_id.device)

    def picked(subscriber: Subscriber) -> bool:
        return meant(subscriber.id)

    def act(done: Forgotten) -> NewAuditRow:
        named, after = wire.encode({"sub": sub, "device": device}), wire.encode(_disconnected(done))
        what = "subscriber.disconnect"
        return NewAuditRow(who.sub or "", what, diagnosis_id, named.decode(), after.decode(), diagnosis_id)

    if forget:
        message = Forget(meant, act, judge_of(services, who, rights.may_operate))
        return answer(_disconnected(await ask_for(services, who, diagnosis_id, message)))

    async def carry_out() -> int:
        judge_token(services, who)
        await services.acts.store.record(act(Forgotten(services.registry.count_where(diagnosis_id, picked), 0)))
        return await services.registry.end_where(diagnosis_id, picked, Ending.DISCONNECTED)

    return answer(_disconnected(Forgotten(await services.acts.carry_through(carry_out), 0)))


def _disconnected(done: Forgotten) -> dict[str, object]:
    return {"disconnected": done.connections, "forgotten": done.cursors}


def _purging(who: Principal, diagnosis_id: str, purged: Purged) -> NewAuditRow:
    before, after = (wire.encode(_positions(window)).decode() for window in (purged.before, purged.after))
    return NewAuditRow(who.sub or "", "outbox.purge", diagnosis_id, before, after, diagnosis_id)


async def _announce(
    services: Services, who: Principal, act: str, before: ActorStatistics, state: ActorState, incarnation: int
) -> None:
    """Store the row of an act that follows: what is, and what will be."""
    named = before.diagnosis_id
    was, will_be = _in_short(before.state, before.incarnation), _in_short(state, incarnation)
    judge_token(services, who)
    await services.acts.store.record(NewAuditRow(who.sub or "", act, named, was, will_be, diagnosis_id=named))


def _in_short(state: ActorState, incarnation: int) -> str:
    return wire.encode({"state": state, "incarnation": incarnation}).decode()


async def _answer_with_actor(services: Services, diagnosis: Diagnosis) -> Response:
    try:
        window = (await services.store.read_after(diagnosis.diagnosis_id, Seq(0), 0)).window
    except OutboxDamaged as damaged:
        window = damaged.damage.window(diagnosis.epoch)
    return answer(await _actor(services, diagnosis.diagnosis_id, window))


async def _actor(services: Services, diagnosis_id: str, outbox: Window) -> dict[str, object]:
    """An actor as PROTOCOL section 8 shows it; of a resting one, window and lag come from the store.

    Of a damaged one they are what is left once the damage is dropped.
    """
    statistics = services.registry.statistics_of(diagnosis_id)
    damage = statistics.damage
    stored = outbox if damage is None else damage.window(outbox.epoch)
    window = statistics.window or stored
    lag = statistics.lag
    if lag is None:
        try:
            lag = _lag_of(await services.store.cursors(diagnosis_id), window)
        except NoSuchDiagnosis:  # deleted since it was listed
            lag = ()
    crash = statistics.last_crash
    return {
        **_window(diagnosis_id, window),
        "state": statistics.state.value,
        "incarnation": statistics.incarnation,
        "subscribers": statistics.connections,
        "mailbox": {"depth": statistics.mailbox.depth, "limit": statistics.mailbox.limit},
        "restarts": statistics.restarts,
        "last_crash": None if crash is None else {"at": wire.timestamp(crash.at), "error": crash.error},
        "damage": None if damage is None else damage.what,
        "lag": [
            {
                "user_id": one.subscriber.sub,
                "device": one.subscriber.device,
                "online": one.online,
                "cursor": one.cursor,
                "lag": one.events,
            }
            for one in lag
        ],
    }


def _lag_of(cursors: Sequence[Cursor], window: Window) -> tuple[Lag, ...]:
    positions = [(one, one.seq if one.epoch == window.epoch else Seq(0)) for one in cursors]
    behind = sorted(positions, key=lambda pair: pair[1])[:LAG_SHOWN]
    # Of a damaged diagnosis less may be left than somebody has acknowledged.
    lags = [(one.subscriber, seq, max(0, window.head - seq)) for one, seq in behind]
    return tuple(Lag(subscriber, online=False, cursor=seq, events=events) for subscriber, seq, events in lags)


def _window(diagnosis_id: str, window: Window) -> dict[str, object]:
    return {"diagnosis_id": diagnosis_id_as_json(diagnosis_id), **_positions(window)}


def _positions(window: Window) -> dict[str, object]:
    return {"epoch": window.epoch, "head": window.head, "floor": window.floor}
