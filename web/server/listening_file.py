"""`DIR/listening.json`: where a running server listens, so that the commands beside its data directory find it.

The server holds a lock (`flock`) on the file for as long as it listens. A file that nobody holds was left by a server
that was killed, and names an address that may be somebody else's by now. Looking never disturbs a server that starts:
each one makes a file of its own, and locks it before it appears under this name.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import json
import os
import stat
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Final
from urllib.parse import urlsplit

LISTENING_FILE: Final = "listening.json"
"""Name of the file within the data directory."""

UNIX_PREFIX: Final = "unix:"
"""How the URL of a Unix socket begins; its path follows."""

FILE_BYTES_MAX: Final = 64 * 1024
"""Largest file that is read. Beyond: it is none of ours."""

_EVERY_ADDRESS: Final = {"0.0.0.0": "127.0.0.1", "::": "[::1]"}  # noqa: S104 - compared with, never listened on
"""What "every interface" is to a client on this machine."""


class NotListening(Exception):
    """No server is known to listen; the text says how far the file tells."""

    def __init__(self, text: str, *, is_absent: bool = False) -> None:
        super().__init__(text)
        self.is_absent = is_absent
        """There is no file at all."""


@contextmanager
def announced(directory: Path, urls: Sequence[str], workers: int = 1) -> Iterator[None]:
    """Have the file say that this process listens at `urls`, until the end of the block.

    Args:
        workers: how many processes serve.

    Raises:
        OSError: it cannot be written.
    """
    file = directory / LISTENING_FILE
    arriving = directory / f".{LISTENING_FILE}.new"
    content = {"urls": [_from_this_machine(url) for url in urls], "pid": os.getpid(), "workers": workers}
    arriving.unlink(missing_ok=True)
    descriptor = os.open(arriving, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX)
            os.write(descriptor, json.dumps(content).encode() + b"\n")
            arriving.rename(file)
        except BaseException:
            arriving.unlink(missing_ok=True)
            raise
        made = os.fstat(descriptor)
        try:
            yield
        finally:
            with contextlib.suppress(OSError):
                if os.path.samestat(file.lstat(), made):
                    file.unlink()
    finally:
        os.close(descriptor)


def listening_urls(directory: Path, *, is_trusted: bool = True) -> list[str]:
    """Where the server of a data directory listens, at least one URL.

    Args:
        is_trusted: somebody named the directory; else the file counts only if it is ours or root's.

    Raises:
        NotListening: no server does, or the file does not tell.
    """
    content, _ = _read(directory, is_trusted=is_trusted)
    found = content.get("urls")
    if not isinstance(found, list) or not found or not all(isinstance(url, str) for url in found):
        raise NotListening(f"{directory / LISTENING_FILE} cannot be used: it does not say where the server listens")
    return found


def listening_process(directory: Path, *, is_trusted: bool = True) -> int:
    """The number of the process that is the server of a data directory. As `listening_urls`.

    It is a process of whoever has written the file: nobody can have another one's process named.
    """
    content, owner = _read(directory, is_trusted=is_trusted)
    found = content.get("pid")
    if type(found) is not int or found < 2:
        raise NotListening(f"{directory / LISTENING_FILE} cannot be used: it does not say which process listens")
    if owner != _owner_of(found):
        raise NotListening(f"{directory / LISTENING_FILE} cannot be used: process {found} is another user's")
    return found


def listening_workers(directory: Path, *, is_trusted: bool = True) -> int:
    """How many processes serve for the server of a data directory. As `listening_urls`."""
    content, _ = _read(directory, is_trusted=is_trusted)
    found = content.get("workers", 1)
    return found if type(found) is int else 1


def _owner_of(process: int) -> int:
    """Whose process it is; where the system does not tell, ours: others' cannot be signalled."""
    try:
        return Path(f"/proc/{process}").stat().st_uid
    except OSError:
        return os.geteuid()


def _read(directory: Path, *, is_trusted: bool) -> tuple[dict[str, Any], int]:
    """What the file of a server that listens says, and whose file it is. As `listening_urls`."""
    file = directory / LISTENING_FILE
    try:
        descriptor = os.open(file, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    except (FileNotFoundError, NotADirectoryError):
        raise NotListening(f"there is no {file}", is_absent=True) from None
    except OSError as error:
        why = "it is a symbolic link" if error.errno == errno.ELOOP else error.strerror
        raise NotListening(f"{file} cannot be used: {why}") from None
    with os.fdopen(descriptor, "rb") as opened:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise NotListening(f"{file} cannot be used: it is no file")
        if status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            raise NotListening(f"{file} cannot be used: others than its owner can change it")
        if not is_trusted and status.st_uid not in (os.geteuid(), 0):
            raise NotListening(f"{file} is another user's: it counts only where --data names its directory")
        if not _is_held(descriptor):
            raise NotListening(f"{file} was left by a server that has ended")
        try:
            found: Any = json.loads(opened.read(FILE_BYTES_MAX + 1))
        except (ValueError, RecursionError):
            found = None
        return found if isinstance(found, dict) else {}, status.st_uid


def _is_held(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError:
        return True
    return False


def _from_this_machine(url: str) -> str:
    """The URL as a client on this machine uses it."""
    if url.startswith(UNIX_PREFIX):
        return UNIX_PREFIX + str(Path(url.removeprefix(UNIX_PREFIX)).absolute())
    parts = urlsplit(url)
    every = _EVERY_ADDRESS.get(parts.hostname or "")
    return url if every is None else parts._replace(netloc=f"{every}:{parts.port}").geturl()
