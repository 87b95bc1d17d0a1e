"""File descriptors: a connection takes one, and running out of them hurts everybody."""

from __future__ import annotations

import logging
import resource
from typing import Final

RESERVED: Final = 200
"""For the database, backups, listeners, threads, and connections that are told there is no room."""

logger = logging.getLogger("avicenna.server")


def connections_possible(wanted: int) -> int:
    """How many connections this process can hold, at most `wanted`; raises its own limit for them where it may."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted + RESERVED:
        return wanted
    limit = wanted + RESERVED if hard == resource.RLIM_INFINITY else min(wanted + RESERVED, hard)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, hard))
    except (OSError, ValueError):  # a platform with limits of its own
        limit = soft
    possible = max(1, min(wanted, limit - RESERVED))
    if possible < wanted:
        logger.warning(
            "max_connections is %d, but with at most %d open files only %d are possible; raise the process's limit",
            wanted,
            limit,
            possible,
        )
    return possible
