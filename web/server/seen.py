"""What all rooms of a server say at one moment, and how that of several processes is put together. Pure.

`RULES` says of each figure how it is joined, and whether it stays once its process has ended. What is not named there
is a total: it is added up, and stays, so that no counter of a server goes down when one of its workers is replaced.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, is_dataclass
from typing import Any, Final, NamedTuple, TypeVar

import msgspec

from actors.counts import ActorsStatistics
from storage.histogram import Distribution
from storage.records import StoreStatistics
from web.http.open_connections import OpenStatistics
from web.http.short_way import Ways
from web.publishing.sender import SendersStatistics
from web.server.log_writer import LogStatistics
from web.websocket.counts import HubStatistics

Figures = TypeVar("Figures")


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What all rooms say at one moment."""

    release: str
    uptime_seconds: float
    """Since the server has begun, also where this process began later."""
    workers: int = 1
    """Processes that serve, and have said so."""
    nodes: int
    """Processes with the same store that were heard of lately, this one included."""
    restarted_processes: Mapping[str, int]
    """Processes that ended unasked, and that another one followed, by what they were."""
    actors: ActorsStatistics
    is_escalated: bool
    """Whether so many diagnoses were quarantined lately that the server should get no new work."""
    store: StoreStatistics
    store_away_seconds: float
    """For how long the engine, or the process of the store, has not answered; 0: it answers, or is in this process."""
    damaged: int
    """Diagnoses whose outbox is damaged."""
    hub: HubStatistics
    stream_closes: Mapping[int | None, int]
    """Event streams that ended, by the code of their `bye`; `None`: without one."""
    connections: OpenStatistics
    ways: Ways
    senders: SendersStatistics
    refused_tokens: Mapping[str, int]
    tasks: int
    """Of the event loop."""
    loop_lag: Distribution
    log: LogStatistics
    consoles: int
    """Streams of statistics that are open."""


PROCESSES: Final = ("worker", "store")
"""What a process of a server with several workers is."""

NO_PROCESSES: Final[Mapping[str, int]] = dict.fromkeys(PROCESSES, 0)


class Rule(NamedTuple):
    """How a figure of several processes is joined."""

    join: Callable[[Sequence[Any]], Any]
    stays: bool
    """Whether that of a process that has ended counts still."""


def _sum(parts: Sequence[Any]) -> Any:
    first = parts[0]
    match first:
        case Distribution():
            counts = tuple(map(sum, zip(*(one.counts for one in parts), strict=True)))
            return Distribution(first.bounds, counts, sum(one.sum for one in parts))
        case Mapping():
            names = dict.fromkeys(name for one in parts for name in one)
            return {name: sum(one.get(name, 0) for one in parts) for name in names}
        case int() | float():
            return sum(parts)
        case _:
            return _joined(parts)


def _last(parts: Sequence[Any]) -> Any:
    return parts[-1]


TOTAL: Final = Rule(_sum, stays=True)
NOW: Final = Rule(_sum, stays=False)
"""So much at the moment."""
HIGHEST: Final = Rule(max, stays=True)
WORST: Final = Rule(max, stays=False)
"""As bad as it is at the process that has it worst."""
LAST: Final = Rule(_last, stays=True)
"""As the one that has begun last says it."""

RULES: Final[Mapping[type, Mapping[str, Rule]]] = {
    Seen: {
        "release": LAST,
        "uptime_seconds": HIGHEST,
        "workers": NOW,
        "nodes": WORST,
        "is_escalated": WORST,
        "store": LAST,  # there is one, whoever asks it
        "store_away_seconds": WORST,
        "damaged": WORST,
        "tasks": NOW,
        "consoles": NOW,
    },
    ActorsStatistics: {
        "actors": NOW,
        "ring_bytes": NOW,
        "ring_bytes_max": NOW,
        "connections": NOW,
        "mailbox_depth": NOW,
        "mailbox_peak": HIGHEST,
    },
    # Of one process of the store after another.
    StoreStatistics: {
        "queue_depth": NOW,
        "queue_peak": HIGHEST,
        "queue_limit": NOW,
        "batch_peak": HIGHEST,
        "wal_bytes": NOW,
        "database_bytes": NOW,
        "broken": LAST,
        "waiting_seconds": NOW,
        "diagnoses": NOW,
        "away_since": LAST,
    },
    HubStatistics: {"connections": NOW, "held": NOW},
    OpenStatistics: {"count": NOW},
    SendersStatistics: {"connections": NOW, "bytes_under_way": NOW},
    LogStatistics: {"held_bytes": NOW},
}


def together(parts: Sequence[Figures]) -> Figures:
    """The figures of several processes as those of one.

    Args:
        parts: at least one, in the order in which the processes began.
    """
    joined: Figures = _joined(parts)
    return joined


def left_by(figures: Figures) -> Figures:
    """What counts still of a process that has ended: its totals."""
    kind: Any = type(figures)
    left: Figures = kind(
        **{name: _left(getattr(figures, name), _rule(kind, name)) for name in _names(kind)},
    )
    return left


def _joined(parts: Sequence[Any]) -> Any:
    kind: Any = type(parts[0])
    return kind(**{name: _rule(kind, name).join([getattr(one, name) for one in parts]) for name in _names(kind)})


def _left(value: Any, rule: Rule) -> Any:
    if type(value) in _OF_ROOMS:
        return left_by(value)
    return value if rule.stays else type(value)()


def _rule(kind: type, name: str) -> Rule:
    return RULES.get(kind, {}).get(name, TOTAL)


def _names(kind: Any) -> Sequence[str]:
    return tuple(one.name for one in fields(kind)) if is_dataclass(kind) else kind._fields


_OF_ROOMS: Final = frozenset({*RULES, Ways})
"""What consists of figures."""

# Between processes

_seen: Final = msgspec.msgpack.Decoder(Seen)
_of_store: Final = msgspec.msgpack.Decoder(StoreStatistics)


def seen_of(data: bytes) -> Seen:
    """What was seen, as msgpack.

    Raises:
        msgspec.DecodeError: it is something else.
    """
    return _seen.decode(data)


def store_statistics_of(data: bytes) -> StoreStatistics:
    """The figures of a store, as msgpack. Raises as `seen_of`."""
    return _of_store.decode(data)
