"""What happens in the actors of one server, counted where it happens. Pure; figures since the start."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Final, Literal, get_args

from actors.resume import Resume
from storage.histogram import SECONDS, Distribution, Histogram

RestartReason = Literal["crash", "operator", "renewed", "damaged", "behind", "unreadable"]
"""It crashed; an operator wants it; the numbers of its diagnosis began anew; its outbox was found damaged; its mailbox
had no room for the news that events were dropped; its outbox could not be read."""

RESTART_REASONS: Final[tuple[RestartReason, ...]] = get_args(RestartReason)


@dataclass(slots=True, eq=False)
class Counts:
    """Totals that all actors of one registry keep together."""

    events: int = 0
    """Events that were published here and are stored."""
    event_bytes: int = 0
    """Their texts as everybody gets them."""
    deliveries: int = 0
    """Events given to connections, once for each connection."""
    delivered_bytes: int = 0
    """Their texts, once for each connection."""
    connections: int = 0
    """Attached connections."""
    mailbox_depth: int = 0
    """Publishes that wait in all mailboxes together."""
    mailbox_peak: int = 0
    """The most that ever waited in one mailbox."""
    evicted: int = 0
    """Events that left an outbox since newer ones came."""
    evicted_unacknowledged: int = 0
    """Of these, events that no subscriber's cursor had reached."""
    gaps: int = 0
    """Gaps that connections were told of."""
    gap_events: int = 0
    """Events in these gaps, once for each connection."""
    quarantines: int = 0
    resumes: dict[Resume, int] = field(default_factory=lambda: dict.fromkeys(Resume, 0))
    """Connections that were attached, by how they continued."""
    restarts: dict[RestartReason, int] = field(default_factory=lambda: dict.fromkeys(RESTART_REASONS, 0))
    """Incarnations that ended and were followed by another one, by why."""
    mailbox_wait: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Seconds that a publish waited in its mailbox."""
    fan_out: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Seconds from the first write of some events to the last one."""
    commit_to_last_write: Histogram = field(default_factory=lambda: Histogram(SECONDS))
    """Seconds from the commit of some events to the last write of them."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorsStatistics:
    """All actors of one server. See `Counts` for what has the same name there."""

    actors: int
    """In memory."""
    ring_bytes: int
    """What events take in memory, of all diagnoses."""
    ring_bytes_max: int
    events: int
    event_bytes: int
    deliveries: int
    delivered_bytes: int
    connections: int
    mailbox_depth: int
    mailbox_peak: int
    evicted: int
    evicted_unacknowledged: int
    gaps: int
    gap_events: int
    quarantines: int
    resumes: Mapping[str, int]
    restarts: Mapping[str, int]
    mailbox_wait_seconds: Distribution
    fan_out_seconds: Distribution
    commit_to_last_write_seconds: Distribution


def statistics_of_all(counts: Counts, *, actors: int, ring_bytes: int, ring_bytes_max: int) -> ActorsStatistics:
    """What was counted until now."""
    return ActorsStatistics(
        actors=actors,
        ring_bytes=ring_bytes,
        ring_bytes_max=ring_bytes_max,
        events=counts.events,
        event_bytes=counts.event_bytes,
        deliveries=counts.deliveries,
        delivered_bytes=counts.delivered_bytes,
        connections=counts.connections,
        mailbox_depth=counts.mailbox_depth,
        mailbox_peak=counts.mailbox_peak,
        evicted=counts.evicted,
        evicted_unacknowledged=counts.evicted_unacknowledged,
        gaps=counts.gaps,
        gap_events=counts.gap_events,
        quarantines=counts.quarantines,
        resumes={kind.value: count for kind, count in counts.resumes.items()},
        restarts={str(reason): count for reason, count in counts.restarts.items()},
        mailbox_wait_seconds=counts.mailbox_wait.distribution(),
        fan_out_seconds=counts.fan_out.distribution(),
        commit_to_last_write_seconds=counts.commit_to_last_write.distribution(),
    )
