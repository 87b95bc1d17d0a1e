"""A store in another process: what its users tell each other, and what becomes of what is asked when it goes."""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import trio
from trio.testing import memory_stream_pair

from storage.changes import Change, DiagnosisDeleted, DiagnosisRegistered
from storage.clock import SystemClock
from storage.errors import Busy, Failed, StorageError
from storage.news import LOOK, News
from storage.pending import Pending
from storage.records import Appended, NewEvent, Seq, Slice, StoreStatistics, Window
from storage.remote import client as remote_client
from storage.remote import server as remote_server
from storage.remote.client import Link, RemoteStore, _Request, open_remote
from storage.remote.frames import FRAME_BYTES_MAX, Frames, FrameTooLong, framed
from storage.remote.server import StoreServer
from storage.sqlite.opening import open_store
from storage.store import Store
from tests.storage.rows import AN_ACT, ROWS


class Listener:
    """Follows a log at one process, and notes what it is told."""

    def __init__(self, store: RemoteStore) -> None:
        self.heard: list[News] = []
        self.told: list[Change] = []
        self.misses = 0
        self.stirred = trio.Event()
        self.may_settle = trio.Event()
        self.may_settle.set()
        store.tell(self, self._settled)
        self.unfollow = store.follow("d")

    async def _settled(self) -> None:
        await self.may_settle.wait()

    def changed(self, change: Change) -> None:
        self.told.append(change)
        self._stir()

    def grew(self, diagnosis_id: str, news: News) -> None:
        assert diagnosis_id == "d"
        self.heard.append(news)
        self._stir()

    def missed(self) -> None:
        self.misses += 1
        self._stir()

    def _stir(self) -> None:
        self.stirred.set()
        self.stirred = trio.Event()

    async def until(self, is_true: Callable[[], bool]) -> None:
        """Wait until something holds of what was told."""
        with trio.fail_after(10):
            while not is_true():
                await self.stirred.wait()

    @property
    def numbers(self) -> list[int]:
        return [event.seq for news in self.heard for event in news.events]


class StoreProcess:
    """What the process of a store does, here: it can be killed and begun again."""

    def __init__(self, directory: Path, nursery: trio.Nursery) -> None:
        self.database = directory / "data" / "avicenna.db"
        self.socket = directory / "store.sock"
        self.store: Store | None = None
        self.unconfirmed: list[str] = []
        self.server: StoreServer | None = None
        self._nursery = nursery
        self._scope = trio.CancelScope()
        self._ended = trio.Event()

    async def begin(self, *nodes: str) -> None:
        """Begin; these nodes are said to be there already."""
        self._scope, self._ended = trio.CancelScope(), trio.Event()
        await self._nursery.start(self._run, nodes)

    async def end(self) -> None:
        self._scope.cancel()
        await self._ended.wait()

    async def _run(self, nodes: Sequence[str], task_status: trio.TaskStatus[None]) -> None:
        names = iter(range(1, 1000))
        run = self.database.with_suffix(".run")
        try:
            with self._scope:
                async with open_store(
                    self.database,
                    clock=SystemClock(),
                    new_epoch=lambda: f"epoch-{id(run)}-{next(names)}",
                    rows=ROWS,
                ) as self.store:
                    self.socket.unlink(missing_ok=True)
                    listening = trio.socket.socket(trio.socket.AF_UNIX)
                    await listening.bind(str(self.socket))
                    listening.listen()
                    self.server = StoreServer(self.store, self.unconfirmed.append, nodes)
                    task_status.started()
                    await self.server.run([trio.SocketListener(listening)])
        finally:
            self._ended.set()


@pytest.fixture
async def process(tmp_path: Path) -> AsyncIterator[StoreProcess]:
    async with trio.open_nursery() as nursery:
        process = StoreProcess(tmp_path, nursery)
        await process.begin()
        yield process
        nursery.cancel_scope.cancel()


@asynccontextmanager
async def two(process: StoreProcess) -> AsyncIterator[tuple[RemoteStore, RemoteStore]]:
    """The store as two processes have it."""
    async with AsyncExitStack() as stack:
        stores = [
            await stack.enter_async_context(open_remote(process.socket, node=node, clock=SystemClock()))
            for node in ("one", "other")
        ]
        await stores[0].barrier()
        yield stores[0], stores[1]


