"""Tokens: verifying JWTs and making them (RFC 7519, PROTOCOL section 9).

No Trio; the time is an argument. The JSON inside a token is read here and not in `web.contract.wire`: it is
judged more strictly (a repeated name is refused, RFC 7519 section 4), and nobody else may look at it.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from base64 import urlsafe_b64decode
from collections.abc import Iterable
from functools import lru_cache
from typing import Any, Final

import jwt

from web.contract.principals import Principal
from web.contract.records import SUB_CHARACTERS_MAX, is_name
from web.identity.keys import ALGORITHMS, KID_CHARACTERS_MAX, Key, KeySet
from web.identity.revoked import Revoked
from web.identity.unknown_keys import KeyName, UnknownKeys

TOKEN_BYTES_MAX: Final = 7 * 1024
"""Longest token that is looked at, wherever it travels. Beyond: invalid."""

LEEWAY_SECONDS: Final = 10
"""Tolerated difference between the issuer's clock and ours."""

LIFETIME_SECONDS_MAX: Final = 30 * 86_400
"""Default of the longest life of a token. Beyond: invalid. Reason: a revocation must be kept for as long."""

VERIFIED_TOKENS_MAX: Final = 1024
"""Verified tokens whose claims are remembered, the ones seen last. Beyond: verified again, 25 us each."""

SCOPE_TEXTS_MAX: Final = 256
"""Texts of scopes whose sets are shared. Beyond: all are made anew."""

HEADERS_MAX: Final = 64
"""Headers of tokens that are remembered. Reason: all tokens of one key have the same. Beyond: read anew."""

LOCAL_ALGORITHM: Final = "HS256"

_COMPACT: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.[A-Za-z0-9_-]+")

_LAST_CHARACTERS: Final = {0: "", 2: "AQgw", 3: "AEIMQUYcgkosw048"}
"""How base64url may end that has so many characters beyond groups of four: its spare bits are zero."""

_NAME_RULE: Final = f"must be a text of 1-{SUB_CHARACTERS_MAX} characters, none a control character"


class TokenError(Exception):
    """A token that is not accepted; its text says why, is for the log, and never holds any of it."""


class TokenInvalid(TokenError):
    """Malformed, forged, not yet valid, or lacking a claim."""


class TokenExpired(TokenError):
    """Genuine, but past `exp` and leeway."""


class TokenRevoked(TokenError):
    """Genuine, but revoked by an operator.

    Args:
        covers_until: it says that it was issued after the revocation, and is covered for the leeway between two clocks
            alone: one with a later `iat` than this time is not. `None`: it was issued before.
    """

    def __init__(self, covers_until: float | None = None) -> None:
        super().__init__("the token has been revoked")
        self.covers_until = covers_until


class KeysMissing(TokenError):
    """It may be genuine: the source of keys has not been asked yet for the key it names. Try again soon."""


def issued_at_of(who: Principal, now: float) -> float | None:
    """When the token of somebody was issued who has presented it before, in seconds since the Unix epoch.

    `None`: it does not say, or in the future. Such a token is refused when it is presented, so the clock was set back
    since: it is older than any revocation.
    """
    return None if who.issued_at is not None and who.issued_at > now + LEEWAY_SECONDS else who.issued_at


