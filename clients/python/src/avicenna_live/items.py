"""What a consumer gets: events with typed data, gaps, resets, snapshots; and the statuses of a connection. Pure."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from datetime import datetime
from typing import Any, ClassVar, Final, Literal, NotRequired, TypedDict

DiagnosisId = int | str
"""As the server writes it: an integer where the id is a number of at most 15 digits, else 1-64 characters of
`A-Z a-z 0-9 _ -`."""


@dataclass(frozen=True, slots=True)
class Position:
    """Up to where a consumer has come in one diagnosis."""

    epoch: str
    """The numbering that `seq` belongs to."""
    seq: int
    """The last number whose step is finished, 0: none."""


class RecommendationData(TypedDict):
    """The `data` of a `recommendation_update` (PROTOCOL section 4)."""

    old_data: dict[str, Any] | None
    new_data: dict[str, Any]
    reason: str | None
    changed_fields: list[str]
    """Keys of `new_data` whose value differs from `old_data`, sorted."""


class EffectivenessData(TypedDict):
    """The `data` of an `effectiveness_update` (PROTOCOL section 4)."""

    recommendation_id: int | str
    new_effectiveness: float
    """From 0 to 1."""
    confidence: float | None
    """From 0 to 1."""
    sample_size: int | None
    """From 0 to 2^53-1."""
    old_effectiveness: NotRequired[float]
    """From 0 to 1."""
    herb: NotRequired[str]


class FeedbackData(TypedDict):
    """The `data` of a `feedback_update` (PROTOCOL section 4)."""

    feedback_id: int | str
    rating: int
    """From 1 to 5."""
    effectiveness: float | None
    """From 0 to 1."""
    recommendation_id: NotRequired[int | str]
    comment: NotRequired[str]


@dataclass(frozen=True, slots=True)
class Event:
    """What the three kinds of events have in common."""

    type: ClassVar[str]
    diagnosis_id: DiagnosisId
    seq: int
    """From 1, one more for each event of this diagnosis and epoch."""
    epoch: str
    timestamp: datetime
    """When the event was committed, in UTC: the same on every delivery."""
    data: Any


@dataclass(frozen=True, slots=True)
class RecommendationUpdate(Event):
    """A recommendation of the diagnosis has changed."""

    type: ClassVar[Literal["recommendation_update"]] = "recommendation_update"
    data: RecommendationData


@dataclass(frozen=True, slots=True)
class EffectivenessUpdate(Event):
    """The effectiveness of a recommendation has changed."""

    type: ClassVar[Literal["effectiveness_update"]] = "effectiveness_update"
    data: EffectivenessData


@dataclass(frozen=True, slots=True)
class FeedbackUpdate(Event):
    """Somebody has given feedback."""

    type: ClassVar[Literal["feedback_update"]] = "feedback_update"
    data: FeedbackData


EVENT_OF: Final[dict[str, type[RecommendationUpdate | EffectivenessUpdate | FeedbackUpdate]]] = {
    kind.type: kind for kind in (RecommendationUpdate, EffectivenessUpdate, FeedbackUpdate)
}
"""The class of each type of event."""


@dataclass(frozen=True, slots=True)
class Gap:
    """Numbers that this consumer can no longer get."""

    type: ClassVar[Literal["gap"]] = "gap"
    first: int
    last: int
    reason: str
    """`evicted`: newer events took their place; `purged`: an operator removed them."""


@dataclass(frozen=True, slots=True)
class Reset:
    """The numbering has begun anew: reload what you know. The events that follow begin after `floor`."""

    type: ClassVar[Literal["reset"]] = "reset"
    epoch: str
    floor: int


@dataclass(frozen=True, slots=True)
class Snapshot:
    """What `get_state` returned. It holds at least everything up to `seq`."""

    type: ClassVar[Literal["snapshot"]] = "snapshot"
    epoch: str
    seq: int
    data: Any


Item = RecommendationUpdate | EffectivenessUpdate | FeedbackUpdate | Gap | Reset | Snapshot


@dataclass(frozen=True, slots=True)
class Status:
    """How it stands with the connection of one `follow`."""

    state: Literal["connecting", "live", "offline", "needs_auth", "ended"]
    """`connecting`: an attempt is under way, or the server sends what was missed. `live`: everything so far has come.
    `offline`: there is no connection, and the client comes back. `needs_auth`: the token was refused. `ended`: for
    good."""
    reason: str | None = None
    code: int | None = None
    """A close code, the HTTP status of a refused upgrade, or `None`: there was neither."""

    def __str__(self) -> str:
        return " ".join(str(value) for value in dataclasses.astuple(self) if value is not None)
