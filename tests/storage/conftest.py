"""The stores the contract suite judges. A further store joins by a branch in `store`."""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from storage.memory import MemoryStore
from storage.sqlite import open_store
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
    if request.param == "memory":
        yield MemoryStore(clock=clock, new_epoch=new_epoch)
        return
    async with open_store(path, clock=clock, new_epoch=new_epoch) as opened:
        yield opened
