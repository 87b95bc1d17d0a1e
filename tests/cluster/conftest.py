"""NATS servers that the tests of a process share: they are started once, by whoever wants them first."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pytest

from tests.cluster.servers import NatsServer, nats_servers


@pytest.fixture(scope="module")
def three_nats_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[NatsServer]]:
    """A cluster that the tests of a file share; whoever ends a server starts it again."""
    with nats_servers(tmp_path_factory.mktemp("nats"), count=3) as servers:
        yield servers
