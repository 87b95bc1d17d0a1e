"""A file system that can be frozen: nothing is read or written meanwhile, and nothing fails."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

SIZE_BYTES = 64 * 1024 * 1024


class CannotFreeze(Exception):
    """The machine does not allow it; the text says why."""


@dataclass(frozen=True, slots=True)
class FreezableDisk:
    """A mounted file system."""

    path: Path

    def freeze(self) -> None:
        """Let everything that touches it wait."""
        subprocess.run(["fsfreeze", "-f", self.path], check=True)

    def thaw(self) -> None:
        """Let it go on; nothing happens if it is not frozen."""
        subprocess.run(["fsfreeze", "-u", self.path], check=False, capture_output=True)


@contextmanager
def freezable_disk(directory: Path) -> Iterator[FreezableDisk]:
    """A small one, mounted from a file in this directory; thawed and gone with the block.

    Raises:
        CannotFreeze: a program is missing, or mounting is not allowed.
    """
    image, mounted = directory / "image", directory / "mounted"
    mounted.mkdir()
    with image.open("wb") as file:
        file.truncate(SIZE_BYTES)
    for command in (["mkfs.ext4", "-q", str(image)], ["mount", "-o", "loop", str(image), str(mounted)]):
        try:
            done = subprocess.run(command, check=False, capture_output=True, text=True)
        except FileNotFoundError:
            raise CannotFreeze(f"there is no {command[0]} here") from None
        if done.returncode:
            raise CannotFreeze(f"a file system cannot be mounted from a file here: {done.stderr.strip()}")
    disk = FreezableDisk(mounted)
    try:
        yield disk
    finally:
        disk.thaw()
        subprocess.run(["umount", "-l", mounted], check=True)
