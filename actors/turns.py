"""What is done to every connection of a diagnosis, some at a time: everybody else gets a turn in between.

Who is attached meanwhile is not looked at: take the right to be admitted away first.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import trio

from actors.roster import Roster
from actors.subscriber import Ending, Subscriber

AT_ONCE_MAX: Final = 128
"""Connections ended or woken between two checkpoints: some milliseconds."""


async def end_where(roster: Roster, which: Callable[[Subscriber], bool], ending: Ending) -> int:
    """End every attached connection that `which` picks; how many."""
    ended = 0
    for index, subscriber in enumerate(list(roster.subscribers), start=1):
        if not subscriber.gone and which(subscriber):
            roster.end(subscriber, ending)
            ended += 1
        if index % AT_ONCE_MAX == 0:
            await trio.lowlevel.checkpoint()
    return ended


async def wake_all(roster: Roster) -> None:
    """Have every attached connection look at the ring again."""
    for index, subscriber in enumerate(list(roster.subscribers), start=1):
        if not subscriber.gone:
            subscriber.transport.wake()
        if index % AT_ONCE_MAX == 0:
            await trio.lowlevel.checkpoint()
