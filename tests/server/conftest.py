"""The server every test of this folder talks to."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from tests.server.harness import Server, running_server
from web.server.settings import Settings


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """Settings of the server under test: a free port and a database of its own."""
    return Settings(port=0, data=tmp_path / "data")


@pytest.fixture
async def server(settings: Settings) -> AsyncIterator[Server]:
    """A running server."""
    async with running_server(settings) as running:
        yield running
