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
from typing import BinaryIO, Final, Literal

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

STOPS_AT: Final = 512
"""A write that is not finished stops at a multiple of so many bytes of the file. Reason: the system copies what is
written in pages of the file, and looks between two of them whether the process is to end; limits count in sectors."""

Sums = tuple[int, int]

Ended = Literal["kill", "stop", "unsynced stop"]
"""What has ended a run: a kill of its process; a stop of the machine, each commit being synced before the next one
began; a stop of the machine, commits being synced now and then."""


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


def fault_of(log: Path, *, ended: Ended) -> str | None:
    """What is wrong with the log that a run has left behind which did not end in order; `None`: nothing is known of.

    Args:
        log: the file, before SQLite opens it.
        ended: says which frames may be missing between others.

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
        return None if ended == "unsynced stop" else _fault_of_frames(file, head, ended)


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


def _fault_of_frames(file: BinaryIO, log: Log, ended: Ended) -> str | None:
    """Look for what was written behind the frame at which SQLite stops."""
    sums, number, stopped_at, commits, before = log.sums, 0, None, 0, b""
    salts = struct.pack(">2I", *log.salts)
    # After a kill a commit frame shows that those before it were written whole. What was not synced arrives in any
    # order: the commit that was being written has one commit frame, and a second one shows that it had been synced.
    commits_wanted = 1 if ended == "kill" else 2
    while len(frame := file.read(log.frame_bytes)) == log.frame_bytes:
        number += 1
        page, pages_after, *found_salts, sum_, other_sum = FRAME.unpack_from(frame)
        is_of_this_log = tuple(found_salts) == log.salts
        if stopped_at is None:
            sums = _summed(log.order, frame[FRAME.size :], _summed(log.order, frame[:8], sums))
            if is_of_this_log and page and sums == (sum_, other_sum):
                before = frame
                continue
            if ended == "kill" and not any(frame[: FRAME.size]):
                return f"is zero from frame {number} on"
            stopped_at = number
        if is_of_this_log and pages_after and not (ended == "kill" and number == stopped_at):
            commits += 1
        if commits == commits_wanted:
            return f"has a damaged frame {stopped_at}, and whole ones behind it"
        if _is_shifted(before, frame, salts):
            return f"has bytes too many or too few from frame {stopped_at} on"
        before = frame
    if stopped_at is not None and _is_shifted(before, frame, salts):
        return f"has bytes too many or too few from frame {stopped_at} on"
    if ended == "kill" and len(frame) not in (0, FRAME.size) and file.tell() % STOPS_AT:
        return f"ends within frame {number + 1}, where no write stops"
    return None


def _is_shifted(before: bytes, frame: bytes, salts: bytes) -> bool:
    """Whether the head of a frame lies elsewhere than where one begins: only there are the salts."""
    return salts in frame[9:] or salts in before[-7:] + frame[:15]


def _summed(order: str, content: bytes, sums: Sums) -> Sums:
    """The running checksum after `content`, whose length is a multiple of 8 bytes."""
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(content) // 4}I", content))
    for word, next_word in zip(words, words, strict=True):
        first = (first + word + second) & WORD
        second = (second + next_word + first) & WORD
    return first, second
