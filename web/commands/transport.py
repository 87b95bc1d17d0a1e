"""How a request gets to a server: over TCP, TLS or a Unix socket; and, if it does not, why, in one line."""

from __future__ import annotations

import http.client
import os
import socket
import ssl
from typing import Final
from urllib.parse import urlsplit

from web.commands.failures import Unreachable, UsageError
from web.server.listening_file import UNIX_PREFIX

UNIX_HOST: Final = "localhost"
"""What a request over a Unix socket names as its host."""

_TLS_RECORDS: Final = ("\x15\x03", "\x16\x03")
"""First bytes of a side that speaks TLS: an alert, or a handshake (RFC 8446 section 5.1)."""

_NOT_TLS: Final = frozenset({"WRONG_VERSION_NUMBER", "RECORD_LAYER_FAILURE", "PACKET_LENGTH_TOO_LONG", "HTTP_REQUEST"})
"""OpenSSL's reasons where the other side spoke, but not TLS."""


class UnixConnection(http.client.HTTPConnection):
    """HTTP over a Unix socket."""

    def __init__(self, path: str, *, timeout: float) -> None:
        """Talk to the socket at `path`; `timeout` in seconds."""
        super().__init__(UNIX_HOST, timeout=timeout)
        self._path = path

    def connect(self) -> None:
        """Connect to the socket."""
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(self.timeout)
        self.sock.connect(self._path)


def checked_url(url: str) -> str:
    """The base URL without a trailing slash, or `unix:` and the path of a socket.

    Raises:
        UsageError: it is neither.
    """
    if (path := socket_path_of(url)) is not None:
        if not path or "\0" in path:
            raise UsageError("the URL of a Unix socket must be unix:PATH")
        return url
    try:
        parts = urlsplit(url)
        usable = (
            parts.scheme in ("http", "https") and bool(parts.hostname) and parts.port != 0 and parts.path in ("", "/")
        )
    except ValueError:
        usable = False
    is_plain = url.isascii() and url.isprintable() and " " not in url
    if not usable or any(mark in url for mark in "@?#") or not is_plain:
        raise UsageError("the URL of the server must be http://HOST[:PORT], https://HOST[:PORT] or unix:PATH")
    return url.rstrip("/")


def socket_path_of(url: str) -> str | None:
    """The path of the Unix socket a URL names, `None`: it names none."""
    return url.removeprefix(UNIX_PREFIX) if url.startswith(UNIX_PREFIX) else None


def connection_to(url: str, *, seconds_max: float) -> http.client.HTTPConnection:
    """A connection to a checked URL; the first request opens it. No proxy of the environment is used.

    Args:
        seconds_max: longest wait for the socket, and for each part of an answer.
    """
    if (path := socket_path_of(url)) is not None:
        return UnixConnection(path, timeout=seconds_max)
    parts = urlsplit(url)
    host = parts.hostname or ""
    if parts.scheme == "https":
        return http.client.HTTPSConnection(host, parts.port, timeout=seconds_max)
    return http.client.HTTPConnection(host, parts.port, timeout=seconds_max)


def unreachable(url: str, error: BaseException, remark: str = "") -> Unreachable:
    """Say in one line why there is no answer; `remark` ends the line."""
    return Unreachable(f"cannot reach {url}: {_why(url, error)}{remark}")


def _why(url: str, error: BaseException) -> str:
    match error:
        case ssl.SSLCertVerificationError():
            return f"its certificate cannot be verified: {error.verify_message}"
        case ssl.SSLError() if error.reason in _NOT_TLS:
            return "what answers there does not speak TLS; is http:// meant?"
        case ssl.SSLEOFError():
            return "the connection ended within the TLS handshake"
        case ssl.SSLError():
            return f"TLS failed: {(error.reason or str(error)).replace('_', ' ').lower()}"
        case TimeoutError():
            return "no answer in time"
        case http.client.RemoteDisconnected():
            return "the connection ended without an answer" + _tls_hint(url)
        case http.client.BadStatusLine():
            if str(error.args[0]).startswith(_TLS_RECORDS):
                return "what answers there speaks TLS" + _tls_hint(url, "give")
            return "what answers there does not speak HTTP; is https:// meant?"
        case ConnectionResetError():
            return (error.strerror or "Connection reset by peer") + _tls_hint(url)
        case OSError(errno=int(number)):
            # A name that was not found has a number of its own kind (below zero), and its words stand in `strerror`.
            return os.strerror(number) if number > 0 else error.strerror or str(error)
        case _:
            return str(error) or type(error).__name__


def _tls_hint(url: str, said: str = "does it speak TLS? then") -> str:
    parts = urlsplit(url)
    return f"; {said} --url https://{parts.netloc}" if parts.scheme == "http" else ""
