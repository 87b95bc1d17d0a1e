"""What several handles on one engine promise each other, while live copies are lost and reads are old."""

from __future__ import annotations

from collections.abc import Callable
from random import Random

import pytest
import trio
from trio.testing import MockClock

from storage.changes import Change, EpochsRenewed
from storage.errors import Busy, Failed, KeyReused, NoSuchDiagnosis, StorageError
from storage.memory import MemoryStore
from storage.memory_engine import LOOK_SECONDS, Faults, MemoryEngine
from storage.news import LOOK, News
from storage.records import Appended, CursorMove, Epoch, NewEvent, Seq, SubscriberId, Window
from tests.storage.conftest import ManualClock
from tests.storage.rows import FAILING, ROWS

PHONE = SubscriberId("amira", "phone")


class Listener:
    """Follows a log at one handle, as an actor does: what it hears it takes, and what is missing it reads."""

    def __init__(self, store: MemoryStore) -> None:
        self.store = store
        self.heard: list[News] = []
        self.told: list[Change] = []
        self.changes: list[int] = []
        store.tell(self)
        self.unfollow = store.follow("d")

    def changed(self, change: Change) -> None:
        self.told.append(change)
        self.changes.append(change.number)

    def grew(self, diagnosis_id: str, news: News) -> None:
        assert diagnosis_id == "d"
        self.heard.append(news)

    def missed(self) -> None:
        raise AssertionError("every act is told")

    @property
    def numbers(self) -> list[int]:
        """Of the events it has heard of."""
        return [event.seq for news in self.heard for event in news.events]


@pytest.fixture
def faults() -> Faults:
    return Faults()


@pytest.fixture
def engine(clock: ManualClock, new_epoch: Callable[[], str], faults: Faults) -> MemoryEngine:
    return MemoryEngine(clock=clock, new_epoch=new_epoch, rows=ROWS, shared=True, faults=faults)


@pytest.fixture
def one(engine: MemoryEngine) -> MemoryStore:
    return MemoryStore(engine, "one")


@pytest.fixture
def other(engine: MemoryEngine) -> MemoryStore:
    return MemoryStore(engine, "other")


async def append(store: MemoryStore, body: bytes = b"x", key: str | None = None) -> Appended | StorageError:
    (outcome,) = await store.append_nowait("d", [NewEvent("k", body, key, body)]).wait()
    return outcome


async def publish(store: MemoryStore, count: int = 1) -> None:
    for _ in range(count):
        assert isinstance(await append(store), Appended)


async def head(store: MemoryStore, after: int = 0) -> int:
    return (await store.read_after("d", Seq(after), 0)).window.head


async def test_a_handle_hears_what_others_write_and_nothing_of_what_it_writes_itself(
    one: MemoryStore, other: MemoryStore
) -> None:
    epoch = (await one.register("d", "amira", [])).diagnosis.epoch
    listeners = [Listener(one), Listener(other)]
    await publish(one, 2)
    await publish(other)
    await one.purge("d")
    await append(one, b"again", "key")
    await append(one, b"again", "key")
    assert [listener.numbers for listener in listeners] == [[3], [1, 2, 4]]
    assert listeners[1].heard[-2:] == [
        News(Window(epoch, Seq(3), Seq(3), Seq(3))),
        News(Window(epoch, Seq(4), Seq(3), Seq(3)), (await one.read_after("d", Seq(3))).events),
    ]
    listeners[1].unfollow()
    await publish(one)
    assert listeners[1].numbers == [1, 2, 4]


async def test_a_deletion_and_a_new_registration_are_heard_of(one: MemoryStore, other: MemoryStore) -> None:
    await one.register("d", "amira", [])
    listener = Listener(other)
    await one.delete("d")
    assert listener.heard == [LOOK]
    with pytest.raises(NoSuchDiagnosis):
        await other.read_after("d", Seq(0))
    epoch = (await one.register("d", "amira", [])).diagnosis.epoch
    await publish(one)
    assert [news.window and news.window.epoch for news in listener.heard] == [None, epoch, epoch]


async def test_both_append_to_one_diagnosis_and_the_numbers_are_dense(one: MemoryStore, other: MemoryStore) -> None:
    await one.register("d", "amira", [])
    async with trio.open_nursery() as nursery:
        for store in (one, other) * 3:
            nursery.start_soon(publish, store, 5)
    for store in (one, other):
        assert [event.seq for event in (await store.read_after("d", Seq(0))).events] == list(range(1, 31))


