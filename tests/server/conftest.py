"""The server every test of this folder talks to."""

from __future__ import annotations

import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Final

import pytest

from tests.server.harness import Server, running_server
from web.server.settings import Settings

BOTH_WAYS: Final = frozenset({"test_broadcasts", "test_refusals"})
"""Files whose tests are run by the short way and by the long one; with `ALL_WAYS=1` all of this folder are."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test by the short way of plain requests and by the long one, if its file is to be."""
    name = metafunc.module.__name__.rpartition(".")[2]
    if "short_way" in metafunc.fixturenames and ("ALL_WAYS" in os.environ or name in BOTH_WAYS):
        metafunc.parametrize("short_way", [True, False], ids=["short", "long"])


@pytest.fixture
def short_way() -> bool:
    """Whether plain requests take the short way."""
    return True


@pytest.fixture
def settings(tmp_path: Path, short_way: bool) -> Settings:
    """Settings of the server under test: a free port and a database of its own."""
    return Settings(port=0, data=tmp_path / "data", short_way=short_way)


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    """A running server."""
    async with running_server(settings) as running:
        yield running
