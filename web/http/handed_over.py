"""Listeners that whoever started this process holds and hands over: systemd's socket activation, sd_listen_fds(3).

They stay open while no server runs, and what connects meanwhile waits in them: a restart refuses nobody.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import MutableMapping
from dataclasses import dataclass
from typing import Final

from web.http.listening import for_accepted_sockets

FIRST: Final = 3
"""The first descriptor; the others follow."""

LISTENERS_MAX: Final = 32
"""Listeners that are taken. Beyond: refused; it is a slip."""

PUBLIC: Final = "public"
OPERATORS: Final = "operators"
UNNAMED: Final = frozenset({"", "unknown"})
"""Names of a listener that was given none: it is public."""

VARIABLES: Final = ("LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "LISTEN_PIDFDID")


class HandOverError(Exception):
    """What was handed over cannot be used; the text names the variable, and what is wrong."""


@dataclass(frozen=True, slots=True)
class HandedOver:
    """Listeners that were handed over."""

    public: tuple[socket.socket, ...] = ()
    operators: tuple[socket.socket, ...] = ()

    def close(self) -> None:
        """Close them here; who handed them over still has them."""
        for one in (*self.public, *self.operators):
            one.close()


def take(environment: MutableMapping[str, str], process: int) -> HandedOver:
    """The listeners that were handed over to this process; none, if `LISTEN_PID` does not name it.

    The variables are removed: no child shall take them for its own.

    Ownership: the caller closes them.

    Args:
        process: the number of this process.

    Raises:
        HandOverError: they cannot be used.
    """
    # As sd_listen_fds(3): without LISTEN_PID nothing is handed over. But an empty variable counts as unset, as
    # everywhere here; sd_listen_fds finds fault with an empty LISTEN_FDS.
    for_whom, count_text, names_text, _ = (environment.pop(name, None) or None for name in VARIABLES)
    if count_text is None or for_whom != str(process):
        return HandedOver()
    if not (count_text.isascii() and count_text.isdigit()) or int(count_text[:9]) > LISTENERS_MAX:
        raise HandOverError(f"LISTEN_FDS must be a number 0-{LISTENERS_MAX}, not {count_text[:20]!a}")
    count = int(count_text)
    names = [PUBLIC] * count if names_text is None else names_text.split(":") if count else []
    if len(names) != count:
        raise HandOverError(f"LISTEN_FDNAMES has {len(names)} names, and LISTEN_FDS says {count}")
    taken: dict[str, list[socket.socket]] = {PUBLIC: [], OPERATORS: []}
    for descriptor, name in zip(range(FIRST, FIRST + count), names, strict=True):
        kind = PUBLIC if name in UNNAMED else name
        if kind not in taken:
            raise HandOverError(
                f"LISTEN_FDNAMES names {name[:80]!a}, and must say {PUBLIC} or {OPERATORS} (FileDescriptorName= of the "
                "socket unit)"
            )
        taken[kind].append(_listener(descriptor))
    return HandedOver(tuple(taken[PUBLIC]), tuple(taken[OPERATORS]))


def _listener(descriptor: int) -> socket.socket:
    """The socket behind a descriptor."""
    where = f"LISTEN_FDS: descriptor {descriptor}"
    try:
        if not stat.S_ISSOCK(os.fstat(descriptor).st_mode):
            raise HandOverError(f"{where} is no socket")
        found = socket.socket(fileno=descriptor)
    except OSError as error:
        raise HandOverError(f"{where} cannot be used: {error.strerror}") from None
    if (why := _why_not(found)) is not None:
        found.close()
        raise HandOverError(f"{where} {why}")
    found.set_inheritable(False)
    for_accepted_sockets(found)
    return found


def _why_not(found: socket.socket) -> str | None:
    """Why a socket cannot be served; `None`: it can."""
    if found.type != socket.SOCK_STREAM or found.family not in (socket.AF_INET, socket.AF_INET6, socket.AF_UNIX):
        return "is neither TCP nor a Unix socket for streams (ListenStream=)"
    if not found.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        return "does not listen; with systemd, its socket unit must say Accept=no"
    if found.family == socket.AF_UNIX and not isinstance(found.getsockname(), str):
        return "is a Unix socket without a path"
    return None
