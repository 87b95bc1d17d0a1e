"""What the scenarios share: the forge of the servers, and what came of each scenario."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from tests.server.forged import Forge, forge


@pytest.fixture(scope="session")
def servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Forge]:
    """The program that starts servers."""
    with forge(tmp_path_factory.mktemp("forge")) as running:
        yield running
