"""What a store is told and what it answers: plain values, no I/O, no Trio.

Times are seconds since the Unix epoch (float). Bodies are opaque bytes.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Final, Literal, NamedTuple, NewType

from storage.histogram import NO_COUNTS, NO_SECONDS, Distribution

Seq = NewType("Seq", int)
"""The number of an event: from 1, +1 for each event of its diagnosis; 0 means "before the first"."""

Epoch = NewType("Epoch", str)
"""The opaque name of one numbering history of one diagnosis."""

Durability = Literal["full", "normal"]
"""`full`: a commit survives power loss; `normal`: it survives the end of the process."""

OUTBOX_EVENTS_MAX: Final = 100
"""Events retained per diagnosis. Reason: the promise of PROTOCOL section 1. At the limit: the oldest goes."""

IDEMPOTENCY_KEY_SECONDS: Final = 24 * 3600
"""How long an Idempotency-Key is remembered, at least. After that: the key is free again."""

IDEMPOTENCY_KEYS_MAX: Final = 10_000_000
"""Keys of all diagnoses, unless said otherwise. Reason: about 3.5 GB. Beyond: no event with a new key is stored."""


@dataclass(frozen=True, slots=True)
class Diagnosis:
    """One registered diagnosis and who may follow it."""

    diagnosis_id: str
    """1-64 characters of `A-Z a-z 0-9 _ -`; the store does not check this."""
    owner: str
    """The `sub` of its owner."""
    viewers: tuple[str, ...]
    """The `sub`s who may follow it besides the owner, in the order given, without repeats."""
    epoch: Epoch
    """Its current numbering history."""
    created_at: float
    """When this registration began."""


@dataclass(frozen=True, slots=True)
class Registered:
    """The answer to a registration."""

    diagnosis: Diagnosis
    created: bool
    """True: new. False: it was there, and owner and viewers were replaced."""
    before: Diagnosis | None
    """What it was before, `None` if new."""


@dataclass(frozen=True, slots=True)
class NewEvent:
    """An event on its way in: no number yet."""

    kind: str
    """One of the event types of PROTOCOL section 4; opaque here."""
    body: bytes
    """Opaque payload."""
    key: str | None = None
    """The Idempotency-Key, 1-128 printable ASCII characters, or `None`."""
    digest: bytes = b""
    """What "same event" means for `key`: equal digests, same event. Ignored without a key."""


class Event(NamedTuple):
    """A stored event."""

    seq: Seq
    at: float
    """Commit time."""
    kind: str
    body: bytes


class Appended(NamedTuple):
    """The answer to one `NewEvent`: it is on disk under this number."""

    seq: Seq
    at: float
    """Commit time (of the first event with this key, if `replayed`)."""
    epoch: Epoch
    replayed: bool
    """True: the key was known with the same digest, no second event was made; `seq` is the first one's."""


@dataclass(frozen=True, slots=True)
class Window:
    """What a diagnosis retains: `floor < seq <= head`, at most `OUTBOX_EVENTS_MAX`."""

    epoch: Epoch
    head: Seq
    """The last number given, 0 if none."""
    floor: Seq
    """The highest number no longer retained, 0 if none."""
    purged: Seq
    """The highest number an operator purged (0 if none): a gap that ends here has the reason `purged`."""


@dataclass(frozen=True, slots=True)
class Purged:
    """The answer to a purge."""

    before: Window
    after: Window
    """With `floor` and `purged` at `head`."""


@dataclass(frozen=True, slots=True)
class Dropped:
    """What a repair of a damaged outbox has done."""

    diagnosis_id: str
    damage: str
    """What was wrong, in words."""
    events: int
    """Stored events that are gone, damaged ones included."""
    after: Window
    is_renewed: bool
    """Its head could not be trusted, and it has a new epoch."""


@dataclass(frozen=True, slots=True)
class Slice:
    """The retained events after a number, and the window they were read from."""

    window: Window
    events: tuple[Event, ...]
    """In number order, without holes: `max(asked, floor) + 1 .. head` (fewer if limited)."""


@dataclass(frozen=True, slots=True)
class SubscriberId:
    """Who a cursor belongs to, within one diagnosis (PROTOCOL section 2, "subscriber")."""

    sub: str | None
    """The `sub` of the token; `None`: anonymous."""
    device: str | None
    """The name the client chose; `None`: all its unnamed connections together."""

    @property
    def order(self) -> tuple[str, str]:
        """Orders subscribers by name: the anonymous before all users, unnamed connections before named devices."""
        return self.sub or "", self.device or ""


