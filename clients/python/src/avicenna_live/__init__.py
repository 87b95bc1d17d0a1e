"""The client of Avicenna Live: follows diagnoses, each number once and every gap by name, and comes back by itself."""

from avicenna_live.closing import Backoff
from avicenna_live.errors import Ended
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
from avicenna_live.stores import FileStore, MemoryStore, Store

__all__ = [
    "Backoff",
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
    "Gap",
    "Item",
    "MemoryStore",
    "Position",
    "RecommendationData",
    "RecommendationUpdate",
    "Reset",
    "Snapshot",
    "Status",
    "Store",
]
