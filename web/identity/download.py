"""Getting one small document over HTTP, on a thread, within one deadline and from one host. Knows no keys, no Trio."""

from __future__ import annotations

import http.client
import io
import socket
import time
import urllib.error
import urllib.request
from collections.abc import Callable
from typing import IO, Any, Final
from urllib.parse import urlsplit

DOCUMENT_BYTES_MAX: Final = 256 * 1024
"""Largest document. Beyond: refused."""

ANSWERS_BYTES_MAX: Final = 2 * DOCUMENT_BYTES_MAX
"""Most bytes that are read, with heads and redirects. Beyond: refused."""

SILENCE_SECONDS_MAX: Final = 5.0
"""Longest time for connecting, for the TLS handshake, and between two bytes of an answer."""

FETCH_SECONDS_MAX: Final = 10.0
"""Longest time from the call to the last byte, however the source trickles. Beyond: given up."""


def fetch_document(url: str) -> bytes:
    """The document at a URL, by GET; a proxy of the environment (`https_proxy`) is used.

    Blocks for `FETCH_SECONDS_MAX` at most, except that the look-up of a name takes as long as the system lets it.

    Raises:
        OSError, HTTPException, ValueError: it could not be had; the text of some names the URL.
    """
    allowance = _Allowance(time.monotonic() + FETCH_SECONDS_MAX)
    opener = urllib.request.build_opener(_SameOrigin, _Http(allowance), _Https(allowance))
    request = urllib.request.Request(url, headers={"Accept": "application/json"})  # noqa: S310 - checked as a setting
    try:
        answer = opener.open(request, timeout=SILENCE_SECONDS_MAX)
    except urllib.error.HTTPError as refusal:
        refusal.close()
        raise OSError(f"the source answered {refusal.code}") from None
    with answer as response:
        content: bytes = response.read(DOCUMENT_BYTES_MAX + 1)
    if len(content) > DOCUMENT_BYTES_MAX:
        raise ValueError(f"a JWKS document must have at most {DOCUMENT_BYTES_MAX} bytes")
    return content


class _Allowance:
    """The time and the bytes that are left for one fetch, over all its connections."""

    def __init__(self, ends_at: float) -> None:
        self._ends_at = ends_at
        self._bytes_left = ANSWERS_BYTES_MAX

    def wait_seconds(self) -> float:
        """How long the next read may wait."""
        left = self._ends_at - time.monotonic()
        if left <= 0:
            raise TimeoutError("the document takes too long")
        return min(left, SILENCE_SECONDS_MAX)

    def take(self, size: int) -> None:
        """So many bytes were read."""
        self._bytes_left -= size
        if self._bytes_left < 0:
            raise ValueError(f"the source answers with more than {ANSWERS_BYTES_MAX} bytes")


class _Bytes(io.RawIOBase):
    """What a socket receives, as far as the allowance goes.

    A time-out of the socket alone bounds each read, and a head that comes byte by byte has thousands of them.
    """

    def __init__(self, connected: socket.socket, allowance: _Allowance) -> None:
        self._socket = connected
        # The socket counts its files: it stays open until the last of them is closed.
        self._file = connected.makefile("rb", buffering=0)
        self._allowance = allowance

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int | None:
        self._socket.settimeout(self._allowance.wait_seconds())
        size = self._file.readinto(buffer)
        self._allowance.take(size or 0)
        return size

    def close(self) -> None:
        self._file.close()
        super().close()


class _Http(urllib.request.HTTPHandler):
    """Opens `http:` URLs."""

    def __init__(self, allowance: _Allowance) -> None:
        super().__init__()
        self._allowance = allowance

    def http_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connecting(http.client.HTTPConnection, self._allowance), req)


class _Https(urllib.request.HTTPSHandler):
    """Opens `https:` URLs."""

    def __init__(self, allowance: _Allowance) -> None:
        super().__init__()
        self._allowance = allowance

    def https_open(self, req: urllib.request.Request) -> http.client.HTTPResponse:
        return self.do_open(_connecting(http.client.HTTPSConnection, self._allowance), req)


def _connecting(
    kind: type[http.client.HTTPConnection], allowance: _Allowance
) -> Callable[..., http.client.HTTPConnection]:
    """Makes connections whose answers are read as far as the allowance goes."""

    class Answer(http.client.HTTPResponse):
        def __init__(self, connected: socket.socket, *args: Any, **options: Any) -> None:
            super().__init__(connected, *args, **options)
            self.fp.close()
            self.fp = io.BufferedReader(_Bytes(connected, allowance))

    def connect(host: str, *, timeout: float) -> http.client.HTTPConnection:
        connection = kind(host, timeout=min(timeout, allowance.wait_seconds()))
        connection.response_class = Answer
        return connection

    return connect


class _SameOrigin(urllib.request.HTTPRedirectHandler):
    """Follows redirects to the same scheme, host and port only: keys come from whom the operator trusts."""

    def redirect_request(
        self,
        req: urllib.request.Request,
        fp: IO[bytes],
        code: int,
        msg: str,
        headers: http.client.HTTPMessage,
        newurl: str,
    ) -> urllib.request.Request | None:
        before, after = urlsplit(req.full_url), urlsplit(newurl)
        if (before.scheme, before.netloc) != (after.scheme, after.netloc):
            fp.close()
            raise urllib.error.URLError("redirected to another host")
        return super().redirect_request(req, fp, code, msg, headers, newurl)
