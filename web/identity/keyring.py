"""The keys a server starts with: files, a JWKS document in a file, and the local key, which the first start makes."""

from __future__ import annotations

import errno
import logging
import os
import secrets
import shlex
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Final, Protocol

from storage.disk import files
from web.contract import wire
from web.identity.keys import (
    HMAC_BYTES_MIN,
    KEY_FILE_BYTES_MAX,
    KEYS_TRIED_MAX,
    NEVER_TRIED,
    Key,
    KeySet,
    KeySpec,
    KeyUnusable,
    hmac_key,
    keys_of_jwks,
    load_key_file,
    oddity_of,
)

KEY_FILE: Final = "jwt.key"
"""Name of the local key within the data directory."""
logger = logging.getLogger("avicenna.server")


class Sources(Protocol):
    """The settings that say where keys are (docs/SETTINGS.md)."""

    @property
    def data(self) -> Path: ...

    @property
    def token_keys(self) -> Sequence[KeySpec]: ...

    @property
    def jwks(self) -> str | None: ...

    @property
    def local_key(self) -> bool: ...

    @property
    def shares_engine(self) -> bool: ...


def will_make_key(sources: Sources) -> bool:
    """Whether `load_keys` makes the local key."""
    return _needs_local_key(sources) and not (sources.data / KEY_FILE).exists()


def see_that_keys_are_given(sources: Sources) -> None:
    """Refuse to make a key where other servers would not accept what is made with it.

    Raises:
        KeyUnusable: no key is configured, and there is none.
    """
    if sources.shares_engine and will_make_key(sources):
        path = shlex.quote(str(sources.data / KEY_FILE))
        raise KeyUnusable(
            "with engine = nats all servers need the same keys: set token_keys or jwks, or put one jwt.key into the "
            f"data directory of each, made once: (umask 077; mkdir -p {shlex.quote(str(sources.data))}; "
            f"head -c {HMAC_BYTES_MIN} /dev/urandom > {path})"
        )


def _needs_local_key(sources: Sources) -> bool:
    return sources.local_key and not sources.token_keys and sources.jwks is None


def load_keys(sources: Sources) -> list[Key]:
    """The keys that are there at start: files, and the local key, which is made if no other is configured.

    Keys that work but look wrong are one warning line each.

    Raises:
        KeyUnusable: one of them cannot be used, and the message names it; or two have the same algorithm and `KID`.
    """
    keys = [load_key_file(spec) for spec in sources.token_keys]
    secrets_of_files = [
        (spec.path, key) for spec, key in zip(sources.token_keys, keys, strict=True) if spec.algorithm == "HS256"
    ]
    names = [(key.algorithm, key.kid) for key in keys if key.kid is not None]
    if len(set(names)) < len(names):
        raise KeyUnusable("two configured keys have the same algorithm and KID")
    if sources.jwks is not None and "://" not in sources.jwks:
        keys += _jwks_file(Path(sources.jwks))
    if sources.local_key:
        is_needed = _needs_local_key(sources)
        try:
            secret, created = load_or_create_key(sources.data) if is_needed else (load_key(sources.data), False)
        except PermissionError as error:
            raise _forbidden(error, sources.data) from None
        if created:
            logger.info("made a new token key in %s", sources.data)
        if secret is not None:
            local = hmac_key(secret)
            keys.append(local)
            if not created:
                secrets_of_files.append((sources.data / KEY_FILE, local))
    for path, key in secrets_of_files:
        _warn_unless_private(path)
        if (oddity := oddity_of(key.material)) is not None:
            logger.warning("the key file %s %s: it counts byte for byte as it stands", path, oddity)
    if never_tried := KeySet(keys).never_tried:
        logger.warning(NEVER_TRIED, never_tried, KEYS_TRIED_MAX)
    return keys


def _forbidden(error: PermissionError, directory: Path) -> KeyUnusable:
    path = str(directory / KEY_FILE)
    own = shlex.join(("chown", str(os.getuid()), path))
    return KeyUnusable(f"cannot read {path}: {error.strerror}; it must belong to the user that runs the server: {own}")


def _warn_unless_private(path: Path) -> None:
    """Anybody who can read or write a secret can make tokens for anybody."""
    mode = stat.S_IMODE(path.stat().st_mode)
    if mode & (stat.S_IRGRP | stat.S_IROTH | stat.S_IWGRP | stat.S_IWOTH):
        done = "written" if mode & (stat.S_IWGRP | stat.S_IWOTH) else "read"
        logger.warning(
            "the secret key %s can be %s by others than its owner (mode %s): make it 0600", path, done, f"{mode:04o}"
        )


def _jwks_file(path: Path) -> list[Key]:
    try:
        return keys_of_jwks(wire.decode_json(path.read_bytes()))
    except OSError as error:
        raise KeyUnusable(f"cannot read the JWKS file {path}: {error.strerror}") from None
    except (KeyUnusable, ValueError) as refusal:
        raise KeyUnusable(f"the JWKS file {path} cannot be used: {refusal}") from None


def load_key(directory: Path) -> bytes | None:
    """The local key in a data directory, `None` if there is none yet.

    Raises:
        KeyUnusable: there is a file, and no key in it.
        OSError: it cannot be read.
    """
    path = directory / KEY_FILE
    try:
        with path.open("rb") as file:
            key = file.read(KEY_FILE_BYTES_MAX + 1)
    except FileNotFoundError:
        return None
    if not HMAC_BYTES_MIN <= len(key) <= KEY_FILE_BYTES_MAX:
        found = f"has {len(key)} bytes" if len(key) <= KEY_FILE_BYTES_MAX else "is too large"
        remedy = f"put a copy of it back, or let the next start make a new one: rm {shlex.quote(str(path))}"
        raise KeyUnusable(f"{path} {found if key else 'is empty'}, a key has at least {HMAC_BYTES_MIN} bytes; {remedy}")
    return key


def load_or_create_key(directory: Path) -> tuple[bytes, bool]:
    """The local key in a data directory, and whether it was made just now (0600, in a 0700 directory).

    It appears whole or not at all, and survives power loss from then on. Of several processes that make one at once,
    one succeeds, and all have its key. Raises as `load_key`.
    """
    files.make_directory(directory)
    path = directory / KEY_FILE
    kept, is_made = load_key(directory), False
    if kept is None:
        is_made = files.put_in_place(path, secrets.token_bytes(HMAC_BYTES_MIN))
        kept = load_key(directory)
    if kept is None:
        raise FileNotFoundError(errno.ENOENT, "it was removed while the server made it", str(path))
    files.remove_unnamed(path)
    return kept, is_made
