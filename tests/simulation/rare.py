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
    "publish socket",
    "stream",
    "renewal",
    "token expired",
    "a revoked token comes back",
    "backup",
    "check",
    "restore",
    "keys exchanged",
    "a close is a receipt",
    "power failure behind a deletion",
)


RARE_WITH_NODES: Final = (
    "a node dies",
    "the engine is away",
    "crash: load",
    "take-over",
    "gap",
    "stream",
    "publish socket",
    "a repeat across a crash is known",
    "erasure during a load",
)
"""The same of histories of several servers."""


RARE_ON_NATS: Final = (
    *RARE_WITH_NODES,
    "a NATS server dies",
    "a NATS server freezes",
    "a NATS server is cut off",
    "a server is elected",
    "another server leads",
    "a live copy is lost",
    "a request vanishes",
    "an answer is lost",
    "an answer comes twice",
    "there is no room",
    "appends to several logs go together",
    "appends to several logs are refused together",
    "restore",
    "reset",
)
"""The same of histories of several servers on NATS."""


def too_weak(seen: Counter[str], rare: tuple[str, ...] = RARE) -> list[str]:
    """What never happened."""
    return [what for what in rare if not seen[what]]
