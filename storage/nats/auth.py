"""Who we are for a NATS server: an nkey seed, or a `.creds` file with a user's JWT and its seed.

A server that knows its users by key sends a nonce; whoever signs it has the seed, which never leaves this process.
Nothing here shows a seed, a JWT or a part of one, in a message or as a representation.
"""

from __future__ import annotations

import base64
import binascii
import re
from typing import Final

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from storage.nats.errors import BadCredentials

_SEED: Final = 18 << 3
_USER: Final = 20 << 3
"""The kinds of nkeys that are used here; the first is in the five high bits of a first byte."""

_SEED_BYTES: Final = 2 + 32 + 2
"""The kinds, the seed itself, and its checksum."""

_BLOCK: Final = re.compile(r"-{3,}\s*BEGIN ([A-Z ]+?)\s*-{3,}\s+([\w.=-]+)\s+-{3,}\s*END \1\s*-{3,}")


class Credentials:
    """A user of a NATS server, and the means to prove to be it."""

    __slots__ = ("_jwt", "_key", "_public")

    def __init__(self, seed: str, jwt: str | None = None) -> None:
        """The user whose nkey seed this is.

        Args:
            jwt: says what it may, where the server does not know that itself.

        Raises:
            BadCredentials: it is no seed of a user.
        """
        self._key = _key_of(seed)
        self._public = _nkey(self._key.public_key().public_bytes_raw())
        self._jwt = jwt

    def answer(self, nonce: str) -> dict[str, str]:
        """What CONNECT says about the user, having signed the nonce of the server."""
        signature = base64.urlsafe_b64encode(self._key.sign(nonce.encode())).decode().rstrip("=")
        return {"sig": signature} | ({"nkey": self._public} if self._jwt is None else {"jwt": self._jwt})

    def __repr__(self) -> str:
        return "<credentials of a NATS user>"


def credentials_of_file(text: str) -> Credentials:
    """The user of a `.creds` file, by what it holds.

    Raises:
        BadCredentials: it does not hold a JWT and the seed of a user.
    """
    blocks = dict(_BLOCK.findall(text))
    try:
        return Credentials(blocks["USER NKEY SEED"], blocks["NATS USER JWT"])
    except KeyError as missing:
        raise BadCredentials(f"the file has no block {missing}") from None


def _key_of(seed: str) -> Ed25519PrivateKey:
    text = seed.strip()
    try:
        raw = base64.b32decode(text + "=" * (-len(text) % 8))
    except (binascii.Error, ValueError):
        raise BadCredentials("it is no nkey seed: it begins with SU, and has 58 capital letters and digits") from None
    if len(raw) != _SEED_BYTES or _checksum(raw[:-2]) != raw[-2:]:
        raise BadCredentials("it is no whole nkey seed: its checksum is wrong")
    # Five bits say "seed", the next five of whom.
    if raw[0] & 0xF8 != _SEED or (raw[0] & 0x07) << 5 | (raw[1] & 0xF8) >> 3 != _USER:
        raise BadCredentials("it is an nkey, but not the seed of a user, which begins with SU")
    return Ed25519PrivateKey.from_private_bytes(raw[2:-2])


def _nkey(public: bytes) -> str:
    """The public nkey of a user."""
    raw = bytes([_USER]) + public
    return base64.b32encode(raw + _checksum(raw)).decode().rstrip("=")


def _checksum(data: bytes) -> bytes:
    """CRC-16 as XMODEM has it, the least significant byte first."""
    return binascii.crc_hqx(data, 0).to_bytes(2, "little")
