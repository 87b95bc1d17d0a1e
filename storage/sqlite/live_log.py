"""The write-ahead log of an open database: whether it still holds what SQLite wrote to it, and when it is copied.

SQLite writes each commit behind the last one and never looks back: into a log that somebody has cut it writes behind a
hole, and what was in the hole is gone with the process. So the end of the last commit is read again after the next.

SQLite alone writes to its log. It writes frames behind the last one. Once a checkpoint has copied all of them, it
begins anew at the start with a new header, and then cuts the file to `journal_size_limit` or to its last frame,
whichever is longer. Behind the last frame lie those of earlier logs. A commit that failed leaves frames that look like
the next ones, so they are cut off. See docs/decisions/0071 and 0092.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Final

from storage.sqlite.disk_errors import WHAT_TO_DO, described, had_no_room
from storage.sqlite.runs import keep_log
from storage.sqlite.schema import WAL_AUTOCHECKPOINT_PAGES, WAL_BYTES_KEPT
from storage.sqlite.wal import CUT, FRAME, HEADER, Log, Mark, head_of

FRAMES_READ: Final = 8
"""Frames read at a time. Reason: most commits write fewer."""


class LiveLog:
    """The log while a connection writes to it. Every method runs on the database thread, but for `close`."""

    def __init__(self, db: sqlite3.Connection, path: Path, is_full: Callable[[], bool] = lambda: False) -> None:
        """Take its checkpoints over from SQLite, which would copy a hole into the database.

        Args:
            path: the log, which begins with a header.
            is_full: whether nothing more can be written; asked after a failed write.

        Raises:
            OSError: it cannot be opened.
        """
        self._db = db
        self._path = path
        self._is_full = is_full
        self._file = os.open(path, os.O_RDWR | os.O_APPEND | os.O_CLOEXEC)
        self._fault: str | None = None
        self._header = b""
        self._log: Log | None = None
        """What the header says."""
        self._end = HEADER.size
        """Where the last known commit ends, in bytes."""
        self._last = b""
        """Its last frame; empty: none of this log is known."""
        self._heads = struct.Struct("")
        """Of a frame, whether it ends a commit, and the salts."""
        self._read = bytearray()
        """Room for the last frame and those behind it."""
        db.execute("PRAGMA wal_autocheckpoint = 0").fetchall()
        self._is_known = False
        """It has begun anew in this run; before that frames of another run may lie behind its end."""
        # As it begins anew it is cut to its own end, so that nothing lies behind it.
        self._limit(0)
        self.look()

    def after_commit(self) -> str | None:
        """As `look`; and if it is time to, the log is copied into the database, but not one with a fault.

        Returns:
            What somebody has done to the log, or why it cannot be copied; want of room for it is no reason.
        """
        if self.look() is None and (not self._is_known or self._pages >= WAL_AUTOCHECKPOINT_PAGES):
            return self._copy()
        return self._fault

    def _copy(self) -> str | None:
        """A copy that fails for want of room is tried again after the next commit, as SQLite does by itself."""
        try:
            if self.mark is not None:
                keep_log(self._db, self.mark)
            if self.look() is None:
                self._db.execute("PRAGMA wal_checkpoint").fetchall()
        except sqlite3.Error as error:
            if self.undo() is None and not had_no_room(error, self._is_full):
                return f"{self._path} cannot be copied into the database: {described(error)}"
        return self.look()

    def undo(self) -> str | None:
        """Cut off what a commit that failed has left behind the last known one.

        The next commit is written over it; of a longer one the rest would lie behind that, and look like the end of a
        damaged log.

        Returns:
            As `look`, or that it cannot be cut: then nothing may be written to it any more.
        """
        if self._fault is not None:
            return self._fault
        try:
            # An unknown log was copied whole, so the commit that failed has begun one anew, or has written nothing.
            if self._is_begun() and self._is_known and os.fstat(self._file).st_size > self._end:
                os.ftruncate(self._file, self._end)
        except OSError as error:
            self._fault = f"{self._path} cannot be cut back to its last commit: {error.strerror}; {WHAT_TO_DO}"
        return self.look()

    @property
    def mark(self) -> Mark | None:
        """The end of the last known commit."""
        return None if self._log is None else self._log.at(self._pages)

    def look(self) -> str | None:
        """What somebody has done to the log, in words; `None`: it is as SQLite wrote it."""
        if self._fault is None:
            self._fault = self._look()
        return self._fault

    def close(self) -> None:
        """Stop looking at the log."""
        os.close(self._file)

    @property
    def _pages(self) -> int:
        return 0 if self._log is None else (self._end - HEADER.size) // self._log.frame_bytes

    def _limit(self, kept: int) -> None:
        self._db.execute(f"PRAGMA journal_size_limit = {kept}").fetchall()

    def _look(self) -> str | None:
        try:
            if self._is_whole():
                return None
        except OSError as error:
            return f"{self._path} cannot be read: {error.strerror}"
        # The next start could take it for one that ends earlier.
        with contextlib.suppress(OSError):
            os.write(self._file, CUT)
        return f"{self._path} was cut or overwritten while the server used it"

    def _is_whole(self) -> bool:
        if not self._is_begun():
            return False
        if self._log is None or not self._is_known:
            return os.pread(self._file, len(self._last), self._end - len(self._last)) == self._last
        size, salts, is_commit = self._log.frame_bytes, self._header[16:24], True
        while True:
            known = len(self._last)
            read = os.preadv(self._file, [self._read], self._end - known)
            if read < known or not self._read.startswith(self._last):
                return False
            count = 0
            with memoryview(self._read) as view:
                for pages_after, found in self._heads.iter_unpack(view[known : read - (read - known) % size]):
                    if found != salts:
                        break
                    count += 1
                    is_commit = pages_after != 0
            at = known + count * size
            if count:
                self._end += count * size
                self._last = bytes(self._read[at - size : at])
            if at + size <= len(self._read):
                return is_commit and self._may_follow(self._read[at : min(read, at + FRAME.size)], read - at)

    def _is_begun(self) -> bool:
        """Take up a log that begins anew; False: what is there is not one of SQLite's."""
        header = os.pread(self._file, HEADER.size, 0)
        if header == self._header:
            return True
        log, before = head_of(header), self._log
        if log is None or (before is not None and log.number - before.number not in (0, 1)):
            return False
        self._header, self._log, self._end, self._last = header, log, HEADER.size, b""
        self._heads = struct.Struct(f">4xI8s8x{log.page_bytes}x")
        self._read = bytearray((1 + FRAMES_READ) * log.frame_bytes)
        if before is not None and not self._is_known:
            self._is_known = True
            self._limit(WAL_BYTES_KEPT)
        return True

    def _may_follow(self, head: bytearray, left: int) -> bool:
        """Whether this may lie behind the last frame: one of an earlier log, part of one where SQLite cut it, nothing.

        Args:
            head: of the frame there.
            left: bytes of the file from there on that were read.
        """
        if self._log is not None and 0 < left < self._log.frame_bytes:
            return self._end + left == WAL_BYTES_KEPT
        return not left or any(head)
