"""The replicated store: several processes, answers that are lost, servers that end; beside the contract suite."""

from __future__ import annotations

import os
import signal
from collections.abc import AsyncIterator, Callable, Iterator, Mapping, Sequence
from contextlib import asynccontextmanager, contextmanager
from random import Random
from typing import Any
from uuid import uuid4

import pytest
import trio

from storage.changes import Change, DiagnosisDeleted, DiagnosisRegistered, OutboxPurged, TokensRevoked
from storage.clock import SystemClock
from storage.errors import Busy, CannotOpen, Failed, NoSuchDiagnosis, StorageError
from storage.jetstream.store import JetStreamStore
from storage.nats.connection import Address, Connection
from storage.nats.errors import JetStreamError, Unanswered
from storage.nats.jetstream import NO_STREAM, ROLLUP, Found, JetStream, Stored
from storage.nats.wire import Outgoing
from storage.news import News
from storage.records import Act, Appended, CursorMove, NewAuditRow, NewEvent, Seq, SubscriberId
from tests.cluster.servers import NatsServer
from tests.storage.conftest import open_node

pytestmark = pytest.mark.cluster

PHONE = SubscriberId("amira", "phone")
ACT = Act("op", "test.act", {"after": None})


class Listener:
    """Keeps what a store tells."""

    def __init__(self) -> None:
        self.changes: list[Change] = []
        self.news: list[tuple[str, News]] = []
        self.missed_count = 0

    def changed(self, change: Change) -> None:
        self.changes.append(change)

    def grew(self, diagnosis_id: str, news: News) -> None:
        self.news.append((diagnosis_id, news))

    def missed(self) -> None:
        self.missed_count += 1


@pytest.fixture
def name() -> str:
    """An installation of this test's own."""
    return f"t{uuid4().hex[:20]}"


def new_epoch() -> str:
    return uuid4().hex


@asynccontextmanager
async def nodes(server: NatsServer, name: str, count: int = 2) -> AsyncIterator[list[JetStreamStore]]:
    """So many processes on one installation."""
    async with open_node([server.address], name, SystemClock(), new_epoch) as one:
        if count == 1:
            yield [one]
            return
        async with nodes(server, name, count - 1) as others:
            yield [one, *others]


@pytest.fixture
async def pair(one_nats_server: NatsServer, name: str) -> AsyncIterator[list[JetStreamStore]]:
    async with nodes(one_nats_server, name) as made:
        yield made


def event(text: str, key: str | None = None) -> NewEvent:
    return NewEvent("kind", text.encode(), key, text.encode())


async def append(store: JetStreamStore, *events: NewEvent, to: str = "d") -> list[Appended]:
    outcomes = await store.append_nowait(to, events).wait()
    assert all(isinstance(one, Appended) for one in outcomes), outcomes
    return [one for one in outcomes if isinstance(one, Appended)]


async def bodies(store: JetStreamStore, of: str = "d") -> list[tuple[int, bytes]]:
    return [(one.seq, one.body) for one in (await store.read_after(of, Seq(0))).events]


async def until(condition: Callable[[], object], seconds: float = 30) -> None:
    """Wait until something is so."""
    with trio.fail_after(seconds):
        while not condition():
            await trio.sleep(0.01)


async def test_appends_of_two_processes_to_one_diagnosis_are_dense_and_all_there(
    pair: list[JetStreamStore],
) -> None:
    await pair[0].register("d", "amira", [])
    await until(lambda: all(one.known("d") for one in pair))
    acknowledged: dict[int, bytes] = {}

    async def publish(store: JetStreamStore, name: str) -> None:
        for number in range(25):
            (outcome,) = await append(store, event(f"{name}-{number}", f"{name}-{number}" if number % 2 else None))
            assert outcome.seq not in acknowledged
            acknowledged[outcome.seq] = f"{name}-{number}".encode()

    async with trio.open_nursery() as nursery:
        for store, name in zip(pair * 2, "abcd", strict=True):
            nursery.start_soon(publish, store, name)
    for store in pair:
        assert await bodies(store) == sorted(acknowledged.items())
    assert sorted(acknowledged) == list(range(1, 101))


