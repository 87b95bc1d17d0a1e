"""What the rings of all diagnoses may take in memory together: which leave when it is too much, and which wait to load.

It is looked at whenever a ring is loaded or has changed. Rings that nobody follows leave, the longest unused before all
others. Those that somebody follows, or whose actor has work, stay even beyond the budget.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Final

import trio

from actors.roster import Roster

LOADS_AT_ONCE_MAX: Final = 16
"""Small outboxes loaded at the same time. Reason: each waits for the database twice, behind commits; what has been read
is not counted in the budget yet, which is 2 MiB at most. Beyond: wait."""

SMALL_OUTBOX_BYTES_MAX: Final = 64 * 1024
"""Bodies of a small outbox. Beyond, and one event more: it is read once more, among the large ones."""

LARGE_LOADS_AT_ONCE_MAX: Final = 2
"""Large outboxes loaded at the same time. Reason: the next one is read while one is rendered. Beyond: wait."""

LOOKED_AT_ONCE_MAX: Final = 64
"""Rings looked at between two checkpoints, and the most that are passed over because their actors have work."""


class RingBudget:
    """Counts the bytes of all rings, and has rings leave. One per registry; it never touches a ring."""

    def __init__(self, bytes_max: int, let_go: Callable[[Roster], bool]) -> None:
        """Nothing is in memory.

        Args:
            bytes_max: what events may take.
            let_go: drops the ring of a diagnosis that nobody follows; False: its actor has work.
        """
        self.bytes_max = bytes_max
        self.bytes = 0
        """What events take, of all diagnoses."""
        self.loading = trio.Semaphore(LOADS_AT_ONCE_MAX)
        """To be held from the reading of a small outbox until it is counted."""
        self.loading_large = trio.Semaphore(LARGE_LOADS_AT_ONCE_MAX)
        """To be held from the reading of any other one."""
        self._let_go = let_go
        self._held: dict[Roster, int] = {}
        """Bytes of each ring."""
        self._unfollowed: OrderedDict[Roster, None] = OrderedDict()
        """The keys of rings that nobody follows, the longest unused first."""

    def used(self, roster: Roster) -> None:
        """Somebody has sent a message to this diagnosis."""
        if roster in self._unfollowed:
            self._unfollowed.move_to_end(roster)

    def count(self, roster: Roster) -> None:
        """Know what the ring of this diagnosis takes now, and whether anybody follows it."""
        held = 0 if roster.ring is None else roster.ring.text_bytes
        self.bytes += held - self._held.get(roster, 0)
        if not held:
            self._held.pop(roster, None)
        else:
            self._held[roster] = held
        if held and not roster.subscribers:
            self._unfollowed.setdefault(roster)
        else:
            self._unfollowed.pop(roster, None)

    def forget(self, roster: Roster) -> None:
        """This diagnosis has left memory."""
        self.bytes -= self._held.pop(roster, 0)
        self._unfollowed.pop(roster, None)

    async def look_at(self, roster: Roster) -> None:
        """The ring of this diagnosis may have grown: count it, and have others leave if it is too much."""
        self.count(roster)
        await self.make_room()

    async def make_room_for(self, roster: Roster, held: int) -> None:
        """Have others leave before a ring of `held` bytes takes the place of what this diagnosis has in memory."""
        await self.make_room(held - self._held.get(roster, 0))

    async def make_room(self, coming: int = 0) -> None:
        """Have rings leave until `coming` bytes more would be within the budget, or none is left that may leave."""
        looked_at = passed_over = 0
        while self.bytes + coming > self.bytes_max and self._unfollowed and passed_over < LOOKED_AT_ONCE_MAX:
            roster = next(iter(self._unfollowed))
            if self._let_go(roster):
                self.count(roster)
            else:
                self._unfollowed.move_to_end(roster)
                passed_over += 1
            looked_at += 1
            if looked_at % LOOKED_AT_ONCE_MAX == 0:
                await trio.lowlevel.checkpoint()
