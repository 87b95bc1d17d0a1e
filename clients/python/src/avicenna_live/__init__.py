"""The client of Avicenna Live: follows diagnoses, each number once and every gap by name, and publishes to them."""

from avicenna_live.broadcaster import AsyncBroadcaster, Broadcaster
from avicenna_live.closing import Backoff
from avicenna_live.errors import (
    BroadcastError,
    Ended,
    Forbidden,
    InvalidField,
    KeyReused,
    NoAnswer,
    NotFound,
    QueueFull,
    RateLimited,
    TooLarge,
    Unauthenticated,
    Unavailable,
)
from avicenna_live.follower import Follower
from avicenna_live.following import Following
from avicenna_live.items import (
    DiagnosisId,
    EffectivenessData,
    EffectivenessUpdate,
    Event,
    FeedbackData,
    FeedbackUpdate,
    Gap,
    Item,
    Position,
    RecommendationData,
    RecommendationUpdate,
    Reset,
    Snapshot,
    Status,
)
from avicenna_live.publishing import Receipt, Subscribers
from avicenna_live.queues import AsyncBroadcastQueue, BroadcastQueue
from avicenna_live.relay import Outbox, Relay, SqliteOutbox
from avicenna_live.shared import (
    broadcast_effectiveness_update,
    broadcast_feedback_update,
    broadcast_recommendation_update,
)
from avicenna_live.stores import FileStore, MemoryStore, Store
from avicenna_live.streams import PublishStream
from avicenna_live.updates import Update, effectiveness_update, feedback_update, recommendation_update

__all__ = [
    "AsyncBroadcastQueue",
    "AsyncBroadcaster",
    "Backoff",
    "BroadcastError",
    "BroadcastQueue",
    "Broadcaster",
    "DiagnosisId",
    "EffectivenessData",
    "EffectivenessUpdate",
    "Ended",
    "Event",
    "FeedbackData",
    "FeedbackUpdate",
    "FileStore",
    "Follower",
    "Following",
    "Forbidden",
    "Gap",
    "InvalidField",
    "Item",
    "KeyReused",
    "MemoryStore",
    "NoAnswer",
    "NotFound",
    "Outbox",
    "Position",
    "PublishStream",
    "QueueFull",
    "RateLimited",
    "Receipt",
    "RecommendationData",
    "RecommendationUpdate",
    "Relay",
    "Reset",
    "Snapshot",
    "SqliteOutbox",
    "Status",
    "Store",
    "Subscribers",
    "TooLarge",
    "Unauthenticated",
    "Unavailable",
    "Update",
    "broadcast_effectiveness_update",
    "broadcast_feedback_update",
    "broadcast_recommendation_update",
    "effectiveness_update",
    "feedback_update",
    "recommendation_update",
]
