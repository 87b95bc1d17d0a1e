"""`POST /ws/broadcast-*`: an update from a service becomes an event of its diagnosis (PROTOCOL section 7)."""

from __future__ import annotations

from quart import Blueprint, Response

from actors.messages import Publish, Receipt
from web import wire
from web.access import ask_for, authenticate, authorized_diagnosis
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
    key = idempotency_key()
    update = wire.decode_update(kind, await read_json_body())
    diagnosis_id = diagnosis_id_of(update.diagnosis_id)
    event = wire.new_event(update, key)
    await authorized_diagnosis(services, who, diagnosis_id, may_broadcast)
    publish = Publish(event, judge_of(services, who, may_broadcast))
    receipt = await ask_for(services, who, diagnosis_id, publish)
    return answer({"status": "broadcasted", **shown_receipt(diagnosis_id, receipt)})


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