async def test_one_key_at_two_processes_at_once_makes_one_event(pair: list[JetStreamStore]) -> None:
    await pair[0].register("d", "amira", [])
    await until(lambda: pair[1].known("d"))
    for number in range(8):
        found: list[Appended] = []

        async def publish(store: JetStreamStore, number: int, found: list[Appended]) -> None:
            found += await append(store, event(str(number), f"key-{number}"))

        async with trio.open_nursery() as nursery:
            for store in pair:
                nursery.start_soon(publish, store, number, found)
        assert [one.seq for one in found] == [number + 1] * 2
        assert sorted(one.replayed for one in found) == [False, True]


async def test_an_act_is_told_to_every_process_once_and_in_one_order(pair: list[JetStreamStore]) -> None:
    listeners = [Listener(), Listener()]
    for store, listener in zip(pair, listeners, strict=True):
        store.tell(listener)

    async def act(store: JetStreamStore, name: str) -> None:
        for number in range(8):
            await store.register(f"{name}{number}", "amira", ["bo"], ACT)
            await store.revoke(token_id=f"{name}{number}")
            if number % 2:
                await store.purge(f"{name}{number}")
                await store.delete(f"{name}{number}", ACT)

    async with trio.open_nursery() as nursery:
        for store, name in zip(pair, "ab", strict=True):
            nursery.start_soon(act, store, name)
    await until(lambda: len(listeners[0].changes) == len(listeners[1].changes) == 48)
    assert listeners[0].changes == listeners[1].changes
    assert [one.number for one in listeners[0].changes] == list(range(1, 49))
    kinds = [DiagnosisRegistered, TokensRevoked, OutboxPurged, DiagnosisDeleted]
    assert [sum(isinstance(one, kind) for one in listeners[0].changes) for kind in kinds] == [16, 16, 8, 8]
    for read in ("diagnoses", "revocations", "audit"):
        first, second = [await getattr(store, read)() for store in pair]
        assert list(first) == list(second) != []
    assert len(await pair[0].audit()) == 24


