"""What the tests of the command line share."""

from __future__ import annotations

import socket
from collections.abc import Iterator

import pytest

from tests.cli.strangers import Stranger, listening


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
