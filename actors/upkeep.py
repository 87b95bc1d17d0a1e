"""Services that are to run as long as the server does: started again after a crash. And what a log says of a crash."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Awaitable, Callable
from typing import Final

import trio

from actors.intensity import Intensity
from storage.clock import Clock

SERVICE_WINDOW_SECONDS: Final = 60.0
"""A service that crashes again within this time waits longer before each restart."""

logger = logging.getLogger("avicenna.actors")


async def restart_on_crash(
    name: str, service: Callable[[], Awaitable[None]], clock: Clock, jitter: Callable[[], float]
) -> None:
    """Run a service until cancelled: one that crashes is logged, and started again after a backoff."""
    crashes = Intensity(0, SERVICE_WINDOW_SECONDS)
    while True:
        try:
            await service()
        except Exception as error:  # noqa: BLE001  # here a crash becomes a restart
            logger.error("the %s crashed: %s", name, describe(error))
            crashes.crashed(clock.monotonic())
            await trio.sleep(crashes.backoff_seconds(jitter))


def describe(error: Exception) -> str:
    """Kind and place of an exception, without its text (which may hold a payload)."""
    frames = traceback.extract_tb(error.__traceback__)
    place = f" at {frames[-1].name}:{frames[-1].lineno}" if frames else ""
    return f"{type(error).__name__}{place}"