class Verifier:
    """Turns tokens into principals."""

    def __init__(
        self,
        keys: Iterable[Key],
        revoked: Revoked,
        *,
        issuer: str | None = None,
        audience: str | None = None,
        lifetime_seconds_max: int = LIFETIME_SECONDS_MAX,
        unknown: UnknownKeys | None = None,
    ) -> None:
        """Accept tokens made with `keys`.

        Args:
            revoked: what operators have revoked; read at every use.
            issuer: the only accepted `iss`, `None`: not checked.
            audience: the only accepted `aud`, `None`: not checked.
            lifetime_seconds_max: longest time from `iat` (without one: from now) to `exp`.
            unknown: what more keys may come from a JWKS URL (`take_fetched`); `None`: none will.
        """
        self._configured = tuple(keys)
        self._fetched: tuple[Key, ...] = ()
        self._keys = KeySet(self._configured)
        self._revoked = revoked
        self._issuer = issuer
        self._audience = audience
        self._lifetime_seconds_max = lifetime_seconds_max
        self._unknown = unknown
        self._verified: dict[bytes, Principal] = {}
        """By digest of the token, the one seen longest ago first. A digest is a tenth of its token's size, and no token
        lies in memory for longer than it is needed."""
        self._scopes: dict[str, frozenset[str]] = {}
        """One set for all principals with the same scopes."""

    def verify(self, token: str, now: float) -> Principal:
        """Whose token this is.

        Raises:
            TokenExpired: it was genuine, but its time is over.
            TokenRevoked: it is genuine, but was revoked.
            KeysMissing: it cannot be judged yet.
            TokenInvalid: anything else is wrong with it.
        """
        digest = _digest(token)
        who = self._verified.pop(digest, None)
        if who is not None:
            self._verified[digest] = who
            self.check(who, now)
            return who
        who = self._read(token, now)
        self.check(who, now)
        self._verified[digest] = who
        if len(self._verified) > VERIFIED_TOKENS_MAX:
            del self._verified[next(iter(self._verified))]
        return who

    def check(self, who: Principal, now: float) -> None:
        """See that somebody verified before is still accepted.

        Raises:
            TokenExpired, TokenRevoked: not any more.
            TokenInvalid: the key of the token has been withdrawn.
        """
        if who.key is not None and not self._keys.holds(who.key):
            raise TokenInvalid("its key has been withdrawn")
        if who.expires_at is not None and who.expires_at + LEEWAY_SECONDS <= now:
            raise TokenExpired("the token has expired")
        issued_at = issued_at_of(who, now)
        revocation = self._revoked.covering(who.sub, who.token_id, issued_at)
        if revocation is not None:
            by_leeway = revocation.sub is not None and issued_at is not None and issued_at > revocation.at
            raise TokenRevoked(revocation.covers_until if by_leeway else None)

    def unknown_key_of(self, token: str) -> KeyName | None:
        """The key a well-formed token names that is not known, but may come from the JWKS URL; `None`: no such."""
        if self._unknown is None or _digest(token) in self._verified:
            return None
        try:
            named = _header_of(token)
        except TokenInvalid:
            return None
        return named if self._may_come(named) else None

    def take_fetched(self, keys: Iterable[Key]) -> None:
        """Accept these keys of a JWKS URL from now on, beside the configured ones, and no fetched before."""
        self._fetched = tuple(keys)
        self._take_all()

    def take_configured(self, keys: Iterable[Key]) -> None:
        """Accept these configured keys from now on, beside those of the JWKS URL, and no configured before."""
        self._configured = tuple(keys)
        self._take_all()

    def _take_all(self) -> None:
        self._keys = KeySet((*self._configured, *self._fetched))
        self._verified.clear()

    @property
    def keys_never_tried(self) -> int:
        """Keys that are never tried: too many others of the same algorithm and name come first."""
        return self._keys.never_tried

    def _may_come(self, key: KeyName) -> bool:
        """Whether a key that is not known may be one that the JWKS URL has by now.

        A JWKS document holds no secrets, so a token that wants HS256 with the name of a public key is forged.
        """
        algorithm, kid = key
        if algorithm not in ALGORITHMS or self._keys.candidates(algorithm, kid):
            return False
        if kid is not None and len(kid) > KID_CHARACTERS_MAX:
            return False
        return algorithm != LOCAL_ALGORITHM or (kid is not None and not self._keys.has_name(kid))

    def _read(self, token: str, now: float) -> Principal:
        named = _header_of(token)
        candidates = self._keys.candidates(*named)
        signed, _, signature = token.rpartition(".")
        for key in candidates:
            if key.has_signed(signed.encode("ascii"), _bytes_of(signature)):
                return self._principal(_object_of(_bytes_of(signed.partition(".")[2])), key, now)
        if self._unknown is not None and self._may_come(named) and not self._unknown.is_absent(named):
            raise KeysMissing("its source of keys has not been asked yet for the key it names")
        raise TokenInvalid(
            "its signature does not fit its key" if candidates else "no key known here has its kid and alg"
        )

    def _principal(self, claims: dict[str, Any], key: Key, now: float) -> Principal:
        sub, scope, token_id = claims.get("sub"), claims.get("scope", ""), claims.get("jti")
        if not is_name(sub):
            raise TokenInvalid(f"sub {_NAME_RULE}")
        if token_id is not None and not is_name(token_id):
            raise TokenInvalid(f"jti {_NAME_RULE}")
        if not isinstance(scope, str):
            raise TokenInvalid("scope must be a text")
        if self._issuer is not None and claims.get("iss") != self._issuer:
            raise TokenInvalid("iss is another issuer's")
        audiences = claims.get("aud")
        if self._audience is not None and self._audience not in (
            audiences if isinstance(audiences, list) else [audiences]
        ):
            raise TokenInvalid("aud names somebody else")
        expires_at, issued_at, not_before = (_time(claims, name) for name in ("exp", "iat", "nbf"))
        if expires_at is None:
            raise TokenInvalid("exp is missing")
        # A token from the future could outlive both the cap and a revocation of its subject.
        if any(begin is not None and begin > now + LEEWAY_SECONDS for begin in (not_before, issued_at)):
            raise TokenInvalid("nbf or iat is in the future")
        begins_at = now + LEEWAY_SECONDS if issued_at is None else issued_at
        if expires_at - begins_at > self._lifetime_seconds_max:
            raise TokenInvalid(f"it lives for more than {self._lifetime_seconds_max} s")
        return Principal(sub, self._scopes_of(scope), expires_at, token_id, issued_at, key)

    def _scopes_of(self, scope: str) -> frozenset[str]:
        scopes = self._scopes.get(scope)
        if scopes is None:
            if len(self._scopes) >= SCOPE_TEXTS_MAX:
                self._scopes.clear()
            scopes = self._scopes[scope] = frozenset(scope.split())
        return scopes


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode("utf-8", "surrogatepass")).digest()


