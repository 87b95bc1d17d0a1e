"""What a setting can be: how its text is read, what is allowed, and how both are said to a person. Pure.

A kind refuses a value with `ValueError`; whoever calls it (`web.server.settings`) adds where the value came from.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Final
from urllib.parse import urlsplit

from web.contract.origins import bare_host, normal_origin, split_authority
from web.identity.keys import ALGORITHMS, KID_CHARACTERS_MAX, KeySpec

_TRUE: Final = ("true", "yes", "on", "1")
_FALSE: Final = ("false", "no", "off", "0")
_THIS_MACHINE: Final = ("localhost", "127.0.0.1", "::1")

UNIX_PREFIX: Final = "unix:"
"""Before the path of a Unix socket, where an address may stand, too."""

WILDCARD: Final = "*"
"""Refused in every list: a wildcard is meant for many names, and would match none."""


class Kind(ABC):
    """The type, range and unit of a setting."""

    name: str
    """The type, as the table of settings names it."""
    limit: str
    """What is allowed, so that "must be ..." is a sentence."""

    @abstractmethod
    def checked(self, value: object) -> object:
        """A typed value (from TOML or from code), in the type the setting has.

        Raises:
            ValueError: it has the wrong type or is out of range.
        """

    def from_text(self, text: str) -> object:
        """The value a variable or option spells. Raises as `checked`."""
        return self.checked(text)


@dataclass(frozen=True)
class Text(Kind):
    """A line of text."""

    characters_max: int

    name = "text"

    @property
    def limit(self) -> str:  # type: ignore[override]
        return f"1-{self.characters_max} printable characters"

    def checked(self, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= self.characters_max:
            raise ValueError
        return value


@dataclass(frozen=True)
class Directory(Kind):
    """A path; it need not exist."""

    name = "path"
    limit = "the path of a directory"

    def checked(self, value: object) -> Path:
        if not isinstance(value, str | Path) or "\0" in str(value) or not str(value):
            raise ValueError
        path = Path(value)
        if path.exists() and not path.is_dir():
            raise ValueError
        return path


@dataclass(frozen=True)
class SocketPath(Kind):
    """Where a Unix socket is made."""

    bytes_max: int = 100
    """Reason: `sockaddr_un` holds 108 on Linux and 104 elsewhere."""

    name = "path"

    @property
    def limit(self) -> str:  # type: ignore[override]
        return f"a path of at most {self.bytes_max} bytes"

    def checked(self, value: object) -> Path:
        if (
            not isinstance(value, str | Path)
            or "\0" in str(value)
            or not 1 <= len(bytes(Path(value))) <= self.bytes_max
        ):
            raise ValueError
        path = Path(value)
        if not path.name:
            raise ValueError
        return path


@dataclass(frozen=True)
class Listening(Kind):
    """Where to listen: on a TCP port of an address, or on a Unix socket."""

    name = "address"
    limit = "HOST:PORT, or unix: and a path of at most 100 bytes"

    def checked(self, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError
        if value.startswith(UNIX_PREFIX):
            SocketPath().checked(value.removeprefix(UNIX_PREFIX))
            return value
        host, _, port = value.rpartition(":")
        if not 1 <= len(host) <= 255 or (":" in host and not (host.startswith("[") and host.endswith("]"))):
            raise ValueError
        Whole(0, 65535).from_text(port)
        return value


@dataclass(frozen=True)
class Flag(Kind):
    """Yes or no."""

    name = "flag"
    limit = "true or false"

    def checked(self, value: object) -> bool:
        if not isinstance(value, bool):
            raise ValueError
        return value

    def from_text(self, text: str) -> bool:
        if text.lower() not in _TRUE + _FALSE:
            raise ValueError
        return text.lower() in _TRUE


@dataclass(frozen=True)
class Whole(Kind):
    """An integer in a range, both ends included."""

    least: int
    most: int
    unit: str = ""

    name = "integer"

    @property
    def limit(self) -> str:  # type: ignore[override]
        return _with_unit(f"an integer {self.least}-{self.most}", self.unit)

    def checked(self, value: object) -> int:
        if not isinstance(value, int) or isinstance(value, bool) or not self.least <= value <= self.most:
            raise ValueError
        return value

    def from_text(self, text: str) -> int:
        # int() would also take "1_000", " 7" and other scripts' digits: no operator means those.
        if not text.isascii() or not text.isdigit() or len(text) > 20:
            raise ValueError
        return self.checked(int(text))


@dataclass(frozen=True)
class Number(Kind):
    """A number in a range, both ends included."""

    least: float
    most: float
    unit: str = ""

    name = "number"

    @property
    def limit(self) -> str:  # type: ignore[override]
        return _with_unit(f"a number {self.least:g}-{self.most:g}", self.unit)

    def checked(self, value: object) -> float:
        if not isinstance(value, int | float) or isinstance(value, bool) or not self.least <= value <= self.most:
            raise ValueError
        return float(value)

    def from_text(self, text: str) -> float:
        number = float(text)
        if not math.isfinite(number):
            raise ValueError
        return self.checked(number)


@dataclass(frozen=True)
class Choice(Kind):
    """One of a few words."""

    words: tuple[str, ...]

    name = "word"

    @property
    def limit(self) -> str:  # type: ignore[override]
        return " or ".join((", ".join(self.words[:-1]), self.words[-1]))

    def checked(self, value: object) -> str:
        if value not in self.words:
            raise ValueError
        return str(value)


_SCHEMES_OF_NO_ORIGIN: Final = frozenset({"about", "blob", "data", "file", "filesystem", "javascript", "ws", "wss"})
"""A page at such a URL has the origin of another one, or `null`."""


@dataclass(frozen=True)
class Origin(Kind):
    """A web origin (RFC 6454): scheme, host and port, without a path; in its one spelling."""

    name = "origin"
    limit = "an origin such as https://example.org (http or https, no wildcards)"

    def checked(self, value: object) -> str:
        if not isinstance(value, str) or WILDCARD in value or (origin := normal_origin(value)) is None:
            raise ValueError
        if not self._is_allowed(origin) or origin.endswith(":0"):
            raise ValueError
        return origin

    def _is_allowed(self, origin: str) -> bool:
        return origin.startswith(("http://", "https://"))


@dataclass(frozen=True)
class PageOrigin(Origin):
    """An origin of pages: a web origin, that of an app's own scheme, or `null`."""

    limit = "an origin such as https://example.org, capacitor://localhost or null (no wildcards)"

    def _is_allowed(self, origin: str) -> bool:
        return origin.partition(":")[0] not in _SCHEMES_OF_NO_ORIGIN


