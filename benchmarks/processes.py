"""What Linux says about a process, and where it may run."""

from __future__ import annotations

import os
import re
import resource
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Final

PRIORITY: Final = -10
"""Before whatever else the machine does, where that is allowed."""

FILES_BESIDE: Final = 300
"""Open files that a process needs beside its connections."""

_TICKS: Final = os.sysconf("SC_CLK_TCK")


class CannotRun(Exception):
    """The machine or an argument does not allow it; the text says what would."""


def allow_files(connections: int) -> None:
    """Take as many open files as the machine allows.

    Raises:
        CannotRun: that is not enough for so many connections of one process.
    """
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    needed = connections + FILES_BESIDE
    if most != resource.RLIM_INFINITY and most < needed:
        raise CannotRun(
            f"{connections} connections need {needed} open files in one process, and the limit is {most}: "
            "raise it (ulimit -Hn), or ask for fewer"
        )
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


def cpu_seconds(pid: int) -> float:
    """CPU time a process has used, all threads, user and system; 10 ms fine."""
    after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(after_name[11]) + int(after_name[12])) / _TICKS


def children_of(pid: int) -> list[int]:
    """The processes that a process has started, and theirs."""
    found = []
    for listed in Path(f"/proc/{pid}/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # a thread that has ended meanwhile
            for child in map(int, listed.read_text().split()):
                found += [child, *children_of(child)]
    return found


def words_of(pid: int) -> list[str]:
    """The command line of a process."""
    return Path(f"/proc/{pid}/cmdline").read_bytes().decode().split("\0")


def memory_bytes(pid: int) -> int:
    """Proportional set size: what the process holds alone, and its share of what it holds with others."""
    found = re.search(r"^Pss:\s+(\d+) kB", Path(f"/proc/{pid}/smaps_rollup").read_text(), re.MULTILINE)
    assert found, "every process has a proportional set size"
    return int(found[1]) * 1024


def cores() -> tuple[int, int]:
    """The core of the server and the core of the load generator; the same one if there is only one."""
    usable = sorted(os.sched_getaffinity(0))
    return usable[0], usable[-1]


def memory_resident_bytes(pid: int) -> int:
    """Resident set size: as `memory_bytes`, but shared memory counts whole; takes no time to find."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def descriptors_of(pid: int) -> int:
    """How many files and sockets a process has open."""
    return len(list(Path(f"/proc/{pid}/fd").iterdir()))


def threads_of(pid: int) -> int:
    """How many threads a process has."""
    return int(Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[17])


def waited_seconds(pid: int) -> float:
    """How long the main thread of a process could have run, and its core did something else."""
    return int(Path(f"/proc/{pid}/schedstat").read_text().split()[1]) / 1e9


def settle_on(core: int | None, priority: int = PRIORITY) -> Callable[[], None]:
    """What a child does before it becomes the program: take its core, priority and as many files as it may open.

    Args:
        core: `None`: all that there are.
    """

    def settle() -> None:
        if core is not None:
            os.sched_setaffinity(0, {core})
        with suppress(OSError):
            os.setpriority(os.PRIO_PROCESS, 0, priority)
        _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))

    return settle
