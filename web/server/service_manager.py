"""What a service manager (systemd) is told of this process: that it serves, reloads, stops, and that its loop turns.

The protocol is sd_notify(3): datagrams of lines to the Unix socket that `NOTIFY_SOCKET` names. Nobody waits for the
manager, and a failure to tell it is one warning.
"""

from __future__ import annotations

import logging
import socket
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final, NoReturn

import trio

from storage.clock import Clock

VARIABLES: Final = ("NOTIFY_SOCKET", "WATCHDOG_USEC", "WATCHDOG_PID")

PART_OF_WATCHDOG: Final = 3
"""The manager is told so often, within the time after which it takes the process for hung."""

logger = logging.getLogger("avicenna.server")


@dataclass(frozen=True, slots=True)
class ServiceManager:
    """The manager of this process. `NOBODY` is none."""

    address: str | None = None
    """Its socket; `None`: there is no manager."""
    watchdog_seconds: float | None = None
    """It ends the process when it hears nothing for so long; `None`: it does not watch."""
    is_misnamed: bool = False
    """What names its socket names none: said once the log is set up."""

    def ready(self, status: str) -> None:
        """The server accepts connections, or has reloaded."""
        if self.is_misnamed:
            logger.warning("NOTIFY_SOCKET must be a path, or @ and a name, and is neither: no service manager is told")
        self._tell("READY=1", f"STATUS={status}")

    def reloading(self, clock: Clock) -> None:
        """The server reads its keys anew; `ready` follows."""
        self._tell("RELOADING=1", f"MONOTONIC_USEC={int(clock.monotonic() * 1e6)}")

    def stopping(self) -> None:
        """The server drains."""
        self._tell("STOPPING=1", "STATUS=draining")

    async def watch(self) -> NoReturn:
        """Say again and again that the loop turns; until cancelled. A task of it, so a loop that hangs says nothing."""
        while True:
            if self.watchdog_seconds is None:
                await trio.sleep_forever()
            self._tell("WATCHDOG=1")
            await trio.sleep(self.watchdog_seconds / PART_OF_WATCHDOG)

    def _tell(self, *lines: str) -> None:
        if self.address is None:
            return
        address = f"\0{self.address[1:]}" if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as telling:
                telling.setblocking(False)
                telling.sendto("\n".join(lines).encode(), address)
        except OSError as error:
            logger.warning("the service manager was not told %s: %s", lines[0], error.strerror or error)


NOBODY: Final = ServiceManager()


def find(environment: MutableMapping[str, str], process: int) -> ServiceManager:
    """The manager that the environment names. The variables are removed: no child shall speak for this process.

    Args:
        process: the number of this process.
    """
    address, microseconds, watched = (environment.pop(name, None) for name in VARIABLES)
    if not address:
        return NOBODY
    if address[0] not in "/@":
        return ServiceManager(is_misnamed=True)
    is_watched = microseconds is not None and microseconds.isascii() and microseconds.isdigit()
    if not is_watched or watched not in (None, str(process)) or not int(microseconds or 0):
        return ServiceManager(address)
    return ServiceManager(address, int(microseconds or 0) / 1e6)
