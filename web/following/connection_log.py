"""The log lines of connections that follow or publish: one line when each ends, and sums of what happens often.

Every line has its fields in the text and, in JSON, as fields of their own. It names no subject unless the operator
wants it to (`log_subjects`), and never anything else that a client has sent but the name of its device.
"""

from __future__ import annotations

import hashlib
import logging
import re
from collections import OrderedDict
from dataclasses import dataclass
from typing import Final, Literal

import trio

from actors.ring import Gap
from actors.roster import Subscriber
from storage.clock import Clock
from storage.records import SubscriberId
from web.contract import wire
from web.contract.errors import CloseCode
from web.contract.exchange import Request
from web.contract.log_fields import FIELDS, REQUEST_ID
from web.contract.records import DEVICE, DIAGNOSIS_ID

SUM_SECONDS: Final = 60.0
"""Gaps of one connection, and take-overs of one subscriber, are summed into one line for so long."""

LOOK_SECONDS: Final = 1.0
"""How often it is looked whether such a line is due."""

TAKEOVERS_MAX: Final = 10_000
"""Subscribers whose take-overs are counted, the last ones. Beyond: one begins anew, with a line of its own."""

DIGEST_CHARACTERS: Final = 16
"""Of the hexadecimal SHA-256 of a subject. Reason: enough to tell millions apart."""

Kind = Literal["WebSocket", "event stream"]
Subjects = Literal["no", "digest", "plain"]
Fields = dict[str, str | int | float | None]

_BARE: Final = re.compile(r"[\w.@:+][\w.@:+-]*")
"""Values that need no quotes."""

_ENDED: Final[dict[Kind, str]] = {"WebSocket": "WebSocket ended: %s", "event stream": "event stream ended: %s"}

logger = logging.getLogger("avicenna.connections")


@dataclass(slots=True)
class _Sum:
    """What one line will say."""

    since: float
    latest: float
    times: int = 0
    events: int = 0


