"""One diagnosis actor as operators see it: a frozen value, made from its slot."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf
from typing import Final, NamedTuple

from actors.mailbox import MailboxStatistics
from actors.ring import Ring
from actors.roster import Roster
from actors.slot import WORST_FIRST, ActorState, Crash, History, Restart, Slot
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
    """What it retains; `None`: it is not loaded, or does not run."""
    lag: tuple[Lag, ...] | None
    """The subscribers furthest behind, at most `LAG_SHOWN`; `None`: not loaded."""
    damage: Damage | None
    """What is wrong with its outbox, which is not loaded then; `None`: no damage is known."""


class Glance(NamedTuple):
    """An actor in one line of an overview: cheap enough to be made of ten thousand of them."""

    state: ActorState
    connections: int
    mailbox_depth: int
    incarnation: int
    restarts: int
    last_crash: Crash | None
    window: Window | None
    """What it retains; `None`: it is not loaded, or does not run."""
    lowest: Seq | None
    """The lowest cursor of a known subscriber; `None`: nobody is known, or it is not loaded."""
    known: int
    """Known subscribers; 0 also if it is not loaded."""


def window_at(slot: Slot) -> Window | None:
    """What is stored, as far as the ring of a slot knows. After a crash the ring of before stays until another is
    loaded, and what it knows is old."""
    return None if slot.roster.ring is None or slot.state is not ActorState.RUNNING else slot.roster.ring.stored


def glance_at(slot: Slot) -> Glance:
    """What a slot holds now."""
    roster, history = slot.roster, slot.history
    return Glance(
        slot.state,
        len(roster.subscribers),
        slot.mailbox.depth,
        history.incarnation,
        history.restarts,
        history.last_crash,
        window_at(slot),
        roster.lowest(),
        len(roster.known or ()),
    )


def glance_at_resting(history: History) -> Glance:
    """What is remembered of an actor that is not in memory."""
    return Glance(
        ActorState.PASSIVE, 0, 0, history.incarnation, history.restarts, history.last_crash, None, lowest=None, known=0
    )


def together(glances: Sequence[Glance]) -> Glance:
    """An actor at several processes, at least one: the worst state, the last crash, the newest outbox, and sums."""
    if len(glances) == 1:
        return glances[0]
    windows = [one.window for one in glances if one.window is not None]
    return Glance(
        min((one.state for one in glances), key=WORST_FIRST.index),
        sum(one.connections for one in glances),
        sum(one.mailbox_depth for one in glances),
        max(one.incarnation for one in glances),
        sum(one.restarts for one in glances),
        max((one.last_crash for one in glances), key=lambda crash: -inf if crash is None else crash.at),
        max(windows, key=lambda window: window.head, default=None),
        min((one.lowest for one in glances if one.lowest is not None), default=None),
        max(one.known for one in glances),
    )


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
        window=window_at(slot),
        lag=None if ring is None or slot.roster.known is None else _lag(slot.roster, ring),
        damage=damage,
    )


def _lag(roster: Roster, ring: Ring) -> tuple[Lag, ...]:
    behind = [(one, one.seq_in(ring.epoch)) for one in roster.lagging(LAG_SHOWN)]
    # A cursor that was moved by another process can be ahead of the ring.
    return tuple(Lag(one.id, bool(one.connections), cursor, max(0, ring.newest - cursor)) for one, cursor in behind)
