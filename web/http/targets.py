"""What a request is for, and on which host (RFC 9112 section 3.2). Pure."""

from __future__ import annotations

import re
from functools import lru_cache
from typing import Final

from web.contract.origins import split_authority
from web.http.handshake import Headers

_ABSOLUTE: Final = re.compile(rb"https?://([^/?#]*)([^#]*)", re.IGNORECASE)


class BadTarget(Exception):
    """A target or a host that is none; the text says why."""


def origin_form(target: bytes, headers: Headers) -> tuple[bytes, Headers]:
    """The target as a path and a query, and the headers with the one `Host` that counts.

    An absolute target names its host itself, and that of the header is not looked at (RFC 9112 section 3.2.2).

    Raises:
        BadTarget: it is none, or a host is malformed.
    """
    if any(name == b"host" and not is_authority(value) for name, value in headers):
        raise BadTarget("Host must be a host, with or without a port")
    if not target.startswith(b"/") and (absolute := _ABSOLUTE.fullmatch(target)) is not None:
        authority, path = absolute.groups()
        if not is_authority(authority):
            raise BadTarget("the target of a request must name a host, with or without a port")
        headers = [(b"host", authority), *(header for header in headers if header[0] != b"host")]
        target = path if path.startswith(b"/") else b"/" + path
    if not target.startswith(b"/") or target.startswith(b"//"):
        # Quart would read `//actors` as `/actors`, which a proxy may have meant to keep from the world.
        raise BadTarget("the target of a request must begin with one /")
    return target, headers


@lru_cache(maxsize=100)
def is_authority(text: bytes) -> bool:
    """Whether a text is a host, with or without a port."""
    return text.isascii() and split_authority(text.decode("ascii")) is not None
