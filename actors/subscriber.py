"""A subscriber is a number: its position, and the transport that carries what lies above it.

A `Subscriber` is one connection. It is made by the web room, attached to a roster by the diagnosis
actor, and reads the ring on its own from then on: there is no queue. Pure state, nothing here waits.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import StrEnum
from functools import cached_property
from typing import TYPE_CHECKING, Protocol

from actors.ring import Gap
from storage.records import Seq, SubscriberId

if TYPE_CHECKING:
    from actors.roster import Known, Roster


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


@dataclass(frozen=True)
class Burst:
    """Events that have just entered the ring, rendered once for everybody."""

    first: Seq
    last: Seq
    frames: tuple[bytes, ...]

    @cached_property
    def data(self) -> bytes:
        """All frames in one piece, made at most once however many sockets it goes to."""
        return b"".join(self.frames)

    @cached_property
    def made(self) -> dict[bool, bytes]:
        """What transports write for this burst: the first makes it, all share it, under keys of their choice."""
        return {}


class Transport(Protocol):
    """What carries frames to one client. Nothing here waits."""

    def feed(self, burst: Burst) -> None:
        """New events are in the ring: write them now, or take them from the subscriber's position soon."""

    def wake(self) -> None:
        """The ring has changed (a restart, a purge): look again from the position."""

    def acknowledged(self, seq: Seq) -> None:
        """An acknowledgement this connection asked for is stored; the cursor is `seq`."""

    def end(self, ending: Ending) -> None:
        """Say goodbye and close. The subscriber is detached already. Called at most once."""


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


class Subscriber:
    """One connection of one subscriber.

    Ownership: whoever made it detaches it (`detach`), however the connection ends; attaching is the actor's.
    """

    __slots__ = (
        "_live_due",
        "_skipped",
        "gone",
        "id",
        "known",
        "position",
        "principal",
        "released",
        "roster",
        "transport",
    )

    def __init__(self, subscriber_id: SubscriberId, principal: object, transport: Transport) -> None:
        """A connection that is not attached yet.

        Args:
            subscriber_id: whose cursor it shares; of a connection that peeks: who it is, and no more.
            principal: who authenticated; opaque here, and exchanged when a newer token is shown.
            transport: carries frames to the client.
        """
        self.id = subscriber_id
        self.principal = principal
        self.transport = transport
        self.position = Seq(0)
        """The last number given to the transport; outlives incarnations of the actor."""
        self.roster: Roster | None = None
        self.known: Known | None = None
        """Whose cursor it moves; `None`: it is not attached, or peeks."""
        self.gone = False
        """Detached for good: an actor that finds it in its mailbox leaves it alone."""
        self.released: Callable[[], None] | None = None
        """Called once, when it is detached for good: gives back what was taken for it."""
        self._live_due: Seq | None = None
        self._skipped = 0
        """Numbers up to the position that were never given to the transport: before it began, and in gaps."""

    def begin(self, roster: Roster, known: Known | None, position: Seq, head: Seq) -> None:
        """Take a place in `roster`: everything above `position` is due, `live` at `head`. Called by `Roster.attach`."""
        self.roster, self.known = roster, known
        self.position = position
        self._skipped = position
        self._live_due = head

    @property
    def is_caught_up(self) -> bool:
        """Whether `live` and everything in the ring has been taken."""
        ring = None if self.roster is None else self.roster.ring
        return ring is not None and self._live_due is None and self.position == ring.head

    @property
    def events_sent(self) -> int:
        """Events given to the transport."""
        return self.position - self._skipped

    def take(self, events_max: int) -> list[Due]:
        """What is due next, in wire order, and move the position past it; empty: in step with the ring.

        Args:
            events_max: most items to take at once.
        """
        due: list[Due] = []
        if self.roster is None or self.roster.ring is None:
            return due
        ring = self.roster.ring
        if (gap := ring.gap_after(self.position)) is not None:
            due.append(gap)
            self._skipped += gap.count
            self.position = gap.last
        for seq, frame in ring.frames_after(self.position, events_max):
            self._announce_live_before(seq, due)
            due.append(EventFrame(seq, frame))
            self.position = seq
        self._announce_live_before(Seq(self.position + 1), due)
        return due

    def _announce_live_before(self, seq: Seq, due: list[Due]) -> None:
        if self._live_due is not None and seq > self._live_due:
            due.append(Live(self._live_due))
            self._live_due = None

    def detach(self) -> None:
        """Leave the roster, if still in it. Idempotent."""
        self.gone = True
        if self.roster is not None:
            self.roster.detach(self)
        released, self.released = self.released, None
        if released is not None:
            released()
