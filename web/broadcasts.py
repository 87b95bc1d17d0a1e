"""`POST /ws/broadcast-*`: an update from a service becomes an event of its diagnosis (PROTOCOL section 7)."""

from __future__ import annotations

from quart import Blueprint, Response

from actors.messages import Publish, Receipt
from web import wire
from web.access import ask_for, authenticate, authorized_diagnosis, check_may_broadcast_something, count_event
from web.bodies import answer, idempotency_key, read_json_body
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


def broadcasts(services: Services) -> Blueprint:
    """The three broadcast routes."""
    blueprint = Blueprint("broadcasts", __name__)

    @blueprint.post("/ws/broadcast-recommendation-update")
    async def recommendation() -> Response:
        return await _broadcast(services, RecommendationUpdate)

    @blueprint.post("/ws/broadcast-effectiveness-update")
    async def effectiveness() -> Response:
        return await _broadcast(services, EffectivenessUpdate)

    @blueprint.post("/ws/broadcast-feedback-update")
    async def feedback() -> Response:
        return await _broadcast(services, FeedbackUpdate)

    return blueprint


async def _broadcast(services: Services, kind: type[Update]) -> Response:
    who = authenticate(services)
    count_event(services, who)
    key = idempotency_key()
    body = await read_json_body()
    target = await authorized_target(services, who, body, "the body")
    update = wire.decode_update(kind, body)
    diagnosis_id = diagnosis_id_of(update.diagnosis_id)
    event = wire.new_event(update, key)
    if diagnosis_id != target:
        await authorized_diagnosis(services, who, diagnosis_id, may_broadcast)
    publish = Publish(event, judge_of(services, who, may_broadcast))
    receipt = await ask_for(services, who, diagnosis_id, publish)
    return answer({"status": "broadcasted", **shown_receipt(diagnosis_id, receipt)})


async def authorized_target(services: Services, who: Principal, text: bytes, what: str) -> str | None:
    """The diagnosis that a broadcast is for, if `who` may broadcast to it: judged before all that costs.

    `None`: it names none, decoding will say why; and `who` may broadcast to some diagnosis.

    Raises:
        Problem: as `authorized_diagnosis`, or `wire.target_of`.
    """
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
