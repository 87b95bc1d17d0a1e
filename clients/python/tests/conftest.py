"""Every async test runs on asyncio and on Trio."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Coroutine, Iterator
from typing import Any, Final

import anyio
import pytest

from tests.scripted import Scripted

TEST_SECONDS_MAX: Final = 40


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if isinstance(item, pytest.Function) and inspect.iscoroutinefunction(item.obj):
            item.obj = bounded(item.obj)


def bounded(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., Coroutine[Any, Any, None]]:
    """A test that ends by itself: what interrupts it from outside would leave its event loop hanging."""

    @functools.wraps(test)
    async def within(**fixtures: object) -> None:
        with anyio.fail_after(TEST_SECONDS_MAX):
            await test(**fixtures)

    return within


@pytest.fixture(params=["asyncio", "trio"])
def anyio_backend(request: pytest.FixtureRequest) -> str:
    name: str = request.param
    return name


@pytest.fixture
def scripted() -> Iterator[Scripted]:
    """A server that says what the test wants."""
    with Scripted() as server:
        yield server
