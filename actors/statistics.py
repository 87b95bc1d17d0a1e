"""One diagnosis actor as operators see it: a frozen value, made from its slot."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from actors.mailbox import MailboxStatistics
from actors.ring import Ring
from actors.roster import Roster
from actors.slot import ActorState, Crash, Restart, Slot
from storage.damage import Damage
from storage.records import Seq, SubscriberId, Window

LAG_SHOWN: Final = 10
"""Subscribers shown with their lag."""


@dataclass(frozen=True, slots=True)
class Lag:
    """How far behind one known subscriber is."""

    subscriber: SubscriberId
    online: bool
    cursor: Seq
    events: int
    """Events between its cursor and the head."""


@dataclass(frozen=True, slots=True)
class ActorStatistics:
    """One actor as its supervisor sees it."""

    diagnosis_id: str
    state: ActorState
    incarnation: int
    connections: int
    mailbox: MailboxStatistics
    restarts: int
    last_crash: Crash | None
    recent: tuple[Restart, ...]
    """See `History.recent`."""
    window: Window | None
    """What its ring holds; `None`: not loaded."""
    lag: tuple[Lag, ...] | None
    """The subscribers furthest behind, at most `LAG_SHOWN`; `None`: not loaded."""
    damage: Damage | None
    """What is wrong with its outbox, which is not loaded then; `None`: no damage is known."""


def statistics_of(slot: Slot, damage: Damage | None) -> ActorStatistics:
    """What a slot holds now.

    Args:
        damage: what is known to be wrong with its outbox.
    """
    ring = slot.roster.ring
    return ActorStatistics(
        slot.diagnosis_id,
        slot.state if damage is None else ActorState.QUARANTINED,
        slot.history.incarnation,
        len(slot.roster.subscribers),
        slot.mailbox.statistics(),
        slot.history.restarts,
        slot.history.last_crash,
        slot.history.recent,
        window=None if ring is None else ring.window,
        lag=None if ring is None or slot.roster.known is None else _lag(slot.roster, ring),
        damage=damage,
    )


def _lag(roster: Roster, ring: Ring) -> tuple[Lag, ...]:
    behind = [(one, one.seq_in(ring.epoch)) for one in roster.lagging(LAG_SHOWN)]
    # A cursor that was moved by another process can be ahead of the ring.
    return tuple(Lag(one.id, bool(one.connections), cursor, max(0, ring.head - cursor)) for one, cursor in behind)
