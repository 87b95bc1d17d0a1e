"""Private files: nobody else can read them, they are whole when they have their name, and on disk when that is said.

Nothing here knows what is in a file.
"""

from __future__ import annotations

import contextlib
import errno
import glob
import hashlib
import os
import secrets
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Final

from storage.errors import CannotCopy

PIECE_BYTES: Final = 1024 * 1024
"""Bytes of a file in memory at a time."""

PROBE_BYTES: Final = 64 * 1024
"""Bytes written to find out whether there is room. Reason: more than fits into blocks that are begun."""

BOOT_ID_FILE: Final = Path("/proc/sys/kernel/random/boot_id")


def current_boot() -> str:
    """A name of this run of the operating system; empty where the system does not tell."""
    try:
        return BOOT_ID_FILE.read_text().strip()
    except OSError:
        return ""


def make_directory(path: Path) -> None:
    """Make a directory only its owner can enter, unless it is there; those above it are made as `mkdir -p` does."""
    if path.is_dir():
        return
    missing = [path, *(above for above in path.parents if not above.exists())]
    path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for made in missing:
        sync_directory(made.parent)


def make_private(path: Path) -> None:
    """Make an empty file that nobody else can ever read. SQLite gives the files beside a database its own mode.

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
