"""SQLite's write-ahead log as a file: whether it is what a process that was killed leaves behind.

SQLite takes the frames up to the first that does not fit its checksum, and holds the rest for never written. So a log
that was damaged after its process ended looks as one that ends earlier, and the numbers in it are given again.
A process that is killed leaves less than that: it writes one frame after the other, and one of them at most is torn.

Format: https://www.sqlite.org/fileformat2.html#the_write_ahead_log
"""

from __future__ import annotations

import errno
import os
import struct
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Final, Literal, Self

CLOSED: Final = b"avicenna-live: log closed\n"
"""Put in the place of a log that SQLite has removed although the run did not end in order: the log held nothing.
Shorter than a header, so that SQLite takes it for an empty log."""

CUT: Final = b"avicenna-live: log cut while in use\n"
"""Put behind a log that was cut or overwritten while a server used it. To SQLite it is an unfinished frame."""

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

    def at(self, frames: int) -> Mark:
        """The mark behind so many frames."""
        return Mark((self.salts[0] - self.number) & WORD, self.number, frames)


@dataclass(frozen=True, slots=True)
class Mark:
    """A place in a log."""

    line: int
    """The same for a log and those that it was begun anew as, until it is deleted; else it differs, as it is random.
    Each time a log begins anew, SQLite adds 1 to its first salt and to its number."""
    number: int
    """How often the log has begun anew."""
    frames: int
    """Frames that lie before this place."""

    def __str__(self) -> str:
        return f"{self.line} {self.number} {self.frames}"

    @classmethod
    def read(cls, text: str) -> Self:
        """The mark that a text spells."""
        return cls(*map(int, text.split()))

    def is_followed_by(self, end: Mark) -> bool:
        """Whether a log that ends there goes on from a database file into which all before this mark was copied.

        The mark itself is written behind its place. A log begins anew once all of it was copied, and not before.
        """
        if end.line != self.line:
            return False
        return end.number == self.number + 1 or (end.number == self.number and end.frames > self.frames)


@dataclass(frozen=True, slots=True)
class Found:
    """What lies in the place of a log."""

    end: Mark | None = None
    """Where the last commit ends that SQLite takes up; `None`: it takes up nothing, as it is no log."""
    fault: str | None = None
    """What is wrong with it, as what a run has left behind that did not end in order; `None`: nothing is known."""


def look_at(log: Path, *, ended: Ended) -> Found:
    """Read a log before SQLite opens it.

    Args:
        ended: says which frames may be missing between others.

    Raises:
        OSError: it cannot be read.
    """
    with log.open("rb") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - len(CUT)))
        was_cut = file.read() == CUT
        file.seek(0)
        start = file.read(HEADER.size)
        if start == CLOSED:
            return Found()
        end = None
        if (head := head_of(start)) is None:
            fault: str | None = "is empty" if len(start) < HEADER.size else "has an invalid header"
        else:
            frames, fault = _look_at_frames(file, head, ended)
            end = head.at(frames)
        return Found(end, "was cut or overwritten while a server used it" if was_cut else fault)


def mark_in(log: Path, taken_up: Mark | None) -> Mark:
    """A mark in a log of which SQLite has taken up so much, and which it has written to since.

    Raises:
        OSError: it cannot be read.
    """
    with log.open("rb") as file:
        head = head_of(file.read(HEADER.size))
    if head is None:
        raise OSError(errno.EIO, "it has no header", str(log))
    begins = head.at(0)
    is_the_same = taken_up is not None and (taken_up.line, taken_up.number) == (begins.line, begins.number)
    return taken_up if taken_up is not None and is_the_same else begins


def drop_rest(log: Path, end: Mark) -> None:
    """Cut a log behind what SQLite takes up of it, which is never read again.

    A stop of the machine leaves there whatever had reached the disk. Once new frames lie over the first of it, a kill
    would make it look like damage.

    Raises:
        OSError: it cannot be cut.
    """
    with log.open("r+b") as file:
        head = head_of(file.read(HEADER.size))
        if head is not None and head.at(end.frames) == end:
            taken_up = HEADER.size + end.frames * head.frame_bytes
            if file.seek(0, os.SEEK_END) > taken_up:
                file.truncate(taken_up)


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


def _look_at_frames(file: BinaryIO, log: Log, ended: Ended) -> tuple[int, str | None]:
    """The frames that SQLite takes up, and the evidence that more was written behind the frame at which it stops."""
    sums, number, taken_up = log.sums, 0, 0
    while len(frame := file.read(log.frame_bytes)) == log.frame_bytes:
        page, pages_after, *salts, sum_, other_sum = FRAME.unpack_from(frame)
        sums = _summed(log.order, frame[FRAME.size :], _summed(log.order, frame[:8], sums))
        if not (tuple(salts) == log.salts and page and sums == (sum_, other_sum)):
            break
        number += 1
        if pages_after:
            taken_up = number
    if ended == "unsynced stop":
        return taken_up, None
    return taken_up, _fault_behind(file, log, number + 1, frame, ended)


def _fault_behind(file: BinaryIO, log: Log, stopped_at: int, frame: bytes, ended: Ended) -> str | None:
    """The evidence that the frame at which SQLite stops, the last that was read, was once whole."""
    if ended == "kill" and len(frame) == log.frame_bytes and not any(frame[: FRAME.size]):
        return f"is zero from frame {stopped_at} on"
    # After a kill a commit frame shows that those before it were written whole. What was not synced arrives in any
    # order: the commit that was being written has one commit frame, and a second one shows that it had been synced.
    ends_wanted = 1 if ended == "kill" else 2
    number, ends, before = stopped_at, 0, b""
    while len(frame) == log.frame_bytes:
        _, pages_after, *salts, _, _ = FRAME.unpack_from(frame)
        if tuple(salts) == log.salts and pages_after and not (ended == "kill" and number == stopped_at):
            ends += 1
        if ends == ends_wanted:
            return f"has a damaged frame {stopped_at}, and whole ones behind it"
        if _is_shifted(before, frame, log):
            return f"has bytes too many or too few from frame {stopped_at} on"
        before, frame, number = frame, file.read(log.frame_bytes), number + 1
    if _is_shifted(before, frame, log):
        return f"has bytes too many or too few from frame {stopped_at} on"
    if ended == "kill" and len(frame) not in (0, FRAME.size) and file.tell() % STOPS_AT:
        return f"ends within frame {number}, where no write stops"
    return None


def _is_shifted(before: bytes, frame: bytes, log: Log) -> bool:
    """Whether the head of a frame lies elsewhere than where one begins: only there are the salts."""
    salts = struct.pack(">2I", *log.salts)
    return salts in frame[9:] or salts in before[-7:] + frame[:15]


def _summed(order: str, content: bytes, sums: Sums) -> Sums:
    """The running checksum after `content`, whose length is a multiple of 8 bytes."""
    first, second = sums
    words = iter(struct.unpack(f"{order}{len(content) // 4}I", content))
    for word, next_word in zip(words, words, strict=True):
        first = (first + word + second) & WORD
        second = (second + next_word + first) & WORD
    return first, second
