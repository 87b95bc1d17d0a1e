"""What one commit costs the disk alone: `python -m benchmarks.disk DIRECTORY SECONDS RATE`.

It overwrites a part of a file and calls `fdatasync`, as SQLite does with its log, and prints the median in ms.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Final

from benchmarks.processes import settle_on

COMMIT_BYTES: Final = 3 * (4096 + 24)
"""What a commit of one event writes to the log: a few pages, each with its header."""

FILE_BYTES: Final = 1000 * (4096 + 24)
"""The log between two checkpoints. It is there before: syncing a file that grows costs more."""


def sync_p50_ms(directory: Path, seconds: float, rate: float, core: int) -> float:
    """The median time of an `fdatasync` in a directory, so many a second, in a process of its own on a core."""
    command = [sys.executable, "-m", "benchmarks.disk", str(directory), str(seconds), str(rate)]
    done = subprocess.run(
        command,
        check=True,
        stdout=subprocess.PIPE,
        text=True,
        timeout=seconds * 10 + 60,
        preexec_fn=settle_on(core),
    )
    return float(done.stdout)


def sync_times(directory: Path, seconds: float, rate: float) -> list[float]:
    """Seconds that each write with its sync took; one at least."""
    times = []
    with tempfile.NamedTemporaryFile(dir=directory) as file:
        file.write(bytes(FILE_BYTES))
        file.flush()
        os.fsync(file.fileno())
        began = time.perf_counter()
        for number in range(max(1, int(seconds * rate))):
            time.sleep(max(0.0, began + number / rate - time.perf_counter()))
            asked = time.perf_counter()
            os.pwrite(file.fileno(), os.urandom(COMMIT_BYTES), number * COMMIT_BYTES % (FILE_BYTES - COMMIT_BYTES))
            os.fdatasync(file.fileno())
            times.append(time.perf_counter() - asked)
    return times


if __name__ == "__main__":
    print(median(sync_times(Path(sys.argv[1]), float(sys.argv[2]), float(sys.argv[3]))) * 1000)
