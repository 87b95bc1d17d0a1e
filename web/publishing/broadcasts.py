"""`POST /ws/broadcast-*`: an update from a service becomes an event of its diagnosis (PROTOCOL section 7)."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from actors.acts import Acts
from actors.messages import Judge, Publish
from storage.records import NewEvent
from web.contract import wire
from web.contract.errors import Problem
from web.contract.exchange import Answer, Handler, Handlers, Request, answer
from web.contract.principals import Principal
from web.contract.records import (
    EffectivenessUpdate,
    FeedbackUpdate,
    RecommendationUpdate,
    Update,
    diagnosis_id_of,
)
from web.http.bodies import BODY_BYTES_MAX, COST_BYTES, idempotency_key, read_json_body
from web.http.turns import Turns
from web.identity.access import Access
from web.identity.rights import may_broadcast
from web.publishing.body_room import Allowance

BODIES_BYTES_MAX: Final = 1024 * BODY_BYTES_MAX
"""Bodies of all single broadcasts that are arriving. Reason: each is held whole, on thousands of connections. Beyond:
429."""

SHORT_BYTES: Final = 1024
"""The time of decoding a body up to this is not measured. Reason: all that fit into a turn are done in less than what
counts as long."""

FINDING_SHARE: Final = 16
"""Finding the diagnosis of a body costs at most this fraction (1/n) of decoding it."""


class Publisher:
    """Judges and decodes what is to be published, and hands it to actors. One per server."""

    def __init__(self, access: Access, acts: Acts, turns: Turns) -> None:
        """Decode in these turns."""
        self.access = access
        self.acts = acts
        self.turns = turns
        self._judge: tuple[Principal, Judge] | None = None
        """Of whoever published last."""

    async def authorized_target(self, who: Principal, text: bytes, what: str) -> str | None:
        """The diagnosis that a broadcast is for, if `who` may broadcast to it: judged before all that costs.

        `None`: it names none, decoding will say why; and `who` may broadcast to some diagnosis.

        Raises:
            Problem: as `Access.diagnosis_for`, or `wire.target_of`.
        """
        await self.turns.take(who.sub, len(text) // FINDING_SHARE)
        target = wire.target_of(text, what)
        if target is None:
            await self.access.check_may_broadcast_something(who)
        else:
            await self.access.diagnosis_for(who, target, may_broadcast)
        return target

    async def decoded(
        self, who: Principal, text: bytes, what: str, decode: Callable[[bytes], tuple[Update, str | None]]
    ) -> tuple[str, Publish]:
        """The message for an actor that a text holds, and the diagnosis, to which `who` may broadcast.

        Args:
            what: the text in a refusal: "the body".
            decode: gives the update, and its idempotency key.

        Raises:
            Problem: as `authorized_target`, or it cannot be decoded.
        """
        target = await self.authorized_target(who, text, what)
        await self.turns.take(who.sub, len(text) + COST_BYTES)
        if len(text) <= SHORT_BYTES:
            diagnosis_id, event = _event_of(*decode(text))
        else:
            with self.turns.at_work():
                diagnosis_id, event = _event_of(*decode(text))
        if diagnosis_id != target:
            await self.access.diagnosis_for(who, diagnosis_id, may_broadcast)
        # The actor judges again, in the moment of the act.
        return diagnosis_id, Publish(event, self._judge_of(who))

    def _judge_of(self, who: Principal) -> Judge:
        """One for all events of a sender that come together, so that their actor asks it once."""
        if self._judge is None or self._judge[0] is not who:
            self._judge = who, self.access.judge_of(who, may_broadcast)
        return self._judge[1]


def meant_by(text: bytes) -> str | None:
    """The diagnosis that a text means which is refused; `None`: none that could be one."""
    try:
        return wire.target_of(text)
    except Problem:
        return None


def _event_of(update: Update, key: str | None) -> tuple[str, NewEvent]:
    """The event to store, and its diagnosis."""
    return diagnosis_id_of(update.diagnosis_id), wire.new_event(update, key)


def broadcasts(publisher: Publisher) -> Handlers:
    """The three operations that publish one update."""
    allowance = Allowance(BODIES_BYTES_MAX)

    def handler_of(kind: type[Update]) -> Handler:
        async def broadcast(asked: Request) -> Answer:
            publisher.access.count_event(asked.who)
            key = idempotency_key(asked)
            with allowance.room_of(asked.who.sub) as room:
                body = await read_json_body(asked, room.take)
                try:
                    diagnosis_id, publish = await publisher.decoded(
                        asked.who, body, "the body", lambda text: (wire.decode_update(kind, text), key)
                    )
                except Problem:
                    asked.published_to = meant_by(body)
                    raise
            asked.published_to = diagnosis_id
            receipt = await publisher.access.told(asked.who, publisher.acts.ask(diagnosis_id, publish))
            return answer(wire.broadcasted(diagnosis_id, receipt))

        return broadcast

    return {
        "broadcastRecommendationUpdate": handler_of(RecommendationUpdate),
        "broadcastEffectivenessUpdate": handler_of(EffectivenessUpdate),
        "broadcastFeedbackUpdate": handler_of(FeedbackUpdate),
    }
