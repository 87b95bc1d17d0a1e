"""The files of a store: which process holds them, who may read them, whether they are still in place. No SQLite.

The database file is never opened here while a connection of this process has it: closing any descriptor of
it would drop the locks SQLite holds on it. Looking at it (`stat`) and renaming it are harmless.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import glob
import hashlib
import os
import secrets
import shlex
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from storage.errors import CannotCopy, CannotOpen, InUse, Untrusted

PIECE_BYTES: Final = 1024 * 1024
"""Bytes of a file in memory at a time."""

PROBE_BYTES: Final = 64 * 1024
"""Bytes written to find out whether there is room. Reason: more than fits into blocks that are begun."""

BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")


BESIDE: Final = ("-wal", "-shm", "-journal")
"""How the names of files end that SQLite keeps beside a database, after the database's own."""


KEPT: Final = ("replaced", "damaged")
"""Labels of databases that were put aside, in their names."""


def wal_of(path: Path) -> Path:
    """The write-ahead log SQLite keeps beside a database; committed events live there until a checkpoint."""
    return Path(f"{path}-wal")


def names_of(name: str) -> tuple[str, ...]:
    """A database's name, and those of the files that are used beside it."""
    return (name, *(f"{name}{suffix}" for suffix in (".lock", *BESIDE)))


def current_boot() -> str:
    """A name of this run of the operating system; empty where the system does not tell."""
    try:
        return BOOT_ID_FILE.read_text().strip()
    except OSError:
        return ""


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
        make_directory(path.parent)
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
            raise InUse(f"{path} is in use by another server; stop it, or name another directory with --data") from None
        except OSError as error:
            raise CannotOpen(
                f"{path} cannot be locked: {error.strerror}; name a directory with --data on a disk of this machine"
            ) from error
        yield
    finally:
        os.close(descriptor)


def make_directory(path: Path) -> None:
    """Make a directory only its owner can enter, unless it is there; those above it are made as `mkdir -p` does."""
    if path.is_dir():
        return
    missing = [path, *(above for above in path.parents if not above.exists())]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in missing:
        sync_directory(made.parent)


def make_private(path: Path) -> None:
    """Make an empty file before SQLite does, so that nobody else can ever read it; SQLite gives -wal the same mode.

    Raises:
        FileExistsError: it is there already.
    """
    os.close(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600))
    sync_directory(path.parent)


