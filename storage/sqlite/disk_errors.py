"""What an error of SQLite says about the disk. No I/O but for what the caller hands over."""

from __future__ import annotations

import sqlite3
from collections.abc import Callable
from typing import Final

WHAT_TO_DO: Final = "look at the disk, run `avicenna-live check`, and restore a backup if it finds damage"


def described(error: Exception) -> str:
    """An error with SQLite's name for it, and what an operator does about it."""
    name = getattr(error, "sqlite_errorname", getattr(error, "sqlite_errorcode", "no code"))
    return f"{error} ({name}); {WHAT_TO_DO}"


def had_no_room(error: sqlite3.Error, is_full: Callable[[], bool]) -> bool:
    """Whether a write failed for want of room; SQLite calls a used-up quota (`EDQUOT`) an I/O error.

    Args:
        is_full: whether nothing more can be written; asked after a write that failed with an I/O error.
    """
    code = getattr(error, "sqlite_errorcode", 0)
    return code & 0xFF == sqlite3.SQLITE_FULL or (code == sqlite3.SQLITE_IOERR_WRITE and is_full())