async def test_a_process_that_does_not_know_yet_appends_nothing_to_a_former_registration(
    pair: list[JetStreamStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    await one.register("d", "amira", [])
    await append(one, event("former"))
    await until(lambda: other.known("d"))
    await append(other, event("too"))
    monkeypatch.setattr(other._following, "_heard_act", lambda message: None)  # it hears of nothing
    await one.delete("d")
    (outcome,) = await other.append_nowait("d", [event("late")]).wait()
    assert isinstance(outcome, NoSuchDiagnosis)
    again = (await one.register("d", "amira", [])).diagnosis
    await append(one, event("new"))
    (stored,) = await append(other, event("newer"))
    assert (stored.epoch, stored.seq) == (again.epoch, 2)
    assert await bodies(one) == [(1, b"new"), (2, b"newer")]


async def test_who_follows_hears_what_another_process_has_appended_and_purged(pair: list[JetStreamStore]) -> None:
    one, other = pair
    listener = Listener()
    other.tell(listener)
    await one.register("d", "amira", [])
    await until(lambda: other.known("d"))
    undo = other.follow("d")
    await other.read_after("d", Seq(0))
    await append(one, event("1"), event("2"))
    await append(other, event("own"))
    await one.purge("d")
    await until(lambda: any(news.window and news.window.purged == 3 for _, news in listener.news))
    heard = [one.body for _, news in listener.news for one in news.events]
    assert heard == [b"1", b"2"], "one's own are not told"
    undo()
    before = len(listener.news)
    await append(one, event("unheard"))
    await other.read_after("d", Seq(0))
    assert len(listener.news) == before


async def test_a_live_copy_that_was_lost_is_missed_at_the_next_look(
    pair: list[JetStreamStore], monkeypatch: pytest.MonkeyPatch
) -> None:
    one, other = pair
    listener = Listener()
    other.tell(listener)
    monkeypatch.setattr(other._following, "_heard_of", lambda diagnosis_id: lambda message: None)
    await one.register("d", "amira", [])
    await until(lambda: other.known("d"))
    other.follow("d")
    await append(one, event("1"))
    await until(lambda: listener.news)  # the look a second after it is followed, or the next one
    assert not listener.news[0][1].is_whole
    count = len(listener.news)
    await append(one, event("2"))
    await until(lambda: len(listener.news) > count)
    assert [seq for seq, _ in await bodies(other)] == [1, 2]


async def test_cursors_of_two_processes_end_at_the_highest(pair: list[JetStreamStore]) -> None:
    epoch = (await pair[0].register("d", "amira", [])).diagnosis.epoch
    await append(pair[0], *(event(str(number)) for number in range(40)))
    await until(lambda: pair[1].known("d"))

    async def move(store: JetStreamStore, seqs: Sequence[int]) -> None:
        for seq in seqs:
            (stored,) = await store.move_cursors([CursorMove("d", PHONE, epoch, Seq(seq), 5.0)])
            assert stored is not None
            assert stored >= seq

    async with trio.open_nursery() as nursery:
        nursery.start_soon(move, pair[0], range(1, 40, 2))
        nursery.start_soon(move, pair[1], range(2, 41, 2))
    for store in pair:
        cursor = await store.cursor("d", PHONE)
        assert cursor is not None
        assert cursor.seq == 40
    await pair[0].forget("d", [PHONE])
    assert await pair[1].cursor("d", PHONE) is None
    (again,) = await pair[1].move_cursors([CursorMove("d", PHONE, epoch, Seq(7), 5.0)])
    assert again == 7


async def test_what_is_stored_is_there_after_a_restart(one_nats_server: NatsServer, name: str) -> None:
    async with nodes(one_nats_server, name, 1) as (store,):
        for number in range(12):
            await store.register(f"d{number}", "amira", ["bo"], ACT)
            await append(store, event("1", "key"), event("2"), to=f"d{number}")
        await store.delete("d7")
        made = (await store.revoke(sub="bo")).revocation
        await store.lift_revocation((await store.revoke(token_id="t")).revocation.number)
        before = (await store.diagnoses(), await store.audit(), await store.outboxes(), await store.idempotency_keys())
    async with nodes(one_nats_server, name, 1) as (store,):
        after = (await store.diagnoses(), await store.audit(), await store.outboxes(), await store.idempotency_keys())
        assert after[:3] == before[:3]
        assert after[3].count == before[3].count == 11
        assert await store.revocations() == [made]
        (again,) = await append(store, event("1", "key"), to="d3")
        assert (again.seq, again.replayed) == (1, True)
        assert await store.check() == []


class Losing:
    """Loses some of what is stored, or the answers to it, as a network does."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, seed: int, share: float = 0.3) -> None:
        self.drawn = Random(seed)
        self.lost = self.unheard = 0
        store = JetStream.store

        async def losing(this: JetStream, messages: Sequence[Outgoing], **options: Any) -> Stored:
            if self.drawn.random() < share:
                self.lost += 1
                raise Unanswered("it never arrived")
            stored = await store(this, messages, **options)
            if self.drawn.random() < share:
                self.unheard += 1
                raise Unanswered("the answer never arrived")
            return stored

        monkeypatch.setattr(JetStream, "store", losing)


@pytest.mark.parametrize("seed", range(int(os.environ.get("CLUSTER_SEEDS", "2"))))
async def test_where_answers_are_lost_nothing_is_stored_twice_and_nothing_is_lost(
    pair: list[JetStreamStore], monkeypatch: pytest.MonkeyPatch, seed: int
) -> None:
    losing = Losing(monkeypatch, seed)
    one, other = pair
    first = Listener()
    one.tell(first)
    await one.register("d", "amira", [], ACT)
    await until(lambda: other.known("d"))
    acknowledged: dict[int, bytes] = {}
    acts: list[str] = []

    async def publish(store: JetStreamStore, name: str) -> None:
        for number in range(8):
            texts = [f"{name}-{number}-{part}" for part in range(1 + number % 3)]
            given = [event(text, text if number % 2 else None) for text in texts]
            for outcome, text in zip(await append(store, *given), texts, strict=True):
                assert outcome.seq not in acknowledged
                acknowledged[outcome.seq] = text.encode()

    async def act(store: JetStreamStore, name: str) -> None:
        for number in range(6):
            await store.register(f"{name}{number}", "amira", [], ACT)
            await store.record(NewAuditRow("op", f"{name}{number}", ""))
            acts.extend(["test.act", f"{name}{number}"])

    async with trio.open_nursery() as nursery:
        for store, name in zip(pair, "ab", strict=True):
            nursery.start_soon(publish, store, name)
            nursery.start_soon(act, store, name)
    assert losing.lost + losing.unheard > 5
    assert sorted(acknowledged) == list(range(1, len(acknowledged) + 1))
    for store in pair:
        assert await bodies(store) == sorted(acknowledged.items())
        assert sorted(row.what for row in await store.audit()) == sorted(["test.act", *acts])
    registered = [one.diagnosis.diagnosis_id for one in first.changes if isinstance(one, DiagnosisRegistered)]
    assert sorted(registered) == sorted({"d", *(f"{name}{number}" for name in "ab" for number in range(6))})


async def test_an_engine_that_is_away_answers_busy_or_failed_in_time_and_is_used_again_when_it_is_back(
    one_nats_server: NatsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in ("acting", "appending", "engine", "cursors", "trails"):
        monkeypatch.setattr(f"storage.jetstream.{module}.PATIENCE_SECONDS", 0.5)
    async with nodes(one_nats_server, name, 1) as (store,):
        await store.register("d", "amira", [])
        await append(store, event("1"))
        one_nats_server.freeze()
        try:
            await until(lambda: store.statistics().away_since is not None)
            (outcome,) = await store.append_nowait("d", [event("2")]).wait()
            assert isinstance(outcome, (Busy, Failed))
            for asked in (lambda: store.register("e", "amira", []), lambda: store.read_after("d", Seq(0))):
                with pytest.raises((Busy, Failed)):
                    await asked()
            assert (await store.get("d")).owner == "amira", "what is in memory is known"
        finally:
            one_nats_server.thaw()
        monkeypatch.undo()
        await append(store, event("3"))
        assert [body for _, body in await bodies(store)] in ([b"1", b"3"], [b"1", b"2", b"3"])
        await until(lambda: store.statistics().away_since is None)


async def test_an_act_that_commits_while_the_number_of_the_last_is_asked_for_is_no_loss(
    one_nats_server: NatsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with nodes(one_nats_server, name, 1) as (store,):
        await store.register("d", "amira", [])
        engine, asked = store._engine, list[str]()
        last = engine.last

        async def slow(stream: str, subject: str) -> Found | None:
            found = await last(stream, subject)
            if subject == engine.layout.number and not asked:
                asked.append(subject)
                await store.register("e", "amira", [])
            return found

        monkeypatch.setattr(engine, "last", slow)
        await engine.catch_up()
        assert asked
        assert store.known("e")


async def test_an_engine_that_has_lost_acts_for_good_breaks_the_store(
    one_nats_server: NatsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.jetstream.following.BEHIND_SECONDS_MAX", 0.1)
    async with nodes(one_nats_server, name, 1) as (store,):
        for _ in range(3):
            await store.register("d", "amira", [], ACT)
        jetstream, layout = store._engine.jetstream, store._engine.layout
        await jetstream.purge(name, layout.act(2))
        assert await store.check() == ["act 2 is missing"]
        await jetstream.store([Outgoing(layout.number, b"2", {ROLLUP: "sub"})])
        with trio.fail_after(30):
            await store.broke.wait()
        broken = store.statistics().broken
        assert broken is not None
        assert "there are 2 acts, where 3 were applied" in broken


async def test_an_engine_that_has_lost_events_for_good_breaks_the_store(
    one_nats_server: NatsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.jetstream.engine.BEHIND_SECONDS_MAX", 0.1)
    monkeypatch.setattr("storage.jetstream.acting.PATIENCE_SECONDS", 1.0)
    async with nodes(one_nats_server, name, 1) as (store,):
        await store.register("d", "amira", [])
        await append(store, event("1"), event("2"))
        layout, jetstream = store.engine.layout, store.engine.jetstream
        newest = await jetstream.last(layout.main, layout.log("d"))
        assert newest is not None
        await jetstream.api(f"STREAM.MSG.DELETE.{layout.main}", {"seq": newest.pos})
        with trio.fail_after(30):
            with pytest.raises(Busy):
                await store.purge("d")
            await store.broke.wait()
        assert "avicenna-live cluster renew" in str(store.statistics().broken)


async def test_whoever_is_registered_at_one_process_is_found_at_once_at_another(pair: list[JetStreamStore]) -> None:
    for number in range(20):
        one, other = pair[number % 2], pair[1 - number % 2]
        await one.register(f"d{number}", "amira", [])
        assert (await other.look_up(f"d{number}")).owner == "amira"


async def test_since_when_it_is_away_is_told_on_the_clock_of_the_store(one_nats_server: NatsServer, name: str) -> None:
    async with nodes(one_nats_server, name, 1) as (store,):
        store.engine.connection.leave("a test")
        since = store.statistics().away_since
        assert since is not None
        assert 0 <= SystemClock().monotonic() - since < 60


@contextmanager
def cannot_open(says: str) -> Iterator[None]:
    """Within it, a store is not opened, and says so."""
    with pytest.RaisesGroup(pytest.RaisesExc(CannotOpen, match=says), flatten_subgroups=True):
        yield


async def test_a_stream_with_other_settings_is_refused_by_name(one_nats_server: NatsServer, name: str) -> None:
    connection = Connection([one_nats_server.address], name="tests", new_id=new_epoch, jitter=Random(1).random)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        with trio.fail_after(10):
            await connection.up.wait()
            other = {"name": name, "subjects": [f"{name}.>"], "storage": "memory"}
            await JetStream(connection, new_epoch).have_stream(other)
        with cannot_open(rf"the stream {name} is not as it should be: storage is 'memory', not 'file'"):
            async with open_node([one_nats_server.address], name, SystemClock(), new_epoch):
                pass
        nursery.cancel_scope.cancel()


async def test_a_stream_that_some_servers_do_not_know_yet_is_waited_for(
    one_nats_server: NatsServer, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It was made a moment ago, by this process or by another one that starts beside it."""
    api, asked = JetStream.api, list[str]()

    async def hesitant(self: JetStream, what: str, request: object = None, seconds: float = 2.0) -> Mapping[str, Any]:
        answer = await api(self, what, request, seconds)
        if what == f"STREAM.INFO.{name}" and len(asked) < 3:
            asked.append(what)
            raise JetStreamError(404, NO_STREAM, "stream not found")
        return answer

    monkeypatch.setattr(JetStream, "api", hesitant)
    async with nodes(one_nats_server, name, 1) as (store,):
        await store.register("d", "amira", [])
    assert len(asked) == 3


async def test_no_server_is_told_in_words(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    monkeypatch.setattr("storage.jetstream.opening.OPEN_SECONDS_MAX", 0.3)
    with cannot_open("the NATS servers are not ready: there is no connection"):
        async with open_node([Address("127.0.0.1", 9)], name, SystemClock(), new_epoch):
            pass


@pytest.mark.guarantee(17)
async def test_a_server_of_three_that_is_killed_costs_no_acknowledged_event_and_no_number(
    three_nats_servers: Sequence[NatsServer], name: str
) -> None:
    addresses = [one.address for one in three_nats_servers]
    acknowledged: dict[str, dict[int, bytes]] = {"d": {}, "e": {}}
    async with (
        open_node(addresses, name, SystemClock(), new_epoch, replicas=3) as one,
        open_node(addresses, name, SystemClock(), new_epoch, replicas=3) as other,
    ):
        for diagnosis_id in acknowledged:
            await one.register(diagnosis_id, "amira", [])
        await until(lambda: other.known("e"))
        refused: list[StorageError] = []
        enough = trio.Event()

        async def publish(store: JetStreamStore, diagnosis_id: str, name: str) -> None:
            number = 0
            while not enough.is_set() or number < 5:
                number += 1
                text = f"{name}-{number}"
                while True:
                    (outcome,) = await store.append_nowait(diagnosis_id, [event(text, text)]).wait()
                    if isinstance(outcome, Appended):
                        break
                    assert isinstance(outcome, (Busy, Failed)), outcome
                    refused.append(outcome)
                assert acknowledged[diagnosis_id].setdefault(outcome.seq, text.encode()) == text.encode()

        async with trio.open_nursery() as nursery:
            for number, store in enumerate([one, other] * 2):
                nursery.start_soon(publish, store, "de"[number // 2], f"p{number}")
            await until(lambda: len(acknowledged["d"]) > 20)
            jetstream = one._engine.jetstream
            leader = (await jetstream.api(f"STREAM.INFO.{name}"))["cluster"]["leader"]
            killed = next(server for server in three_nats_servers if server.name == leader)
            await trio.to_thread.run_sync(killed.end, signal.SIGKILL)
            before = len(acknowledged["d"])
            await until(lambda: len(acknowledged["d"]) > before + 20, seconds=60)
            await trio.to_thread.run_sync(killed.start)
            await trio.to_thread.run_sync(killed.wait)
            enough.set()
        for store in (one, other):
            for diagnosis_id, stored in acknowledged.items():
                newest = dict(sorted(stored.items())[-100:])
                with trio.move_on_after(10):  # a replica may lag behind what the other has written
                    while dict(await bodies(store, diagnosis_id)) != newest:
                        await trio.sleep(0.01)
                assert dict(await bodies(store, diagnosis_id)) == newest
                assert sorted(stored) == list(range(1, len(stored) + 1))
        assert await one.check() == []
