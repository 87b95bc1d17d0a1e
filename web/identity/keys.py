"""The keys tokens are verified with: what a key file, or a JWKS document, holds. No Trio, no network.

A key has one algorithm, fixed here and never taken from a token (RFC 8725 section 3.1), and perhaps a
name (`kid`), which a token must then repeat.
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final

import jwt
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key
from jwt.algorithms import get_default_algorithms

ALGORITHMS: Final = ("HS256", "RS256", "ES256", "EdDSA")

_SIGNATURES: Final = {name: get_default_algorithms()[name] for name in ALGORITHMS}
"""PyJWT's implementation of each algorithm."""

HMAC_BYTES_MIN: Final = 32
"""Length of a key we make, and the least an HS256 key may have (RFC 7518 section 3.2)."""

RSA_BITS_MIN: Final = 2048
"""Least size of an RSA key (RFC 7518 section 3.3)."""

KEY_FILE_BYTES_MAX: Final = 64 * 1024
"""Largest key file. Beyond: refused; it is not one."""

KID_CHARACTERS_MAX: Final = 200
"""Characters of the name of a key. Beyond: refused."""

JWKS_KEYS_MAX: Final = 100
"""Keys of one JWKS document. Beyond: refused; no issuer has so many at once."""


KEYS_TRIED_MAX: Final = 8
"""Keys of one algorithm and name that a token is tried with. Beyond: never tried, and warned about. Reason: whoever
sends a forged token has us verify so many signatures."""

NEVER_TRIED: Final = "%d keys are never tried: no more than %d may have one algorithm and one KID, or no KID"
"""What an operator is told about keys beyond `KEYS_TRIED_MAX`."""


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
    """The secret bytes of HS256, else a public key of `cryptography`; what PyJWT makes of it is used for signatures."""

    def __post_init__(self) -> None:
        """Let PyJWT judge and prepare the key, once: it looks for PEM, DER and JWK in every secret.

        Raises:
            KeyUnusable: it does not take this key for this algorithm.
        """
        try:
            prepared = _SIGNATURES[self.algorithm].prepare_key(self.material)
        except (jwt.PyJWTError, TypeError, ValueError):
            is_secret = self.algorithm == "HS256"
            why = "it is a public key, a certificate or a JWK, and no secret" if is_secret else "it is of another kind"
            raise KeyUnusable(f"it cannot be used with {self.algorithm}: {why}") from None
        object.__setattr__(self, "material", prepared)

    def has_signed(self, signed: bytes, signature: bytes) -> bool:
        """Whether this signature of these bytes was made with the key, or with the private half of it."""
        return _SIGNATURES[self.algorithm].verify(signed, self.material, signature)


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
        self.never_tried = 0
        """Keys beyond `KEYS_TRIED_MAX` of one algorithm and name."""
        for key in keys:
            namesakes = self._keys.setdefault((key.algorithm, key.kid), [])
            if len(namesakes) < KEYS_TRIED_MAX:
                namesakes.append(key)
            else:
                self.never_tried += 1

    def candidates(self, algorithm: str, kid: str | None) -> list[Key]:
        """The keys that may have made a token with this header, `KEYS_TRIED_MAX` at most, in the order given."""
        return self._keys.get((algorithm, kid), [])

    def holds(self, key: object) -> bool:
        """Whether this key, or an equal one, is among them."""
        return isinstance(key, Key) and key in self.candidates(key.algorithm, key.kid)

    def has_name(self, kid: str) -> bool:
        """Whether a key of any algorithm has this name."""
        return any((algorithm, kid) in self._keys for algorithm in ALGORITHMS)


def hmac_key(secret: bytes, kid: str | None = None) -> Key:
    """An HS256 key.

    Raises:
        KeyUnusable: it is too short.
    """
    if len(secret) < HMAC_BYTES_MIN:
        raise KeyUnusable(f"an HS256 key must have at least {HMAC_BYTES_MIN} bytes, this one has {len(secret)}")
    return Key("HS256", kid, secret)


