"""Where positions are kept: in memory, in a file, or by the app."""

from __future__ import annotations

import json
import os
from collections.abc import Awaitable
from pathlib import Path
from typing import Final, Protocol

from avicenna_live.items import DiagnosisId, Position

OWNER_ONLY: Final = 0o600


class Store(Protocol):
    """What a store of the app's own does. Both functions may be async.

    What one of them raises leaves the iterator. A step whose position was not saved is not finished and comes again.
    """

    def load(self, diagnosis_id: DiagnosisId, /) -> Position | Awaitable[Position | None] | None:
        """What was saved last, `None`: nothing."""

    def save(self, diagnosis_id: DiagnosisId, position: Position, /) -> Awaitable[None] | None:
        """Keep a position in place of the last one."""


class MemoryStore:
    """Positions that end with the process."""

    def __init__(self) -> None:
        """Begin empty."""
        self._positions: dict[DiagnosisId, Position] = {}

    def load(self, diagnosis_id: DiagnosisId) -> Position | None:
        """What was saved last, `None`: nothing."""
        return self._positions.get(diagnosis_id)

    def save(self, diagnosis_id: DiagnosisId, position: Position) -> None:
        """Keep a position in place of the last one."""
        self._positions[diagnosis_id] = position


class FileStore:
    """Positions in one file of JSON, readable by its owner alone.

    A save replaces the file whole and has reached the disk when it returns: a process that is killed, and power that
    fails, leave the file as it was before or after. It takes a few milliseconds, in which the event loop stands still.
    One file belongs to one process, one server and one user.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        """Keep positions in the file `path`. Raises `ValueError` if its directory does not exist."""
        self._path = Path(path)
        if not self._path.parent.is_dir():
            raise ValueError(f"{self._path.parent} is no directory: make it, or name another file")
        self._positions: dict[str, Position] | None = None

    def load(self, diagnosis_id: DiagnosisId) -> Position | None:
        """What was saved last, `None`: nothing. Raises `ValueError` if the file holds something else, and `OSError`."""
        return self._read().get(str(diagnosis_id))

    def save(self, diagnosis_id: DiagnosisId, position: Position) -> None:
        """Keep a position in place of the last one. Raises `ValueError` and `OSError`."""
        positions = self._read() | {str(diagnosis_id): position}
        text = json.dumps({key: {"epoch": kept.epoch, "seq": kept.seq} for key, kept in positions.items()}, indent=1)
        fresh = self._path.with_name(self._path.name + ".new")
        # What a killed process left under this name is overwritten.
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, OWNER_ONLY)
        with os.fdopen(descriptor, "w", encoding="utf-8") as file:
            file.write(text + "\n")
            file.flush()
            os.fsync(descriptor)
        fresh.replace(self._path)
        self._positions = positions

    def _read(self) -> dict[str, Position]:
        if self._positions is None:
            try:
                self._positions = _positions_of(self._path.read_text(encoding="utf-8"))
            except FileNotFoundError:
                self._positions = {}
            except (ValueError, LookupError, TypeError, AttributeError):
                raise ValueError(f"{self._path} holds no positions: move it away to begin without") from None
        return self._positions


def _positions_of(text: str) -> dict[str, Position]:
    return {key: _position_of(kept["epoch"], kept["seq"]) for key, kept in json.loads(text).items()}


def _position_of(epoch: object, seq: object) -> Position:
    if not isinstance(epoch, str) or type(seq) is not int:
        raise TypeError
    return Position(epoch, seq)
