"""What a wall clock that jumps must not undo, while a store runs and between two of its runs; on every store."""

from __future__ import annotations

import shutil
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
import trio
from hypothesis import given, settings
from hypothesis import strategies as st

from storage.belief import EVEN_SECONDS, Kept
from storage.memory import MemoryStore
from storage.memory_engine import MemoryEngine
from storage.records import (
    IDEMPOTENCY_KEY_SECONDS,
    Appended,
    CursorMove,
    NewAccessRow,
    NewAuditRow,
    NewEvent,
    Seq,
    SubscriberId,
)
from storage.sqlite.opening import open_store
from storage.store import Store

HOUR, DAY = 3600.0, 86_400.0
LIFETIME_SECONDS = 30 * DAY
"""The longest life of a token."""
UNSEEN_SECONDS = 30 * DAY
PHONE = SubscriberId("amira", "phone")


class Machine:
    """A machine whose true time only goes on, and whose wall clock a test sets wrong."""

    def __init__(self) -> None:
        self.true = 1_700_000_000.0
        self.wrong_by = 0.0

    def wall(self) -> float:
        return self.true + self.wrong_by

    def monotonic(self) -> float:
        return self.true


class Runs:
    """The runs of one store, one after the other."""

    def __init__(self, directory: Path | None) -> None:
        self.machine = Machine()
        self._directory = directory
        self._memory: MemoryStore | None = None
        self._kept: Kept
        self._epochs = iter(f"epoch-{number}" for number in range(1, 1000))

    @asynccontextmanager
    async def run(self) -> AsyncIterator[Store]:
        """One run, ended in order."""
        if self._directory is None:
            if self._memory is None:
                self._memory = MemoryStore(MemoryEngine(clock=self.machine, new_epoch=lambda: next(self._epochs)))
            else:
                self._memory = self._memory.restarted(self._kept)
            yield self._memory
            self._kept = self._memory.kept
            return
        path = self._directory / "avicenna.db"
        async with open_store(
            path, clock=self.machine, new_epoch=lambda: next(self._epochs), durability="normal"
        ) as opened:
            yield opened


@pytest.fixture(params=["sqlite", "memory"])
def runs(request: pytest.FixtureRequest, tmp_path: Path) -> Runs:
    return Runs(tmp_path if request.param == "sqlite" else None)


async def publish(store: Store, key: str | None = "k") -> Appended:
    event = NewEvent("feedback_update", b"{}", key, b"digest")
    (outcome,) = await store.append_nowait("d", [event]).wait()
    assert isinstance(outcome, Appended)
    return outcome


async def see(store: Store) -> None:
    epoch = (await store.get("d")).epoch
    await store.move_cursors([CursorMove("d", PHONE, epoch, Seq(1), store.moment().reckoned)])


async def keep_house(store: Store) -> None:
    """What the server does now and then, with every setting at a day."""
    while await store.expire(audit_seconds=DAY, accesses_seconds=DAY):
        pass
    await store.evict(DAY)
    await store.forget_unseen(UNSEEN_SECONDS)
    await store.expire_revocations(LIFETIME_SECONDS)


async def fill(store: Store) -> None:
    """One thing of each kind that time ends."""
    await store.register("d", "amira", [])
    await publish(store)
    await see(store)
    await store.revoke(sub="bo", leeway_seconds=10)
    await store.record(NewAuditRow("op", "act", "d"))
    await store.record_accesses([NewAccessRow(store.moment().wall, "connect", "d", PHONE)])


async def left(store: Store) -> dict[str, int]:
    """How much of each kind is there."""
    return {
        "events": len((await store.read_after("d", Seq(0))).events),
        "cursors": len(await store.cursors("d")),
        "revocations": len(await store.revocations()),
        "audit": len(await store.audit()),
        "accesses": len(await store.accesses()),
    }


EVERYTHING = {"events": 1, "cursors": 1, "revocations": 1, "audit": 1, "accesses": 1}


async def test_a_start_40_days_ahead_undoes_nothing(runs: Runs) -> None:
    async with runs.run() as store:
        await fill(store)
    runs.machine.true += 200
    runs.machine.wrong_by = 40 * DAY
    async with runs.run() as store:
        await keep_house(store)
        assert store.clock_held_since == runs.machine.wall()
        assert await left(store) == EVERYTHING
        assert (await publish(store)).replayed
    runs.machine.wrong_by = 0.0
    async with runs.run() as store:
        assert store.clock_held_since is None
        await keep_house(store)
        assert await left(store) == EVERYTHING
        assert (await publish(store)).replayed


