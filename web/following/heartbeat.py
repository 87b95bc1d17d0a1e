"""When a client that asked for heartbeats is due one: after so long without a message to it (PROTOCOL section 6). Pure.

Events are not noted one by one, which would cost the hot path: each look sees whether the position has moved.
"""

from __future__ import annotations

from dataclasses import dataclass

from storage.records import Seq


@dataclass(slots=True)
class Heartbeat:
    """The silence of one connection."""

    seconds: int
    """Longest silence."""
    quiet_since: float
    """When the last message is known to have been written, on the monotonic clock; never too early."""
    position: Seq
    """The position of the connection then."""

    def spoke(self, now: float) -> None:
        """A message that is no event was written."""
        self.quiet_since = now

    def is_due(self, position: Seq, now: float) -> bool:
        """Whether there was no message for so long.

        Args:
            position: of the connection now; if it has moved, there was one since the last look.
        """
        if position != self.position:
            self.position, self.quiet_since = position, now
        return now - self.quiet_since >= self.seconds
