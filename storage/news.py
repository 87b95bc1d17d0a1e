"""What a node hears of a log that another node writes, and how several pieces of it become one. Pure."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Final

from storage.records import OUTBOX_EVENTS_MAX, Event, Window


@dataclass(frozen=True, slots=True)
class News:
    """Something was stored in the log of a diagnosis: an event, or a mark, which has no number (a purge, an eviction).

    News may be late, repeated, or missing. They save a read; `EventStore.read_after` is the truth.
    """

    window: Window | None
    """The log as its last entry has left it; `None`: nothing is known of it."""
    events: tuple[Event, ...] = ()
    """Events that were stored, without a hole, up to the head of `window`. Empty: a mark."""
    is_whole: bool = True
    """False: something may be missing here. Whoever is interested looks at the log."""


LOOK: Final = News(None, is_whole=False)
"""Something may have been missed."""


def merged(older: News, newer: News) -> News:
    """Two pieces of news as one: a hole, or too many events, and it tells only how far the log has come."""
    if newer.window is None:
        return News(older.window, is_whole=False)
    if older.window is None or older.window.epoch != newer.window.epoch:
        return News(newer.window, is_whole=False)
    events = older.events + newer.events
    follows = older.is_whole and newer.is_whole and newer.window.head - len(newer.events) == older.window.head
    if follows and len(events) <= OUTBOX_EVENTS_MAX:
        return News(newer.window, events)
    return News(max(older.window, newer.window, key=lambda one: (one.head, one.floor)), is_whole=False)