@pytest.mark.guarantee(9)
async def test_the_same_key_at_both_makes_one_event(one: MemoryStore, other: MemoryStore) -> None:
    await one.register("d", "amira", [])
    outcomes = [await append(store, b"x", "key") for store in (one, other)]
    assert [(made.seq, made.replayed) for made in outcomes if isinstance(made, Appended)] == [(1, False), (1, True)]
    assert isinstance(await append(other, b"y", "key"), KeyReused)


async def test_a_read_is_old_but_never_older_than_what_its_handle_knows_of(
    one: MemoryStore, other: MemoryStore, faults: Faults
) -> None:
    await one.register("d", "amira", [])
    faults.reads_old = 5
    await publish(one, 20)
    assert await head(one) == 20, "what a handle has written it reads"
    first = await head(other)
    assert 15 <= first < 20
    seen = [first] + [await head(other) for _ in range(20)]
    assert seen == sorted(seen)
    await publish(one, 5)
    assert await head(other, after=23) >= 23, "the number is known to whoever asks"
    await publish(one, 5)
    await publish(other)
    assert await head(other) == 31
    listener = Listener(other)
    await publish(one)
    assert listener.numbers == [32]
    assert await head(other) == 32, "it was told"


async def test_what_was_written_before_a_log_is_followed_is_found_from_then_on(
    one: MemoryStore, other: MemoryStore, faults: Faults
) -> None:
    await one.register("d", "amira", [])
    faults.reads_old = 5
    for number in range(1, 21):
        await publish(one)
        other.follow("d")
        assert await head(other) == number, "nobody will tell of it"


async def test_what_is_lost_is_looked_for_within_a_minute(
    autojump_clock: MockClock, engine: MemoryEngine, one: MemoryStore, other: MemoryStore, faults: Faults
) -> None:
    await one.register("d", "amira", [])
    listener = Listener(other)
    faults.live_lost = 1.0
    await publish(one, 3)
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        await trio.sleep(LOOK_SECONDS - 1)
        assert listener.heard == []
        await trio.sleep(2)
        assert listener.heard == [LOOK]
        await trio.sleep(2 * LOOK_SECONDS)
        assert listener.heard == [LOOK], "nothing else was lost"
        nursery.cancel_scope.cancel()


async def test_late_copies_arrive_in_order(
    autojump_clock: MockClock, engine: MemoryEngine, one: MemoryStore, other: MemoryStore, faults: Faults
) -> None:
    await one.register("d", "amira", [])
    listener = Listener(other)
    faults.live_late_seconds = 3.0
    async with trio.open_nursery() as nursery:
        nursery.start_soon(engine.run)
        await publish(one, 10)
        assert listener.numbers == []
        await trio.sleep(3)
        assert listener.numbers == list(range(1, 11))
        nursery.cancel_scope.cancel()


@pytest.mark.parametrize("seed", range(20))
async def test_with_a_third_of_the_copies_lost_each_log_is_whole_at_both(
    one: MemoryStore, other: MemoryStore, engine: MemoryEngine, faults: Faults, seed: int
) -> None:
    faults.live_lost, faults.reads_old, faults.random = 0.3, 5, Random(seed)
    await one.register("d", "amira", [])
    listener, turns = Listener(other), Random(seed)
    for _ in range(150):
        await publish(turns.choice((one, other)))
        if turns.random() < 0.05:
            await turns.choice((one, other)).purge("d")
    assert listener.numbers == sorted(set(listener.numbers))
    window, position, found = (await one.read_after("d", Seq(0))).window, Seq(0), []
    while position < 150:
        page = await other.read_after("d", position)
        found += [event.seq for event in page.events]
        position = page.window.head
    assert found == list(range(window.floor + 1, 151))


async def test_a_handle_that_is_cut_off_says_so_and_goes_on_afterwards(one: MemoryStore, other: MemoryStore) -> None:
    await one.register("d", "amira", [])
    listener = Listener(other)
    other.go_away()
    with pytest.raises(Busy):
        other.append_nowait("d", [NewEvent("k", b"")])
    with pytest.raises(Busy):
        await other.register("e", "amira", [])
    with pytest.raises(Failed):
        await other.read_after("d", Seq(0))
    assert other.known("d") is not None
    await publish(one, 2)
    other.come_back()
    assert listener.heard == [LOOK]
    await publish(other)
    assert await head(other) == 3