AcknowledgedBy = Literal["transport", "app"]
"""What acknowledged: a client's WebSocket library (Pong, Close), or the application above it (`ack`, a position)."""


@dataclass(frozen=True, slots=True)
class CursorMove:
    """A cursor to store: the first of a subscriber, or a later one.

    Within one epoch a cursor only grows (the higher of stored and given stays); a move with another
    epoch than the stored one replaces it. Either way `seen_at` is updated (never backwards).
    """

    diagnosis_id: str
    subscriber: SubscriberId
    epoch: Epoch
    seq: Seq
    seen_at: float
    """When the subscriber was seen, as `storage.belief.Moment.reckoned`."""
    acknowledged_by: AcknowledgedBy | None = None
    """What acknowledged, where the cursor grows or is the first of its epoch; `None` of a first one: it only begins."""
    acknowledged_at: float | None = None
    """When, by the wall clock, where something acknowledged; `None`: when the subscriber was seen."""


@dataclass(frozen=True, slots=True)
class Cursor:
    """The stored cursor of one known subscriber."""

    subscriber: SubscriberId
    epoch: Epoch
    seq: Seq
    seen_at: float
    """Last admission or acknowledgement, or a later day on which it was connected; reckoned."""
    acknowledged_at: float | None
    """When the cursor last grew; `None`: never since the subscriber became known in this epoch."""
    acknowledged_by: AcknowledgedBy | None = None
    """What made it grow then; `None` also of a cursor that grew before this was kept."""


@dataclass(frozen=True, slots=True)
class Outbox:
    """One diagnosis in an overview."""

    diagnosis_id: str
    window: Window
    lowest_cursor: Seq | None
    """The lowest cursor of the current epoch among known subscribers; a known subscriber whose cursor
    is of another epoch counts as 0; `None`: nobody is known."""


@dataclass(frozen=True, slots=True)
class NewAuditRow:
    """One act of a person or a service, to be kept."""

    who: str
    """The `sub` of the principal."""
    what: str
    """The act, e.g. `diagnosis.register`."""
    target: str
    """What it was done to, usually a diagnosis id."""
    before: str | None = None
    """State before, as text; opaque here."""
    after: str | None = None
    """State after, as text; opaque here."""
    diagnosis_id: str | None = None
    """The diagnosis it concerns; `None`: none in particular."""


@dataclass(frozen=True, slots=True)
class Act:
    """What somebody does that leaves an audit row: the row is made of the act and of its answer."""

    who: str
    """The `sub` of the principal."""
    what: str
    """The act, e.g. `diagnosis.register`."""
    parameters: Mapping[str, str | int | None] = field(default_factory=dict)
    """What its row says besides the answer, e.g. the diagnosis of a purge."""

    def adding(self, **parameters: str | int | None) -> Act:
        """The same act with further parameters."""
        return replace(self, parameters={**self.parameters, **parameters})


@dataclass(frozen=True, slots=True)
class AuditRow:
    """A stored audit row."""

    number: int
    """Grows by at least one with each row; never reused."""
    at: float
    who: str
    what: str
    target: str
    before: str | None
    after: str | None
    diagnosis_id: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TrailFilter:
    """Which rows of a trail are wanted: those that fit all that is given; `None` fits every row."""

    who: str | None = None
    """Of the audit trail the one who acted, of the access trail the one who followed, exactly."""
    what: str | None = None
    """The act, exactly."""
    diagnosis_id: str | None = None
    """The diagnosis, exactly."""
    since: float | None = None
    """The row was made at this time or later."""
    until: float | None = None
    """The row was made before this time."""


EVERY_ROW: Final = TrailFilter()


@dataclass(frozen=True, slots=True)
class Revocation:
    """Tokens that are refused before their time: all of a subject up to a moment, or a single one."""

    number: int
    """Grows with each revocation; never reused."""
    sub: str | None
    """Refuses this subject's tokens that were issued until `covers_until`; `None`: it is about a token."""
    token_id: str | None
    """Refuses the token with this `jti`; `None`: it is about a subject."""
    at: float
    """When it was made, by the wall clock."""
    covers_until: float
    """Tokens of the subject with an `iat` up to this time are refused: `at`, and the leeway between two clocks.

    Reckoned: it is higher where the wall clock was behind what had been believed."""


