"""The keys tokens are verified with: what a key file, or a JWKS document, holds. No Trio, no network.

A key has one algorithm, fixed here and never taken from a token (RFC 8725 section 3.1), and perhaps a
name (`kid`), which a token must then repeat.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")

HMAC_BYTES_MIN: Final = 32
"""Length of a key we make, and the least an HS256 key may have (RFC 7518 section 3.2)."""

RSA_BITS_MIN: Final = 2048
"""Least size of an RSA key (RFC 7518 section 3.3)."""

KEY_FILE_BYTES_MAX: Final = 64 * 1024
"""Largest key file. Beyond: refused; it is not one."""

KID_CHARACTERS_MAX: Final = 200

JWKS_KEYS_MAX: Final = 100
"""Keys of one JWKS document. Beyond: refused; no issuer has so many at once."""


class KeyUnusable(Exception):
    """A key that cannot be used; the text says why, and holds nothing of it."""


@dataclass(frozen=True, slots=True)
class Key:
    """One key."""

    algorithm: str
    """One of `ALGORITHMS`."""
    kid: str | None
    """Its name; `None`: it verifies tokens that name no key."""
    material: Any = field(repr=False)
    """The secret bytes of HS256, else a public key of `cryptography`."""


@dataclass(frozen=True, slots=True)
class KeySpec:
    """A key file as the operator names it: `ALGORITHM:FILE` or `ALGORITHM:FILE#KID`."""

    algorithm: str
    path: Path
    kid: str | None

    def __str__(self) -> str:
        return f"{self.algorithm}:{self.path}" + ("" if self.kid is None else f"#{self.kid}")


class KeySet:
    """Keys, found by what a token's header names."""

    def __init__(self, keys: Iterable[Key]) -> None:
        self._keys: dict[tuple[str, str | None], list[Key]] = {}
        for key in keys:
            self._keys.setdefault((key.algorithm, key.kid), []).append(key)

    def candidates(self, algorithm: str, kid: str | None) -> list[Key]:
        """The keys that may have made a token with this header; more than one only where none has a name."""
        return self._keys.get((algorithm, kid), [])


def hmac_key(secret: bytes, kid: str | None = None) -> Key:
    """An HS256 key.

    Raises:
        KeyUnusable: it is too short.
    """
    if len(secret) < HMAC_BYTES_MIN:
        raise KeyUnusable(f"an HS256 key must have at least {HMAC_BYTES_MIN} bytes, this one has {len(secret)}")
    return Key("HS256", kid, secret)


def load_key_file(spec: KeySpec) -> Key:
    """The key an operator configured.

    A file of printable ASCII holds an HS256 secret as text, and the newline at its end is not part of
    it; any other content is the secret as it stands.

    Raises:
        KeyUnusable: the file cannot be read, or holds no such key.
    """
    try:
        with spec.path.open("rb") as file:
            content = file.read(KEY_FILE_BYTES_MAX + 1)
    except OSError as error:
        raise KeyUnusable(f"cannot read the key file {spec.path}: {error.strerror}") from None
    if len(content) > KEY_FILE_BYTES_MAX:
        raise KeyUnusable(f"the key file {spec.path} must have at most {KEY_FILE_BYTES_MAX} bytes")
    try:
        if spec.algorithm == "HS256":
            line = content.removesuffix(b"\n").removesuffix(b"\r")
            is_text = line.isascii() and line.decode("ascii").isprintable()
            return hmac_key(line if is_text else content, spec.kid)
        return Key(spec.algorithm, spec.kid, _fitting(_public_key(content), spec.algorithm))
    except KeyUnusable as refusal:
        raise KeyUnusable(f"the key file {spec.path} cannot be used: {refusal}") from None


def _public_key(pem: bytes) -> object:
    try:
        return load_pem_public_key(pem)
    except (ValueError, UnsupportedAlgorithm):
        raise KeyUnusable("it must hold a public key in PEM form (-----BEGIN PUBLIC KEY-----)") from None


def _fitting(material: object, algorithm: str) -> object:
    """The key, if it is of the kind the algorithm needs."""
    match algorithm, material:
        case "RS256", rsa.RSAPublicKey(key_size=bits):
            if bits < RSA_BITS_MIN:
                raise KeyUnusable(f"an RSA key must have at least {RSA_BITS_MIN} bits, this one has {bits}")
        case "ES256", ec.EllipticCurvePublicKey(curve=ec.SECP256R1()):
            pass
        case "EdDSA", ed25519.Ed25519PublicKey() | ed448.Ed448PublicKey():
            pass
        case _:
            raise KeyUnusable(f"it holds no {algorithm} key")
    return material


def keys_of_jwks(document: object) -> list[Key]:
    """The public keys of a JWKS document (RFC 7517) that can be used here; others are passed over.

    Passed over are keys for encryption, of other algorithms, and secret ones: a set that travels must
    hold no secret.

    Raises:
        KeyUnusable: it is no JWKS document, it has too many keys, or none that can be used.
    """
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise KeyUnusable('a JWKS document must be a JSON object with a list "keys"')
    if len(found) > JWKS_KEYS_MAX:
        raise KeyUnusable(f"a JWKS document must have at most {JWKS_KEYS_MAX} keys, this one has {len(found)}")
    keys = {(key.algorithm, key.kid): key for key in map(_key_of_jwk, found) if key is not None}
    if not keys:
        raise KeyUnusable("no key of the JWKS document can be used (RS256, ES256 or EdDSA, for signatures)")
    return list(keys.values())


_ALGORITHM_OF_TYPE: Final = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}


def _key_of_jwk(jwk: object) -> Key | None:
    if not isinstance(jwk, dict):
        return None
    algorithm, kid = _ALGORITHM_OF_TYPE.get(str(jwk.get("kty"))), jwk.get("kid")
    if algorithm is None or jwk.get("alg", algorithm) != algorithm or not isinstance(kid, str | None) or "d" in jwk:
        return None
    if jwk.get("use", "sig") != "sig" or (kid is not None and len(kid) > KID_CHARACTERS_MAX):
        return None
    try:
        return Key(algorithm, kid, _fitting(jwt.PyJWK(jwk, algorithm).key, algorithm))
    except (jwt.PyJWTError, KeyUnusable, UnsupportedAlgorithm, ValueError, TypeError, LookupError, AttributeError):
        return None
