"""What the kernel keeps of a socket: bytes that have not reached the peer's machine, and bytes that lie unread here."""

from __future__ import annotations

import fcntl
import sys
import termios
from typing import Protocol


class HasNumber(Protocol):
    """Something the kernel knows by a number."""

    def fileno(self) -> int:
        """The number."""


_TIOCOUTQ = termios.TIOCOUTQ if sys.platform == "linux" else None


def unsent_bytes(sock: HasNumber) -> int:
    """Bytes in the kernel's send queue (SIOCOUTQ, Linux); 0 where it cannot be asked."""
    return 0 if _TIOCOUTQ is None else _asked(sock, _TIOCOUTQ)


def unread_bytes(sock: HasNumber) -> int:
    """Bytes in the kernel's receive queue (FIONREAD); 0 where it cannot be asked."""
    return _asked(sock, termios.FIONREAD)


def _asked(sock: HasNumber, what: int) -> int:
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), what, b"\0\0\0\0"), sys.byteorder)
    except (OSError, ValueError):  # a closed socket has no number
        return 0
