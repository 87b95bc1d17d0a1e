"""What a position in the ring is due: a gap, events, `live`, in wire order. Pure arithmetic: no Trio, no store."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from actors.ring import Gap, Ring
from storage.records import Seq


@dataclass(frozen=True, slots=True)
class Live:
    """The replay is complete up to here."""

    seq: Seq


class RenderedEvent(NamedTuple):
    """One event as the ring holds it. A named tuple: catching up makes one of these for each event and connection."""

    seq: Seq
    text: bytes


Due = RenderedEvent | Gap | Live


class Taken(NamedTuple):
    """What a connection takes from the ring, and where it stands afterwards."""

    due: list[Due]
    """Empty: it is in step with the ring."""
    position: Seq
    lost: int
    """Numbers in the gap, if there is one."""
    live_at: Seq | None


def take(ring: Ring, position: Seq, live_at: Seq | None, events_max: int) -> Taken:
    """Take what comes next for a connection.

    Args:
        position: the last number it was given.
        live_at: its replay is complete at this number; `None`: it was told so.
        events_max: most events to take at once.
    """
    due: list[Due] = []
    lost = 0
    if (gap := ring.gap_after(position)) is not None:
        due.append(gap)
        position, lost = gap.last, gap.count
    for seq, text in ring.texts_after(position, events_max):
        if live_at is not None and live_at < seq:
            due.append(Live(live_at))
            live_at = None
        due.append(RenderedEvent(seq, text))
        position = seq
    if live_at is not None and live_at <= position:
        due.append(Live(live_at))
        live_at = None
    return Taken(due, position, lost, live_at)
