"""Tokens: making and verifying JWTs, and keeping the local key (RFC 7519, PROTOCOL section 9).

No Trio; the time is an argument.
"""

from __future__ import annotations

import os
import secrets
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import jwt

TOKEN_BYTES_MAX: Final = 7 * 1024
"""Longest token that is looked at, wherever it travels. Beyond: invalid."""

LEEWAY_SECONDS: Final = 10
"""Tolerated difference between the issuer's clock and ours."""

KEY_BYTES: Final = 32
"""Length of a key we make, and the least a key may have (RFC 7518 section 3.2)."""

KEY_FILE: Final = "jwt.key"
"""Name of the local key within the data directory."""

ALGORITHM: Final = "HS256"


class TokenError(Exception):
    """A token that is not accepted; its text never holds any of it."""


class TokenInvalid(TokenError):
    """Malformed, forged, not yet valid, or lacking a claim."""


class TokenExpired(TokenError):
    """Genuine, but past `exp` and leeway."""


@dataclass(frozen=True, slots=True)
class Principal:
    """Who is speaking."""

    sub: str | None
    """The subject of the token; `None`: anonymous."""
    scopes: frozenset[str] = frozenset()
    expires_at: float | None = None
    """`exp` in seconds since the Unix epoch; `None`: anonymous."""
    token_id: str | None = None
    """The token's `jti`."""
    issued_at: float | None = None
    """The token's `iat`."""

    def has(self, *scopes: str) -> bool:
        """Whether the token carries any of these scopes."""
        return not self.scopes.isdisjoint(scopes)


ANONYMOUS: Final = Principal(None)


class Verifier:
    """Turns tokens into principals."""

    def __init__(self, key: bytes, *, issuer: str | None = None, audience: str | None = None) -> None:
        """Accept HS256 tokens made with `key`.

        Args:
            key: at least `KEY_BYTES` bytes.
            issuer: the only accepted `iss`, `None`: not checked.
            audience: the only accepted `aud`, `None`: not checked.

        Raises:
            ValueError: the key is too short.
        """
        if len(key) < KEY_BYTES:
            raise ValueError(f"the HS256 key must have at least {KEY_BYTES} bytes, it has {len(key)}")
        self._key = key
        self._issuer = issuer
        self._audience = audience

    def verify(self, token: str, now: float) -> Principal:
        """Whose token this is.

        Raises:
            TokenExpired: it was genuine, but its time is over.
            TokenInvalid: anything else is wrong with it.
        """
        if len(token) > TOKEN_BYTES_MAX:
            raise TokenInvalid("the token is too long")
        try:
            claims = jwt.decode(
                token,
                self._key,
                algorithms=[ALGORITHM],
                issuer=self._issuer,
                audience=self._audience,
                options={
                    "require": ["sub", "exp"],
                    "verify_aud": self._audience is not None,
                    # Times are judged below, against the time given.
                    "verify_exp": False,
                    "verify_nbf": False,
                    "verify_iat": False,
                },
            )
        except (jwt.PyJWTError, ValueError) as error:
            raise TokenInvalid("the token is not valid") from error
        return _principal(claims, now)


def _principal(claims: dict[str, object], now: float) -> Principal:
    sub, scope, token_id = claims["sub"], claims.get("scope", ""), claims.get("jti")
    if not isinstance(sub, str) or not sub or not isinstance(scope, str) or not isinstance(token_id, str | None):
        raise TokenInvalid("a claim of the token has the wrong type")
    expires_at, issued_at = _time(claims, "exp"), _time(claims, "iat")
    not_before = _time(claims, "nbf")
    if expires_at is None or (not_before is not None and not_before > now + LEEWAY_SECONDS):
        raise TokenInvalid("the token is not valid at this time")
    if expires_at + LEEWAY_SECONDS <= now:
        raise TokenExpired("the token has expired")
    return Principal(sub, frozenset(scope.split()), expires_at, token_id, issued_at)


def _time(claims: dict[str, object], name: str) -> int | None:
    value = claims.get(name)
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**53:
        raise TokenInvalid(f"{name} must be whole seconds")
    return value


def issue(key: bytes, *, sub: str, scope: str, ttl_seconds: int, now: float, token_id: str) -> str:
    """A signed token with `sub`, `scope`, `iat`, `exp` and `jti`."""
    issued_at = int(now)
    claims = {"sub": sub, "scope": scope, "iat": issued_at, "exp": issued_at + ttl_seconds, "jti": token_id}
    return jwt.encode(claims, key, algorithm=ALGORITHM)


def load_key(directory: Path) -> bytes | None:
    """The local key in a data directory, `None` if there is none yet."""
    try:
        return (directory / KEY_FILE).read_bytes()
    except FileNotFoundError:
        return None


def load_or_create_key(directory: Path) -> tuple[bytes, bool]:
    """The local key in a data directory, and whether it was made just now (0600, in a 0700 directory)."""
    directory.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        descriptor = os.open(directory / KEY_FILE, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    except FileExistsError:
        return (directory / KEY_FILE).read_bytes(), False
    key = secrets.token_bytes(KEY_BYTES)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key, True
