"""Settings that work but are risky, one line each for the log at start. Pure."""

from __future__ import annotations

from ipaddress import IPv6Address, ip_address

from web.contract.origins import NULL
from web.identity.tokens import LOCAL_ALGORITHM
from web.server.settings import Settings


def caution_about_keys(settings: Settings) -> str | None:
    """Public keys are often an identity provider's, who makes tokens for many (RFC 8725 sections 3.8 and 3.9)."""
    has_public_keys = settings.jwks is not None or any(
        spec.algorithm != LOCAL_ALGORITHM for spec in settings.token_keys
    )
    missing = [name for name in ("issuer", "audience") if getattr(settings, name) is None]
    if not has_public_keys or not missing:
        return None
    return (
        f"public keys are configured without {' and '.join(missing)}: tokens that are made with them for somebody "
        f"else are accepted, too; set {' and '.join(missing)}"
    )


def caution_about_origins(settings: Settings) -> str | None:
    """`null` is no page's own origin."""
    if NULL not in settings.allowed_origins:
        return None
    return "allowed_origins has null: it is the origin of every sandboxed page and every file, whoever made it"


def caution_about_listening(settings: Settings, address: str) -> str | None:
    """Without tokens, everybody who reaches the address may follow every diagnosis."""
    if not settings.allow_anonymous or _is_loopback(address):
        return None
    return (
        f"whoever reaches {address} can follow every diagnosis without a token (allow_anonymous): listen on this "
        "machine alone (--host 127.0.0.1), or set allow_anonymous to false"
    )


def _is_loopback(address: str) -> bool:
    parsed = ip_address(address)
    if isinstance(parsed, IPv6Address) and parsed.ipv4_mapped is not None:
        return parsed.ipv4_mapped.is_loopback
    return parsed.is_loopback