def put_in_place(path: Path, content: bytes) -> bool:
    """Make a private file that appears with all of its content, and survives power loss, or not at all.

    Returns:
        False: the file is there already, and stays as it is.

    Raises:
        OSError: it cannot be made; it names `path`.
    """
    made_at = path.with_name(f".{path.name}.{secrets.token_hex(8)}")
    try:
        descriptor = os.open(made_at, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            is_made = give_name(made_at, path)
        finally:
            made_at.unlink(missing_ok=True)
        sync_directory(path.parent)
    except OSError as error:
        raise OSError(error.errno, error.strerror, str(path)) from error
    return is_made


def remove_unnamed(path: Path) -> None:
    """Remove what a process that was killed within `put_in_place` has left beside `path`, which is there by now.

    Another process that makes it just now finds `path` in its place, and does not miss its own. What cannot be
    removed stays.
    """
    for left in path.parent.glob(f".{glob.escape(path.name)}.{'[0-9a-f]' * 16}"):
        with contextlib.suppress(OSError):
            left.unlink()


def give_name(made_at: Path, path: Path) -> bool:
    """Give a file the name `path`; False: the name is taken, and its file stays as it is."""
    try:
        # Unlike a renaming, a link never replaces a file that another process has put there meanwhile.
        path.hardlink_to(made_at)
    except FileExistsError:
        return False
    except OSError:
        if os.path.lexists(path):
            return False
        made_at.rename(path)  # a file system without hard links
    return True


def is_directory(path: Path) -> bool:
    """Whether there is a directory in the place of a file."""
    return path.is_dir()


def is_dangling(path: Path) -> bool:
    """Whether there is a link to nothing in the place of a file."""
    return path.is_symlink() and not path.exists()


def is_writable(path: Path) -> bool:
    """Whether this process may write a file that is there; also false on a read-only file system."""
    return os.access(path, os.W_OK)


def remove(path: Path) -> None:
    """Delete a file, if it is there."""
    path.unlink(missing_ok=True)


def remove_database(path: Path) -> None:
    """Delete a database that nobody uses, with what SQLite keeps beside it; what is missing is no error."""
    for file in (path, *(Path(f"{path}{suffix}") for suffix in BESIDE)):
        file.unlink(missing_ok=True)


def is_full(path: Path) -> bool:
    """Whether nothing more can be written beside a file: the disk is full, or a quota is used up."""
    try:
        with tempfile.TemporaryFile(dir=path.parent) as file:
            file.write(b"\0" * PROBE_BYTES)
            file.flush()
    except OSError as error:
        return error.errno in (errno.ENOSPC, errno.EDQUOT)
    return False


def sync_directory(path: Path) -> None:
    """Make what was created or renamed in a directory survive power loss."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def size_of(path: Path) -> int:
    """Bytes in a file, 0 if there is none."""
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def has_database(path: Path) -> bool:
    """Whether a database lies there, or what is left of one: SQLite makes an empty file first."""
    return bool(size_of(path) or size_of(wal_of(path)))


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
            self._size = size_of(path)
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
        sync_directory(path.parent)
    except BaseException:
        for target in kept:
            target.unlink()
        raise
    log.unlink(missing_ok=True)
    sync_directory(path.parent)
    arriving.rename(path)
    sync_directory(path.parent)
    return aside if kept else None


def kept_of(path: Path) -> list[Path]:
    """Former databases that `replace_database` has kept, or their logs where the database itself is missing."""
    kept = {Path(str(one).removesuffix("-wal")) for one in path.parent.glob(f"{glob.escape(path.name)}.*")}
    return sorted(one for one in kept if one.name.removeprefix(f"{path.name}.").startswith(KEPT))


def kept_log_of(path: Path) -> Path | None:
    """The log of a database that lies beside a second name, or a copy, of it; `None`: there is none."""
    for one in kept_of(path):
        if size_of(wal_of(one)) and size_of(one) == size_of(path):
            return wal_of(one)
    return None


def _keep_as(source: Path, target: Path) -> bool:
    """Give a file that nobody uses a second name; False: there is none."""
    if not source.exists():
        return False
    try:
        target.hardlink_to(source)
    except OSError:
        copy_private(source, target)  # a file system without hard links
    return True


def _free_name(path: Path, label: str) -> Path:
    aside = path.with_name(f"{path.name}.{label}")
    number = 1
    while aside.exists() or wal_of(aside).exists():
        number += 1
        aside = path.with_name(f"{path.name}.{label}-{number}")
    return aside


def copy_private(source: Path, target: Path) -> None:
    """Copy a file to a new one only its owner can read, and have it on disk.

    Raises:
        CannotCopy: the source is no file, or cannot be read; the target exists, or cannot be written and is removed.
    """
    if source.exists() and not source.is_file():
        raise CannotCopy(f"{source} is no file")  # opening a pipe would block
    try:
        with source.open("rb") as reading:
            make_private(target)
            try:
                with target.open("wb") as writing:
                    shutil.copyfileobj(reading, writing)
                    writing.flush()
                    os.fsync(writing.fileno())
            except BaseException:
                target.unlink()
                raise
    except OSError as error:
        raise CannotCopy(f"cannot copy {source} to {target}: {error.strerror}") from error


def settle_copy(path: Path, *, go_on: Callable[[], object] = lambda: None) -> tuple[int, str]:
    """Have a finished copy on disk; its size in bytes and its SHA-256. Never call it with a database in use.

    Args:
        go_on: called now and then; what it raises ends the work.
    """
    digest, size = hashlib.sha256(), 0
    with path.open("rb") as file:
        os.fsync(file.fileno())
        while piece := file.read(PIECE_BYTES):
            go_on()
            digest.update(piece)
            size += len(piece)
    sync_directory(path.parent)
    return size, digest.hexdigest()


def room_beside(path: Path) -> int:
    """Bytes that can still be written to the file system on which `path` lies."""
    status = os.statvfs(path.parent)
    return status.f_bavail * status.f_frsize
