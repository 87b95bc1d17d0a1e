"""What SQLite keeps in memory as a database grows, by its own count, beside the memory of the process.

`python -m benchmarks.page_cache`; docs/decisions/0174 says what the figures mean.
"""

from __future__ import annotations

import ctypes
import ctypes.util
import tempfile
from pathlib import Path
from typing import Final

import trio

from storage.clock import SystemClock
from storage.records import OUTBOX_EVENTS_MAX, NewEvent
from storage.sqlite.opening import open_store

MIB: Final = 1024 * 1024
BODY: Final = b"x" * 300
GROWTH_MIB: Final = 2
"""The events grow by so much between two lines."""
EVENTS_MIB_MAX: Final = 16

MEMORY_USED: Final = 0
PAGE_CACHE: Final = 2
"""Numbers of `sqlite3_status`. The second one counts bytes of pages that SQLite has allocated for its caches."""


def counted(what: int) -> int:
    """Bytes, of all connections of this process. Python loads the same library."""
    library = ctypes.CDLL(ctypes.util.find_library("sqlite3"))
    current, highest = ctypes.c_int(), ctypes.c_int()
    library.sqlite3_status(what, ctypes.byref(current), ctypes.byref(highest), 0)
    return current.value


def resident() -> int:
    """Bytes of memory of this process."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("VmRSS"))


async def main() -> None:
    """Fill a database, and say what is in memory as it grows."""
    print(f"{'events':>10} {'page cache':>12} {'all of SQLite':>14} {'process':>10}  MiB")
    with tempfile.TemporaryDirectory() as made:
        path = Path(made) / "avicenna.db"
        async with open_store(path, clock=SystemClock(), new_epoch=str) as store:
            number, shown = 0, 0
            while shown <= EVENTS_MIB_MAX:
                stored = number * OUTBOX_EVENTS_MAX * len(BODY) / MIB
                if stored >= shown:
                    shown += GROWTH_MIB
                    figures = (counted(PAGE_CACHE), counted(MEMORY_USED), resident())
                    print("{:10.1f} {:12.1f} {:14.1f} {:10.1f}".format(stored, *(one / MIB for one in figures)))
                await store.register(f"d{number}", "amira", [])
                await store.append_nowait(f"d{number}", [NewEvent("feedback_update", BODY)] * OUTBOX_EVENTS_MAX).wait()
                number += 1


if __name__ == "__main__":
    trio.run(main)
