"""The fields that the commands need of a server's answers; other fields are passed on unread. Pure.

The other side may be a proxy, or no avicenna-live server at all. So nothing of an answer is used before the answer has
been compared with one of these.
"""

from __future__ import annotations

from typing import Any, NotRequired, TypedDict, TypeVar

import msgspec

T = TypeVar("T")

DiagnosisId = int | str


class Named(TypedDict):
    """What was done is about one diagnosis."""

    diagnosis_id: DiagnosisId


class Diagnosis(TypedDict):
    """A registered diagnosis."""

    diagnosis_id: DiagnosisId
    owner: str
    viewers: list[str]
    created_at: str


class Subscribers(TypedDict):
    """Of a receipt: the subscribers, counted."""

    online: int
    known: int
    at_risk: int


class Receipt(TypedDict):
    """The answer to a publish."""

    diagnosis_id: DiagnosisId
    seq: int
    clients_notified: int
    subscribers: Subscribers
    replayed: bool


class Mailbox(TypedDict):
    """Of an actor: what waits."""

    depth: int
    limit: int


class Crash(TypedDict):
    """Of an actor: its last crash."""

    at: str
    error: str


class Lag(TypedDict):
    """Of an actor: a subscriber that is behind."""

    user_id: str | None
    device: str | None
    online: bool
    cursor: int
    lag: int


class Actor(TypedDict):
    """An actor."""

    diagnosis_id: DiagnosisId
    state: str
    incarnation: int
    subscribers: int
    mailbox: Mailbox
    head: int
    floor: int
    restarts: int
    last_crash: Crash | None
    damage: NotRequired[str | None]
    lag: list[Lag]


class Node(TypedDict, total=False):
    """Of the status: totals of the server."""

    actors: int
    ring_bytes: int
    aborted: int
    storage_waiting_seconds: float


class Status(TypedDict):
    """The status; what is not required depends on who asks."""

    total_diagnoses: int
    total_connections: int
    clock_held_since: NotRequired[str | None]
    connections_by_diagnosis: NotRequired[dict[str, int]]
    queued_messages_by_diagnosis: NotRequired[dict[str, int]]
    damage_by_diagnosis: NotRequired[dict[str, str]]
    uptime_seconds: NotRequired[float]
    version: NotRequired[str]
    node: NotRequired[Node]


class ConsoleMessage(TypedDict):
    """A message of the stream for consoles."""

    type: str
    data: dict[str, Any]


class ConsoleRow(TypedDict):
    """Of the stream for consoles: a diagnosis."""

    diagnosis_id: str
    state: str
    subscribers: int
    head: int
    unacknowledged: int
    lag: int
    mailbox: int
    restarts: int
    crashed_at: str | None
    crash: str | None
    damage: str | None


class ConsoleFigures(TypedDict):
    """Of the stream for consoles: the server."""

    version: str
    uptime_seconds: float
    diagnoses: int
    followers: int
    actors: int
    events: int
    deliveries: int
    ring_bytes: int
    stalls: int
    store_waiting_seconds: float
    clock_held_since: str | None


class Act(TypedDict):
    """A row of the audit trail."""

    id: int
    at: str
    actor: str
    action: str
    target: str
    before: dict[str, Any] | None
    after: dict[str, Any] | None


class Access(TypedDict):
    """A row of the access trail."""

    id: int
    at: str
    what: str
    diagnosis_id: DiagnosisId
    user_id: str | None
    device: str | None


class EventHead(TypedDict):
    """A retained event, without what it says."""

    type: str
    diagnosis_id: DiagnosisId
    seq: int
    timestamp: str


class Event(EventHead):
    """A retained event."""

    data: dict[str, Any]


class Delivered(TypedDict):
    """What became of an event for one subscriber."""

    user_id: str | None
    device: str | None
    online: bool
    cursor: int
    state: str
    acknowledged_at: str | None
    acknowledged_by: str | None


class Window(TypedDict):
    """What an outbox retains: the events behind `floor`, up to `head`."""

    diagnosis_id: DiagnosisId
    head: int
    floor: int


class Disconnected(TypedDict):
    """How many connections were ended, and cursors forgotten."""

    disconnected: int
    forgotten: int


class Revocation(TypedDict):
    """A revocation; one of the two names says of which tokens."""

    id: int
    sub: NotRequired[str]
    jti: NotRequired[str]
    at: str
    covers_until: str


class Erased(TypedDict):
    """What an erasure has ended and dropped, and what still names the person its owner."""

    connections: int
    cursors: int
    viewer_entries: int
    audit_rows: int
    access_rows: int
    owned: list[DiagnosisId]
    owned_total: int


class Draining(TypedDict):
    """The server ends."""

    status: str


class Checked(TypedDict):
    """The outcome of a check."""

    problems: list[str]


class CopyMade(TypedDict):
    """Where a backup is."""

    path: str
    sha256: str


class Health(TypedDict):
    """The process lives."""

    status: str


class Page(TypedDict):
    """Items of a list, and where the next ones begin."""

    items: list[Any]
    next: str | None


class Problem(TypedDict):
    """A refusal (RFC 9457)."""

    code: str
    detail: str


def is_a(value: object, kind: type[T]) -> bool:
    """Whether an answer has what is needed of this kind, of the right types."""
    try:
        msgspec.convert(value, kind)
    except (msgspec.ValidationError, RecursionError):
        return False
    return True
