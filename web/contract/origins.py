"""Hosts and origins: which texts are some, and their one spelling. Pure; asks nobody and resolves no name."""

from __future__ import annotations

import re
from ipaddress import IPv6Address, ip_address
from typing import Final

DEFAULT_PORTS: Final = {"http": "80", "https": "443"}

PORT_MAX: Final = 65535
"""Highest port of TCP. Beyond: no origin."""

NULL: Final = "null"
"""The origin of pages that have none of their own: sandboxed ones, and files."""

_AUTHORITY: Final = re.compile(
    r"(?P<host>\[(?P<v6>[0-9A-Fa-f:.]+(%[0-9A-Za-z._~%-]+)?)\]|([A-Za-z0-9._~!$&'()*+,;=-]|%[0-9A-Fa-f]{2})+)"
    r"(:(?P<port>[0-9]{0,5}))?"
)

_ORIGIN: Final = re.compile(r"(?P<scheme>[A-Za-z][A-Za-z0-9+.-]*)://(?P<authority>[^/]+)/?")


def split_authority(text: str) -> tuple[str, str] | None:
    """Host and port of `host` or `host:port` (RFC 3986 section 3.2, without a user), `None`: it is none.

    Returns:
        The host in lower case, an IPv6 address in brackets and in its short form; the port, empty if none is given.
    """
    found = _AUTHORITY.fullmatch(text)
    if found is None:
        return None
    host, port = found["host"].lower(), found["port"] or ""
    if port and int(port) > PORT_MAX:
        return None
    if found["v6"] is not None:
        try:
            host = f"[{IPv6Address(found['v6'])}]"
        except ValueError:
            return None
    return host, port


def normal_origin(text: str) -> str | None:
    """The one spelling of an origin (RFC 6454); `None`: it is none.

    In lower case, without the port its scheme implies, and without the dot that ends a name which is meant to be whole.
    Origins of apps (`capacitor://localhost`) are some, and so is `null`, that of pages which have no other.
    """
    if text == NULL:
        return text
    found = _ORIGIN.fullmatch(text)
    if found is None or (parts := split_authority(found["authority"])) is None:
        return None
    scheme, (host, port) = found["scheme"].lower(), parts
    if host.endswith("..") or (host == "." and scheme in DEFAULT_PORTS):
        return None
    host = bare_host(host) or host  # `app://.` is what pages of some apps have
    port = str(int(port)) if port else ""
    return f"{scheme}://{host}" + (f":{port}" if port and port != DEFAULT_PORTS.get(scheme) else "")


def host_of_origin(origin: str) -> str:
    """The host of an origin in its one spelling."""
    parts = split_authority(origin.partition("://")[2])
    return bare_host(parts[0]) if parts else ""


def is_ip_literal(host: str) -> bool:
    """Whether a host, as `split_authority` gives it, is an address: no name that somebody could point elsewhere."""
    try:
        ip_address(host.removeprefix("[").removesuffix("]"))
    except ValueError:
        return False
    return True


def bare_host(host: str) -> str:
    """The host without the dot that ends a name which is meant to be whole."""
    return host.removesuffix(".")
