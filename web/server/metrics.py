"""`GET /metrics`: the figures of all rooms in the text format of Prometheus, and the table that names them.

A room counts what happens in it, and shows it in its `statistics()`, a frozen value. A scrape reads one of each room
(`web.server.seen`) and makes text of it: it looks at no diagnosis and at no connection, so it costs the same however
many there are. With several workers it reads those of all. The code knows all values of a label; none is the name of a
diagnosis, a person or an address.

`python -m web.server.metrics` prints docs/METRICS.md.
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar, Final

from prometheus_client.exposition import generate_latest
from prometheus_client.metrics_core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from storage.histogram import Distribution
from web.contract import wire
from web.contract.errors import CloseCode
from web.contract.exchange import Answer, Handlers, Request
from web.contract.operations import METRICS
from web.identity.access import require
from web.identity.rights import OPERATE
from web.server.seen import Seen
from web.websocket.counts import OTHER

PREFIX: Final = "avicenna_"

Labelled = Mapping[str, float]
"""Values by the value of the label."""


@dataclass(frozen=True, slots=True)
class Value:
    """A number, or one for each value of a label."""

    name: str
    """Without `PREFIX` and `suffix`, its unit last."""
    doc: str
    read: Callable[[Seen], float | Labelled]
    label: str | None = None
    of_workers: str = ""
    """What it is of several workers, if it is not their sum."""

    kind: ClassVar[str]
    suffix: ClassVar = ""
    family_class: ClassVar[type[CounterMetricFamily | GaugeMetricFamily]]

    @property
    def shown(self) -> str:
        """Its name as Prometheus has it."""
        return PREFIX + self.name + self.suffix

    def family(self, seen: Seen) -> Metric:
        """Its values."""
        family = self.family_class(self.shown, self.doc, labels=_labels(self.label))
        _fill(family, self.read(seen))
        return family


class Counter(Value):
    """Something that only grows, and begins anew with the process."""

    kind = "counter"
    suffix = "_total"
    family_class = CounterMetricFamily


class Gauge(Value):
    """Something that is so much now."""

    kind = "gauge"
    family_class = GaugeMetricFamily


@dataclass(frozen=True, slots=True)
class Spread:
    """How values are distributed: a histogram."""

    name: str
    """Without `PREFIX`, its unit last."""
    doc: str
    read: Callable[[Seen], Distribution]
    label: str | None = None
    of_workers: str = ""

    kind: ClassVar = "histogram"

    @property
    def shown(self) -> str:
        """Its name as Prometheus has it, to which `_bucket`, `_sum` and `_count` are added."""
        return PREFIX + self.name

    def family(self, seen: Seen) -> Metric:
        """Its values."""
        found = self.read(seen)
        bounds = (*map(str, found.bounds), "+Inf")
        family = HistogramMetricFamily(self.shown, self.doc)
        family.add_metric((), list(zip(bounds, found.below, strict=True)), found.sum)
        return family


def _labels(label: str | None) -> tuple[str, ...]:
    return () if label is None else (label,)


def _fill(family: CounterMetricFamily | GaugeMetricFamily, found: float | Labelled) -> None:
    if isinstance(found, Mapping):
        for value, figure in found.items():
            family.add_metric((value,), figure)
    else:
        family.add_metric((), found)


def _closes(seen: Seen) -> Labelled:
    streams = seen.stream_closes
    found = {"other" if code == OTHER else str(code): count for code, count in seen.hub.closes.items()}
    return (
        found | {str(int(code)): found[str(int(code))] + streams[code] for code in CloseCode} | {"none": streams[None]}
    )


TABLE: Final[tuple[Value | Spread, ...]] = (
    Gauge(
        "build_info", "The release that runs; always 1.", lambda seen: {seen.release: 1}, "version", of_workers="newest"
    ),
    Gauge("uptime_seconds", "Time since the start.", lambda seen: seen.uptime_seconds, of_workers="of the server"),
    Gauge("workers", "Processes that serve.", lambda seen: seen.workers),
    Gauge(
        "nodes",
        "Processes with the same store that were heard of within 5 s, and this one: servers on NATS, or `workers`.",
        lambda seen: seen.nodes,
        of_workers="highest",
    ),
    Counter(
        "restarted_processes",
        "Processes that ended unasked and were started again, where there are several `workers`.",
        lambda seen: seen.restarted_processes,
        "process",
    ),
    # Publishing and delivering
    Counter("events", "Events that were published here and are stored.", lambda seen: seen.actors.events),
    Counter("event_bytes", "Their bodies.", lambda seen: seen.actors.event_bytes),
    Counter(
        "deliveries", "Events given to connections, once for each connection.", lambda seen: seen.actors.deliveries
    ),
    Counter("delivered_bytes", "Their texts, once for each connection.", lambda seen: seen.actors.delivered_bytes),
    Spread(
        "fan_out_seconds",
        "From the first write of some events to connections to the last one.",
        lambda seen: seen.actors.fan_out_seconds,
    ),
    Spread(
        "commit_to_last_write_seconds",
        "From the commit of some events to the last write of them to connections in step.",
        lambda seen: seen.actors.commit_to_last_write_seconds,
    ),
    Gauge("publishing_connections", "Open WebSockets that publish.", lambda seen: seen.senders.connections),
    Gauge(
        "publishing_bytes",
        "Bytes of frames that were read from them and are not answered.",
        lambda seen: seen.senders.bytes_under_way,
    ),
    # Following
    Gauge("followers", "Connections that follow a diagnosis.", lambda seen: seen.actors.connections),
    Counter(
        "resumes", "Connections that began to follow, by how they continued.", lambda seen: seen.actors.resumes, "kind"
    ),
    Counter("gaps", "Gaps that connections were told of.", lambda seen: seen.actors.gaps),
    Counter("gap_events", "Events in these gaps, once for each connection.", lambda seen: seen.actors.gap_events),
    Counter("evicted_events", "Events that left an outbox as newer ones came.", lambda seen: seen.actors.evicted),
    Counter(
        "evicted_unacknowledged_events",
        "Of these, events that the cursor of no known subscriber had reached.",
        lambda seen: seen.actors.evicted_unacknowledged,
    ),
    # Actors
    Gauge("actors", "Diagnosis actors in memory.", lambda seen: seen.actors.actors),
    Counter(
        "restarts",
        "Incarnations that another one followed, by why they ended.",
        lambda seen: seen.actors.restarts,
        "reason",
    ),
    Counter("quarantines", "Diagnoses put into quarantine.", lambda seen: seen.actors.quarantines),
    Gauge("mailbox_messages", "Broadcasts that wait in all mailboxes.", lambda seen: seen.actors.mailbox_depth),
    Gauge(
        "mailbox_peak_messages",
        "The most that ever waited in one mailbox.",
        lambda seen: seen.actors.mailbox_peak,
        of_workers="highest",
    ),
    Spread(
        "mailbox_wait_seconds",
        "For how long a broadcast waited in its mailbox.",
        lambda seen: seen.actors.mailbox_wait_seconds,
    ),
    Gauge("ring_bytes", "Events in memory, of all diagnoses.", lambda seen: seen.actors.ring_bytes),
    Gauge("ring_limit_bytes", "What they may take (`ring_bytes_max`).", lambda seen: seen.actors.ring_bytes_max),
    # Storing
    Gauge("diagnoses", "Registered diagnoses.", lambda seen: seen.store.diagnoses, of_workers="of the store"),
    Gauge(
        "damaged_diagnoses",
        "Diagnoses whose stored events are known to be damaged.",
        lambda seen: seen.damaged,
        of_workers="of the store",
    ),
    Spread(
        "commit_seconds",
        "Time of a commit, with all operations of its batch.",
        lambda seen: seen.store.commit_seconds,
        of_workers="of the store",
    ),
    Spread(
        "commit_operations",
        "Operations of a commit.",
        lambda seen: seen.store.batch_operations,
        of_workers="of the store",
    ),
    Gauge(
        "store_queue_operations",
        "Operations that wait for a commit.",
        lambda seen: seen.store.queue_depth,
        of_workers="of the store",
    ),
    Gauge(
        "store_queue_peak_operations",
        "The most that ever waited.",
        lambda seen: seen.store.queue_peak,
        of_workers="of the store",
    ),
    Gauge(
        "store_queue_limit_operations",
        "How many may wait.",
        lambda seen: seen.store.queue_limit,
        of_workers="of the store",
    ),
    Gauge(
        "store_waiting_seconds",
        "For how long the oldest that waits for the disk has waited.",
        lambda seen: seen.store.waiting_seconds,
        of_workers="of the store",
    ),
    Gauge(
        "store_away_seconds",
        "For how long NATS, or the process of the store, has not answered; 0: it answers, or there is none.",
        lambda seen: seen.store_away_seconds,
        of_workers="highest",
    ),
    Gauge("wal_bytes", "Size of the write-ahead log.", lambda seen: seen.store.wal_bytes, of_workers="of the store"),
    Gauge(
        "database_bytes",
        "Size of the database itself.",
        lambda seen: seen.store.database_bytes,
        of_workers="of the store",
    ),
    # Connections and requests
    Gauge("consoles", "Open streams of statistics, one of each console.", lambda seen: seen.consoles),
    Gauge("connections", "Open connections, whatever they are for.", lambda seen: seen.connections.count),
    Gauge("websockets", "Open WebSockets, refused ones included.", lambda seen: seen.hub.connections),
    Gauge("held_closes", "WebSockets whose Close is held back.", lambda seen: seen.hub.held),
    Counter(
        "closes",
        "WebSockets, event streams and consoles that ended, by the code of the first Close, or of the `bye` of a "
        "stream; `none`: the client has left the stream.",
        _closes,
        "code",
    ),
    Counter(
        "stalls",
        "Connections cut off, since their clients accepted nothing or answered no Ping.",
        lambda seen: {"websocket": seen.hub.aborted, "answer": seen.connections.stalled},
        "kind",
    ),
    Counter("floods", "WebSockets closed, since their clients sent too much.", lambda seen: seen.hub.floods),
    Counter(
        "requests",
        "Requests whose head was read, by the way they took.",
        lambda seen: {"short": seen.ways.short, "long": seen.ways.long},
        "way",
    ),
    Counter("refused_tokens", "Tokens that were not accepted, by why.", lambda seen: seen.refused_tokens, "reason"),
    # The process
    Gauge("tasks", "Tasks of the event loop.", lambda seen: seen.tasks),
    Spread("loop_lag_seconds", "How late the event loop wakes a task that is due.", lambda seen: seen.loop_lag),
    Counter("dropped_log_lines", "Log lines that were dropped, as nobody read the log.", lambda seen: seen.log.dropped),
    Gauge("log_queue_bytes", "Log lines that are not written yet.", lambda seen: seen.log.held_bytes),
)
"""Every metric of this server."""


class AllMetrics(Collector):
    """What all rooms have said, as metrics."""

    def __init__(self, seen: Seen) -> None:
        """The metrics of one scrape."""
        self._seen = seen

    def collect(self) -> Iterator[Metric]:
        """All metrics, with the values of one moment."""
        for one in TABLE:
            yield one.family(self._seen)


def metrics(see: Callable[[], Awaitable[Seen]]) -> Handlers:
    """The operation.

    Args:
        see: what all rooms say now, of all workers; looks at no diagnosis and no connection.
    """

    async def show(asked: Request) -> Answer:
        if not asked.is_among_operators:
            require(asked.who, OPERATE)
        return Answer(200, {**wire.ANSWER_HEADERS, "Content-Type": METRICS}, generate_latest(AllMetrics(await see())))

    return {"getMetrics": show}


def metrics_page() -> str:
    """docs/METRICS.md, from the table."""
    rows = [
        f"| `{one.shown}` | {one.kind} | {_shown_label(one.label)} | {one.of_workers or 'sum'} | {one.doc} |"
        for one in TABLE
    ]
    return "\n".join((_PAGE_HEAD, *rows, ""))


def _shown_label(label: str | None) -> str:
    return "" if label is None else f"`{label}`"


_PAGE_HEAD: Final = """\
# Metrics

<!-- Made from web/server/metrics.py by `make metrics`; change it there. -->

`GET /metrics` shows these figures in the text format of Prometheus ([PROTOCOL](PROTOCOL.md) section 8.35). A
counter begins at 0 with the server. Of a histogram there are `_bucket`, `_sum` and `_count`. No label names a
diagnosis, a person or an address. [DEPLOYMENT](DEPLOYMENT.md) says how Prometheus and Grafana are set up.

With several `workers` any of them answers for all, and the column says how: figures are added up, counters and
histograms with those of workers that have ended, so that none goes down. Of a worker that is killed counts what it had
told last, a second before at most.

| metric | kind | label | of all workers | what it says |
|---|---|---|---|---|"""

if __name__ == "__main__":
    sys.stdout.write(metrics_page())
