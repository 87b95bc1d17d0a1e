"""What can be put into a diagnosis actor's mailbox, and what it answers. Frozen values in a closed union."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from enum import StrEnum
from typing import Any, Generic, NamedTuple, TypeVar

from actors.resume import Plan, Wanted
from actors.roster import Subscriber, Whose
from storage.errors import StorageError
from storage.news import News
from storage.pending import Pending
from storage.records import (
    AcknowledgedBy,
    Act,
    Appended,
    Diagnosis,
    Epoch,
    NewEvent,
    Seq,
    SubscriberId,
    Window,
)
from storage.store import PendingAppend

Answer = TypeVar("Answer")

Judge = Callable[[Diagnosis | None], Exception | None]
"""Whether the sender of a message still may do what it asks for: `None`, or the refusal that answers it instead.

Asked with the diagnosis as it is registered (`None`: it is not), and without a checkpoint before the actor hands the
act over to the store. Never waits.
"""


class Asks(Generic[Answer]):
    """A message that is answered with an `Answer`."""

    __slots__ = ()


class Receipt(NamedTuple):
    """The answer to a publisher: the event is on disk and on its way."""

    seq: Seq
    epoch: Epoch
    clients_notified: int
    """Connections attached when the event committed; 0 for a replay."""
    online: int
    """Known subscribers with at least one connection."""
    known: int
    """Known subscribers."""
    at_risk: int
    """Known subscribers more than 80 events behind."""
    replayed: bool


@dataclass(frozen=True, slots=True)
class Admission:
    """The answer to a subscriber: it is attached, and this is how it continues."""

    window: Window
    plan: Plan


class DeliveryState(StrEnum):
    """What became of one event for one subscriber."""

    ACKNOWLEDGED = "acknowledged"
    WRITTEN = "written"
    """Given to a connection that is still attached, not acknowledged yet."""
    PENDING = "pending"
    """Retained, and due."""
    LOST = "lost"
    """No longer retained, and not known to have arrived."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one event for one known subscriber."""

    subscriber: SubscriberId
    online: bool
    cursor: Seq
    state: DeliveryState
    acknowledged_at: float | None
    """Last move of its cursor."""
    acknowledged_by: AcknowledgedBy | None
    """What moved it then."""

    def with_connection(self, is_written: bool | None) -> Delivery:
        """The same, with a connection at another process.

        Args:
            is_written: whether the event was given to the connection; `None`: there is none.
        """
        if is_written is None:
            return self
        is_news = is_written and self.state is not DeliveryState.ACKNOWLEDGED
        return replace(self, online=True, state=DeliveryState.WRITTEN if is_news else self.state)


@dataclass(frozen=True, slots=True)
class Publish(Asks[Receipt]):
    """Store an event and send it to everyone."""

    event: NewEvent
    judge: Judge


@dataclass(frozen=True, slots=True)
class Subscribe(Asks[Admission]):
    """Attach a connection."""

    subscriber: Subscriber
    wanted: Wanted
    judge: Judge
    peeks: bool = False
    """It only looks: its subscriber does not become known by it, and no cursor is read or moved."""


@dataclass(frozen=True, slots=True)
class Inspect(Asks[Window]):
    """Say what you retain; also the way to know that everything before it in the mailbox is done."""


@dataclass(frozen=True, slots=True)
class Trace(Asks[tuple[Delivery, ...]]):
    """Say what became of one event for known subscribers, by name."""

    seq: Seq
    after: SubscriberId | None = None
    """Only subscribers whose names come after these; `None`: from the start."""
    limit: int = 1000
    """At most so many subscribers."""


@dataclass(frozen=True, slots=True)
class Purge(Asks[Window]):
    """Drop the retained events."""

    act: Act
    judge: Judge


@dataclass(frozen=True, slots=True)
class Evict(Asks[Window]):
    """Let go of events the store has dropped, for their age or by a purge."""

    window: Window


@dataclass(frozen=True, slots=True)
class Forgotten:
    """What was forgotten."""

    connections: int
    """Connections that were ended."""
    cursors: int


@dataclass(frozen=True, slots=True)
class Forget(Asks[Forgotten]):
    """End the connections of some subscribers and drop their cursors."""

    which: Whose
    act: Act | None
    """Its row is stored with the loss of the cursors, right before the connections end, and says how many there were
    (parameter `connections`). `None`: the row of the act is stored already."""
    judge: Judge
    elsewhere: int = 0
    """Connections at other processes, which the row counts as well."""


@dataclass(frozen=True, slots=True)
class ForgetUnseen(Asks[int]):
    """Drop the known subscribers that were not seen for too long; how many. A connected one counts as seen now."""


@dataclass(frozen=True, slots=True)
class Heard(Asks[None]):
    """Take in what another process has stored in the log. Nobody waits for the answer."""

    news: News


Judged = Publish | Subscribe | Purge | Forget
"""A message whose sender must have a right to it."""

Message = Judged | Inspect | Trace | Evict | ForgetUnseen | Heard


class Envelope:
    """A message on its way, with what is needed to finish it after a crash."""

    __slots__ = ("came_at", "crashes", "message", "pending", "pending_index", "reply", "span")

    def __init__(self, message: Message) -> None:
        self.message = message
        self.reply: Pending[Any] = Pending()
        """Where the answer will be; the actor gives it, or its supervisor."""
        self.crashes = 0
        """Incarnations that crashed with this message in hand."""
        self.pending: PendingAppend | None = None
        """The append that has reached the store with this message's event in it."""
        self.pending_index = 0
        self.came_at = 0.0
        """When a publish was put into the mailbox, on Trio's clock."""
        self.span: object = None
        """Of the request it came with (`actors.tracing`); `None`: it has none."""

    async def outcome(self) -> Appended | StorageError:
        """What became of this message's event; only once `pending` is set."""
        assert self.pending is not None, "the append has not reached the store"
        return (await self.pending.wait())[self.pending_index]

    def outcome_nowait(self) -> Appended | StorageError | None:
        """As `outcome`, without waiting; `None`: it is not known yet."""
        assert self.pending is not None, "the append has not reached the store"
        try:
            return self.pending.result()[self.pending_index] if self.pending.is_there else None
        except StorageError as error:
            return error
