"""Fails the whole run if anything a server wrote during it holds a token, a key or a payload."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from typing import Any, Final

import pytest

from tests.logbook import LOGBOOK, Logbook, LogbookHandler

LOGGED: Final[list[tuple[int, list[str]]]] = []
"""For each process that ran tests: characters that were logged, and what leaked."""


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
