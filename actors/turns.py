"""Acts on every connection of a diagnosis, some at a time, so that everybody else gets a turn in between.

A connection that is attached meanwhile is not reached: first take away the right to be admitted.
"""

from __future__ import annotations

from typing import Final

import trio

from actors.roster import Roster, Which
from actors.transport import Ending

ENDED_AT_ONCE_MAX: Final = 12
"""Connections ended or woken between two checkpoints: a millisecond. Reason: whoever publishes meanwhile waits for so
much at each of the ten turns that a publish takes."""

LOOKED_AT_ONCE_MAX: Final = 1024
"""Connections or diagnoses looked at between two checkpoints."""


class Share:
    """How much one task may do before everybody else gets a turn."""

    __slots__ = ("_left",)

    def __init__(self) -> None:
        self._left = 1.0

    async def spend(self, at_once_max: int) -> None:
        """Count a piece of work of which so many fill a turn. A checkpoint only when the turn is full."""
        self._left -= 1 / at_once_max
        if self._left <= 0:
            self._left = 1.0
            await trio.lowlevel.checkpoint()


async def end_where(roster: Roster, which: Which, ending: Ending, share: Share | None = None) -> int:
    """End every attached connection that `which` picks; how many.

    Args:
        share: the turn of a task that does other work as well; `None`: this is all its work.
    """
    share = share or Share()
    ended = 0
    for subscriber in list(roster.subscribers):
        if not subscriber.gone and which.picks(subscriber):
            roster.end(subscriber, ending)
            ended += 1
            await share.spend(ENDED_AT_ONCE_MAX)
        else:
            await share.spend(LOOKED_AT_ONCE_MAX)
    return ended


async def wake_all(roster: Roster) -> None:
    """Have every attached connection look at the ring again."""
    share = Share()
    for subscriber in list(roster.subscribers):
        if not subscriber.gone:
            subscriber.transport.wake()
        await share.spend(ENDED_AT_ONCE_MAX)
