"""Fetches the copy that a server of this machine has made of its database out of its data directory.

The server's word about the copy is not trusted: it may be another server than was meant. Only the name of the path
counts, and only a file of this name in `backups/` of the data directory here that was not there before the server was
asked. Nothing else is read or deleted, and a failure leaves neither copy.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import stat
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage.disk.unfinished import arriving
from web.commands.failures import CommandFailed
from web.server.settings import BACKUPS_DIRECTORY

PIECE_BYTES: Final = 1024 * 1024


@dataclass(frozen=True, slots=True)
class Copy:
    """A copy of a database that is in place."""

    size_bytes: int
    sha256: str


def fetched(ask: Callable[[], tuple[str, str]], directory: Path, target: Path) -> Copy:
    """Have the server make its copy, and put it where it is wanted (0600), on disk.

    Args:
        ask: has the copy made; its path and its SHA-256, as the server says.
        directory: the server's data directory.

    Raises:
        CommandFailed: the target cannot be written, or what the server names is not its copy; or as `ask`.
    """
    with _reserved(target) as writing:
        before = _names(directory)
        path, digest = ask()
        name = Path(path).name
        if not _can_be_a_name(name) or name in before:
            raise CommandFailed(f"the server names {path}, which is not a copy it has just made")
        try:
            backups = _opened_directory(directory)
        except FileNotFoundError:
            raise CommandFailed(
                f"the server wrote its copy to {path}: name its data directory with --data, it is not {directory}"
            ) from None
        try:
            copy = _moved(backups, name, writing, path, directory)
        finally:
            os.close(backups)
        if copy.sha256 != digest:
            raise CommandFailed(f"{path} is not what the server says it wrote")
        os.fsync(writing)
    return copy


def _can_be_a_name(text: str) -> bool:
    try:
        os.fsencode(text)
    except UnicodeEncodeError:
        return False
    return bool(text) and "\0" not in text


@contextlib.contextmanager
def _reserved(target: Path) -> Iterator[int]:
    """A new file, made before the server is asked. It gets its name at the end, and is removed on a failure."""
    try:
        with contextlib.ExitStack() as stack:
            try:
                unfinished = stack.enter_context(arriving(target))
            except FileExistsError:
                raise CommandFailed(f"{target} exists already; name another file") from None
            except OSError as error:
                raise CommandFailed(f"cannot make {target}: {error.strerror}") from None
            yield unfinished.descriptor
    except OSError as failure:
        raise CommandFailed(f"cannot copy to {target}: {failure.strerror or failure}") from None


def _names(directory: Path) -> frozenset[str]:
    """What is in `backups/`; nothing while there is none."""
    try:
        opened = _opened_directory(directory)
    except FileNotFoundError:
        return frozenset()
    try:
        return frozenset(os.listdir(opened))  # noqa: PTH208 - a path could lead elsewhere by now
    finally:
        os.close(opened)


def _opened_directory(directory: Path) -> int:
    """A descriptor of `backups/`, so that a name is looked up there alone. Raises `FileNotFoundError`, too."""
    backups = directory / BACKUPS_DIRECTORY
    try:
        return os.open(backups, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except OSError as error:
        why = "it is a symbolic link" if backups.is_symlink() else error.strerror
        raise CommandFailed(f"cannot open {backups}: {why}") from None


def _moved(backups: int, name: str, writing: int, path: str, directory: Path) -> Copy:
    """Copy the file, and delete it, whether or not the copy succeeds."""
    try:
        reading = os.open(name, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=backups)
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        wanted = directory / BACKUPS_DIRECTORY
        raise CommandFailed(
            f"the server wrote its copy to {path}, and {name} in {wanted} cannot be read: {why}; "
            "name the server's data directory with --data"
        ) from None
    try:
        if not stat.S_ISREG(os.fstat(reading).st_mode):
            raise CommandFailed(f"the server names {path}, which is no file")
        try:
            return _copied(reading, writing)
        finally:
            os.unlink(name, dir_fd=backups)
    finally:
        os.close(reading)


def _copied(reading: int, writing: int) -> Copy:
    digest, size = hashlib.sha256(), 0
    while piece := os.read(reading, PIECE_BYTES):
        digest.update(piece)
        size += len(piece)
        while piece:
            piece = piece[os.write(writing, piece) :]
    return Copy(size, digest.hexdigest())
