"""Whether a directory can be trusted with a database and a key: which user owns it, and which others may write it.

A user who can write the directory can replace the database or the key, or put a link in its place. The files
directly in it that are ours are looked at, too; the directories above it are not.
"""

from __future__ import annotations

import os
import shlex
import stat
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from storage.errors import Untrusted

ROOT: Final = 0
"""The user who can do everything anyway."""

OWN_DIRECTORY: Final = "avicenna"
"""Name of the directory that the server makes below a directory that everybody can write."""


@dataclass(frozen=True, slots=True)
class Found:
    """A file or directory, as it lies there."""

    path: Path
    mode: int
    """As `st_mode`: kind and permissions."""
    user: int
    """Number of the user who owns it."""


def check_directory(directory: Path, names: Iterable[str], *, we: int | None = None) -> list[str]:
    """What an operator should be warned about a data directory; nothing if there is none yet.

    Args:
        names: files that are used in it, if they are there.
        we: the user this process runs as; `None`: ask the system.

    Raises:
        Untrusted: it must not be used; the message gives the command that helps.
        OSError: it cannot be looked at.
    """
    we = os.geteuid() if we is None else we
    if not directory.exists():
        return []
    places = [_look(directory, follow=True)]
    if directory.is_symlink():
        places.append(_look(directory))
    found = [_look(path) for path in (directory / name for name in names) if os.path.lexists(path)]
    warnings = judge_directory(places, we)
    judge_files(found, places[0], we)
    return warnings


def judge_directory(places: Sequence[Found], we: int) -> list[str]:
    """The warnings about a directory, the first of `places`; a second one is a link to it. Raises `Untrusted`."""
    directory = places[0]
    where, shown = shlex.quote(str(directory.path)), f"the data directory {directory.path}"
    mode = f"mode {stat.S_IMODE(directory.mode):04o}"
    if directory.mode & stat.S_IWOTH:
        own = shlex.quote(str(directory.path / OWN_DIRECTORY))
        raise Untrusted(
            f"everybody can write {shown} ({mode}); let the server make its own below it: "
            f"avicenna-live serve --data {own}"
        )
    warnings: list[str] = []
    for place in places:
        what = f"{shown} is a link that" if stat.S_ISLNK(place.mode) else shown
        remedy = f"chown {'-h' if stat.S_ISLNK(place.mode) else '-R'} {we} {where}"
        if place.user in (we, ROOT):
            continue
        if we != ROOT:
            raise Untrusted(f"{what} belongs to user {place.user}, and the server runs as user {we}: {remedy}")
        warnings.append(f"{what} belongs to user {place.user}, and the server runs as root: {remedy}")
    if directory.mode & stat.S_IWGRP:
        warnings.append(f"the group can write {shown} ({mode}), and replace what is in it: chmod g-w {where}")
    return warnings


def judge_files(files: Iterable[Found], directory: Found, we: int) -> None:
    """See that the files in a directory are files, of its owner, of ours or of root. Raises `Untrusted`."""
    owners = {we, ROOT, directory.user}
    for file in files:
        where = shlex.quote(str(file.path))
        aside = f"mv {where} {shlex.quote(f'{file.path}.aside')}"
        if stat.S_ISLNK(file.mode):
            raise Untrusted(f"{file.path} is a symbolic link, and the server follows none there: {aside}")
        if not stat.S_ISREG(file.mode):
            raise Untrusted(f"{file.path} is no file: {aside}")
        if file.user not in owners:
            raise Untrusted(
                f"{file.path} belongs to user {file.user}, and the server runs as user {we}; "
                f"if you trust what is in it: chown {we} {where}"
            )


def _look(path: Path, *, follow: bool = False) -> Found:
    status = path.stat(follow_symlinks=follow)
    return Found(path, status.st_mode, status.st_uid)