class ConnectionLog:
    """The lines about connections. One per server."""

    def __init__(self, clock: Clock, *, subjects: Subjects = "no") -> None:
        """A log whose sums are written while `run` runs.

        Args:
            subjects: how a subject is shown: not at all, by a digest, or as it is.
        """
        self._clock = clock
        self._subjects = subjects
        self._gaps: dict[Subscriber, _Sum] = {}
        self._takeovers: OrderedDict[tuple[str, SubscriberId], _Sum] = OrderedDict()
        """Subscribers of which a connection was replaced lately, with the take-overs that are not logged yet."""

    # Ends

    def ended(
        self,
        what: Kind,
        subscriber: Subscriber,
        code: int | None,
        reason: str,
        seconds: float,
        request_id: str | None = None,
    ) -> None:
        """A connection that was admitted is over.

        Args:
            code: of its Close, or of the `bye` of a stream; `None`: a stream that its client has left.
        """
        if (gaps := self._gaps.pop(subscriber, None)) is not None:
            self._say_gaps(subscriber, gaps)
        if code == CloseCode.REPLACED and self._is_within_a_war(subscriber):
            return
        roster, known = subscriber.roster, subscriber.known
        ring = None if roster is None else roster.ring
        acknowledged = None if known is None or ring is None else known.seq_in(ring.epoch)
        fields = self._who(_diagnosis_of(subscriber), subscriber.id) | {
            "close_code": code,
            "reason": reason,
            "seconds": round(seconds, 1),
            "events_sent": subscriber.events_sent,
            "acknowledged": acknowledged,
        }
        _say(_ENDED[what], fields, request_id)

    def refused(self, what: Kind, asked: Request, code: int, reason: str) -> None:
        """A connection ends before `connect`; said within its request."""
        diagnosis_id, device = asked.parameters.get("diagnosis_id", ""), asked.query.get("device", "")
        who = self._who(
            diagnosis_id if DIAGNOSIS_ID.fullmatch(diagnosis_id) else None,
            SubscriberId(asked.who.sub, device if DEVICE.fullmatch(device) else None),
        )
        end: Fields = {"close_code": code, "reason": reason, "seconds": 0.0, "events_sent": 0, "acknowledged": None}
        _say(_ENDED[what], who | end)

    def refused_socket(self, asked: Request, code: int, reason: str) -> None:
        """A WebSocket ends before `connect`; said within its request."""
        self.refused("WebSocket", asked, code, reason)

    def stalled(self, subscriber: Subscriber, why: str, request_id: str | None = None) -> None:
        """A stalled peer is cut off."""
        who = self._who(_diagnosis_of(subscriber), subscriber.id)
        _say("stalled peer cut off: %s", who | {"reason": why}, request_id)

    def stalled_refused(self, why: str) -> None:
        """A stalled peer that was refused is cut off."""
        _say("stalled peer cut off: %s", {"reason": why})

    # Of those who publish

    def sender_ended(self, sub: str | None, code: int, reason: str, seconds: float, events: int, request: str) -> None:
        """A connection that published is over."""
        fields: Fields = {
            "subject": self._shown(sub),
            "close_code": code,
            "reason": reason,
            "seconds": round(seconds, 1),
        }
        _say("publishing WebSocket ended: %s", fields | {"events_stored": events}, request)

    def console_ended(self, sub: str | None, code: int | None, reason: str, seconds: float, request: str) -> None:
        """A stream of statistics is over; its code is `None` if its client ended it."""
        fields: Fields = {
            "subject": self._shown(sub),
            "close_code": code,
            "reason": reason,
            "seconds": round(seconds, 1),
        }
        _say("console ended: %s", fields, request)

    def sender_stalled(self, sub: str | None, why: str, request: str) -> None:
        """A stalled peer that published is cut off."""
        _say("stalled peer cut off: %s", {"subject": self._shown(sub), "reason": why}, request)

    # Sums

    def gap(self, subscriber: Subscriber, gap: Gap) -> None:
        """A connection is told that it can no longer get some events."""
        now = self._clock.monotonic()
        found = self._gaps.setdefault(subscriber, _Sum(now, now))
        found.times += 1
        found.events += gap.count

    def _say_gaps(self, subscriber: Subscriber, gaps: _Sum) -> None:
        who = self._who(_diagnosis_of(subscriber), subscriber.id)
        _say("told of gaps: %s", who | {"gaps": gaps.times, "events_lost": gaps.events})

    def _is_within_a_war(self, subscriber: Subscriber) -> bool:
        """Count a replaced connection; whether another one of its subscriber was replaced within the last minute."""
        now, name = self._clock.monotonic(), (_diagnosis_of(subscriber), subscriber.id)
        found = self._takeovers.get(name)
        if found is None or now - found.latest >= SUM_SECONDS:
            found = self._takeovers[name] = _Sum(now, now)
            if len(self._takeovers) > TAKEOVERS_MAX:
                self._say_takeovers(*self._takeovers.popitem(last=False))
            return False
        found.latest = now
        found.times += 1
        return True

    def _say_takeovers(self, name: tuple[str, SubscriberId], takeovers: _Sum) -> None:
        if takeovers.times:
            fields = self._who(*name) | {"close_code": int(CloseCode.REPLACED), "reason": "replaced"}
            _say("connections replace each other: %s", fields | {"connections": takeovers.times})

    async def run(self) -> None:
        """Write sums when they are due; until cancelled, and then those that are not.

        Cancellation: nothing is lost.
        """
        try:
            while True:
                await trio.sleep(LOOK_SECONDS)
                self._write_due(self._clock.monotonic() - SUM_SECONDS)
        finally:
            self._write_due(self._clock.monotonic())

    def _write_due(self, until: float) -> None:
        for subscriber in [one for one, gaps in self._gaps.items() if gaps.since <= until]:
            self._say_gaps(subscriber, self._gaps.pop(subscriber))
        for name, takeovers in [(name, one) for name, one in self._takeovers.items() if one.since <= until]:
            self._say_takeovers(name, takeovers)
            takeovers.since, takeovers.times = self._clock.monotonic(), 0
            if takeovers.latest <= until:
                del self._takeovers[name]

    # Small

    def _who(self, diagnosis_id: str | None, subscriber_id: SubscriberId) -> Fields:
        shown = self._shown(subscriber_id.sub)
        return {"diagnosis_id": diagnosis_id, "subject": shown, "device": subscriber_id.device}

    def _shown(self, sub: str | None) -> str | None:
        if sub is None or self._subjects == "no":
            return None
        return sub if self._subjects == "plain" else digest_of(sub)


def digest_of(sub: str) -> str:
    """What stands for a subject where `log_subjects` is `digest`."""
    return hashlib.sha256(sub.encode()).hexdigest()[:DIGEST_CHARACTERS]


def _diagnosis_of(subscriber: Subscriber) -> str:
    assert subscriber.roster is not None, "it was attached"
    return subscriber.roster.diagnosis_id


def _say(text: str, fields: Fields, request_id: str | None = None) -> None:
    shown = " ".join(f"{name}={_text_of(value)}" for name, value in fields.items())
    logger.info(text, shown, extra={FIELDS: fields, REQUEST_ID: request_id})


def _text_of(value: str | float | None) -> str:
    if value is None:
        return "-"
    return value if isinstance(value, str) and _BARE.fullmatch(value) else wire.encode(value).decode()
