"""SQLite's write-ahead log as a file: whether it is what a process that was killed leaves behind.

SQLite takes the frames up to the first that does not fit its checksum, and holds the rest for never written. So a log
that was damaged after its process ended looks as one that ends earlier, and the numbers in it are given again.
A process that is killed leaves less than that: it writes one frame after the other, and one of them at most is torn.

Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final

CLOSED: Final = b"avicenna-live: log closed\n"
"""What stands in the place of a log that SQLite has removed though the run did not end in order: nothing was in it.
Shorter than a header, so that SQLite takes it for an empty log."""

CUT: Final = b"avicenna-live: log cut while in use\n"
"""What is put behind a log that was cut or overwritten while a server used it. To SQLite it is an unfinished frame."""

HEADER: Final = struct.Struct(">8I")
"""Magic number, version, bytes of a page, checkpoints, two salts, checksum (two words)."""
FRAME: Final = struct.Struct(">6I")
"""Page number, pages of the database after a commit (0: not the last frame of one), two salts, checksum."""

MAGIC: Final = 0x377F0682
"""Its lowest bit says in which byte order the words are summed up: 1 for big-endian."""
WORD: Final = 0xFFFFFFFF

Sums = tuple[int, int]


@dataclass(frozen=True, slots=True)
class Log:
    """What the header of a log says."""

    order: str
    page_bytes: int
    number: int
    """How often it has begun anew."""
    salts: Sums
    sums: Sums

    @property
    def frame_bytes(self) -> int:
        """Bytes of a frame and its page."""
        return FRAME.size + self.page_bytes


def fault_of(log: Path, *, killed: bool) -> str | None:
    """What is wrong with the log that a run has left behind which did not end in order; `None`: nothing is known of.

    Args:
        log: the file, before SQLite opens it.
        killed: the machine has not stopped since. Otherwise frames may be missing between others, and are not judged.

    Raises:
        OSError: it cannot be read.
    """
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(CUT)))
        if file.read() == CUT:
            return "was cut or overwritten while a server used it"
        file.seek(0)
        start = file.read(HEADER.size)
        if start == CLOSED:
            return None
        if len(start) < HEADER.size:
            return "is empty"
        if (head := head_of(start)) is None:
            return "has an invalid header"
        return _fault_of_frames(file, head) if killed else None


def head_of(content: bytes) -> Log | None:
    """What a header says; `None`: it is none."""
    if len(content) < HEADER.size:
        return None
    magic, _, page_bytes, number, salt, other_salt, *sums = HEADER.unpack(content)
    if magic | 1 != MAGIC | 1 or not 512 <= page_bytes <= 65536:
        return None
    order = ">" if magic & 1 else "<"
    found = _summed(order, content[:-8], (0, 0))
    return Log(order, page_bytes, number, (salt, other_salt), found) if list(found) == sums else None


def _fault_of_frames(file: BinaryIO, log: Log) -> str | None:
    """Look for what was written behind the frame at which SQLite stops."""
    sums, number, stopped_at = log.sums, 0, None
    while len(frame := file.read(log.frame_bytes)) == log.frame_bytes:
        number += 1
        page, pages_after, salt, other_salt, *wanted = FRAME.unpack_from(frame)
        is_of_this_log = (salt, other_salt) == log.salts
        if stopped_at is not None:
            # A commit ends with its last frame: those before it had been written whole.
            if is_of_this_log and pages_after:
                return f"has a damaged frame {stopped_at}, and whole ones behind it"
            continue
        sums = _summed(log.order, frame[FRAME.size :], _summed(log.order, frame[:8], sums))
        if not (is_of_this_log and page and list(sums) == wanted):
            if not any(frame[: FRAME.size]):
                return f"is zero from frame {number} on"
            stopped_at = number
    return None


def _summed(order: str, content: bytes, sums: Sums) -> Sums:
    """The running checksum after `content`, whose length is a multiple of 8 bytes."""
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(content) // 4}I", content))
    for word, next_word in zip(words, words, strict=True):
        first = (first + word + second) & WORD
        second = (second + next_word + first) & WORD
    return first, second
