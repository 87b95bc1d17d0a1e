"""The stores the contract suite judges. A further store joins by a branch in `store`."""

from __future__ import annotations

import os
import sqlite3
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from storage.memory import MemoryStore
from storage.records import IDEMPOTENCY_KEYS_MAX
from storage.sqlite.store import SqliteStore, open_store
from storage.store import Store


class ManualClock:
    """A clock that stands until a test moves it."""

    def __init__(self) -> None:
        self.now = 1_000_000.0
        self.wrong_by = 0.0
        """So far is the wall clock ahead of where it should be."""

    def wall(self) -> float:
        return self.now + self.wrong_by

    def monotonic(self) -> float:
        return self.now


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def new_epoch() -> Callable[[], str]:
    """Epoch names that never repeat."""
    names = iter(f"epoch-{number}" for number in range(1, 1000))
    return lambda: next(names)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "data" / "avicenna.db"


@pytest.fixture(params=["sqlite", "memory"])
async def store(
    request: pytest.FixtureRequest, path: Path, clock: ManualClock, new_epoch: Callable[[], str]
) -> AsyncIterator[Store]:
    """An empty store of each kind."""
    async with _opened(request.param, path, clock, new_epoch, IDEMPOTENCY_KEYS_MAX) as opened:
        yield opened


@pytest.fixture(params=["sqlite", "memory"])
async def store_of_three_keys(
    request: pytest.FixtureRequest, path: Path, clock: ManualClock, new_epoch: Callable[[], str]
) -> AsyncIterator[Store]:
    """An empty store of each kind that holds three idempotency keys at most."""
    async with _opened(request.param, path, clock, new_epoch, 3) as opened:
        yield opened


@asynccontextmanager
async def _opened(
    kind: str, path: Path, clock: ManualClock, new_epoch: Callable[[], str], keys_max: int
) -> AsyncIterator[Store]:
    if kind == "memory":
        yield MemoryStore(clock=clock, new_epoch=new_epoch, keys_max=keys_max)
        return
    async with open_store(path, clock=clock, new_epoch=new_epoch, keys_max=keys_max) as opened:
        yield opened


async def damage(store: Store, diagnosis_id: str, *seqs: int, head: int | None = None) -> None:
    """Change what a store holds of a diagnosis, as a disk that fails: events of these numbers, or the head."""
    if isinstance(store, MemoryStore):
        store.damage(diagnosis_id, *seqs, head=head)
        return
    assert isinstance(store, SqliteStore)

    def change(db: sqlite3.Connection) -> None:
        (dx,) = db.execute(
            "SELECT dx FROM diagnosis WHERE public_id = ? AND deleted_at IS NULL", (diagnosis_id,)
        ).fetchone()
        for seq in seqs:
            db.execute("UPDATE entry SET body = CAST(body || 'x' AS BLOB) WHERE dx = ? AND seq = ?", (dx, seq))
        if head is not None:  # as a disk does it: past every rule
            db.execute("INSERT OR REPLACE INTO head SELECT dx, ?, floor, purged FROM head WHERE dx = ?", (head, dx))

    await store._committer.read(change)
    store._damage.is_check_pending = True


@pytest.fixture
def crashed(path: Path, tmp_path: Path) -> Callable[[], None]:
    """Makes the files of the store what a `kill -9` at this moment would have left, once it is closed."""
    kept = tmp_path / "kept"

    def keep() -> None:
        # `cp` runs in a process of its own: opening the database in this one would drop SQLite's locks.
        assert os.spawnlp(os.P_WAIT, "cp", "cp", "-r", str(path.parent), str(kept)) == 0

    return keep