def _header_of(token: str) -> KeyName:
    """Algorithm and key id a token names; neither is trusted: they only choose among the keys known here."""
    if len(token) > TOKEN_BYTES_MAX:
        raise TokenInvalid(f"it has more than {TOKEN_BYTES_MAX} bytes")
    if (parts := _COMPACT.fullmatch(token)) is None:
        raise TokenInvalid("it is not three parts of base64url")
    return _named_in(parts[1])


@lru_cache(maxsize=HEADERS_MAX)
def _named_in(part: str) -> KeyName:
    header = _object_of(_bytes_of(part))
    algorithm, kid = header.get("alg"), header.get("kid")
    if not isinstance(algorithm, str) or not isinstance(header.get("kid", ""), str):
        raise TokenInvalid("alg and kid of its header must be texts")
    if "crit" in header or "b64" in header:
        raise TokenInvalid("its header has crit or b64, which are not understood here")
    if "typ" in header and not _is_type(header["typ"]):
        raise TokenInvalid("typ of its header must be JWT or end in at+jwt")
    return algorithm, kid


def _is_type(typ: object) -> bool:
    """Whether `typ` names a token for a server like this one (RFC 8725 section 3.11, RFC 9068 section 2.1)."""
    return isinstance(typ, str) and (typ.lower() == "jwt" or typ.lower().endswith("at+jwt"))


def _bytes_of(part: str) -> bytes:
    """What a part of a token encodes. Each value has one encoding, without padding and spare bits (RFC 7515 section 2).

    Args:
        part: characters of base64url.
    """
    ends_with = _LAST_CHARACTERS.get(len(part) % 4)
    if ends_with is None:
        raise TokenInvalid("a part of it is not base64url")
    if ends_with and part[-1] not in ends_with:
        raise TokenInvalid("a part of it is not base64url as an encoder writes it")
    return urlsafe_b64decode(part + "=" * (-len(part) % 4))


def _object_of(text: bytes) -> dict[str, Any]:
    """A JSON object whose names occur once each, at every level, and whose numbers are finite."""
    try:
        value = _STRICT.decode(text.decode())
    except (ValueError, RecursionError):
        raise TokenInvalid("it holds no proper JSON, or a name twice") from None
    if not isinstance(value, dict):
        raise TokenInvalid("it holds no JSON object")
    return value


def _without_repeats(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse(constant: str) -> None:
    raise ValueError(constant)


def _finite(text: str) -> float:
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(text)
    return number


_STRICT: Final = json.JSONDecoder(object_pairs_hook=_without_repeats, parse_constant=_refuse, parse_float=_finite)


def _time(claims: dict[str, Any], name: str) -> int | None:
    """Seconds since the Unix epoch. An encoder may write them with a fraction of zero, or with an exponent."""
    value = claims.get(name)
    if value is None:
        return None
    is_whole = isinstance(value, int) or (isinstance(value, float) and value.is_integer())
    if isinstance(value, bool) or not is_whole or not 0 <= value < 2**53:
        raise TokenInvalid(f"{name} must be whole seconds")
    return int(value)


def issue(
    key: bytes, *, sub: str, scope: str, ttl_seconds: int, now: float, token_id: str, kid: str | None = None
) -> str:
    """A signed HS256 token with `sub`, `scope`, `iat`, `exp` and `jti`; `kid` names the key if it has a name."""
    issued_at = int(now)
    claims = {"sub": sub, "scope": scope, "iat": issued_at, "exp": issued_at + ttl_seconds, "jti": token_id}
    return jwt.encode(claims, key, algorithm=LOCAL_ALGORITHM, headers=None if kid is None else {"kid": kid})
