"""What the actors room asks of whatever carries frames to one client, and what it tells it. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import StrEnum
from typing import Protocol

from storage.records import Seq


class Ending(StrEnum):
    """Why the server ends a connection; the web room gives each its close code."""

    REPLACED = "replaced"
    DELETED = "diagnosis deleted"
    VIEWER_REMOVED = "viewer removed"
    DISCONNECTED = "disconnected by operator"
    TOKEN_EXPIRED = "token expired"  # noqa: S105 - a reason, not a token
    REVOKED = "revoked"
    QUARANTINED = "quarantined"
    STOPPING = "stopping"
    RENEWED = "epoch renewed"


@dataclass(frozen=True, slots=True)
class Burst:
    """Events that have just entered the ring, rendered once for everybody."""

    first: Seq
    last: Seq
    texts: tuple[bytes, ...]
    made: dict[bool, bytes] = field(default_factory=dict, compare=False)
    """What transports write for this burst: the first makes it, all share it, under keys of their choice."""


class Transport(Protocol):
    """What carries frames to one client. Nothing here waits."""

    def feed(self, burst: Burst) -> bool:
        """New events are in the ring: write them now, or take them from the subscriber's position soon.

        Returns:
            False: they are written, and the position is behind them. True: they are not, or were taken.
        """

    def wake(self) -> None:
        """The ring has changed (a restart, a purge): look again from the position."""

    def acknowledged(self, seq: Seq) -> None:
        """An acknowledgement this connection asked for is stored; the cursor is `seq`."""

    def end(self, ending: Ending) -> None:
        """Say goodbye and close. The subscriber is detached already. Called at most once."""