async def test_a_start_26_hours_behind_set_right_while_running_undoes_nothing(runs: Runs) -> None:
    machine = runs.machine
    async with runs.run() as store:
        await store.register("d", "amira", [])
    token_issued_at = machine.true
    machine.true += 600
    machine.wrong_by = -26 * HOUR
    async with runs.run() as store:
        first = await publish(store)
        assert first.at == machine.wall()
        made = (await store.revoke(sub="bo", leeway_seconds=10)).revocation
        assert made.at == machine.wall()
        assert made.covers_until >= token_issued_at
        machine.true += 300
        machine.wrong_by = 0.0
        assert (await publish(store)).replayed
        await keep_house(store)
        machine.true += EVEN_SECONDS
        assert store.clock_held_since is None
        await keep_house(store)
        assert (await publish(store)).replayed
        assert await store.revocations() == [made]
        machine.true = made.covers_until + LIFETIME_SECONDS - 1
        assert await store.expire_revocations(LIFETIME_SECONDS) == []
        machine.true += 1
        assert await store.expire_revocations(LIFETIME_SECONDS) == [made]


@pytest.mark.parametrize("wrong_by", [40 * DAY, -40 * DAY])
async def test_a_jump_while_running_undoes_nothing_within_an_hour_and_counts_after_it(
    runs: Runs, wrong_by: float
) -> None:
    async with runs.run() as store:
        await fill(store)
        runs.machine.true += 600
        runs.machine.wrong_by = wrong_by
        await keep_house(store)
        assert await left(store) == EVERYTHING
        assert (await publish(store)).replayed
        runs.machine.true += EVEN_SECONDS - 1
        await keep_house(store)
        assert await left(store) == EVERYTHING
        runs.machine.true += 1
        assert store.clock_held_since is None
        await keep_house(store)
        gone = {"events": 0, "cursors": 0, "revocations": 0, "audit": 0, "accesses": 0}
        assert await left(store) == (gone if wrong_by > 0 else EVERYTHING)
        assert (await publish(store)).replayed is (wrong_by < 0)


async def test_the_log_says_once_that_a_hold_begins_and_once_that_it_ends(
    runs: Runs, caplog: pytest.LogCaptureFixture
) -> None:
    machine = runs.machine
    async with runs.run() as store:
        for wrong_by in (40 * DAY, 0.0, -DAY):
            machine.wrong_by = wrong_by
            for _ in range(5):
                machine.true += 60
                store.moment()
        machine.true += EVEN_SECONDS
        store.moment()
        store.moment()
    lines = [record.getMessage() for record in caplog.records if record.name == "avicenna.storage"]
    assert lines == [
        (
            "the wall clock is 3456000 s ahead of where it should be: "
            "nothing expires or is dropped until it has run evenly for 60 minutes"
        ),
        "the wall clock has run evenly for 60 minutes: it is believed again",
    ]


@pytest.mark.parametrize("idle", [False, True])
async def test_a_crash_takes_at_most_a_minute_of_the_kept_time(tmp_path: Path, idle: bool) -> None:
    runs = Runs(tmp_path / "first")
    machine = runs.machine
    async with runs.run() as store:
        await store.register("d", "amira", [])
        machine.true += 5 * DAY
        if idle:
            commits = store.statistics().commits
            with trio.fail_after(30):
                while store.statistics().commits == commits:
                    await trio.sleep(0.01)
        else:
            await publish(store)
        # What a process that is killed now leaves.
        shutil.copytree(tmp_path / "first", tmp_path / "second")
    after = Runs(tmp_path / "second")
    after.machine.true = machine.true
    async with after.run() as store:
        assert store.clock_held_since is None
    after.machine.true += DAY + 1
    async with after.run() as store:
        assert store.clock_held_since is not None


