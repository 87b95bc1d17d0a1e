"""What happens in one history: operations that are drawn from a seed, each with all its own chance. Pure."""

from __future__ import annotations

from dataclasses import dataclass, replace
from random import Random
from typing import Final

OPERATIONS_MAX: Final = 90

WEIGHTS: Final[dict[str, float]] = {
    # publishers
    "publish": 14,
    "publish many": 2,
    "vanish while publishing": 2,
    "repeat": 4,
    "publish beside": 4,
    "publish over a socket": 4,
    # clients
    "connect": 12,
    "peek": 1.5,
    "stream": 4,
    "follow beside": 1,
    "token ends": 0.7,
    "renew": 1,
    "replay a token": 1.5,
    "leave": 3,
    "half-close": 0.7,
    "fall behind": 0.7,
    "acknowledge": 7,
    "lie": 2,
    "stall": 2,
    "freeze": 1,
    "flood": 0.5,
    "speak": 1,
    # actors
    "crash": 5,
    "crash again and again": 0.8,
    "restart": 2,
    "stop": 3,
    "stop under mail": 1,
    # rights and operators
    "purge": 1,
    "evict under load": 0.7,
    "erase": 1.5,
    "erase under load": 0.6,
    "revoke": 1.5,
    "revoke under load": 1,
    "take a right": 1.5,
    "register": 1.5,
    "back up": 0.6,
    "check": 0.6,
    "begin anew": 0.7,
    "disconnect": 0.7,
    # the machine
    "drain": 1,
    "kill": 1,
    "kill at commit": 1.5,
    "power fails": 0.7,
    "disk full": 1.5,
    "disk fails": 0.5,
    "disk hangs": 1,
    "clock jumps": 1.5,
    # time
    "wait": 4,
    "wait long": 1.2,
}
"""How often each is drawn, beside the others."""

RARELY: Final[dict[str, float]] = {"restore": 0.12, "exchange keys": 0.25}
"""In so many histories it happens once. It is put in beside all else, which is drawn as if it were not there."""

CROWDS_MAX: Final = 6
"""So often at most are updates to all diagnoses put into a history of servers on NATS."""

ALWAYS: Final = frozenset({"publish", "connect", "acknowledge", "wait"})
"""No history is without them."""


@dataclass(frozen=True)
class Operation:
    """One thing that somebody does."""

    kind: str
    pause: float
    """Seconds since the operation before it was begun, or has ended."""
    is_waited_for: bool
    """The next one begins when this one has ended."""
    lot: int
    """All that is left to chance in it."""

    def lots(self) -> Random:
        """Its own chance: the same whenever it is played."""
        return Random(self.lot)


@dataclass(frozen=True)
class History:
    """Everything that a seed decides beforehand."""

    seed: int
    durability: str
    drops_old_events: bool
    has_access_trail: bool
    operations: tuple[Operation, ...]
    nodes: int = 1
    """Servers on one engine."""
    engine: str = "memory"
    """Which engine several servers are on: `memory` or `nats`."""

    def only(self, kept: list[Operation]) -> History:
        """The same, with fewer operations."""
        return replace(self, operations=tuple(kept))


def drawn(seed: int) -> History:
    """The history of a seed."""
    return with_rare(plain(seed))


def with_rare(history: History) -> History:
    """The same with what happens rarely, in some of them."""
    lots = Random(f"rarely {history.seed}")
    operations = list(history.operations)
    for kind, share in RARELY.items():
        if lots.random() < share:
            made = Operation(kind, lots.choice((0.0, 0.5)), lots.random() < 0.5, lots.getrandbits(32))
            operations.insert(lots.randint(len(operations) // 3, len(operations)), made)
    return history.only(operations)


def with_crowds(history: History) -> History:
    """The same with updates to all diagnoses in one moment, put in as what happens rarely."""
    lots = Random(f"crowds {history.seed}")
    operations = list(history.operations)
    for _ in range(lots.randint(0, CROWDS_MAX)):
        made = Operation("publish everywhere", lots.choice((0.0, 0.5)), lots.random() < 0.5, lots.getrandbits(32))
        operations.insert(lots.randint(0, len(operations)), made)
    return history.only(operations)


def plain(seed: int) -> History:
    """What is drawn together. Each history lacks some kinds of operations, so that others come together more often."""
    lots = Random(seed)
    durability = lots.choice(("full", "full", "normal"))
    drops = lots.random() < 0.4
    trail = lots.random() < 0.5
    missing = lots.choice((0.0, 0.3, 0.6))
    weights = {kind: weight for kind, weight in WEIGHTS.items() if kind in ALWAYS or lots.random() >= missing}
    kinds = lots.choices(list(weights), list(weights.values()), k=lots.randint(10, OPERATIONS_MAX))
    pauses = lots.choice(((0.0, 0.0, 0.01), (0.0, 0.05, 0.5), (0.1, 1.0)))
    return History(
        seed,
        durability,
        drops,
        trail,
        tuple(Operation(kind, lots.choice(pauses), lots.random() < 0.5, lots.getrandbits(32)) for kind in kinds),
    )