@dataclass(frozen=True)
class Host(Kind):
    """A host as a URL names it, without a port; in its one spelling."""

    name = "host"
    limit = "a host such as live.example.org (no port, no wildcards)"

    def checked(self, value: object) -> str:
        if not isinstance(value, str) or WILDCARD in value:
            raise ValueError
        parts = split_authority(f"[{value}]" if value.count(":") > 1 and not value.startswith("[") else value)
        if parts is None or parts[1] or not bare_host(parts[0]):
            raise ValueError
        return bare_host(parts[0])


@dataclass(frozen=True)
class KeyFile(Kind):
    """A key that verifies tokens; the file is read when the server starts."""

    name = "key"
    limit = f"ALGORITHM:FILE or ALGORITHM:FILE#KID, the algorithm one of {', '.join(ALGORITHMS)}"

    def checked(self, value: object) -> KeySpec:
        if isinstance(value, KeySpec):
            return value
        if not isinstance(value, str) or not value.isprintable():
            raise ValueError
        algorithm, colon, rest = value.partition(":")
        path, mark, kid = rest.partition("#")
        if algorithm not in ALGORITHMS or not colon or not path or (mark and not 1 <= len(kid) <= KID_CHARACTERS_MAX):
            raise ValueError
        return KeySpec(algorithm, Path(path), kid or None)


@dataclass(frozen=True)
class Jwks(Kind):
    """Where a JWKS document is: a URL, or a file."""

    name = "URL or path"
    limit = "an https:// URL (http:// on this machine only), or the path of a file"

    def checked(self, value: object) -> str:
        if not isinstance(value, str) or not value.isprintable() or not 1 <= len(value) <= 1000:
            raise ValueError
        if "://" not in value:
            return value
        parts = urlsplit(value)
        if not parts.hostname or "@" in parts.netloc or " " in value or parts.port == 0:
            raise ValueError
        if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in _THIS_MACHINE):
            raise ValueError
        return value


@dataclass(frozen=True)
class TrustedProxy(Kind):
    """A network proxies are in, or the word for a Unix socket."""

    name = "network"
    limit = "an address or network such as 10.0.0.0/8, or unix"

    def checked(self, value: object) -> IPv4Network | IPv6Network | str:
        if isinstance(value, IPv4Network | IPv6Network) or value == "unix":
            return value
        if not isinstance(value, str):
            raise ValueError
        return ip_network(value)


@dataclass(frozen=True)
class Several(Kind):
    """A list: an array in TOML, separated by commas in a variable."""

    item: Kind
    items_max: int

    @property
    def name(self) -> str:  # type: ignore[override]
        return f"list of {self.item.name}s"

    @property
    def limit(self) -> str:  # type: ignore[override]
        return f"a list of at most {self.items_max}, each {self.item.limit}"

    def checked(self, value: object) -> tuple[object, ...]:
        if isinstance(value, str) or not isinstance(value, Sequence) or len(value) > self.items_max:
            raise ValueError
        return tuple(self.item.checked(item) for item in value)

    def from_text(self, text: str) -> tuple[object, ...]:
        return self.checked([item.strip() for item in text.split(",") if item.strip()])


def _with_unit(limit: str, unit: str) -> str:
    return f"{limit} ({unit})" if unit else limit