@pytest.mark.parametrize("trail", ["audit", "access"])
async def test_rows_stamped_in_the_future_keep_no_older_row_from_going(runs: Runs, trail: str) -> None:
    machine = runs.machine

    async def record(store: Store, count: int) -> None:
        for _ in range(count):
            if trail == "audit":
                await store.record(NewAuditRow("op", "act", "d"))
            else:
                await store.record_accesses([NewAccessRow(machine.wall(), "connect", "d", PHONE)])

    async def rows(store: Store) -> list[float]:
        found = await (store.audit() if trail == "audit" else store.accesses())
        return [row.at for row in found]

    async with runs.run() as store:
        machine.wrong_by = 400 * DAY
        await record(store, 5)
        machine.wrong_by = 0.0
        machine.true += DAY
        await record(store, 5)
        machine.true += DAY
        await record(store, 2)
        young = await rows(store)
        machine.true += EVEN_SECONDS
        ages = {"audit_seconds": DAY / 2} if trail == "audit" else {"accesses_seconds": DAY / 2}
        assert [await store.expire(limit=4, **ages) for _ in range(4)] == [4, 4, 2, 0]
        assert await rows(store) == young[:2]


async def test_a_cursor_says_by_the_wall_clock_when_it_was_acknowledged(runs: Runs) -> None:
    async with runs.run() as store:
        await store.register("d", "amira", [])
        await publish(store)
        runs.machine.wrong_by = -DAY
        now = store.moment()
        epoch = (await store.get("d")).epoch
        for seq in (0, 1):
            move = CursorMove("d", PHONE, epoch, Seq(seq), now.reckoned, "app", acknowledged_at=now.wall)
            await store.move_cursors([move])
        (cursor,) = await store.cursors("d")
    assert (cursor.seen_at, cursor.acknowledged_at) == (runs.machine.true, runs.machine.wall())


JUMPS = st.sampled_from([0.0, 200.0, -200.0, HOUR, -HOUR, 26 * HOUR, -26 * HOUR, 40 * DAY, -40 * DAY])
STEPS = st.one_of(
    st.tuples(st.just("wait"), st.sampled_from([1.0, 60.0, 1800.0, 3500.0])),
    st.tuples(st.just("set"), JUMPS),
    st.tuples(st.just("restart"), st.sampled_from([0.0, 60.0, HOUR])),
    st.tuples(st.just("publish"), st.just(0.0)),
    st.tuples(st.just("keep house"), st.just(0.0)),
)


class History:
    """What must be true after any history in which no wrong time stands for an hour."""

    def __init__(self, runs: Runs) -> None:
        self._runs = runs
        self._machine = runs.machine
        self._events = 0
        self._key_made_at: float | None = None
        self._wrong_for = 0.0

    async def play(self, steps: list[tuple[str, float]]) -> None:
        async with self._runs.run() as store:
            await fill(store)
            self._events, self._key_made_at = 1, self._machine.true
        began = self._machine.true
        remaining = list(steps)
        while remaining:
            async with self._runs.run() as store:
                while remaining and remaining[0][0] != "restart":
                    await self._step(store, *remaining.pop(0))
                    if self._machine.true - began < DAY:
                        assert await left(store) == EVERYTHING | {"events": self._events}
            if remaining:
                self._machine.true += remaining.pop(0)[1]

    async def _step(self, store: Store, what: str, value: float) -> None:
        match what:
            case "wait":
                self._wait(store, value)
            case "set":
                self._machine.wrong_by = value
                self._wrong_for = 0.0
            case "publish":
                made = await publish(store)
                assert self._key_made_at is not None
                if self._machine.true - self._key_made_at < IDEMPOTENCY_KEY_SECONDS:
                    assert made.replayed, "the same key made a second event within a day"
            case "keep house":
                await keep_house(store)

    def _wait(self, store: Store, seconds: float) -> None:
        """Let time go by; a wrong clock is set right before it has stood for an hour."""
        if self._machine.wrong_by:
            if self._wrong_for + seconds >= EVEN_SECONDS:
                self._machine.wrong_by = self._wrong_for = 0.0
            else:
                self._wrong_for += seconds
        self._machine.true += seconds
        store.moment()


@pytest.mark.guarantee(9)
@pytest.mark.parametrize("kind", ["sqlite", "memory"])
@given(steps=st.lists(STEPS, max_size=20))
@settings(max_examples=60)
def test_after_any_history_of_jumps_nothing_is_gone_before_its_time(kind: str, steps: list[tuple[str, float]]) -> None:
    async def play(directory: Path | None) -> None:
        await History(Runs(directory)).play(steps)

    in_trio: Callable[..., None] = trio.run
    if kind == "memory":
        in_trio(play, None)
        return
    with TemporaryDirectory() as directory:
        in_trio(play, Path(directory))
