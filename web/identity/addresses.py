"""Who is at the other end: the address a request comes from, the host it asks, and whether a page is the server's own.

What a proxy says (`X-Forwarded-For`, `X-Forwarded-Proto`) counts only if the operator trusts that proxy.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from functools import lru_cache
from ipaddress import IPv4Address, IPv4Network, IPv6Address, IPv6Network, ip_address
from typing import Final

from web.contract.exchange import Request
from web.contract.origins import bare_host, is_ip_literal, normal_origin, split_authority

UNIX: Final = "unix"
"""The address of a peer on a Unix socket, and its name in the list of trusted proxies."""

HOPS_MAX: Final = 32
"""Proxies looked at in `X-Forwarded-For`, from the nearest. Reason: the header is the client's to write."""

IPV6_PREFIX: Final = 64
"""Leading bits of an IPv6 address that count. Reason: whoever has one address there has them all."""

_THIS_MACHINE: Final = frozenset({ip_address("127.0.0.1"), ip_address("::1")})

Address = IPv4Address | IPv6Address
Proxy = IPv4Network | IPv6Network | str
"""A trusted network, or `UNIX`."""


def address_of(asked: Request, trusted: Sequence[Proxy]) -> str:
    """The client's address: the peer's or, behind trusted proxies, the last one they do not vouch for."""
    return client_address(asked.peer, ",".join(asked.headers.getlist("X-Forwarded-For")), trusted)


def client_address(peer: str, forwarded_for: str, trusted: Sequence[Proxy]) -> str:
    """The client's address, from the socket's peer and what proxies have written, right to left.

    An IPv6 address counts as its /64.
    """
    found = _parsed(peer)
    if not _is_trusted(found, trusted) or not forwarded_for:
        return _named(found)
    for hop in reversed(forwarded_for.rsplit(",", HOPS_MAX)[-HOPS_MAX:]):
        heard = _parsed(_without_port(hop.strip()))
        if heard is None:
            break
        found = heard
        if not _is_trusted(found, trusted):
            break
    return _named(found)


@lru_cache(maxsize=1000)
def sharing_address(peer: str, trusted: tuple[Proxy, ...]) -> str | None:
    """The address whose share of all connections a peer takes up.

    `None`: no share counts. This machine and trusted proxies have no limit: they stand for others.
    """
    found = _parsed(peer)
    return None if found is None or found in _THIS_MACHINE or _is_trusted(found, trusted) else _named(found)


def is_own_origin(origin: str, asked: Request, public_url: str | None, trusted: Sequence[Proxy]) -> bool:
    """Whether a page of this origin is the server's own (RFC 6454): same scheme, host and port.

    Args:
        public_url: in the one spelling of an origin.
    """
    found = normal_origin(origin)
    if found is None or public_url is not None:
        return found is not None and found == public_url
    scheme = "http"
    if _is_trusted(_parsed(asked.peer), trusted) and asked.headers.get("X-Forwarded-Proto", "") == "https":
        scheme = "https"
    return found == normal_origin(f"{scheme}://{asked.headers.get('Host', '')}")


def asks_known_host(asked: Request, names: Container[str], trusted: Sequence[Proxy]) -> bool:
    """Whether the host a request asks is an address or one of these names, or a proxy answers for it.

    A page whose name somebody has pointed at this server names its own host (DNS rebinding).
    """
    peer = _parsed(asked.peer)
    if peer is None or _is_trusted(peer, trusted):
        return True
    parts = split_authority(asked.headers.get("Host", ""))
    return parts is not None and (is_ip_literal(host := bare_host(parts[0])) or host in names)


def is_trusted_peer(peer: str, trusted: Sequence[Proxy]) -> bool:
    """Whether the socket's peer is a proxy that the operator trusts."""
    return _is_trusted(_parsed(peer), trusted)


def _parsed(text: str) -> Address | None:
    """`None`: a Unix socket, or no address."""
    try:
        address = ip_address(text)
    except ValueError:
        return None
    if isinstance(address, IPv6Address) and address.ipv4_mapped is not None:
        return address.ipv4_mapped
    return address


def _without_port(text: str) -> str:
    if text.startswith("["):
        return text[1:].partition("]")[0]
    return text.partition(":")[0] if text.count(":") == 1 else text


def _is_trusted(address: Address | None, trusted: Sequence[Proxy]) -> bool:
    if address is None:
        return UNIX in trusted
    return any(not isinstance(network, str) and address in network for network in trusted)


def _named(address: Address | None) -> str:
    if isinstance(address, IPv6Address):
        return str(IPv6Network((int(address) >> (128 - IPV6_PREFIX) << (128 - IPV6_PREFIX), IPV6_PREFIX)))
    return UNIX if address is None else str(address)
