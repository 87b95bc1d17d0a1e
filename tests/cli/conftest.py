"""What the tests of the command line share."""

from __future__ import annotations

import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path

import pytest

from tests.cli.strangers import Stranger, listening
from tests.server.harness import Server, running_server
from web.server.settings import Settings


@pytest.fixture
def stranger() -> Iterator[Stranger]:
    """Somebody who listens where a server was expected."""
    with listening() as found:
        yield found


@pytest.fixture
def unused_url() -> Iterator[str]:
    """A URL where nobody listens, and nobody will while the test runs."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{held.getsockname()[1]}"


@pytest.fixture
async def server(tmp_path: Path) -> AsyncIterator[Server]:
    """A running server."""
    async with running_server(Settings(port=0, data=tmp_path / "data")) as running:
        yield running
