"""Fails the whole run if anything a server wrote during it holds a token, a key or a payload."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from tests.logbook import LOGBOOK, Logbook, LogbookHandler


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
    if LOGBOOK.leaks():
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    leaks = LOGBOOK.leaks()
    terminalreporter.write_line(f"{LOGBOOK.characters} characters were logged; secrets among them: {len(leaks)}")
    for leak in leaks:
        terminalreporter.write_line(f"LEAKED {leak}", red=True)
