"""Where a diagnosis stands and what became of an event: `/diagnoses/{id}/position` and `/delivery`."""

from __future__ import annotations

import base64

from actors.acts import Acts
from actors.messages import Delivery, Inspect, Trace
from actors.registry import Registry
from storage.errors import NoSuchDiagnosis
from storage.records import Seq, SubscriberId
from storage.store import EventStore
from web.contract import wire
from web.contract.errors import Problem
from web.contract.exchange import Answer, Handlers, Request, answer
from web.contract.paging import page_of
from web.contract.records import NUMBER, diagnosis_id_of
from web.identity import rights
from web.identity.access import Access


def delivery(access: Access, acts: Acts, registry: Registry, store: EventStore) -> Handlers:
    """Both operations."""

    async def position(asked: Request) -> Answer:
        diagnosis = await access.diagnosis_to_follow(asked.who, diagnosis_id_of(asked.parameters["diagnosis_id"]))
        window = registry.window(diagnosis.diagnosis_id)
        if window is None:
            # No event is read: asking for a position must not load an outbox of megabytes.
            try:
                window = (await store.read_after(diagnosis.diagnosis_id, Seq(0), 0)).window
            except NoSuchDiagnosis:
                raise access.absent(asked.who) from None
        return answer({"epoch": window.epoch, "head": window.head, "floor": window.floor})

    async def trace(asked: Request) -> Answer:
        checked_id = diagnosis_id_of(asked.parameters["diagnosis_id"])
        diagnosis = await access.diagnosis_for(asked.who, checked_id, rights.may_broadcast)
        window = await access.told(asked.who, acts.ask(diagnosis.diagnosis_id, Inspect()))
        text = asked.query.get("seq", "")
        if not NUMBER.fullmatch(text) or not 1 <= int(text) <= window.head:
            raise Problem("invalid_field", f"seq must be an integer from 1 to the head, {window.head}")
        page = page_of(asked.query)
        message = Trace(Seq(int(text)), _subscriber_of(page.after), page.limit + 1)
        here = await access.told(asked.who, acts.ask(diagnosis.diagnosis_id, message))
        found = await registry.with_elsewhere(diagnosis.diagnosis_id, message.seq, here)
        return answer(page.of(found, _shown, lambda one: _bookmark(one.subscriber)))

    return {"getPosition": position, "getDelivery": trace}


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