def load_key_file(spec: KeySpec) -> Key:
    """The key an operator configured; of an HS256 file, `secret_of` its content.

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
            return hmac_key(secret_of(content), spec.kid)
        return Key(spec.algorithm, spec.kid, _fitting(_public_key(content), spec.algorithm))
    except KeyUnusable as refusal:
        raise KeyUnusable(f"the key file {spec.path} cannot be used: {refusal}") from None


def secret_of(content: bytes) -> bytes:
    """The secret in a file: a line of printable ASCII without the newline at its end, if blanks do not precede it.

    Any other content counts byte for byte as it stands.
    """
    line = content.removesuffix(b"\n").removesuffix(b"\r")
    is_text = line.isascii() and line.decode("ascii").isprintable() and line == line.rstrip()
    return line if is_text else content


def oddity_of(secret: bytes) -> str | None:
    """What a secret holds that no editor shows, and that its owner may not mean; `None`: nothing."""
    if secret.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE, codecs.BOM_UTF8)):
        return "begins with a byte order mark"
    if _is_text(secret, "utf-16-le", ascii_only=True) or _is_text(secret, "utf-16-be", ascii_only=True):
        return "is UTF-16"
    visible = secret.rstrip()
    if visible != secret and _is_text(visible, "utf-8"):
        return "ends with blanks or newlines"
    return None


def _is_text(content: bytes, encoding: str, *, ascii_only: bool = False) -> bool:
    try:
        text = content.decode(encoding)
    except UnicodeDecodeError:
        return False
    return "".join(text.split()).isprintable() and (text.isascii() or not ascii_only)


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

    Passed over are keys that are not for verifying signatures (`use`, `key_ops`), of other algorithms, and secret
    ones: a set that travels must hold no secret. Several keys may have one `kid`, or none (section 4.5).

    Raises:
        KeyUnusable: it is no JWKS document, it has too many keys, or none that can be used.
    """
    found = document.get("keys") if isinstance(document, dict) else None
    if not isinstance(found, list):
        raise KeyUnusable('a JWKS document must be a JSON object with a list "keys"')
    if len(found) > JWKS_KEYS_MAX:
        raise KeyUnusable(f"a JWKS document must have at most {JWKS_KEYS_MAX} keys, this one has {len(found)}")
    keys = [key for key in map(_key_of_jwk, found) if key is not None]
    if not keys:
        raise KeyUnusable("no key of the JWKS document can be used (RS256, ES256 or EdDSA, for signatures)")
    return keys


_ENCRYPTS: Final = frozenset({"encrypt", "decrypt", "wrapKey", "unwrapKey", "deriveKey", "deriveBits"})
"""Operations of a key that is not for signatures (RFC 7517 section 4.3)."""

_ALGORITHM_OF_TYPE: Final = {"RSA": "RS256", "EC": "ES256", "OKP": "EdDSA"}


def _key_of_jwk(jwk: object) -> Key | None:
    if not isinstance(jwk, dict):
        return None
    algorithm, kid = _ALGORITHM_OF_TYPE.get(str(jwk.get("kty"))), jwk.get("kid")
    if algorithm is None or jwk.get("alg", algorithm) != algorithm or not isinstance(kid, str | None) or "d" in jwk:
        return None
    if not _verifies(jwk) or (kid is not None and len(kid) > KID_CHARACTERS_MAX):
        return None
    try:
        return Key(algorithm, kid, _fitting(jwt.PyJWK(jwk, algorithm).key, algorithm))
    except (jwt.PyJWTError, KeyUnusable, UnsupportedAlgorithm, ValueError, TypeError, LookupError, AttributeError):
        return None


def _verifies(jwk: dict[str, Any]) -> bool:
    """Whether a key is meant to verify signatures (RFC 7517 sections 4.2, 4.3); one that contradicts itself is not."""
    if jwk.get("use", "sig") != "sig":
        return False
    if "key_ops" not in jwk:
        return True
    operations = jwk["key_ops"]
    if not isinstance(operations, list) or not all(isinstance(one, str) for one in operations):
        return False
    if len(set(operations)) < len(operations) or "verify" not in operations:
        return False
    return "use" not in jwk or _ENCRYPTS.isdisjoint(operations)
