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
    """Events that were stored, the lowest first. Empty: a mark."""
    is_whole: bool = True
    """They have no hole, and end at the head of `window`. False with events: what these lack up to that head, whoever
    hears of it may have stored itself. False without: something may be missing. Whoever lacks something looks at the
    log."""


LOOK: Final = News(None, is_whole=False)
"""Something may have been missed."""


def merged(older: News, newer: News) -> News:
    """Two pieces of news as one. Where something may be missing, it tells only how far the log has come."""
    if newer.window is None:
        return News(older.window, is_whole=False)
    if older.window is None or older.window.epoch != newer.window.epoch:
        return News(newer.window, is_whole=False)
    events = older.events + newer.events
    follows = older.is_whole and newer.is_whole and newer.window.head - len(newer.events) == older.window.head
    if follows and len(events) <= OUTBOX_EVENTS_MAX:
        return News(newer.window, events)
    if _is_known(older) and _is_known(newer) and _is_later(newer, older.window) and len(events) <= OUTBOX_EVENTS_MAX:
        return News(newer.window, events, is_whole=False)
    return News(max(older.window, newer.window, key=lambda one: (one.head, one.floor)), is_whole=False)


def _is_known(news: News) -> bool:
    """Whether it says what was stored elsewhere, with or without holes."""
    return news.is_whole or bool(news.events)


def _is_later(news: News, window: Window) -> bool:
    """Whether it tells of what came after this window."""
    now = news.window
    if now is None or now.head < window.head or now.floor < window.floor:
        return False
    return not news.events or news.events[0].seq > window.head
