"""The sockets a server listens on: TCP, and a Unix socket for a proxy on the same machine."""

from __future__ import annotations

import contextlib
import errno
import os
import socket
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Final

from storage.disk.unix_paths import short_path

BACKLOG: Final = 1024
"""Connections the kernel holds for us until they are accepted."""

TCP_USER_TIMEOUT_MS: Final = 20_000
"""Unacknowledged for so long, a connection is dead (RFC 5482); where the platform has it."""

TCP_NOTSENT_BYTES: Final = 16 * 1024
"""A socket counts as writable once so few bytes wait to be sent (`TCP_NOTSENT_LOWAT`); where the platform has it.
Reason: bytes that are composed late hold the newest events."""

UNIX_MODE: Final = 0o660
"""Who may connect: the server's user and group. The directory decides about everybody else."""


def listen_on_tcp(host: str, port: int) -> socket.socket:
    """Listen on an address; `::` is every interface, IPv4 included where the system can.

    Ownership: the caller's.

    Raises:
        OSError: it cannot be listened on.
    """
    family, address, is_every_one = _address_of(host, port)
    with _naming_the_cure():
        held = socket.create_server(address, family=family, backlog=BACKLOG, dualstack_ipv6=is_every_one)
    for_accepted_sockets(held)
    return held


def share_of_tcp(host: str, port: int) -> socket.socket:
    """A socket for an address that several of this user have at once, and that does not listen yet (`begin_to_listen`).

    Those that listen get their share of whoever connects.

    Ownership: the caller's.

    Raises:
        OSError: it cannot be had.
    """
    family, address, is_every_one = _address_of(host, port)
    held = socket.socket(family, socket.SOCK_STREAM)
    try:
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        held.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEPORT, 1)
        if family == socket.AF_INET6:
            held.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(not is_every_one))
        with _naming_the_cure():
            held.bind(address)
    except OSError:
        held.close()
        raise
    for_accepted_sockets(held)
    return held


def begin_to_listen(held: socket.socket) -> None:
    """Listen, unless it listens."""
    if not held.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN):
        held.listen(BACKLOG)


def _address_of(host: str, port: int) -> tuple[int, tuple[str, int], bool]:
    """Family and address, and whether it is every interface for IPv4, too."""
    found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)
    family, _, _, _, address = found[0]
    return family, (str(address[0]), int(address[1])), address[0] == "::" and socket.has_dualstack_ipv6()


@contextlib.contextmanager
def _naming_the_cure() -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno != errno.EADDRINUSE:
            raise
        cure = "end what listens there, or choose another port (0 takes any free one)"
        raise OSError(error.errno, f"{os.strerror(error.errno)}; {cure}") from None


def for_accepted_sockets(listener: socket.socket) -> None:
    """Set what the sockets shall have that it accepts: they inherit it. The listener itself does not block."""
    listener.setblocking(False)
    if listener.family == socket.AF_UNIX:
        return
    listener.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    for name, value in (("TCP_USER_TIMEOUT", TCP_USER_TIMEOUT_MS), ("TCP_NOTSENT_LOWAT", TCP_NOTSENT_BYTES)):
        if (option := getattr(socket, name, None)) is not None:
            listener.setsockopt(socket.IPPROTO_TCP, option, value)


@contextlib.contextmanager
def listening_on_unix(path: Path, mode: int = UNIX_MODE, *, is_ours: bool = False) -> Iterator[socket.socket]:
    """Listen on a Unix socket, and remove it at the end.

    It appears at `path` with its mode, in place of one that a server which is gone has left.

    Args:
        is_ours: our own processes alone connect: they find it however long the path is (`short_path`).

    Raises:
        OSError: another server listens there, or something else is there, or it cannot be made.
    """
    named = short_path if is_ours else _as_it_is
    with named(path) as name:
        _check_free(path, name)
    # Never at `path` with another mode, however short: made beside it, then moved.
    made_at = path.with_name(f".{os.getpid()}.sock")
    held = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    with contextlib.ExitStack() as undoing:
        undoing.callback(held.close)
        with contextlib.suppress(FileNotFoundError):
            made_at.unlink()
        with named(made_at) as name:
            held.bind(name)
        undoing.callback(made_at.unlink, missing_ok=True)
        made_at.chmod(mode)
        held.listen(BACKLOG)
        made = made_at.stat()
        made_at.rename(path)
        undoing.pop_all()
    held.setblocking(False)
    try:
        yield held
    finally:
        held.close()
        _remove(path, made)


@contextlib.contextmanager
def _as_it_is(path: Path) -> Iterator[str]:
    yield str(path)


def url_of(listener: socket.socket) -> str:
    """Where clients find it."""
    name = listener.getsockname()
    if listener.family == socket.AF_UNIX:
        return f"unix:{name}"
    if listener.family == socket.AF_INET6:
        return f"http://[{name[0]}]:{name[1]}"
    return f"http://{name[0]}:{name[1]}"


def _check_free(path: Path, name: str) -> None:
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        return
    if not stat.S_ISSOCK(mode):
        raise OSError(errno.EEXIST, f"{path} is there already and is no socket")
    if is_served(name):
        raise OSError(errno.EADDRINUSE, f"another server listens on {path}")


def is_served(name: str) -> bool:
    """Whether somebody listens on a Unix socket.

    Raises:
        OSError: it cannot be found out.
    """
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.setblocking(False)
        try:
            probe.connect(name)
        except (ConnectionRefusedError, FileNotFoundError):
            return False  # its server is gone
        except BlockingIOError:
            pass  # somebody listens, and is busy
    return True


def _remove(path: Path, made: os.stat_result) -> None:
    """Remove our socket, unless another server has put its own in its place."""
    with contextlib.suppress(FileNotFoundError):
        if os.path.samestat(path.lstat(), made):
            path.unlink()
