"""The keys a server starts with: files, a JWKS document in a file, and the local key, which the first start makes."""

from __future__ import annotations

import logging
import os
import secrets
import stat
from pathlib import Path
from typing import Final

from web import wire
from web.keys import HMAC_BYTES_MIN, Key, KeyUnusable, hmac_key, keys_of_jwks, load_key_file
from web.settings import Settings

KEY_FILE: Final = "jwt.key"
"""Name of the local key within the data directory."""

logger = logging.getLogger("avicenna.server")


def load_keys(settings: Settings) -> list[Key]:
    """The keys that are there at start: files, and the local key, which is made if no other is configured.

    Raises:
        KeyUnusable: one of them cannot be used; the message names it.
    """
    keys = [load_key_file(spec) for spec in settings.token_keys]
    secret_files = [spec.path for spec in settings.token_keys if spec.algorithm == "HS256"]
    if settings.jwks is not None and "://" not in settings.jwks:
        keys += _jwks_file(Path(settings.jwks))
    names = [(key.algorithm, key.kid) for key in keys if key.kid is not None]
    if len(set(names)) < len(names):
        raise KeyUnusable("two configured keys have the same algorithm and KID")
    if settings.local_key:
        is_only_one = not settings.token_keys and settings.jwks is None
        secret, created = load_or_create_key(settings.data) if is_only_one else (load_key(settings.data), False)
        if created:
            logger.info("made a new token key in %s", settings.data)
        if secret is not None:
            keys.append(hmac_key(secret))
            secret_files.append(settings.data / KEY_FILE)
    for path in secret_files:
        _warn_unless_private(path)
    return keys


def _warn_unless_private(path: Path) -> None:
    """Whoever can read a secret can make tokens for anybody."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRGRP | stat.S_IROTH):
        logger.warning("the secret key %s can be read by others than its owner (mode %04o): make it 0600", path, mode)


def _jwks_file(path: Path) -> list[Key]:
    try:
        return keys_of_jwks(wire.decode_json(path.read_bytes()))
    except OSError as error:
        raise KeyUnusable(f"cannot read the JWKS file {path}: {error.strerror}") from None
    except (KeyUnusable, ValueError) as refusal:
        raise KeyUnusable(f"the JWKS file {path} cannot be used: {refusal}") from None


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
    key = secrets.token_bytes(HMAC_BYTES_MIN)
    with os.fdopen(descriptor, "wb") as file:
        file.write(key)
        file.flush()
        os.fsync(file.fileno())
    return key, True
