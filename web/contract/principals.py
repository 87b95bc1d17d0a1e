"""Who speaks: what a verified token says, and nobody. Pure."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final


@dataclass(frozen=True, slots=True)
class Principal:
    """The person or service a token stands for, or somebody anonymous."""

    sub: str | None
    """The subject of the token; `None`: anonymous."""
    scopes: frozenset[str] = frozenset()
    expires_at: float | None = None
    """`exp` in seconds since the Unix epoch; `None`: anonymous."""
    token_id: str | None = None
    """The token's `jti`."""
    issued_at: float | None = None
    """The token's `iat`."""
    key: object = field(default=None, repr=False, compare=False)
    """What the token was made with (`web.identity.keys.Key`); `None`: anonymous."""

    def has(self, *scopes: str) -> bool:
        """Whether the token carries any of these scopes."""
        return not self.scopes.isdisjoint(scopes)


ANONYMOUS: Final = Principal(None)
"""Somebody without a token."""
