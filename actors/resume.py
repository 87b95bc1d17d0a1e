"""Where a subscriber begins: PROTOCOL section 4 as arithmetic. Pure: no Trio, no store.

A reconnect is judged by comparing numbers with `head` and `floor`, never by looking an event up, so
an idle client is exact for ever.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from storage.records import Epoch, Seq, Window

OLDEST: Final = -1
"""`Wanted.newest` of a subscriber that wants everything retained."""


class Resume(StrEnum):
    """How a connection continues (`resume` of the `connect` frame)."""

    FRESH = "fresh"
    """No position was known: it begins where it asked to."""
    EXACT = "exact"
    """It misses nothing."""
    PARTIAL = "partial"
    """A gap comes first."""
    RESET = "reset"
    """Its position belongs to another history: reload, then everything retained follows."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """What the client said about its position."""

    after: Seq | None = None
    """Its own last applied number; wins over the stored cursor."""
    epoch: Epoch | None = None
    """The history the client has seen, and `after` belongs to; `None`: the current one."""
    newest: int = OLDEST
    """Without any position: begin with the newest n events (0: none), `OLDEST`: with all retained."""
    acknowledges: bool = True
    """`after` also moves the cursor of a known subscriber; False: it only says where to continue."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What an admitted connection gets."""

    resume: Resume
    position: Seq
    """Everything above it follows, a gap first where it is below the floor."""
    cursor: Seq
    """The subscriber's cursor in the current epoch from now on."""
    missed: int
    """Numbers in the gap that comes first."""
    queued: int
    """Events that follow before `live`."""
    acknowledges: bool = False
    """`cursor` is what the client says it has got, not only where it begins."""


def plan(window: Window, wanted: Wanted, stored: tuple[Epoch, Seq] | None) -> Plan:
    """Decide where a connection begins.

    Args:
        window: what the diagnosis retains now.
        wanted: what the client said.
        stored: the subscriber's cursor and the epoch it belongs to, `None` if it is not known. It is above the head
            where another process has moved it, and what lies between has not been read here yet.
    """
    current = stored[1] if stored is not None and stored[0] == window.epoch else None
    if wanted.epoch is not None and wanted.epoch != window.epoch:
        return _reset(window, current)
    if wanted.after is not None:
        if wanted.after > window.head:
            return _reset(window, current)
        acknowledged = wanted.after if wanted.acknowledges or current is None else current
        said = wanted.acknowledges and wanted.after > 0
        return _continue(window, wanted.after, max(acknowledged, current or Seq(0)), acknowledges=said)
    if current is not None:
        return _continue(window, current, current)
    if stored is not None:
        return _reset(window, None)
    position = window.floor if wanted.newest == OLDEST else Seq(max(window.floor, window.head - wanted.newest))
    return Plan(Resume.FRESH, position, position, missed=0, queued=window.head - position)


def _continue(window: Window, position: Seq, cursor: Seq, *, acknowledges: bool = False) -> Plan:
    missed = max(0, window.floor - position)
    resume = Resume.PARTIAL if missed else Resume.EXACT
    queued = max(0, window.head - max(position, window.floor))
    return Plan(resume, position, cursor, missed, queued, acknowledges)


def _reset(window: Window, cursor: Seq | None) -> Plan:
    """A reset acknowledges nothing: a cursor of the current epoch stays, any other becomes the floor."""
    kept = window.floor if cursor is None else cursor
    return Plan(Resume.RESET, window.floor, kept, missed=0, queued=window.head - window.floor)
