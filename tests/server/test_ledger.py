"""Figures of several workers as those of one: how each is joined, and that no counter goes down when one ends."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import msgspec
import pytest

from actors.counts import RESTART_REASONS, ActorsStatistics
from actors.resume import Resume
from storage.histogram import COUNTS, SECONDS, Distribution, Histogram
from storage.records import StoreStatistics
from web.contract.errors import CloseCode
from web.http.open_connections import OpenStatistics
from web.http.short_way import Ways
from web.publishing.sender import SendersStatistics
from web.server.log_writer import LogStatistics
from web.server.metrics import TABLE, Spread, Value
from web.server.seen import NO_PROCESSES, RULES, Seen, left_by, seen_of, store_statistics_of, together
from web.server.workers.ledger import Ledger
from web.server.workers.orders import packed
from web.websocket.counts import CODES, OTHER, HubStatistics


class Numbers:
    """Numbers that are all different, so that none is taken for another."""

    def __init__(self, first: int) -> None:
        self._next = first

    def __call__(self) -> int:
        self._next += 7
        return self._next

    def spread(self, bounds: tuple[float, ...]) -> Distribution:
        made = Histogram(bounds)
        for value in (0, *bounds):
            made.observe(value + self() / 100)
        return made.distribution()


def store_of(numbers: Numbers) -> StoreStatistics:
    return StoreStatistics(
        queue_depth=numbers(),
        queue_peak=numbers(),
        queue_limit=8192,
        commits=numbers(),
        operations=numbers(),
        batch_peak=numbers(),
        batch_operations=numbers.spread(COUNTS),
        commit_seconds=numbers.spread(SECONDS),
        wal_bytes=numbers(),
        database_bytes=numbers(),
        diagnoses=numbers(),
    )


def seen_with(first: int, store: StoreStatistics | None = None) -> Seen:
    """What a worker sees."""
    numbers = Numbers(first)
    actors: dict[str, Any] = {one.name: numbers() for one in dataclasses.fields(ActorsStatistics)}
    for name in ("mailbox_wait_seconds", "fan_out_seconds", "commit_to_last_write_seconds"):
        actors[name] = numbers.spread(SECONDS)
    actors["resumes"] = {kind.value: numbers() for kind in Resume}
    actors["restarts"] = {str(reason): numbers() for reason in RESTART_REASONS}
    return Seen(
        release="1.0",
        uptime_seconds=numbers(),
        nodes=numbers(),
        restarted_processes=NO_PROCESSES,
        actors=ActorsStatistics(**actors),
        is_escalated=False,
        store=store or store_of(Numbers(5)),
        store_away_seconds=numbers(),
        damaged=3,
        hub=HubStatistics(numbers(), numbers(), numbers(), numbers(), {int(one): numbers() for one in (*CODES, OTHER)}),
        stream_closes={one: numbers() for one in (None, *map(int, CloseCode))},
        connections=OpenStatistics(numbers(), numbers()),
        ways=Ways(numbers(), numbers()),
        senders=SendersStatistics(numbers(), numbers()),
        refused_tokens={"missing": numbers(), "expired": numbers()},
        tasks=numbers(),
        loop_lag=numbers.spread(SECONDS),
        log=LogStatistics(numbers(), numbers()),
        consoles=numbers(),
    )


def samples(one: Value | Spread, seen: Seen) -> Iterator[tuple[str, float]]:
    """The values of a metric, by label."""
    for sample in one.family(seen).samples:
        yield f"{sample.name}{sample.labels}", sample.value


def counters(seen: Seen) -> dict[str, float]:
    """All that must never go down."""
    return {name: value for one in TABLE if one.kind != "gauge" for name, value in samples(one, seen)}


def ledger_of(store: StoreStatistics, **workers: Seen) -> Ledger:
    made = Ledger()
    made.store_told("store", packed(store))
    for name, seen in workers.items():
        made.worker_told(name, packed(seen))
    return made


def together_at(ledger: Ledger) -> Seen:
    seen = ledger.together()
    assert seen is not None
    return seen


@pytest.mark.parametrize("one", TABLE, ids=[one.shown for one in TABLE])
def test_a_metric_of_two_workers_is_what_its_page_says(one: Value | Spread) -> None:
    store = store_of(Numbers(9))
    first, second = seen_with(100, store), seen_with(5000, store)
    both = dict(samples(one, together_at(ledger_of(store, first=first, second=second))))
    for name, value in both.items():
        parts = [dict(samples(one, part))[name] for part in (first, second)]
        match one.of_workers:
            case "":
                assert value == pytest.approx(sum(parts)), name
            case "highest" | "of the server":
                assert value == max(parts), name
            case "of the store" | "newest":
                assert value == parts[0] == parts[1], name
            case other:
                raise AssertionError(other)


def test_what_travels_between_processes_arrives_as_it_was() -> None:
    seen = seen_with(17)
    assert seen_of(packed(seen)) == seen
    assert store_statistics_of(packed(seen.store)) == seen.store
    with pytest.raises(msgspec.DecodeError):
        seen_of(b"something else")


def test_counters_stay_when_a_worker_ends_and_what_it_had_open_does_not() -> None:
    store = store_of(Numbers(9))
    ledger = ledger_of(store, first=seen_with(100, store), second=seen_with(5000, store))
    before = counters(together_at(ledger))
    ledger.worker_ended("first")
    assert counters(together_at(ledger)) == before
    now = together_at(ledger)
    alone = seen_with(5000, store)
    assert (now.workers, now.connections.count, now.actors.ring_bytes) == (
        1,
        alone.connections.count,
        alone.actors.ring_bytes,
    )
    ledger.worker_told("third", packed(seen_with(0, store)))
    ledger.worker_ended("second")
    ledger.worker_ended("second")
    after = counters(together_at(ledger))
    assert all(after[name] >= value for name, value in before.items())


@pytest.mark.parametrize("one", TABLE, ids=[one.shown for one in TABLE])
def test_of_a_worker_that_ended_gauges_are_gone(one: Value | Spread) -> None:
    if one.kind != "gauge" or one.of_workers:
        return
    assert sum(value for _, value in samples(one, left_by(seen_with(100)))) == 0


def test_counters_of_the_store_go_on_when_its_process_begins_anew() -> None:
    first = store_of(Numbers(900))
    ledger = ledger_of(first, worker=seen_with(1))
    again = dataclasses.replace(store_of(Numbers(1)), queue_depth=1, diagnoses=4)
    before = together_at(ledger).store
    assert (before.commits, before.diagnoses) == (first.commits, first.diagnoses)
    for _ in range(2):
        ledger.store_told("store again", packed(again))
        now = together_at(ledger).store
        assert (now.commits, now.commit_seconds.count) == (
            first.commits + again.commits,
            first.commit_seconds.count + again.commit_seconds.count,
        )
        assert (now.queue_depth, now.diagnoses, now.queue_limit) == (1, 4, 8192)
        assert now.queue_peak == first.queue_peak


def test_a_store_that_one_worker_waits_for_keeps_somebody_waiting() -> None:
    store = store_of(Numbers(9))
    waiting = seen_with(3, dataclasses.replace(store, waiting_seconds=4.5))
    ledger = ledger_of(store, first=seen_with(1, store), second=waiting)
    assert together_at(ledger).store.waiting_seconds == 4.5


def test_a_server_is_escalated_while_one_of_its_workers_is() -> None:
    ledger = ledger_of(store_of(Numbers(9)), first=seen_with(1))
    ledger.worker_told("second", packed(dataclasses.replace(seen_with(1), is_escalated=True)))
    assert together_at(ledger).is_escalated is True
    ledger.worker_ended("second")
    assert together_at(ledger).is_escalated is False


def test_processes_that_were_started_again_are_counted() -> None:
    ledger = ledger_of(store_of(Numbers(9)), first=seen_with(1))
    ledger.restarted("worker")
    ledger.restarted("worker")
    ledger.restarted("store")
    assert together_at(ledger).restarted_processes == {"worker": 2, "store": 1}


def test_figures_that_cannot_be_read_change_nothing() -> None:
    ledger = Ledger()
    ledger.worker_told("first", b"nonsense")
    ledger.store_told("store", b"nonsense")
    assert ledger.together() is None


def test_every_rule_names_a_figure_that_there_is() -> None:
    for kind, rules in RULES.items():
        names = {one.name for one in dataclasses.fields(kind)} if dataclasses.is_dataclass(kind) else set(kind._fields)  # type: ignore[attr-defined]
        assert rules.keys() <= names


def test_one_part_alone_is_what_it_was() -> None:
    seen = seen_with(12)
    assert together([seen]) == seen
