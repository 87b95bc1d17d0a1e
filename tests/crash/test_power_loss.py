"""Power fails at any moment, under the project's own schema and transactions: what is on disk afterwards, and trusted.

The one rule for both durabilities: a diagnosis that keeps its epoch has lost nothing that was acknowledged.
"""

from __future__ import annotations

import os
import random
import secrets
import shutil
import sqlite3
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import trio

from storage.belief import Moment
from storage.disk.database_files import wal_of
from storage.records import OUTBOX_EVENTS_MAX, Appended, CursorMove, Durability, Epoch, NewEvent, Seq, SubscriberId
from storage.sqlite import cursors, diagnoses, events, live_log
from storage.sqlite.committer import Work, run_transaction
from storage.sqlite.live_log import LiveLog
from storage.sqlite.opening import open_store
from storage.sqlite.runs import end_run
from storage.sqlite.schema import Opening, prepare
from tests.crash.disk import Connection, Recorder, Step, left_of
from tests.storage.conftest import ManualClock

CUTS = int(os.environ.get("CRASH_TEST_ROUNDS", "40"))
"""Moments at which power fails, for each durability; `make crash-test ROUNDS=1000` asks for more."""

DIAGNOSES = ("a", "b", "c")
NOW = Moment(1.0, 1.0, 1.0)

COMMITS = 90
CHECKPOINT_PAGES = 60
"""Far fewer than in earnest, so that power fails within checkpoints too."""

DATABASE = "avicenna.db"


@dataclass(frozen=True, slots=True)
class Promise:
    """What had been acknowledged once so many steps were done."""

    steps: int
    heads: dict[str, int]


@dataclass(frozen=True, slots=True)
class Recording:
    """A run of a store, as its disk saw it."""

    steps: Sequence[Step]
    promises: Sequence[Promise]

    def promised(self, steps: int) -> dict[str, int]:
        """The last acknowledged number of each diagnosis at this moment."""
        heads: dict[str, int] = {}
        for promise in self.promises:
            if promise.steps <= steps:
                heads = promise.heads
        return heads


def body_of(diagnosis_id: str, seq: int) -> bytes:
    """Of many sizes, and recognisable."""
    return f"{diagnosis_id} {seq} ".encode() * (1 + seq * 7 % 60)


def record(path: Path, durability: Durability, chance: random.Random) -> Recording:
    """Open a store on a recorded disk, let it work, and close it in order."""
    recorder = Recorder(f"recorder-{durability}-{secrets.token_hex(4)}")
    connection = Connection(path, recorder)
    db = connection.as_sqlite3()
    prepare(db, Opening(str(path), durability, "boot-1", partial(secrets.token_hex, 4), 0.0))
    log = LiveLog(db, wal_of(path))
    heads: dict[str, int] = {}
    promises: list[Promise] = []

    def commit(*works: Work[object]) -> list[object]:
        outcomes = run_transaction(db, works, NOW, log.after_commit)
        promises.append(Promise(len(recorder.steps), dict(heads)))
        return outcomes

    for name in DIAGNOSES:
        heads[name] = 0
        commit(partial(_register, name))
    for _ in range(COMMITS):
        works: list[Work[object]] = []
        for name in chance.sample(DIAGNOSES, chance.randint(1, len(DIAGNOSES))):
            first = heads[name] + 1
            heads[name] += chance.randint(1, 6)
            works.append(partial(_append, name, first, heads[name]))
            works.append(partial(_move_cursor, name, heads[name]))
        commit(*works)
    end_run(db, log=log.mark)
    log.close()
    connection.close()
    return Recording(recorder.steps, promises)


def _register(name: str, db: sqlite3.Connection, now: Moment) -> object:
    return diagnoses.register(db, name, "amira", ["bo"], Epoch(f"first-{name}"), now.wall)


def _append(name: str, first: int, last: int, db: sqlite3.Connection, now: Moment) -> object:
    new = [
        NewEvent("k", body_of(name, seq), key=f"key {seq}" if seq % 2 else None, digest=b"d")
        for seq in range(first, last + 1)
    ]
    outcomes = events.append(db, name, new, now)
    assert [one.seq for one in outcomes if isinstance(one, Appended)] == list(range(first, last + 1))
    return outcomes


def _move_cursor(name: str, seq: int, db: sqlite3.Connection, now: Moment) -> object:
    move = CursorMove(name, SubscriberId("bo", None), Epoch(f"first-{name}"), Seq(seq), now.reckoned)
    return cursors.move_cursors(db, [move])


@dataclass(frozen=True, slots=True)
class Aftermath:
    """What was found of one diagnosis by the next run of a store."""

    epoch: str
    head: int


async def come_back(directory: Path, files: dict[str, bytes], clock: ManualClock) -> dict[str, Aftermath]:
    """Start a store on what is left on disk, after the machine has restarted; what it serves, bodies checked."""
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir()
    for name, content in files.items():
        (directory / name).write_bytes(content)
    found: dict[str, Aftermath] = {}
    new_epoch: Callable[[], str] = partial(secrets.token_hex, 4)
    async with open_store(directory / DATABASE, clock=clock, new_epoch=new_epoch, boot="boot-2") as store:
        for diagnosis in await store.diagnoses():
            name = diagnosis.diagnosis_id
            window, retained = (slice_ := await store.read_after(name, Seq(0))).window, slice_.events
            seqs = range(max(0, window.head - OUTBOX_EVENTS_MAX) + 1, window.head + 1)
            assert [event.seq for event in retained] == list(seqs)
            assert [event.body for event in retained] == [body_of(name, seq) for seq in seqs]
            (outcome,) = await store.append_nowait(name, [NewEvent("k", b"next")]).wait()
            assert isinstance(outcome, Appended)
            assert outcome.seq == window.head + 1
            found[name] = Aftermath(window.epoch, window.head)
        assert await store.check() == []
    return found


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
@pytest.mark.parametrize("durability", ["full", "normal"])
async def test_who_keeps_its_epoch_has_lost_nothing_acknowledged_when_power_fails(
    tmp_path: Path, clock: ManualClock, durability: Durability, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(live_log, "WAL_AUTOCHECKPOINT_PAGES", CHECKPOINT_PAGES)
    seed = secrets.randbits(32)
    chance = random.Random(seed)
    (tmp_path / "recorded").mkdir()
    recording = await trio.to_thread.run_sync(record, tmp_path / "recorded" / DATABASE, durability, chance)
    lost, renewed = 0, 0
    cuts = sorted(chance.sample(range(1, len(recording.steps) + 1), min(CUTS, len(recording.steps))))
    for cut in cuts:
        print(f"seed {seed}, power fails after step {cut} of {len(recording.steps)}")  # noqa: T201 - shown if it fails
        found = await come_back(tmp_path / "left", left_of(recording.steps[:cut], chance), clock)
        has_lost, has_renewed = False, False
        for name, head in recording.promised(cut).items():
            is_same_history = name in found and found[name].epoch == f"first-{name}"
            if is_same_history:
                assert found[name].head >= head
            has_renewed |= not is_same_history
            has_lost |= name not in found or found[name].head < head
        lost += has_lost
        renewed += has_renewed
    print(f"{durability}: {len(cuts)} cuts, {lost} lost acknowledged events, {renewed} began new epochs")  # noqa: T201
    # `normal` does lose events; otherwise this disk is too kind to show anything.
    assert (lost, renewed) == (0, 0) if durability == "full" else 0 < lost <= renewed
