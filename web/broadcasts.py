"""`POST /ws/broadcast-*`: an update from a service becomes an event of its diagnosis (PROTOCOL section 7)."""

from __future__ import annotations

from typing import Final

from quart import Blueprint, Response

from actors.messages import Publish, Receipt
from storage.records import NewEvent
from web import wire
from web.access import ask_for, authenticate, authorized_diagnosis, check_may_broadcast_something, count_event
from web.bodies import BODY_BYTES_MAX, COST_BYTES, answer, idempotency_key, read_json_body
from web.body_room import Allowance, Room
from web.judging import judge_of
from web.records import (
    EffectivenessUpdate,
    FeedbackUpdate,
    RecommendationUpdate,
    Update,
    diagnosis_id_as_json,
    diagnosis_id_of,
)
from web.rights import may_broadcast
from web.services import Services
from web.tokens import Principal

BODIES_BYTES_MAX: Final = 1024 * BODY_BYTES_MAX
"""Bodies of all single broadcasts that are arriving. Reason: each is held whole, on thousands of connections. Beyond:
429."""

FINDING_SHARE: Final = 16
"""Finding the diagnosis of a body costs at most this fraction (1/n) of decoding it."""


def broadcasts(services: Services) -> Blueprint:
    """The three broadcast routes."""
    blueprint = Blueprint("broadcasts", __name__)
    allowance = Allowance(BODIES_BYTES_MAX)

    @blueprint.post("/ws/broadcast-recommendation-update")
    async def recommendation() -> Response:
        return await _broadcast(services, allowance, RecommendationUpdate)

    @blueprint.post("/ws/broadcast-effectiveness-update")
    async def effectiveness() -> Response:
        return await _broadcast(services, allowance, EffectivenessUpdate)

    @blueprint.post("/ws/broadcast-feedback-update")
    async def feedback() -> Response:
        return await _broadcast(services, allowance, FeedbackUpdate)

    return blueprint


async def _broadcast(services: Services, allowance: Allowance, kind: type[Update]) -> Response:
    who = authenticate(services)
    count_event(services, who)
    key = idempotency_key()
    with allowance.room_of(who.sub) as room:
        diagnosis_id, event = await _received(services, who, kind, key, room)
    publish = Publish(event, judge_of(services, who, may_broadcast))
    receipt = await ask_for(services, who, diagnosis_id, publish)
    return answer({"status": "broadcasted", **shown_receipt(diagnosis_id, receipt)})


async def _received(
    services: Services, who: Principal, kind: type[Update], key: str | None, room: Room
) -> tuple[str, NewEvent]:
    """The event in the body of the current request, and its diagnosis, to which `who` may broadcast."""
    body = await read_json_body(room.take)
    target = await authorized_target(services, who, body, "the body")
    await services.decoding_turns.take(who.sub, len(body) + COST_BYTES)
    with services.decoding_turns.at_work():
        update = wire.decode_update(kind, body)
        diagnosis_id = diagnosis_id_of(update.diagnosis_id)
        event = wire.new_event(update, key)
    if diagnosis_id != target:
        await authorized_diagnosis(services, who, diagnosis_id, may_broadcast)
    return diagnosis_id, event


async def authorized_target(services: Services, who: Principal, text: bytes, what: str) -> str | None:
    """The diagnosis that a broadcast is for, if `who` may broadcast to it: judged before all that costs.

    `None`: it names none, decoding will say why; and `who` may broadcast to some diagnosis.

    Raises:
        Problem: as `authorized_diagnosis`, or `wire.target_of`.
    """
    await services.decoding_turns.take(who.sub, len(text) // FINDING_SHARE)
    target = wire.target_of(text, what)
    if target is None:
        await check_may_broadcast_something(services, who)
    else:
        await authorized_diagnosis(services, who, target, may_broadcast)
    return target


def shown_receipt(diagnosis_id: str, receipt: Receipt) -> dict[str, object]:
    """What a publisher is told about an event that is on disk."""
    return {
        "diagnosis_id": diagnosis_id_as_json(diagnosis_id),
        "seq": receipt.seq,
        "epoch": receipt.epoch,
        "clients_notified": receipt.clients_notified,
        "subscribers": {"online": receipt.online, "known": receipt.known, "at_risk": receipt.at_risk},
        "replayed": receipt.replayed,
    }