async def learnt(store: Store) -> None:
    """Wait until the window of what this one follows is known there: until then it is told to look.

    The read for it goes to the disk before the first one here does, or beside it, and so before the second.
    """
    for _ in range(2):
        await store.read_after("d", Seq(0), 0)


async def append(store: Store, body: bytes = b"x", key: str | None = None) -> Appended | StorageError:
    (outcome,) = await store.append_nowait("d", [NewEvent("k", body, key, body)]).wait()
    return outcome


async def publish(store: Store, count: int = 1) -> None:
    for _ in range(count):
        assert isinstance(await append(store), Appended)


def test_frames_come_out_as_they_went_in_whatever_the_pieces() -> None:
    sent = [b"", b"one", b"x" * 1000, b"last"]
    stream = b"".join(map(framed, sent))
    for size in (1, 3, 7, len(stream)):
        frames = Frames()
        taken = [one for at in range(0, len(stream), size) for one in frames.taken(stream[at : at + size])]
        assert taken == sent


def test_a_frame_that_is_too_long_is_refused() -> None:
    with pytest.raises(FrameTooLong):
        list(Frames().taken((FRAME_BYTES_MAX + 1).to_bytes(4, "big")))


async def test_a_process_hears_what_others_write_and_nothing_of_what_it_writes_itself(process: StoreProcess) -> None:
    async with two(process) as (one, other):
        await one.register("d", "amira", [])
        listeners = [Listener(one), Listener(other)]
        for store in (one, other):
            await learnt(store)
        await publish(one, 2)
        await publish(other)
        await listeners[1].until(lambda: listeners[1].numbers == [1, 2])
        await listeners[0].until(lambda: listeners[0].numbers == [3])
        await one.purge("d")
        await append(one, b"again", "key")
        await append(one, b"again", "key")
        await listeners[1].until(lambda: listeners[1].numbers == [1, 2, 4])
        epoch = (await one.get("d")).epoch
        assert listeners[1].heard[-2:] == [
            News(Window(epoch, Seq(3), Seq(3), Seq(3))),
            News(Window(epoch, Seq(4), Seq(3), Seq(3)), tuple((await one.read_after("d", Seq(3))).events)),
        ]
        listeners[1].unfollow()
        await other.barrier()
        await publish(one)
        await other.barrier()
        assert listeners[1].numbers == [1, 2, 4]


async def test_a_deletion_and_a_new_registration_are_heard_of(process: StoreProcess) -> None:
    async with two(process) as (one, other):
        await one.register("d", "amira", [])
        listener = Listener(other)
        await one.delete("d", AN_ACT)
        assert [type(change) for change in listener.told] == [DiagnosisDeleted]
        assert listener.heard[-1:] == [LOOK]
        await one.register("d", "bo", [], AN_ACT)
        assert [type(change) for change in listener.told] == [DiagnosisDeleted, DiagnosisRegistered]
        assert other.known("d") == await one.get("d")
        # Its window is learnt again: others get the events, and need not look for each.
        with trio.fail_after(10):
            while not listener.numbers:
                await publish(one)
                await other.barrier()


def slow_reads(store: Store, monkeypatch: pytest.MonkeyPatch) -> tuple[trio.Event, trio.Event]:
    """Have outboxes read and not answered: set once one was read, and what lets it answer."""
    has_read, may_answer = trio.Event(), trio.Event()
    read_after = store.read_after

    async def slow(*args: Any, **kwargs: Any) -> Slice:
        found = await read_after(*args, **kwargs)
        has_read.set()
        await may_answer.wait()
        return found

    monkeypatch.setattr(store, "read_after", slow)
    return has_read, may_answer


