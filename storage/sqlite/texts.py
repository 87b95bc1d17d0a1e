"""Texts that a disk has damaged: how they are read, so that one of them does not keep all others from being read."""

from __future__ import annotations

import sqlite3
from functools import partial


def read_damaged(db: sqlite3.Connection) -> None:
    """Have a text that is no UTF-8 be read, its wrong bytes as `\\xNN`; sqlite3 raises over one, and names nobody."""
    db.text_factory = partial(str, encoding="utf-8", errors="backslashreplace")
