"""The world most tests of this folder live in."""

from __future__ import annotations

from collections.abc import AsyncIterator

import pytest
from trio.testing import MockClock

from tests.actors.world import World, world


@pytest.fixture
async def small(autojump_clock: MockClock) -> AsyncIterator[World]:
    """One diagnosis and default limits; the test asks for `autojump_clock` too, or its clock would not jump."""
    async with world() as made:
        yield made
