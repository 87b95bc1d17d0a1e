"""A copy of an open database that is made in steps, between which its connection works for others.

SQLite carries what a connection commits between two steps over into the copy that is made from it, so that the copy is
the database as it is at the last step. A backup from a second connection begins anew at every commit, and exclusive
locking admits none. `sqlite3.Connection.backup` makes all steps in one call, which cannot be left: it runs on a thread
of its own, that goes on only while the database thread waits for it. See docs/decisions/0074.
"""

from __future__ import annotations

import logging
import sqlite3
from contextlib import closing
from threading import Semaphore, Thread
from typing import Final

PAGES_PER_STEP: Final = 64
"""Pages copied in one go, 256 KiB. Reason: whoever waits for the database thread waits for less than a millisecond."""

CACHE_PAGES: Final = 16
"""Pages of the copy in memory. Reason: each step writes what it has copied, and the last one not more than others."""

RESTARTS_MAX: Final = 10
"""SQLite begins anew when a transaction is rolled back. Beyond: the copy is given up."""


logger = logging.getLogger("avicenna.storage")


class _GivenUp(Exception):
    """The copy is not wanted any more."""


class SteppedCopy:
    """A copy that is being made. Every method runs on the database thread, but for the figures.

    Ownership: whoever makes one calls `close`, or `step` until it answers False or raises.
    """

    def __init__(self, target: str) -> None:
        """Prepare to copy a database over the empty file `target`."""
        self.pages_left = self.pages = 0
        """Pages to be copied yet, and those of the database; as of the last step."""
        self._db: sqlite3.Connection | None = None
        self._target = target
        self._restarts = 0
        self._is_unwanted = self._has_ended = False
        self._error: BaseException | None = None
        self._go, self._back = Semaphore(0), Semaphore(0)
        # The process must not hang on this thread.
        self._thread = Thread(target=self._run, name="copy of the database", daemon=True)
        self._thread.start()

    def step(self, db: sqlite3.Connection) -> bool:
        """Copy some pages of `db`, the same each time; whether there are more.

        Raises:
            sqlite3.Error: the database cannot be read, or the copy not be written.
        """
        if self._has_ended:
            return False
        self._db = db
        self._go.release()
        self._back.acquire()
        if self._error is not None:
            raise self._error
        return not self._has_ended

    def close(self, db: sqlite3.Connection) -> None:
        """Give up what is not finished."""
        self._is_unwanted = True
        if not self._has_ended:
            self._go.release()
            self._back.acquire()
        self._thread.join()

    # The thread of the copy

    def _run(self) -> None:
        self._go.acquire()
        try:
            if self._db is not None and not self._is_unwanted:
                self._copy(self._db)
        except _GivenUp:
            logger.info("a copy of the database is given up: %d of %d pages were left", self.pages_left, self.pages)
        except Exception as error:  # noqa: BLE001 - the database thread raises it
            self._error = error
        finally:
            self._has_ended = True
            self._back.release()

    def _copy(self, db: sqlite3.Connection) -> None:
        with closing(sqlite3.connect(self._target, isolation_level=None)) as copy:
            # An unfinished copy is worthless, so it needs no journal; a finished one is synced as a file.
            copy.execute("PRAGMA journal_mode = OFF")
            copy.execute("PRAGMA synchronous = OFF")
            copy.execute(f"PRAGMA cache_size = {CACHE_PAGES}")
            db.backup(copy, pages=PAGES_PER_STEP, progress=self._pause)

    def _pause(self, status: int, left: int, pages: int) -> None:
        """Let the database thread go on, until it wants the next step."""
        if self.pages and left > self.pages_left - PAGES_PER_STEP + pages - self.pages:
            self._restarts += 1
            if self._restarts > RESTARTS_MAX:
                raise sqlite3.OperationalError("too many transactions were rolled back meanwhile")
        self.pages_left, self.pages = left, pages
        if status == sqlite3.SQLITE_DONE:
            return
        self._back.release()
        self._go.acquire()
        if self._is_unwanted:
            raise _GivenUp
