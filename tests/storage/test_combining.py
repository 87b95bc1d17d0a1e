"""Appends of several diagnoses go together in one request, and none of them suffers from another."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import trio
import trio.testing

from storage.errors import Busy, Failed, KeyReused, NoSuchDiagnosis, StorageError
from storage.jetstream.appending import ALONE_SECONDS
from storage.jetstream.combining import APART_SECONDS, PARTS_MAX, REQUEST_BYTES_MAX, REQUESTS_MAX
from storage.jetstream.engine import PATIENCE_SECONDS
from storage.jetstream.store import JetStreamStore
from storage.nats.errors import JetStreamError, Unanswered
from storage.nats.jetstream import BATCH_MESSAGES_MAX, Stored
from storage.nats.wire import Outgoing
from storage.records import Appended, NewEvent, Seq
from tests.simulation.nats import Cluster, Faults, Way
from tests.storage.conftest import ManualClock, open_node

MANY = 64


class Requests:
    """What a store asks the engine to store, which may be held up, and whose answers may be lost."""

    def __init__(self, store: JetStreamStore) -> None:
        self.seen: list[Sequence[Outgoing]] = []
        """Those that were sent."""
        self.refused: list[int] = []
        """Which of them were, by their place above."""
        self.under_way = self.under_way_peak = 0
        self.go = trio.Event()
        """Until it is set they are under way."""
        self.go.set()
        self.fate: Callable[[Sequence[Outgoing]], str] = lambda messages: ""
        """What becomes of a request: `lost` before it is stored, or `unanswered` after that."""
        jetstream: Any = store.engine.jetstream
        self._store: Callable[[Sequence[Outgoing]], Any] = jetstream.store
        jetstream.store = self.store

    async def store(self, messages: Sequence[Outgoing]) -> Stored:
        number = len(self.seen)
        self.seen.append(messages)
        self.under_way += 1
        self.under_way_peak = max(self.under_way_peak, self.under_way)
        try:
            await self.go.wait()
            fate = self.fate(messages)
            if fate != "lost":
                stored: Stored = await self._store(messages)
            if fate:
                raise Unanswered("no answer")
        except JetStreamError:
            self.refused.append(number)
            raise
        finally:
            self.under_way -= 1
        return stored

    @property
    def diagnoses(self) -> list[int]:
        """Of how many diagnoses each of them was."""
        return [len({one.subject.split(".")[2] for one in messages}) for messages in self.seen]


class Several:
    """Processes on one installation."""

    def __init__(self, cluster: Cluster, stores: Sequence[JetStreamStore]) -> None:
        self.cluster = cluster
        self.store = stores[0]
        """The one that is looked at."""
        self.other = stores[-1]
        self.requests = Requests(self.store)


@pytest.fixture
async def several(clock: ManualClock, new_epoch: Callable[[], str]) -> AsyncIterator[Several]:
    """Two processes; both know `MANY` diagnoses, of which the one with number n has n % 7 + 1 events."""
    async with opened(clock, new_epoch) as made:
        yield made


@asynccontextmanager
async def opened(
    clock: ManualClock, new_epoch: Callable[[], str], faults: Faults | None = None
) -> AsyncIterator[Several]:
    cluster = Cluster(clock=clock, lots=Random(1))
    ways = [Way(cluster), Way(cluster)]
    async with trio.open_nursery() as nursery:
        nursery.start_soon(cluster.run)
        async with (
            open_node(cluster.addresses, "several", clock, new_epoch, replicas=3, dial=ways[0].dial) as one,
            open_node(cluster.addresses, "several", clock, new_epoch, replicas=3, dial=ways[1].dial) as other,
        ):
            made = Several(cluster, [one, other])
            for number in range(MANY):
                await one.register(f"d{number}", "amira", [])
                await one.append_nowait(f"d{number}", [event(0)] * before(number)).wait()
            await one.idempotency_keys()  # how many there are is known from now on
            await other.look_up(f"d{MANY - 1}")
            made.requests.seen.clear()
            cluster.faults = replace(faults or Faults())
            yield made
        nursery.cancel_scope.cancel()


def before(number: int) -> int:
    """How many events a diagnosis has."""
    return number % 7 + 1


def event(number: int, key: str | None = None, size: int = 0) -> NewEvent:
    body = b"%d" % number + b"x" * size
    return NewEvent("kind", body, key, body[:16])


async def append_to_all(
    store: JetStreamStore, of: Callable[[int], NewEvent] = event, but: Sequence[int] = ()
) -> dict[int, Appended | StorageError]:
    """Append an event to each diagnosis in the same moment; what is answered, by the number of the diagnosis."""
    pending = {number: store.append_nowait(f"d{number}", [of(number)]) for number in range(MANY) if number not in but}
    return {number: (await one.wait())[0] for number, one in pending.items()}


async def bodies(store: JetStreamStore, number: int) -> list[bytes]:
    """What a diagnosis holds beyond what it began with."""
    found = await store.read_after(f"d{number}", Seq(before(number)))
    assert [one.seq for one in found.events] == list(range(before(number) + 1, found.window.head + 1))
    return [one.body for one in found.events]


def are_next(outcomes: dict[int, Appended | StorageError], but: Sequence[int] = ()) -> bool:
    """Whether each has the number after those that were there."""
    return all(
        isinstance(one, Appended) and not one.replayed and one.seq == before(number) + 1
        for number, one in outcomes.items()
        if number not in but
    )


async def test_an_append_with_nothing_under_way_is_sent_at_once(
    clock: ManualClock, new_epoch: Callable[[], str], autojump_clock: trio.testing.MockClock
) -> None:
    async with opened(clock, new_epoch) as several:
        turns = 0
        several.requests.go = trio.Event()
        now = trio.current_time()
        pending = several.store.append_nowait("d0", [event(1)])
        while not several.requests.seen:
            await trio.lowlevel.cancel_shielded_checkpoint()
            turns += 1
        assert trio.current_time() == now
        assert turns <= 2, "as many as a task needs to begin"
        assert [len(one) for one in several.requests.seen] == [1]
        assert "Nats-Batch-Id" not in (several.requests.seen[0][0].headers or {})
        several.requests.go.set()
        assert are_next({0: (await pending.wait())[0]})


async def test_appends_of_one_moment_go_in_one_request(several: Several) -> None:
    assert are_next(await append_to_all(several.store))
    assert several.requests.diagnoses == [MANY]
    assert [await bodies(several.other, number) for number in range(MANY)] == [[b"%d" % one] for one in range(MANY)]
    # Each knows where its own entry is: nothing is refused.
    outcomes = await append_to_all(several.store, lambda number: event(number, f"key-{number}"))
    assert all(isinstance(one, Appended) and one.seq == before(number) + 2 for number, one in outcomes.items())
    assert several.requests.diagnoses == [MANY, MANY]
    assert (await append_to_all(several.store, but=range(1, MANY)))[0].seq == 4  # type: ignore[union-attr]
    assert not several.requests.refused
    statistics = several.store.statistics()
    assert (statistics.batch_peak, statistics.queue_depth) == (MANY, 0)


async def test_what_comes_while_requests_are_under_way_goes_with_the_next(several: Several) -> None:
    several.requests.go = trio.Event()
    pending = []
    for number in range(MANY):
        pending.append(several.store.append_nowait(f"d{number}", [event(number)]))
        await trio.testing.wait_all_tasks_blocked()
    assert several.requests.diagnoses == [1] * REQUESTS_MAX
    several.requests.go.set()
    assert are_next({number: (await one.wait())[0] for number, one in enumerate(pending)})
    assert several.requests.diagnoses == [1] * REQUESTS_MAX + [MANY - REQUESTS_MAX]
    assert several.requests.under_way_peak == REQUESTS_MAX


@pytest.mark.guarantee(2)
@pytest.mark.guarantee(17)
async def test_a_diagnosis_at_which_another_process_was_first_keeps_none_of_its_neighbours(several: Several) -> None:
    await several.other.append_nowait("d7", [event(700)]).wait()
    outcomes = await append_to_all(several.store)
    assert are_next(outcomes, but=[7])
    assert isinstance(outcomes[7], Appended)
    assert outcomes[7].seq == before(7) + 2
    assert await bodies(several.store, 7) == [b"700", b"7"]
    assert [await bodies(several.other, number) for number in range(6)] == [[b"%d" % one] for one in range(6)]
    # All together, then each alone, and that one again.
    assert several.requests.diagnoses == [MANY] + [1] * (MANY + 1)
    assert len(several.requests.refused) == 2


async def test_who_came_second_goes_alone_for_a_second(
    several: Several, autojump_clock: trio.testing.MockClock
) -> None:
    await several.other.append_nowait("d7", [event(700)]).wait()
    await append_to_all(several.store)
    await trio.sleep(APART_SECONDS)
    several.requests.seen.clear()
    await append_to_all(several.store)
    assert sorted(several.requests.diagnoses) == [1, MANY - 1]
    await trio.sleep(ALONE_SECONDS)
    several.requests.seen.clear()
    await append_to_all(several.store)
    assert several.requests.diagnoses == [MANY]


async def test_where_conflicts_are_common_fewer_and_fewer_requests_are_for_several(
    several: Several, autojump_clock: trio.testing.MockClock
) -> None:
    for times, number in enumerate((7, 8, 9)):
        await several.other.append_nowait(f"d{number}", [event(700)]).wait()
        await append_to_all(several.store)
        assert several.requests.diagnoses[0] == MANY - times
        refused_at = trio.current_time()
        several.requests.seen.clear()
        await append_to_all(several.store)
        assert trio.current_time() - refused_at < APART_SECONDS
        assert set(several.requests.diagnoses) == {1}
        await trio.sleep(APART_SECONDS * 2**times)
        several.requests.seen.clear()
    await append_to_all(several.store)
    assert several.requests.diagnoses.count(1) == 3
    await several.other.append_nowait("d10", [event(700)]).wait()
    await append_to_all(several.store)
    await trio.sleep(APART_SECONDS)  # one was stored: it begins anew
    several.requests.seen.clear()
    await append_to_all(several.store)
    assert max(several.requests.diagnoses) > 1


@pytest.mark.guarantee(9)
@pytest.mark.parametrize("is_same", [True, False])
async def test_a_key_that_is_there_concerns_its_own_diagnosis_alone(
    several: Several, autojump_clock: trio.testing.MockClock, is_same: bool
) -> None:
    (first,) = await several.other.append_nowait("d9", [event(9 if is_same else 900, "key-9")]).wait()
    assert isinstance(first, Appended)
    await several.store.append_nowait("d9", [event(1)]).wait()  # it knows the head, and nothing of the key
    await trio.sleep(ALONE_SECONDS)
    several.requests.seen.clear()
    outcomes = await append_to_all(several.store, lambda number: event(number, f"key-{number}"))
    assert several.requests.diagnoses[0] == MANY
    assert are_next(outcomes, but=[9])
    if is_same:
        assert outcomes[9] == first._replace(replayed=True)
    else:
        assert isinstance(outcomes[9], KeyReused)
    assert len(await bodies(several.store, 9)) == 2


async def test_logs_that_another_process_has_emptied_for_their_age_refuse_no_request(
    several: Several, clock: ManualClock
) -> None:
    clock.now += 1000
    assert len((await several.other.evict(500, diagnoses=MANY)).windows) == MANY
    await several.store.look_up("d0")  # it has heard of that
    assert are_next(await append_to_all(several.store))
    assert not several.requests.refused


async def test_a_diagnosis_that_is_gone_concerns_nobody_else(several: Several) -> None:
    await several.other.delete("d5")
    outcomes = await append_to_all(several.store)
    assert are_next(outcomes, but=[5])
    assert isinstance(outcomes[5], NoSuchDiagnosis)


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(9)
@pytest.mark.parametrize("fate", ["lost", "unanswered"])
async def test_each_finds_out_by_itself_what_became_of_a_request_that_was_not_answered(
    several: Several, fate: str
) -> None:
    def once(messages: Sequence[Outgoing]) -> str:
        return fate if len(several.requests.seen) == 1 else ""

    several.requests.fate = once
    outcomes = await append_to_all(several.store, lambda number: event(number, f"key-{number}" if number % 2 else None))
    assert are_next(outcomes)
    assert several.requests.diagnoses == [MANY] + [1] * (MANY if fate == "lost" else 0)
    assert [await bodies(several.other, number) for number in range(MANY)] == [[b"%d" % one] for one in range(MANY)]
    # The same append has the same id, however often it was sent.
    headers = [one.headers or {} for messages in several.requests.seen for one in messages]
    ids = [one["Nats-Msg-Id"] for one in headers if "Nats-Msg-Id" in one]
    assert len(set(ids)) == MANY


async def test_a_request_that_arrives_after_its_appends_were_sent_again_stores_nothing_twice(several: Several) -> None:
    late: list[Sequence[Outgoing]] = []

    def once(messages: Sequence[Outgoing]) -> str:
        if len(several.requests.seen) > 1:
            return ""
        late.append(messages)
        return "lost"

    several.requests.fate = once
    pending = [several.store.append_nowait(f"d{number}", [event(number)]) for number in range(MANY)]
    outcomes = {number: (await one.wait())[0] for number, one in enumerate(pending)}
    with pytest.raises(JetStreamError):
        await several.requests._store(late[0])
    assert are_next(outcomes)
    assert [await bodies(several.other, number) for number in range(MANY)] == [[b"%d" % one] for one in range(MANY)]


async def test_an_unknown_outcome_is_not_that_of_a_neighbour(several: Several) -> None:
    """Of a request that was not stored one diagnosis has got an event of somebody else meanwhile."""

    def once(messages: Sequence[Outgoing]) -> str:
        return "lost" if len(several.requests.seen) == 1 else ""

    several.requests.fate = once
    pending = [several.store.append_nowait(f"d{number}", [event(number)]) for number in range(MANY)]
    await several.other.append_nowait("d3", [event(300)]).wait()
    outcomes = {number: (await one.wait())[0] for number, one in enumerate(pending)}
    assert are_next(outcomes, but=[3])
    assert isinstance(outcomes[3], Appended)
    assert outcomes[3].seq == before(3) + 2
    assert await bodies(several.other, 3) == [b"300", b"3"]


async def test_a_request_holds_no_more_than_it_may(several: Several) -> None:
    size = 2 * REQUEST_BYTES_MAX // MANY
    assert are_next(await append_to_all(several.store, lambda number: event(number, size=size)))
    assert several.requests.diagnoses == [MANY // 2 - 1, MANY // 2 - 1, 2]
    several.requests.seen.clear()
    pending = [
        several.store.append_nowait(f"d{number}", [event(one, f"key-{number}-{one}") for one in range(20)])
        for number in range(MANY)
    ]
    for one in pending:
        assert all(isinstance(outcome, Appended) for outcome in await one.wait())
    per_request = BATCH_MESSAGES_MAX // 40
    assert several.requests.diagnoses == [per_request, per_request, MANY - 2 * per_request]
    assert PARTS_MAX <= MANY


async def test_an_event_that_the_engine_does_not_take_keeps_none_of_its_neighbours(several: Several) -> None:
    size = REQUEST_BYTES_MAX - 50  # with its headers it is too large
    outcomes = await append_to_all(several.store, lambda number: event(number, size=size if number == 4 else 0))
    assert are_next(outcomes, but=[4])
    assert isinstance(outcomes[4], Failed)
    assert several.requests.diagnoses[0] > 4
    assert await bodies(several.store, 4) == []


async def test_an_act_waits_for_appends_before_it_and_keeps_those_after_it(several: Several) -> None:
    several.requests.go = trio.Event()
    done: list[str] = []
    pending = [several.store.append_nowait(f"d{number}", [event(number)]) for number in range(MANY)]

    async def purge() -> None:
        await several.store.purge("d6")
        done.append("purged")

    async with trio.open_nursery() as nursery:
        nursery.start_soon(purge)
        await trio.testing.wait_all_tasks_blocked()
        after = several.store.append_nowait("d6", [event(600)])
        await trio.testing.wait_all_tasks_blocked()
        assert not done
        assert several.requests.diagnoses == [MANY]
        several.requests.go.set()
    assert are_next({number: (await one.wait())[0] for number, one in enumerate(pending)})
    ((outcome,), window) = await after.wait(), (await several.store.read_after("d6", Seq(0))).window
    assert isinstance(outcome, Appended)
    assert (outcome.seq, window.purged, window.head) == (before(6) + 2, before(6) + 1, before(6) + 2)


async def test_spans_are_told_for_each_diagnosis(several: Several) -> None:
    told: list[tuple[list[list[object]], str | None]] = []
    several.store.on_commit(lambda spans, since, error: told.append(([list(one) for one in spans], error)))
    await several.other.append_nowait("d1", [event(1)]).wait()
    for number in range(3):
        several.store.append_nowait(f"d{number}", [event(number)], [f"span-{number}"])
    await several.store.barrier()
    assert sorted(told, key=str) == [([[f"span-{number}"]], None) for number in range(3)]


async def test_whoever_gives_up_keeps_nobody_from_being_stored(
    several: Several, autojump_clock: trio.testing.MockClock
) -> None:
    several.requests.go = trio.Event()
    with trio.move_on_after(1):
        await several.store.append_nowait("d0", [event(0)]).wait()
    pending = several.store.append_nowait("d0", [event(1)])
    several.requests.go.set()
    (outcome,) = await pending.wait()
    assert isinstance(outcome, Appended)
    assert await bodies(several.store, 0) == [b"0", b"1"]


async def test_an_engine_that_is_away_is_told_to_each(several: Several, autojump_clock: trio.testing.MockClock) -> None:
    for server in several.cluster.servers:
        several.cluster.end(server)
    await trio.testing.wait_all_tasks_blocked()
    began = trio.current_time()
    outcomes = await append_to_all(several.store)
    assert trio.current_time() - began == PATIENCE_SECONDS
    assert {type(one) for one in outcomes.values()} == {Busy}
    several.cluster.mend()
    while several.store.engine.away_seconds is not None:
        await trio.sleep(0.1)
    assert are_next(await append_to_all(several.store))


async def test_an_end_in_the_midst_of_a_request_holds_up_nobody(
    clock: ManualClock, new_epoch: Callable[[], str], autojump_clock: trio.testing.MockClock
) -> None:
    with trio.fail_after(60):
        async with opened(clock, new_epoch) as several:
            several.requests.go = trio.Event()
            for number in range(MANY):
                several.store.append_nowait(f"d{number}", [event(number)])
            await trio.testing.wait_all_tasks_blocked()
            assert several.requests.diagnoses == [MANY]


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("seed", range(4))
async def test_whatever_goes_wrong_each_append_is_there_once_and_as_it_was_answered(
    clock: ManualClock, new_epoch: Callable[[], str], autojump_clock: trio.testing.MockClock, seed: int
) -> None:
    faults = Faults(late_seconds=0.05, lag_seconds=0.2, vanished=0.05, refused=0.1, unanswered=0.1, twice=0.1)
    async with opened(clock, new_epoch, faults) as several:
        lots, answered = Random(seed), dict[int, list[tuple[int, bytes]]]()

        async def publish(store: JetStreamStore, name: int, number: int) -> None:
            for turn in range(4):
                await trio.sleep(lots.choice([0, 0, 0, 0.3]))
                body = b"%d-%d" % (name, turn)
                key = f"{name}-{number}-{turn}" if lots.random() < 0.3 else None
                (outcome,) = await store.append_nowait(f"d{number}", [NewEvent("kind", body, key, body)]).wait()
                if isinstance(outcome, Appended):
                    answered.setdefault(number, []).append((outcome.seq, body))
                else:
                    assert isinstance(outcome, (Busy, Failed)), outcome

        async with trio.open_nursery() as nursery:
            for number in range(MANY):
                nursery.start_soon(publish, several.store, 0, number)
                if number % 16 == 0:
                    nursery.start_soon(publish, several.other, 1, number)
        several.cluster.faults.end()
        await trio.sleep(1)  # every replica has everything
        assert max(several.requests.diagnoses) > MANY // 2
        for number in range(MANY):
            found = (await several.store.read_after(f"d{number}", Seq(0))).events
            assert [one.seq for one in found] == list(range(1, len(found) + 1))
            stored = [(one.seq, one.body) for one in found]
            assert set(answered.get(number, ())) <= set(stored)
            assert len({body for _, body in stored[before(number) :]}) == len(stored) - before(number)
