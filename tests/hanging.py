"""A disk that does not answer: the database thread, and looks at the files, stand still until the disk thaws."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from storage.disk.database_files import Presence
from storage.sqlite.bridge import Database

HUNG_SECONDS_MAX = 60.0
"""Longest time one call hangs, so that no test waits for ever."""


class Disk:
    """Under every database of this process."""

    def __init__(self) -> None:
        self._answers = threading.Event()
        self._answers.set()

    @contextmanager
    def hanging(self) -> Iterator[None]:
        """Nothing is read or written meanwhile, and nothing fails."""
        self._answers.clear()
        try:
            yield
        finally:
            self._answers.set()

    def wait(self) -> None:
        """What a system call does."""
        self._answers.wait(HUNG_SECONDS_MAX)


def hangable_disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    """A disk under all that is done on database threads, and under looks at the files, from now on."""
    disk = Disk()

    def over(function: Callable[..., Any]) -> Callable[..., Any]:
        def run(*args: Any, **kwargs: Any) -> Any:
            disk.wait()
            return function(*args, **kwargs)

        return run

    begin, run = Database.begin, Database.run
    monkeypatch.setattr(
        Database, "begin", lambda self, ended, function, *args, **kw: begin(self, ended, over(function), *args, **kw)
    )
    monkeypatch.setattr(Database, "run", lambda self, function, *args, **kw: run(self, over(function), *args, **kw))
    monkeypatch.setattr(Presence, "lost", over(Presence.lost))
    return disk