async def test_a_purge_while_a_window_is_read_is_not_undone_by_what_was_read(
    process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(process) as (one, other):
        await one.register("d", "amira", [])
        await publish(one, 3)
        assert process.store is not None
        has_read, may_answer = slow_reads(process.store, monkeypatch)
        listener = Listener(other)
        with trio.fail_after(10):
            await has_read.wait()
        await one.purge("d")
        may_answer.set()
        await learnt(other)
        await publish(one)
        await listener.until(lambda: listener.numbers == [4])
        assert listener.heard[-1].window == Window((await one.get("d")).epoch, Seq(4), Seq(3), Seq(3))


async def test_growth_while_a_window_is_read_is_added_to_what_was_read(
    process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(process) as (one, other):
        await one.register("d", "amira", [])
        assert process.store is not None
        has_read, may_answer = slow_reads(process.store, monkeypatch)
        listener = Listener(other)
        with trio.fail_after(10):
            await has_read.wait()
        await publish(one, 2)
        may_answer.set()
        await learnt(other)
        await publish(one)
        await listener.until(lambda: len(listener.heard) == 3)
        assert (listener.heard[:2], listener.numbers) == ([LOOK, LOOK], [3])


async def test_what_is_written_to_a_new_registration_is_not_told_with_the_window_of_the_one_before(
    process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(process) as (one, other):
        await one.register("d", "amira", [])
        await publish(one, 3)
        await one.purge("d")
        assert process.store is not None
        read_after, is_read, go_on = process.store.read_after, trio.Event(), trio.Event()

        async def late(*args: Any, **kwargs: Any) -> Any:
            found = await read_after(*args, **kwargs)
            is_read.set()
            await go_on.wait()
            return found

        monkeypatch.setattr(process.store, "read_after", late)
        listener = Listener(other)
        with trio.fail_after(10):
            await is_read.wait()
        await one.delete("d", AN_ACT)
        await one.register("d", "bo", [], AN_ACT)
        go_on.set()
        await other.barrier()
        heard = len(listener.heard)
        await publish(one)
        await listener.until(lambda: len(listener.heard) > heard)
        epoch = (await one.get("d")).epoch
        assert listener.heard[-1].window in (None, Window(epoch, Seq(1), Seq(0), Seq(0)))


async def test_an_act_is_answered_once_all_others_have_carried_out_what_follows(process: StoreProcess) -> None:
    async with two(process) as (one, other):
        listener = Listener(other)
        listener.may_settle = trio.Event()
        answered = trio.Event()

        async def act() -> None:
            await one.register("d", "amira", [], AN_ACT)
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            await listener.until(lambda: bool(listener.told))
            await one.barrier()
            assert not answered.is_set()
            listener.may_settle.set()
            with trio.fail_after(10):
                await answered.wait()
    assert process.unconfirmed == []


async def test_a_process_that_does_not_confirm_is_cut_off_and_named(
    process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_server, "CONFIRM_SECONDS_MAX", 0.2)
    async with two(process) as (one, other):
        listener = Listener(other)
        listener.may_settle = trio.Event()
        with trio.fail_after(30):
            await one.register("d", "amira", [], AN_ACT)
        assert process.unconfirmed == ["other"]


async def test_nobody_is_cut_off_while_the_disk_does_not_answer(
    process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_server, "CONFIRM_SECONDS_MAX", 0.2)
    async with two(process) as (one, other):
        assert process.store is not None
        statistics, looks = process.store.statistics, 0

        def hung() -> StoreStatistics:
            nonlocal looks
            looks += 1
            if looks == 8:
                listener.may_settle.set()
            return replace(statistics(), waiting_seconds=5.0)

        listener = Listener(other)
        listener.may_settle = trio.Event()
        monkeypatch.setattr(process.store, "statistics", hung)
        with trio.fail_after(30):
            await one.register("d", "amira", [], AN_ACT)
        assert process.unconfirmed == []


async def test_an_act_is_answered_once_what_others_handed_over_before_they_confirmed_is_stored(
    process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(process) as (one, other):
        assert process.store is not None
        may_pass = trio.Event()
        waits = trio.Event()
        barrier = process.store.barrier

        async def held() -> None:
            waits.set()
            await may_pass.wait()
            await barrier()

        monkeypatch.setattr(process.store, "barrier", held)
        Listener(other)
        answered = trio.Event()

        async def act() -> None:
            await one.register("d", "amira", [], AN_ACT)
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            with trio.fail_after(10):
                await waits.wait()
            await one.look_up("d")
            assert not answered.is_set()
            may_pass.set()


async def test_an_act_waits_for_a_process_that_is_away_until_it_has_judged_anew(
    process: StoreProcess, tmp_path: Path
) -> None:
    way = tmp_path / "way.sock"
    way.symlink_to(process.socket)
    async with (
        open_remote(process.socket, node="one", clock=SystemClock()) as one,
        open_remote(way, node="other", clock=SystemClock()) as other,
    ):
        listener = Listener(other)
        listener.may_settle = trio.Event()
        await process.end()
        way.unlink()
        await process.begin("one", "other")
        answered = trio.Event()

        async def act() -> None:
            await one.register("d", "amira", [], AN_ACT)
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            with trio.fail_after(10):
                while not await one.diagnoses():  # it is committed
                    pass
            way.symlink_to(process.socket)
            await listener.until(lambda: listener.misses == 1)
            await one.barrier()
            assert not answered.is_set()
            listener.may_settle.set()
            with trio.fail_after(10):
                await answered.wait()
    assert process.unconfirmed == []


async def test_an_act_does_not_wait_for_a_process_that_is_gone(process: StoreProcess) -> None:
    async with two(process) as (one, _):
        await process.end()
        await process.begin("one", "other", "third")
        assert process.server is not None

        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.register, "d", "amira", [], AN_ACT)
            with trio.fail_after(10):
                while not await one.diagnoses():
                    pass
            process.server.is_gone("third")
    assert process.unconfirmed == []


async def test_a_process_whose_stream_ends_is_waited_for_unless_it_is_said_to_be_gone(
    process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_server, "CONFIRM_SECONDS_MAX", 0.2)
    async with open_remote(process.socket, node="one", clock=SystemClock()) as one:
        assert process.server is not None
        for name, unconfirmed in (("gone", []), ("away", ["away"])):
            async with open_remote(process.socket, node=name, clock=SystemClock()) as other:
                await other.barrier()
                if name == "gone":
                    process.server.is_gone(name)
            await until_alone(one)
            await one.register(name, "amira", [], AN_ACT)
            assert process.unconfirmed == unconfirmed


async def until_alone(store: RemoteStore) -> None:
    with trio.fail_after(10):
        while store.bus.others():
            await store.barrier()


async def test_what_is_confirmed_to_a_process_of_the_store_that_has_ended_is_not_said_to_the_next(
    process: StoreProcess,
) -> None:
    async with two(process) as (one, other):
        listener = Listener(other)
        listener.may_settle = trio.Event()
        for name in "def":
            await one.register(name, "amira", [])
        await listener.until(lambda: len(listener.told) == 3)
        await process.end()
        await process.begin()
        await listener.until(lambda: listener.misses == 1)
        listener.may_settle.set()
        await other.barrier()
        listener.may_settle = trio.Event()
        answered = trio.Event()

        async def act() -> None:
            await one.register("d", "bo", [], AN_ACT)
            answered.set()

        async with trio.open_nursery() as nursery:
            nursery.start_soon(act)
            await listener.until(lambda: len(listener.told) == 4)
            await one.barrier()
            assert not answered.is_set()
            listener.may_settle.set()


async def test_acts_of_two_at_once_are_both_answered_by_one_confirmation_and_nobody_is_cut_off(
    process: StoreProcess,
) -> None:
    async with two(process) as (one, other):
        listener = Listener(other)
        listener.may_settle = trio.Event()
        async with trio.open_nursery() as nursery:
            nursery.start_soon(one.register, "d", "amira", [], AN_ACT)
            nursery.start_soon(one.register, "e", "amira", [], AN_ACT)
            await listener.until(lambda: len(listener.told) == 2)
            await one.barrier()
            listener.may_settle.set()
    assert process.unconfirmed == []


async def test_an_impatient_store_hears_what_the_patient_one_hears(process: StoreProcess) -> None:
    async with two(process) as (one, other):
        impatient = other.patient(5.0)
        before = impatient.statistics().diagnoses
        await one.register("d", "amira", [], AN_ACT)
        await other.barrier()
        assert impatient.statistics().diagnoses == before + 1


async def test_what_was_handed_over_before_a_right_was_taken_away_is_not_stored_after_that(
    process: StoreProcess, tmp_path: Path
) -> None:
    way = tmp_path / "way.sock"
    way.symlink_to(process.socket)
    async with (
        open_remote(process.socket, node="one", clock=SystemClock()) as one,
        open_remote(way, node="other", clock=SystemClock()) as other,
    ):
        await one.register("d", "amira", ["bo"])
        listener = Listener(other)
        await process.end()
        with trio.fail_after(10):
            while other.statistics().away_since is None or one.statistics().away_since is None:
                await trio.sleep(0.001)
        pending = other.append_nowait("d", [NewEvent("k", b"x", "key", b"x")])
        way.unlink()
        await process.begin()
        await one.register("d", "amira", [], AN_ACT)
        listener.may_settle = trio.Event()
        way.symlink_to(process.socket)
        with trio.fail_after(10):
            assert [type(outcome) for outcome in await pending.wait()] == [Busy]
        with pytest.raises(Busy):
            other.append_nowait("d", [NewEvent("k", b"x", "key", b"x")])
        assert not listener.heard
        listener.may_settle.set()
        await listener.until(lambda: listener.heard == [LOOK])
        assert isinstance(await append(other), Appended)


async def test_what_is_asked_while_the_store_is_gone_waits_for_it(process: StoreProcess) -> None:
    async with two(process) as (one, other):
        await one.register("d", "amira", [])
        listener = Listener(other)
        await publish(one)
        await process.end()
        outcomes: list[Appended | StorageError] = []

        async def keep(act: Callable[[], Awaitable[Appended | StorageError]]) -> None:
            outcomes.append(await act())

        async with trio.open_nursery() as nursery:
            nursery.start_soon(keep, lambda: append(one, b"one", "key"))
            nursery.start_soon(keep, lambda: append(other, b"two", "another"))
            with trio.fail_after(10):
                while one.statistics().away_since is None:
                    await trio.sleep(0.001)
            await process.begin()
        assert sorted(one.seq for one in outcomes if isinstance(one, Appended)) == [2, 3]
        await listener.until(lambda: listener.misses == 1 and LOOK in listener.heard)
        assert one.statistics().away_since is None
        assert [event.seq for event in (await other.read_after("d", Seq(0))).events] == [1, 2, 3]


async def test_what_is_asked_on_a_new_stream_has_no_number_of_what_waits() -> None:
    far: list[trio.abc.Stream] = []
    numbers: list[int] = []

    async def connect() -> trio.abc.Stream:
        near, its_end = memory_stream_pair()
        far.append(its_end)
        return near

    link = Link(connect, "one", SystemClock(), told=lambda frame: None)

    def ask() -> None:
        numbers.append(link.next_number())
        asked = _Request(b"x", take=lambda frame: None, refuse=lambda refusal: None, is_repeatable=True)
        link.ask(numbers[-1], asked)

    async with trio.open_nursery() as nursery:
        nursery.start_soon(link.run)
        for begun in (1, 2, 3):
            ask()
            with trio.fail_after(10):
                while len(far) < begun or not link.has_stream:
                    await trio.sleep(0.001)
            link.resume(is_judged_anew=False)
            ask()
            await far[-1].aclose()
        nursery.cancel_scope.cancel()
    assert numbers == [1, 2, 3, 4, 5, 6]


async def test_a_store_that_stays_away_refuses_what_waits(
    process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(remote_client, "AWAY_SECONDS_MAX", 0.2)
    async with two(process) as (one, _):
        await one.register("d", "amira", [])
        await process.end()
        with trio.fail_after(30):
            assert isinstance(await append(one), StorageError)
            with pytest.raises((Failed, StorageError)):
                await one.look_up("d")


async def test_processes_tell_and_ask_each_other(process: StoreProcess) -> None:
    async with two(process) as (one, other):
        heard: list[tuple[str, bytes]] = []
        has_heard = trio.Event()

        def hear(node: str, data: bytes) -> None:
            heard.append((node, data))
            has_heard.set()

        async def answer(node: str, data: bytes) -> bytes:
            return node.encode() + b":" + data

        undo = other.bus.subscribe("topic", hear)
        other.bus.answer("question", answer)
        await other.barrier()
        assert (one.bus.others(), other.bus.others()) == (["other"], ["one"])
        one.bus.publish("topic", b"x")
        with trio.fail_after(10):
            await has_heard.wait()
            assert heard == [("one", b"x")]
            assert await one.bus.ask("question", b"y", 5) == {"other": b"one:y"}
        undo()


async def test_an_append_is_answered_once_it_is_committed(
    process: StoreProcess, monkeypatch: pytest.MonkeyPatch
) -> None:
    async with two(process) as (one, _):
        await one.register("d", "amira", [])
        assert process.store is not None
        held: Pending[Sequence[Appended | StorageError]] = Pending()
        monkeypatch.setattr(process.store, "append_nowait", lambda diagnosis_id, events: held)
        pending = one.append_nowait("d", [NewEvent("k", b"x")])
        await one.barrier()  # asked behind it, and answered
        assert not pending.done.is_set()
        stored = Appended(Seq(1), 0.0, (await one.get("d")).epoch, replayed=False)
        held.answer([stored])
        with trio.fail_after(10):
            assert await pending.wait() == [stored]
