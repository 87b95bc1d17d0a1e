"""Fails the whole run if anything a server wrote during it holds a token, a key or a payload; and the ways.

Tests that ask a server are run by the short way of plain requests. Those marked `both_ways` are run by the long way,
too, those marked `by_workers` by two workers on one store, and those marked `by_nats` on NATS JetStream. With the
variable `ALL_WAYS` all of them are run by each way (`make check-all`), but for those marked `one_way`; those marked
`one_process` are not run by workers. On NATS the files of `ON_NATS` are run, but for tests marked `sqlite_only`.
"""

from __future__ import annotations

import logging
import os
import re
import signal
from collections import Counter
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any, Final
from uuid import uuid4

import pytest
from hypothesis import HealthCheck, settings

from tests.cluster.servers import NatsServer, nats_servers
from tests.logbook import LOGBOOK, Logbook, LogbookHandler
from web.server.settings import variable_of

LOGGED: Final[list[tuple[int, list[str]]]] = []
"""For each process that ran tests: characters that were logged, and what leaked."""


# A server ignores what was ignored as it was started (`nohup`, a job of a script). A handler is not inherited.
for _number in (signal.SIGHUP, signal.SIGINT):
    if signal.getsignal(_number) is signal.SIG_IGN:
        signal.signal(_number, lambda *_: None)

# How fast an example is drawn or passes says how busy the machine is.
settings.register_profile("whatever the load", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("whatever the load")

ASKING: Final = frozenset({"api", "browser", "cli", "clients", "edge", "identity", "javascript", "server"})
"""Folders whose tests ask servers."""

STARTS_SERVERS: Final = re.compile(r"^from tests\.(server\.(harness|process|forged)|cli\.demos) import", re.MULTILINE)
"""What a file of these imports if its tests ask servers that know of ways."""


LONG: Final = (
    "api/test_schemathesis.py",
    "server/test_workers.py",
    "cluster/test_serve.py",
    "examples/test_examples.py",
    "browser/test_console.py",
    "simulation/test_histories.py",
    "differential/test_behind_proxies.py",
    "server/test_worker_kills.py",
    "documents/test_commands.py",
    "browser/test_demo.py",
    "crash/test_power_loss.py",
    "server/test_readme.py",
    "deploy/test_proxies.py",
    "crash/test_crashes.py",
    "server/test_ways_of_clients.py",
    "browser/test_pages.py",
    "server/test_draining.py",
)
"""Files that take long for the number of tests they have: half a minute and more, the longest first."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Run long files first, and then those with most tests: else one process has the longest left when others end."""
    counts = Counter(item.path for item in items)

    def rank(item: pytest.Item) -> tuple[int, int]:
        name = "/".join(item.path.parts[-2:])
        return LONG.index(name) if name in LONG else len(LONG), -counts[item.path]

    items.sort(key=rank)


ON_NATS: Final = frozenset(
    {
        "test_answer_headers.py",
        "test_acknowledged_by.py",
        "test_broadcasts.py",
        "test_bulk.py",
        "test_client_frames.py",
        "test_consequences.py",
        "test_erasing.py",
        "test_event_sources.py",
        "test_following.py",
        "test_numbers.py",
        "test_operators.py",
        "test_peeking.py",
        "test_protocol_examples.py",
        "test_publish_sockets.py",
        "test_refusals.py",
        "test_status.py",
        "test_streams.py",
        "test_strictness.py",
        "test_traces.py",
        "test_unseen.py",
    }
)
"""Files of the HTTP and WebSocket interfaces. Others ask the database itself, or the process that has it."""


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """Run a test by each way that it is to be run by."""
    marks = {mark.name for mark in metafunc.definition.iter_markers()}
    is_all = os.environ.get("ALL_WAYS") and _asks_servers(metafunc.definition.path)
    ways = ["short"]
    if "both_ways" in marks or is_all:
        ways.append("long")
    if "one_process" not in marks and ("by_workers" in marks or is_all):
        ways.append("workers")
    is_on_nats = is_all and metafunc.definition.path.name in ON_NATS
    if "by_nats" in marks or (is_on_nats and "sqlite_only" not in marks):
        ways.append("nats")
    if "one_way" not in marks and len(ways) > 1:
        metafunc.parametrize("way", ways, indirect=True)


@cache
def _asks_servers(file: Path) -> bool:
    return file.parent.name in ASKING and STARTS_SERVERS.search(file.read_text()) is not None


@pytest.fixture(autouse=True)
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """The way that plain requests take to the servers of a test, in its process (`running_server`) and in others."""
    chosen: str = getattr(request, "param", "short")
    if chosen == "long":
        monkeypatch.setenv(variable_of("short_way"), "false")
    elif chosen == "workers":
        monkeypatch.setenv(variable_of("workers"), "2")
    elif chosen == "nats":
        server: NatsServer = request.getfixturevalue("one_nats_server")
        monkeypatch.setenv(variable_of("engine"), "nats")
        monkeypatch.setenv(variable_of("nats_url"), f"nats://{server.address}")
        monkeypatch.setenv(variable_of("nats_name"), f"t{uuid4().hex[:20]}")
        monkeypatch.setenv(variable_of("nats_replicas"), "1")
    return chosen


@pytest.fixture(scope="session")
def one_nats_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server that the tests of this process share; whoever stores something takes names of its own."""
    with nats_servers(tmp_path_factory.mktemp("nats")) as (server,):
        yield server


@pytest.fixture(scope="session")
def three_nats_servers(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[NatsServer]]:
    """A cluster that the tests of this process share; whoever ends a server starts it again."""
    with nats_servers(tmp_path_factory.mktemp("nats"), count=3) as servers:
        yield servers


@pytest.fixture
def logbook() -> Iterator[Logbook]:
    """What this test alone makes the server log."""
    mine = Logbook()
    handler = LogbookHandler(mine)
    logging.getLogger().addHandler(handler)
    yield mine
    logging.getLogger().removeHandler(handler)


def pytest_configure() -> None:
    logging.getLogger().addHandler(LogbookHandler(LOGBOOK))


def pytest_sessionfinish(session: pytest.Session) -> None:
    own = (LOGBOOK.characters, LOGBOOK.leaks())
    LOGGED.append(own)
    if (output := getattr(session.config, "workeroutput", None)) is not None:
        output["logged"] = own
    if any(leaks for _, leaks in LOGGED):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """A process that ran a part of the tests is over."""
    LOGGED.append(getattr(node, "workeroutput", {}).get("logged", (0, [])))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    leaks = [leak for _, found in LOGGED for leak in found]
    characters = sum(count for count, _ in LOGGED)
    terminalreporter.write_line(f"{characters} characters were logged; secrets among them: {len(leaks)}")
    for leak in leaks:
        terminalreporter.write_line(f"LEAKED {leak}", red=True)
