"""What a position in the ring is due: a gap, events, `live`, in wire order. Pure arithmetic: no Trio, no store."""

from __future__ import annotations

from dataclasses import dataclass

from actors.ring import Gap, Ring
from storage.records import Seq


@dataclass(frozen=True, slots=True)
class Live:
    """The replay is complete up to here."""

    seq: Seq


@dataclass(frozen=True, slots=True)
class EventFrame:
    """One rendered event."""

    seq: Seq
    frame: bytes


Due = EventFrame | Gap | Live


def due_after(position: Seq, live_at: Seq | None, ring: Ring, events_max: int) -> list[Due]:
    """What comes next for a connection; empty: it is in step with the ring.

    Args:
        position: the last number it was given.
        live_at: its replay is complete at this number; `None`: it was told so.
        events_max: most events to take at once.
    """
    due: list[Due] = []
    if (gap := ring.gap_after(position)) is not None:
        due.append(gap)
        position = gap.last
    for seq, frame in ring.frames_after(position, events_max):
        if live_at is not None and live_at < seq:
            due.append(Live(live_at))
            live_at = None
        due.append(EventFrame(seq, frame))
        position = seq
    if live_at is not None and live_at <= position:
        due.append(Live(live_at))
    return due
