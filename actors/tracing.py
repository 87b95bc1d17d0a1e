"""Where an actor tells of the steps of a publish, if anybody wants to know (`web.server.spans`). Pure."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol


class Tracing(Protocol):
    """Hears of what becomes of publishes. It never waits and never raises.

    A span is whatever stands for a request; actors and stores only hand it on.
    """

    def sender(self) -> object:
        """The span of the request that the current task works for; `None`: there is none."""

    def taken(self, diagnosis_id: str, waited: Sequence[tuple[object, float]]) -> Sequence[object]:
        """Publishes were taken out of a mailbox, just now.

        Args:
            waited: for each the span of its request, and since when it waited, on Trio's clock.

        Returns:
            The spans of the requests, each once.
        """

    def sent_out(self, diagnosis_id: str, spans: Sequence[object], since: float, connections: int) -> None:
        """Their events have been sent to so many connections, from this time (of Trio's clock) until now."""
