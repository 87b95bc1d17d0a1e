"""When followers are asked for a receipt: a Ping whose payload is the last number written before it (PROTOCOL 5).

For everybody who is in step with a diagnosis the Ping rides in the same bytes as an event. Whoever catches up is
asked on its own (`web.following.follower`). Pure; the time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf
from typing import Final

from actors.roster import Roster
from actors.transport import Burst
from storage.records import Seq
from web.websocket import frames

RECEIPT_EVENTS_MAX: Final = 50
"""Events between two receipts, at most."""

RECEIPT_SECONDS_MAX: Final = 1.0
"""Time from an event until its receipt is asked for, at most."""

ASK_AFTER_SECONDS: Final = 0.8
"""Time from one receipt to the next that an event carries, and from an event to a Ping of its own, if no event
carries one meanwhile. Reason: the hub looks at this only now and then, and must not be late. In a steady stream an
event comes first: a Ping of its own costs as much as an event."""

SEQ_DIGITS_MAX: Final = 15
"""Digits of a number that a Pong may name. Beyond: the Pong is ignored."""

assert ASK_AFTER_SECONDS < RECEIPT_SECONDS_MAX


@dataclass(slots=True)
class _Pace:
    """How far the followers in step with one diagnosis have been asked."""

    asked_at: float = -inf
    unasked: int = 0
    """Events since."""


class Receipts:
    """Decides for every diagnosis, once for all its followers in step."""

    def __init__(self) -> None:
        self._paces: dict[Roster, _Pace] = {}
        self._waiting: dict[Roster, float] = {}
        """Diagnoses with events nobody was asked about yet, and when to ask if no event carries the Ping."""

    def compose(self, burst: Burst, roster: Roster, now: float) -> None:
        """Make the frames of a burst: `burst.made[True]` asks for receipts where they are due, `[False]` never does."""
        pace = self._paces.get(roster)
        if pace is None:
            pace = self._paces[roster] = _Pace()
        made = [frames.text_frame(text) for text in burst.texts]
        parts = []
        for seq, frame in enumerate(made, start=burst.first):
            parts.append(frame)
            pace.unasked += 1
            is_due = seq == burst.last and now - pace.asked_at >= ASK_AFTER_SECONDS
            if is_due or pace.unasked >= RECEIPT_EVENTS_MAX:
                parts.append(receipt_ping(Seq(seq)))
                pace.asked_at, pace.unasked = now, 0
        burst.made[True] = b"".join(parts)
        burst.made[False] = b"".join(made)
        if len(parts) > len(made):
            self._waiting.pop(roster, None)
        if pace.unasked:
            self._waiting.setdefault(roster, now + ASK_AFTER_SECONDS)

    def take_due(self, now: float) -> list[Roster]:
        """The diagnoses whose followers must be asked now, as no event carries the Ping."""
        due = [roster for roster, at in self._waiting.items() if at <= now]
        for roster in due:
            del self._waiting[roster]
            pace = self._paces[roster]
            pace.asked_at, pace.unasked = now, 0
        return due

    def forget_deserted(self) -> None:
        """Let go of diagnoses that nobody follows any more."""
        for roster in [one for one in self._paces if not one.subscribers]:
            del self._paces[roster]
            self._waiting.pop(roster, None)


def receipt_ping(seq: Seq) -> bytes:
    """The Ping that asks for a receipt of everything up to `seq`."""
    return frames.ping(b"%d" % seq)


def receipt_seq(payload: bytes) -> Seq | None:
    """The number a Pong confirms; `None`: it confirms nothing."""
    return Seq(int(payload)) if payload.isdigit() and len(payload) <= SEQ_DIGITS_MAX else None
