"""Frames on a stream: four bytes of length, the most significant first, then so many bytes. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Final

from storage.errors import StorageError

FRAME_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest frame. Reason: both ends are ours; a longer one is a fault, and would take the memory of the process."""

LENGTH_BYTES: Final = 4

RECEIVE_BYTES: Final = 32 * 1024
"""Read from the stream at once. Reason: room for so much is made for each read, also for one that finds nothing; where
it is more than 128 KB, the system maps and clears pages for it each time, which takes longer than the read."""


class FrameTooLong(StorageError):
    """A frame is longer than `FRAME_BYTES_MAX`."""


def framed(data: bytes) -> bytes:
    """A frame with this content.

    Raises:
        FrameTooLong: it is longer than `FRAME_BYTES_MAX`.
    """
    if len(data) > FRAME_BYTES_MAX:
        raise FrameTooLong(f"{len(data)} bytes are more than a frame may have, {FRAME_BYTES_MAX}")
    return len(data).to_bytes(LENGTH_BYTES, "big") + data


class Frames:
    """Takes a stream apart, whatever pieces it comes in."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting = bytearray()

    def taken(self, data: bytes | bytearray) -> Iterator[bytes]:
        """The contents of the frames that are whole with these further bytes.

        Raises:
            FrameTooLong: the next frame is longer than `FRAME_BYTES_MAX`.
        """
        waiting = self._waiting
        waiting += data
        at = 0
        try:
            while len(waiting) - at >= LENGTH_BYTES:
                length = int.from_bytes(waiting[at : at + LENGTH_BYTES], "big")
                if length > FRAME_BYTES_MAX:
                    raise FrameTooLong(f"a frame says it has {length} bytes, more than {FRAME_BYTES_MAX}")
                end = at + LENGTH_BYTES + length
                if len(waiting) < end:
                    break
                content = bytes(waiting[at + LENGTH_BYTES : end])
                at = end
                yield content
        finally:
            del waiting[:at]
