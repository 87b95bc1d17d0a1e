"""Where a diagnosis stands and what became of an event: `/diagnoses/{id}/position` and `/delivery`."""

from __future__ import annotations

import base64

from quart import Blueprint, Response, request

from actors.messages import Delivery, Inspect, Trace
from storage.records import Seq
from web import rights, wire
from web.access import ask_for, authenticate, authorized_diagnosis, authorized_to_follow
from web.bodies import answer
from web.errors import Problem
from web.paging import page_of
from web.records import NUMBER, diagnosis_id_of
from web.services import Services


def positions(services: Services) -> Blueprint:
    """The two routes."""
    blueprint = Blueprint("positions", __name__)
    anonymous_allowed = services.settings.allow_anonymous

    @blueprint.get("/diagnoses/<diagnosis_id>/position")
    async def position(diagnosis_id: str) -> Response:
        who = authenticate(services, anonymous_allowed=anonymous_allowed)
        diagnosis = await authorized_to_follow(services, who, diagnosis_id_of(diagnosis_id))
        window = await ask_for(services, who, diagnosis.diagnosis_id, Inspect())
        return answer({"epoch": window.epoch, "head": window.head, "floor": window.floor})

    @blueprint.get("/diagnoses/<diagnosis_id>/delivery")
    async def delivery(diagnosis_id: str) -> Response:
        who = authenticate(services)
        diagnosis = await authorized_diagnosis(services, who, diagnosis_id_of(diagnosis_id), rights.may_broadcast)
        window = await ask_for(services, who, diagnosis.diagnosis_id, Inspect())
        text = request.args.get("seq", "")
        if not NUMBER.fullmatch(text) or not 1 <= int(text) <= window.head:
            raise Problem("invalid_field", f"seq must be an integer from 1 to the head, {window.head}")
        page = page_of(request.args)
        found = await ask_for(services, who, diagnosis.diagnosis_id, Trace(Seq(int(text))))
        after = _key_after(page.after)
        later = sorted((one for one in found if _key(one) > after), key=_key)
        return answer(page.of(later, _shown, lambda one: _bookmark(_key(one))))

    return blueprint


def _key(delivery: Delivery) -> str:
    """Orders subscribers by name; neither name can hold the separator."""
    return f"{delivery.subscriber.sub or ''}\n{delivery.subscriber.device or ''}"


def _bookmark(key: str) -> str:
    """A key as it travels in a URL."""
    return base64.urlsafe_b64encode(key.encode()).rstrip(b"=").decode()


def _key_after(bookmark: str) -> str:
    try:
        return base64.b64decode(bookmark + "=" * (-len(bookmark) % 4), b"-_", validate=True).decode()
    except ValueError:
        raise Problem("invalid_field", "after must be the next of an earlier answer") from None


def _shown(delivery: Delivery) -> dict[str, object]:
    at = delivery.acknowledged_at
    return {
        "user_id": delivery.subscriber.sub,
        "device": delivery.subscriber.device,
        "online": delivery.online,
        "cursor": delivery.cursor,
        "state": delivery.state.value,
        "acknowledged_at": None if at is None else wire.timestamp(at),
        "acknowledged_by": delivery.acknowledged_by,
    }