@dataclass(frozen=True, slots=True)
class RevocationMade:
    """The answer to a revocation."""

    revocation: Revocation
    before: Revocation | None
    """The earlier one of the same subject or token, which is gone now."""


@dataclass(frozen=True, slots=True)
class NewAccessRow:
    """Somebody began or ceased to follow a diagnosis."""

    at: float
    what: Literal["connect", "disconnect"]
    diagnosis_id: str
    subscriber: SubscriberId


@dataclass(frozen=True, slots=True)
class AccessRow:
    """A stored row of the access trail."""

    number: int
    """Grows by at least one with each row; never reused."""
    at: float
    what: str
    diagnosis_id: str
    subscriber: SubscriberId


@dataclass(frozen=True, slots=True)
class Evicted:
    """One step of dropping events by age."""

    windows: Mapping[str, Window]
    """What the diagnoses that lost events retain now."""
    next: str | None
    """Where the next step continues; `None`: that was the last diagnosis."""


@dataclass(frozen=True, slots=True)
class ForgottenUnseen:
    """One step of forgetting subscribers that were not seen for long."""

    cursors: int
    """Cursors dropped."""
    next: str | None
    """Where the next step continues; `None`: that was the last diagnosis."""


@dataclass(frozen=True, slots=True)
class Erasure:
    """How a person is removed."""

    sub: str
    stand_in: str
    """What takes the place of the name in rows that must stay."""
    spellings: Sequence[str]
    """How the name can appear within an audit row: a row with none of them is not looked at."""


DAY_SECONDS: Final = 86_400

ERASED_ROWS_MAX: Final = 200
"""Rows of each kind that one step of an erasure changes. Reason: publishers wait for the step, some 10 ms."""

OWNED_NAMED_MAX: Final = 1000
"""Diagnoses of an erased person that are named. Beyond: counted."""


@dataclass(frozen=True, slots=True)
class Erased:
    """What an erasure changed, and what it did not."""

    cursors: int
    viewers: int
    """Diagnoses it could follow as a viewer."""
    audit_rows: int
    access_rows: int
    owned: tuple[str, ...]
    """Registered diagnoses that still name it as their owner, by id; the first `OWNED_NAMED_MAX`."""
    owned_total: int


@dataclass(frozen=True, slots=True)
class Backup:
    """A consistent copy that was made."""

    path: str
    size_bytes: int
    sha256: str


@dataclass(frozen=True, slots=True)
class Rehearsal:
    """What a restoration would do."""

    aside: str | None
    """Where the former database would be kept; `None`: there is none."""
    is_in_use: bool
    """Another process uses the database now: the restoration would be refused."""


@dataclass(frozen=True, slots=True)
class IdempotencyKeys:
    """The idempotency keys of all diagnoses."""

    count: int
    """How many are stored; an expired one counts until it is dropped."""
    limit: int
    """So many may be stored. Beyond: `KeysExhausted` for an event with a key that is not stored."""
    oldest_seconds: float | None
    """Age of the oldest; `None`: there is none."""


@dataclass(frozen=True, slots=True)
class StoredKey:
    """An idempotency key, and the event that it made."""

    key: str
    digest: bytes
    seq: int
    at: float
    expires_at: float


@dataclass(frozen=True, slots=True)
class StoreStatistics:
    """What the store has done since it was opened, and how it is doing now."""

    queue_depth: int
    queue_peak: int
    queue_limit: int
    commits: int
    operations: int
    """Operations that a commit settled, refused ones included; `operations / commits` is the mean batch."""
    batch_peak: int
    batch_operations: Distribution = NO_COUNTS
    """Operations of each commit."""
    commit_seconds: Distribution = NO_SECONDS
    """Time of each commit, from when its batch was taken until it was settled."""
    wal_bytes: int = 0
    """Size of the write-ahead log: what SQLite has not yet moved into the database itself."""
    database_bytes: int = 0
    """Size of the database itself."""
    broken: str | None = None
    """Why the store takes nothing any more, in words; `None`: it works. The process is about to end."""
    waiting_seconds: float = 0.0
    """For how long the oldest that waits for the disk has waited; 0: nobody waits."""
    diagnoses: int = 0
    """How many are registered."""
    away_since: float | None = None
    """Since when the engine does not answer, on the monotonic clock; `None`: it answers, or is in this process. It may
    come back: nothing ends."""
