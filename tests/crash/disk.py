"""A disk that can lose power: it keeps a record of what SQLite writes and syncs, and shows what may be left of it.

What was synced is there. Each write since then may have arrived, or not, or in some of its sectors only, and in any
order: that is the worst a disk may do that honours a sync. The record is made by a VFS of apsw, which brings a SQLite
of its own; the disks are then opened by the store as ever.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, cast

import apsw

SECTOR_BYTES: Final = 512
"""What a disk writes wholly or not at all."""


@dataclass(frozen=True, slots=True)
class Write:
    """Bytes of a file."""

    file: str
    offset: int
    data: bytes


@dataclass(frozen=True, slots=True)
class Truncate:
    """A new length of a file."""

    file: str
    size: int


@dataclass(frozen=True, slots=True)
class Delete:
    """A file is removed."""

    file: str


@dataclass(frozen=True, slots=True)
class Sync:
    """All changes of a file so far are on disk."""

    file: str


@dataclass(frozen=True, slots=True)
class SyncDirectory:
    """All files removed so far stay removed."""

    file: str = "."


Step = Write | Truncate | Delete | Sync | SyncDirectory


class Recorder(apsw.VFS):
    """Passes everything on to the file system, and keeps `steps`."""

    def __init__(self, name: str) -> None:
        """Be known to SQLite under `name`."""
        super().__init__(name, base="unix")
        self.name = name
        self.steps: list[Step] = []

    def xOpen(self, name: str | apsw.URIFilename | None, flags: list[int]) -> apsw.VFSFile:  # noqa: N802
        assert name is not None, "temporary files are kept in memory"
        return RecordedFile(name, flags, self.steps)

    def xDelete(self, filename: str, syncdir: bool) -> None:  # noqa: N802
        super().xDelete(filename, syncdir)
        self.steps.append(Delete(Path(filename).name))


class RecordedFile(apsw.VFSFile):
    """One open file of a `Recorder`."""

    def __init__(self, name: str | apsw.URIFilename, flags: list[int], steps: list[Step]) -> None:
        super().__init__("unix", name, flags)
        self._file = Path(name if isinstance(name, str) else name.filename()).name
        self._steps = steps
        is_log = flags[0] & (apsw.SQLITE_OPEN_MAIN_JOURNAL | apsw.SQLITE_OPEN_WAL)
        self._owes_directory = bool(is_log and flags[0] & apsw.SQLITE_OPEN_CREATE)
        """SQLite syncs the directory with the first sync of a journal or log it may have made."""

    def xWrite(self, data: Any, offset: int) -> None:  # noqa: N802
        super().xWrite(data, offset)
        self._steps.append(Write(self._file, offset, bytes(data)))

    def xTruncate(self, newsize: int) -> None:  # noqa: N802
        super().xTruncate(newsize)
        self._steps.append(Truncate(self._file, newsize))

    def xSync(self, flags: int) -> None:  # noqa: N802
        super().xSync(flags)
        self._steps.append(Sync(self._file))
        if self._owes_directory:
            self._steps.append(SyncDirectory())
            self._owes_directory = False


def left_of(steps: Sequence[Step], chance: random.Random) -> dict[str, bytes]:
    """The files after the power failed behind the last of `steps`."""
    last_sync = {step.file: place for place, step in enumerate(steps) if isinstance(step, Sync)}
    last_directory_sync = max((place for place, step in enumerate(steps) if isinstance(step, SyncDirectory)), default=0)
    files: dict[str, bytearray] = {}
    for place, step in enumerate(steps):
        is_synced = place < last_sync.get(step.file, 0)
        if isinstance(step, SyncDirectory):
            continue
        # The directory is synced when a file is made: it is there, perhaps empty.
        content = files.setdefault(step.file, bytearray())
        match step:
            case Write(offset=offset, data=data):
                for start, piece in [(offset, data)] if is_synced else _arrived(offset, data, chance):
                    content.extend(bytes(max(0, start + len(piece) - len(content))))
                    content[start : start + len(piece)] = piece
            case Truncate(size=size) if is_synced or chance.random() < 0.5:
                del content[size:]
            case Delete() if place < last_directory_sync or chance.random() < 0.5:
                del files[step.file]
    return {name: bytes(content) for name, content in files.items()}


def _arrived(offset: int, data: bytes, chance: random.Random) -> Iterator[tuple[int, bytes]]:
    """The pieces of a write that was not synced which are on disk nevertheless."""
    fate = chance.choice(("all", "nothing", "some sectors"))
    if fate == "all":
        yield offset, data
    elif fate == "some sectors":
        for start in range(0, len(data), SECTOR_BYTES):
            if chance.random() < 0.5:
                yield offset + start, data[start : start + SECTOR_BYTES]


class Connection:
    """As much of `sqlite3.Connection` as the transactions of a store ask for, on a recorded disk."""

    def __init__(self, path: Path, recorder: Recorder) -> None:
        """Open the database at `path`."""
        self._db = apsw.Connection(str(path), vfs=recorder.name)

    @property
    def in_transaction(self) -> bool:
        return self._db.in_transaction

    def execute(self, statement: str, values: Any = ()) -> Rows:
        return Rows(self._db, self._db.execute(statement, values))

    def executemany(self, statement: str, values: Iterable[Any]) -> None:
        self._db.executemany(statement, values)

    def close(self) -> None:
        self._db.close()

    def as_sqlite3(self) -> sqlite3.Connection:
        """The same, for the type checker."""
        return cast(sqlite3.Connection, self)


class Rows:
    """As much of `sqlite3.Cursor`."""

    def __init__(self, db: apsw.Connection, cursor: apsw.Cursor) -> None:
        self._cursor = cursor
        self.lastrowid = db.last_insert_rowid()
        self.rowcount = db.changes()

    def __iter__(self) -> Iterator[Any]:
        return iter(self._cursor)

    def fetchone(self) -> Any:
        return self._cursor.fetchone()

    def fetchall(self) -> list[Any]:
        return self._cursor.fetchall()
