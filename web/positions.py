"""Where a diagnosis stands and what became of an event: `/diagnoses/{id}/position` and `/delivery`."""

from __future__ import annotations

import base64

from quart import Blueprint, Response, request

from actors.messages import Delivery, Inspect, Trace
from storage.errors import NoSuchDiagnosis
from storage.records import Seq, SubscriberId
from web import rights, wire
from web.access import ask_for, authenticate, authorized_diagnosis, authorized_to_follow
from web.bodies import answer
from web.errors import Problem
from web.judging import absent
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
        window = services.registry.window(diagnosis.diagnosis_id)
        if window is None:
            # No event is read: asking for a position must not load an outbox of megabytes.
            try:
                window = (await services.store.read_after(diagnosis.diagnosis_id, Seq(0), 0)).window
            except NoSuchDiagnosis:
                raise absent(services, who) from None
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
        trace = Trace(Seq(int(text)), _subscriber_of(page.after), page.limit + 1)
        found = await ask_for(services, who, diagnosis.diagnosis_id, trace)
        return answer(page.of(found, _shown, lambda one: _bookmark(one.subscriber)))

    return blueprint


def _bookmark(subscriber: SubscriberId) -> str:
    """A subscriber as it travels in a URL; neither name can hold the separator."""
    return base64.urlsafe_b64encode("\n".join(subscriber.order).encode()).rstrip(b"=").decode()


def _subscriber_of(bookmark: str) -> SubscriberId | None:
    """The subscriber that a bookmark names; `None`: an empty one names none."""
    if not bookmark:
        return None
    try:
        text = base64.b64decode(bookmark + "=" * (-len(bookmark) % 4), b"-_", validate=True).decode()
        sub, device = text.split("\n")
    except ValueError:
        raise Problem("invalid_field", "after must be the next of an earlier answer") from None
    return SubscriberId(sub or None, device or None)


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
