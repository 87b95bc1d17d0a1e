"""Unix sockets at paths that are longer than the address of a socket may be."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

UNIX_PATH_BYTES_MAX: Final = 107
"""Longest path in the address of a Unix socket. Reason: `sun_path` has 108 bytes on Linux, the last of them zero."""

DESCRIPTORS: Final = Path("/proc/self/fd")
"""Where the system names what a process has open."""


@contextmanager
def short_path(path: Path) -> Iterator[str]:
    """A path to the same place that the address of a socket has room for, until the context ends.

    Raises:
        OSError: the path is too long, and the system gives no shorter one; or its directory cannot be opened.
    """
    length = len(os.fsencode(path))
    if length <= UNIX_PATH_BYTES_MAX:
        yield str(path)
        return
    if not DESCRIPTORS.is_dir():
        raise OSError(
            errno.ENAMETOOLONG, f"the path of a Unix socket has {length} bytes, at most {UNIX_PATH_BYTES_MAX}: {path}"
        )
    directory = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY)
    try:
        yield str(DESCRIPTORS / str(directory) / path.name)
    finally:
        os.close(directory)
