"""The copies of the database in `backups/`: what they are called, and which of them stay."""

from __future__ import annotations

import logging
import os
import re
import stat
from datetime import UTC, datetime
from pathlib import Path
from typing import Final

PATTERN: Final = "avicenna-*.db"
"""Fits the name of every copy, and other names, too."""

CHECKS: Final = "check-*.db"
"""What copies in the data directory are called that are checked."""

_NAME: Final = re.compile(r"avicenna-([0-9]{8}T[0-9]{6}Z)-[0-9a-f]{8}\.db")
"""The names of copies, and no others: the time (UTC) and eight random digits."""

logger = logging.getLogger("avicenna.server")


class Backups:
    """The directory of copies. Other files may lie there; they are never touched."""

    def __init__(self, directory: Path, kept: int | None) -> None:
        """Look after the copies in `directory`, which may be missing.

        Args:
            kept: how many stay, 1 at least; `None`: all.
        """
        self._directory = directory.absolute()
        self._kept = kept

    def path_of(self, at: float, random: str) -> Path:
        """Where the copy of this time belongs.

        Args:
            at: Unix time, in seconds.
            random: at least 8 hexadecimal digits. They keep two copies of one second apart.
        """
        stamp = datetime.fromtimestamp(at, UTC).strftime("%Y%m%dT%H%M%SZ")
        return self._directory / PATTERN.replace("*", f"{stamp}-{random[:8]}")

    def drop_old(self, made: str) -> None:
        """Delete the oldest copies beyond those that stay. What cannot be deleted is logged, and stays.

        Args:
            made: the name of the copy that was made just now. It stays, whatever its time says.
        """
        if self._kept is None:
            return
        try:
            # Looked up and deleted by descriptor: the directory can be replaced by a link meanwhile.
            opened = os.open(self._directory, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
        except OSError as error:
            logger.warning("old backups were not deleted: cannot open %s: %s", self._directory, error.strerror)
            return
        try:
            ages = {name: _age_of(name, opened) for name in os.listdir(opened) if name != made}  # noqa: PTH208
            others = sorted((age, name) for name, age in ages.items() if age is not None)
            for _, name in others[: max(0, len(others) - (self._kept - 1))]:
                self._delete(name, opened)
        finally:
            os.close(opened)

    def _delete(self, name: str, opened: int) -> None:
        try:
            os.unlink(name, dir_fd=opened)
        except FileNotFoundError:
            return  # whoever fetched it has deleted it
        except OSError as error:
            logger.warning("the old backup %s was not deleted: %s", self._directory / name, error.strerror)
            return
        logger.info("deleted the old backup %s (backups_kept = %d)", self._directory / name, self._kept)


def _age_of(name: str, opened: int) -> tuple[str, int] | None:
    """What orders copies by age: the time in the name, and within a second that of the file; `None`: it is no copy.

    A copy is called like one, and is a file: no link, no directory.
    """
    if (found := _NAME.fullmatch(name)) is None:
        return None
    try:
        status = os.stat(name, dir_fd=opened, follow_symlinks=False)
    except FileNotFoundError:
        return None
    return (found[1], status.st_mtime_ns) if stat.S_ISREG(status.st_mode) else None
