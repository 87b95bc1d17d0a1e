"""How many bytes of a socket have not reached the peer's machine yet."""

from __future__ import annotations

import fcntl
import socket
import sys
import termios

_TIOCOUTQ = termios.TIOCOUTQ if sys.platform == "linux" else None


def unsent_bytes(sock: socket.socket) -> int:
    """Bytes in the kernel's send queue (SIOCOUTQ, Linux); 0 where it cannot be asked."""
    if _TIOCOUTQ is None:
        return 0
    try:
        return int.from_bytes(fcntl.ioctl(sock.fileno(), _TIOCOUTQ, b"\0\0\0\0"), sys.byteorder)
    except OSError:
        return 0