async def test_every_handle_is_told_of_each_act_once_and_in_order_also_after_it_was_cut_off(
    one: MemoryStore, other: MemoryStore
) -> None:
    listeners = [Listener(one), Listener(other)]
    await one.register("d", "amira", [])
    await other.register("d", "bo", [])
    other.go_away()
    await one.purge("d")
    await one.delete("d")
    assert [listener.changes for listener in listeners] == [[1, 2, 3, 4], [1, 2]]
    other.come_back()
    await other.register("d", "amira", [])
    assert [listener.changes for listener in listeners] == [[1, 2, 3, 4, 5]] * 2


async def test_renewed_epochs_are_told_to_every_handle_also_after_it_was_cut_off(
    engine: MemoryEngine, one: MemoryStore, other: MemoryStore
) -> None:
    await one.register("d", "amira", [])
    await one.register("e", "amira", [])
    await publish(one, 3)
    listeners = [Listener(one), Listener(other)]
    other.go_away()
    before = [one.epoch for one in await one.diagnoses()]
    engine.renew_epochs()
    after = [one.epoch for one in await one.diagnoses()]
    assert set(before).isdisjoint(after)
    assert [listener.told for listener in listeners] == [[EpochsRenewed(3, None)], []]
    other.come_back()
    assert listeners[1].told == [EpochsRenewed(3, None)]
    assert listeners[1].heard == [LOOK]
    for store in (one, other):
        found = await store.read_after("d", Seq(0))
        assert found.window == Window(after[0], Seq(3), Seq(0), Seq(0))
        assert [event.seq for event in found.events] == [1, 2, 3]
    appended = await append(other)
    assert isinstance(appended, Appended)
    assert (appended.epoch, appended.seq) == (after[0], 4)


async def test_an_engine_that_is_away_answers_nobody(
    engine: MemoryEngine, one: MemoryStore, other: MemoryStore
) -> None:
    await one.register("d", "amira", [])
    engine.go_away()
    for store in (one, other):
        with pytest.raises(Failed):
            await store.cursors("d")
    engine.come_back()
    await publish(other)
    assert await head(one) == 1


async def test_a_handle_that_has_died_does_nothing_more(
    one: MemoryStore, other: MemoryStore, engine: MemoryEngine
) -> None:
    await one.register("d", "amira", [])
    listener = Listener(other)
    other.die()
    await publish(one)
    engine.come_back()
    with pytest.raises(Failed):
        await other.read_after("d", Seq(0))
    assert listener.heard == []
    again = MemoryStore(engine, "other")
    assert await head(again) == 1


async def test_a_cursor_that_both_move_is_the_higher_one_at_both(one: MemoryStore, other: MemoryStore) -> None:
    epoch = (await one.register("d", "amira", [])).diagnosis.epoch
    await publish(one, 9)

    async def move(store: MemoryStore, seq: int) -> Seq | None:
        (stored,) = await store.move_cursors([CursorMove("d", PHONE, epoch, Seq(seq), 5.0)])
        return stored

    assert [await move(one, 3), await move(other, 7), await move(one, 5)] == [3, 7, 7]
    for store in (one, other):
        found = await store.cursor("d", PHONE)
        assert found is not None
        assert found.seq == 7


async def test_an_act_whose_row_cannot_be_made_changes_nothing_and_is_heard_of_by_nobody(
    one: MemoryStore, other: MemoryStore
) -> None:
    await one.register("d", "amira", [])
    await publish(one, 3)
    listener = Listener(other)

    for act in (one.purge("d", FAILING), one.delete("d", FAILING)):
        with pytest.raises(ZeroDivisionError):
            await act
    assert listener.heard == []
    assert (await other.read_after("d", Seq(0))).window.floor == 0


async def test_a_new_registration_is_read_from_its_beginning(
    one: MemoryStore, other: MemoryStore, faults: Faults
) -> None:
    await one.register("d", "amira", [])
    await publish(one, 9)
    faults.reads_old = 5
    await other.read_after("d", Seq(9))
    await one.delete("d")
    epoch: Epoch = (await one.register("d", "amira", [])).diagnosis.epoch
    await publish(one, 2)
    for _ in range(10):
        found = await other.read_after("d", Seq(0))
        assert found.window.epoch == epoch
        assert found.window.head <= 2
