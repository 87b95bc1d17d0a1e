"""How many connections each worker has open, in memory that all of them share: so that their limit holds for all.

Each worker writes one number, its own, and reads those of the others; nobody waits for anybody. A number that is just
being changed is read as it was or as it is.
"""

from __future__ import annotations

import mmap
import os
import tempfile
from contextlib import suppress
from typing import Final

NUMBER_BYTES: Final = 8


class Counting:
    """The numbers of all workers."""

    def __init__(self, descriptor: int, slots: int) -> None:
        """Read and write those in a file that `memory` has made, which has so many."""
        self._numbers = memoryview(mmap.mmap(descriptor, slots * NUMBER_BYTES)).cast("q")

    def put(self, slot: int, count: int) -> None:
        """The worker that has this slot has so many."""
        self._numbers[slot] = count

    def elsewhere(self, slot: int) -> int:
        """How many all others have."""
        numbers = self._numbers
        return sum(numbers) - numbers[slot]


def memory(slots: int) -> int:
    """The descriptor of new memory for so many numbers, all 0; the caller closes it."""
    descriptor = -1
    with suppress(AttributeError, OSError):  # not every system has it
        descriptor = os.memfd_create("connections of workers")
    if descriptor < 0:
        with tempfile.TemporaryFile() as file:
            descriptor = os.dup(file.fileno())
    os.truncate(descriptor, slots * NUMBER_BYTES)
    return descriptor
