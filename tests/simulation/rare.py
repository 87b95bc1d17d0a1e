"""What must have happened in a run of many histories: else they show nothing."""

from __future__ import annotations

from collections import Counter
from typing import Final

SEEDS_ENOUGH: Final = 50
"""So many histories are enough for all of it to happen."""

RARE: Final = (
    "crash: append",
    "crash: load",
    "crash: outcome",
    "crash: render",
    "gap",
    "reset",
    "quarantine",
    "take-over",
    "passivation under mail",
    "a repeat across a crash is known",
    "clock jump",
    "eviction during a load",
    "erasure during a load",
    "revocation under load",
    "death before a commit",
    "death within a commit",
    "death after a commit",
    "unsynced commits lost",
    "power failure",
    "kill",
    "drain",
    "disk: full",
    "disk: full at commit",
    "disk: error",
    "disk: error at commit",
    "disk hangs",
    "flood",
)


def too_weak(seen: Counter[str]) -> list[str]:
    """What never happened."""
    return [what for what in RARE if not seen[what]]
