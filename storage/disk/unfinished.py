"""Files that get their name when they are whole. Until then they lie beside it, under a name that only the server
gives.

The writer of a file holds a lock on it. A file with the temporary name and no lock was left by a killed process.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage.disk import database_files, files

SUFFIX: Final = ".unfinished"


@dataclass(frozen=True, slots=True)
class Unfinished:
    """A private file (0600) that is being written."""

    path: Path
    """Where it lies meanwhile."""
    descriptor: int
    """Open for reading and writing, while the context lasts."""


@contextmanager
def arriving(target: Path) -> Iterator[Unfinished]:
    """An empty file that is called `target` once the context ends, and is removed if that fails.

    It must be on disk by then. A file of the same name that a killed process has left is overwritten.

    Raises:
        FileExistsError: there is something at `target`, or another process writes it.
        OSError: it cannot be made, or cannot get its name.
    """
    with passing(target) as unfinished:
        yield unfinished
        if not files.give_name(unfinished.path, target):
            raise _taken(target)
    files.sync_directory(target.parent)


@contextmanager
def passing(target: Path) -> Iterator[Unfinished]:
    """As `arriving`, but it is removed in any case."""
    if os.path.lexists(target):
        raise _taken(target)
    path = temporary_name(target)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    try:
        if not _is_free(descriptor):
            raise FileExistsError(errno.EEXIST, "another process writes it", str(target))
        try:
            for left in database_files.beside(path):
                left.unlink(missing_ok=True)
            os.ftruncate(descriptor, 0)
            os.fchmod(descriptor, 0o600)
            yield Unfinished(path, descriptor)
        finally:
            database_files.remove_database(path)
    finally:
        os.close(descriptor)


def _taken(target: Path) -> FileExistsError:
    return FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST), str(target))


def temporary_name(target: Path) -> Path:
    """What a file is called until it is whole."""
    return target.with_name(f".{target.name}{SUFFIX}")


def sweep(directory: Path, *names: str) -> list[Path]:
    """Remove what killed processes have left in a directory; what was removed. No directory: nothing.

    Args:
        names: patterns (`*`) of the final names of files that the server makes. Other files may lie there, too.
    """
    swept: list[Path] = []
    for path in sorted({left for name in names for left in directory.glob(f".{name}{SUFFIX}")}):
        # Missing: its writer has just finished. A link, or a file of another user: not ours.
        with contextlib.suppress(OSError):
            descriptor = os.open(path, os.O_RDWR | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
            try:
                if _is_free(descriptor):
                    database_files.remove_database(path)
                    swept.append(path)
            finally:
                os.close(descriptor)
    return swept


def _is_free(descriptor: int) -> bool:
    """Lock a file that no other process has locked."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
