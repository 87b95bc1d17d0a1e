"""Every async test runs on asyncio and on Trio."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.scripted import Scripted


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server that says what the test wants."""
    with Scripted() as server:
        yield server
