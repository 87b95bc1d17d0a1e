"""The files of a database: their names, which process holds them, whether they are still in place. No SQLite.

The database file is never opened here while a connection of this process has it: closing any descriptor of
it would drop the locks SQLite holds on it. Looking at it (`stat`) and renaming it are harmless.
"""

from __future__ import annotations

import errno
import fcntl
import glob
import os
import shlex
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from storage.disk import files
from storage.errors import CannotOpen, InUse, Untrusted

BESIDE: Final = ("-wal", "-shm", "-journal")
"""How the names of files end that SQLite keeps beside a database, after the database's own."""

KEPT: Final = ("replaced", "damaged")
"""Labels of databases that were put aside, in their names."""


def wal_of(path: Path) -> Path:
    """The write-ahead log SQLite keeps beside a database; committed events live there until a checkpoint."""
    return Path(f"{path}-wal")


def beside(path: Path) -> list[Path]:
    """Where SQLite keeps other files of a database, whether or not there are any."""
    return [Path(f"{path}{suffix}") for suffix in BESIDE]


def names_of(name: str) -> tuple[str, ...]:
    """A database's name, and those of the files that are used beside it."""
    return (name, *(f"{name}{suffix}" for suffix in (".lock", *BESIDE)))


def in_use(path: Path) -> InUse:
    """What whoever starts a second server on a database is told."""
    return InUse(f"{path} is in use by another server; stop it, or name another directory with --data")


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold `path.lock` for this process; the directory is made if need be (0700).

    A file of its own: closing any descriptor of the database would drop SQLite's own locks.

    Raises:
        InUse: another process holds it.
        CannotOpen: it cannot be made, or is a link to elsewhere.
    """
    lock = f"{path}.lock"
    try:
        files.make_directory(path.parent)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW | os.O_CLOEXEC, 0o600)
    except OSError as error:
        if error.errno == errno.ELOOP:
            aside = shlex.join(("mv", lock, f"{lock}.aside"))
            raise Untrusted(f"{lock} is a symbolic link, and no lock is taken through one: {aside}") from error
        raise CannotOpen(f"{path} cannot be opened: {error.strerror}; check the directory's permissions") from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise in_use(path) from None
        except OSError as error:
            raise CannotOpen(
                f"{path} cannot be locked: {error.strerror}; name a directory with --data on a disk of this machine"
            ) from error
        yield
    finally:
        os.close(descriptor)


def has_database(path: Path) -> bool:
    """Whether a database lies there, or what is left of one: SQLite makes an empty file first."""
    return bool(files.size_of(path) or files.size_of(wal_of(path)))


def remove_database(path: Path) -> None:
    """Delete a database that nobody uses, with what SQLite keeps beside it; what is missing is no error."""
    for file in (path, *beside(path)):
        file.unlink(missing_ok=True)


class Presence:
    """Whether the database and its log are still the files that were opened.

    A file that is deleted or moved away can be written to for ever without an error, and all of it is lost. A database
    that has become shorter was cut by somebody else: SQLite gives nothing back here.
    """

    def __init__(self, path: Path) -> None:
        """Look at them for the first time.

        Raises:
            CannotOpen: that is not possible.
        """
        # Text, not paths: this is asked after every commit.
        self._database, self._log = str(path), str(wal_of(path))
        try:
            self._identities = {file: _identity(_status(file)) for file in (self._database, self._log)}
            self._size = files.size_of(path)
        except OSError as error:
            raise CannotOpen(f"{path} cannot be looked at: {error.strerror}") from error

    @property
    def has_log(self) -> bool:
        """Whether the log was there."""
        return all(self._identities.values())

    def lost_at_a_glance(self) -> str | None:
        """As `lost`, after every commit: of the log only whether some file is there.

        Since Linux 6.13 a `stat` makes the next write to the file give it a new time of change; to the log, which
        every commit writes, that would add a third to a commit.
        """
        return self._lost(self._database) or (None if os.access(self._log, os.F_OK) else self.lost())

    def lost(self) -> str | None:
        """What has happened to them, in words; `None`: they are in place."""
        return self._lost(self._database) or self._lost(self._log)

    def _lost(self, file: str) -> str | None:
        size = self._size  # set before the look: another thread may look at the same time
        try:
            status = _status(file)
        except OSError as error:
            return f"{file} cannot be looked at: {error.strerror}"
        if status is None and self._identities[file] is not None:
            return f"{file} was deleted or moved away while the server used it"
        if _identity(status) != self._identities[file]:
            return f"{file} was replaced while the server used it"
        if status is not None and file == self._database:
            if status.st_size < size:
                return f"{file} was cut from {size} to {status.st_size} bytes while the server used it"
            self._size = status.st_size
        return None


def _status(path: str) -> os.stat_result | None:
    try:
        return os.stat(path)  # noqa: PTH116 - see `Presence`
    except (FileNotFoundError, NotADirectoryError):
        return None


def _identity(status: os.stat_result | None) -> tuple[int, int] | None:
    return None if status is None else (status.st_dev, status.st_ino)


def replace_database(path: Path, arriving: Path, label: str) -> Path | None:
    """Put one database, which has no log, in the place of another; where the other is now, `None`: there was none.

    The other one gets its second name first, so that at every moment there is a database at `path`. Its log must be
    gone from there before the new one comes: if the system stops just then, a start notices that it is missing.

    Raises:
        CannotCopy: there are no hard links here, and no room for a copy.
    """
    aside, log = _free_name(path, label), wal_of(path)
    kept: list[Path] = []
    try:
        for source, target in ((path, aside), (log, wal_of(aside))):
            if _keep_as(source, target):
                kept.append(target)
        files.sync_directory(path.parent)
    except BaseException:
        for target in kept:
            target.unlink()
        raise
    log.unlink(missing_ok=True)
    files.sync_directory(path.parent)
    arriving.rename(path)
    files.sync_directory(path.parent)
    return aside if kept else None


def aside_of(path: Path, label: str) -> Path | None:
    """Where `replace_database` would put the database; `None`: there is none."""
    return _free_name(path, label) if path.exists() or wal_of(path).exists() else None


def is_locked(path: Path) -> bool:
    """Whether another process holds `path.lock` now. Nothing is made."""
    try:
        descriptor = os.open(f"{path}.lock", os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:
        return False
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    finally:
        os.close(descriptor)
    return False


def kept_of(path: Path) -> list[Path]:
    """Former databases that `replace_database` has kept, or their logs where the database itself is missing."""
    kept = {Path(str(one).removesuffix("-wal")) for one in path.parent.glob(f"{glob.escape(path.name)}.*")}
    return sorted(one for one in kept if one.name.removeprefix(f"{path.name}.").startswith(KEPT))


def kept_log_of(path: Path) -> Path | None:
    """The log of a database that lies beside a second name, or a copy, of it; `None`: there is none."""
    for one in kept_of(path):
        if files.size_of(wal_of(one)) and files.size_of(one) == files.size_of(path):
            return wal_of(one)
    return None


def _keep_as(source: Path, target: Path) -> bool:
    """Give a file that nobody uses a second name; False: there is none."""
    if not source.exists():
        return False
    try:
        target.hardlink_to(source)
    except OSError:
        files.copy_private(source, target)  # a file system without hard links
    return True


def _free_name(path: Path, label: str) -> Path:
    aside = path.with_name(f"{path.name}.{label}")
    number = 1
    while aside.exists() or wal_of(aside).exists():
        number += 1
        aside = path.with_name(f"{path.name}.{label}-{number}")
    return aside
