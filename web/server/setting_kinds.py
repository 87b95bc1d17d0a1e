"""What a setting can be: how its text is read, what is allowed, and how both are said to a person. Pure.

msgspec judges type, length and range; a rule judges what it has no words for. Both refuse a value with `ValueError`;
whoever asks (`web.server.settings`) adds where the value came from.
"""

from __future__ import annotations

import string
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Network, IPv6Network, ip_network
from pathlib import Path
from typing import Annotated, Any, Final, get_args
from urllib.parse import urlsplit

import msgspec
from msgspec import Meta

from web.contract.origins import bare_host, normal_origin, split_authority
from web.identity.keys import ALGORITHMS, KID_CHARACTERS_MAX, KeySpec

UNIX_PREFIX: Final = "unix:"
"""Before the path of a Unix socket, where an address may stand, too."""

WILDCARD: Final = "*"
"""Refused in every list: a wildcard is meant for many names, and would match none."""

SOCKET_PATH_BYTES_MAX: Final = 100
"""Longest path of a Unix socket. Reason: `sockaddr_un` holds 108 bytes on Linux and 104 elsewhere."""

_FLAGS: Final = {
    "true": True,
    "yes": True,
    "on": True,
    "1": True,
    "false": False,
    "no": False,
    "off": False,
    "0": False,
}
_WORD_CHARACTERS: Final = frozenset(string.ascii_letters + string.digits + "_-")
_THIS_MACHINE: Final = ("localhost", "127.0.0.1", "::1")
_SCHEMES_OF_NO_ORIGIN: Final = frozenset({"about", "blob", "data", "file", "filesystem", "javascript", "ws", "wss"})
"""A page at such a URL has the origin of another one, or `null`."""

_Line = Annotated[str, Meta(min_length=1, max_length=1000)]


def _as_it_is(value: Any) -> Any:
    return value


@dataclass(frozen=True)
class Kind:
    """The type, range and unit of a setting."""

    name: str
    """The type, as the table of settings names it."""
    limit: str
    """What is allowed, so that "must be ..." is a sentence."""
    type: Any
    """As msgspec understands it."""
    rule: Callable[[Any], Any] = _as_it_is
    """Makes the setting of a value of that type, or raises `ValueError`."""
    read: Callable[[str], object] = _as_it_is
    """The value that a text spells. Raises `ValueError`, or leaves to `checked` what it cannot read."""

    def checked(self, value: object) -> Any:
        """A typed value (from TOML or from code), in the type the setting has.

        Raises:
            ValueError: it has the wrong type or is out of range.
        """
        if isinstance(value, Path | KeySpec | IPv4Network | IPv6Network):
            value = str(value)
        return self.rule(msgspec.convert(value, self.type))

    def from_text(self, text: str) -> Any:
        """The value a variable or option spells. Raises as `checked`."""
        return self.checked(self.read(text))


# `msgspec.convert(..., strict=False)` reads numbers, too. It takes "1e3" for an integer, and ".5" for no number.


def whole(least: int, most: int, unit: str = "") -> Kind:
    """An integer in a range, both ends included."""
    limit = _with_unit(f"an integer {least}-{most}", unit)
    return Kind("integer", limit, Annotated[int, Meta(ge=least, le=most)], read=_digits)


def number(least: float, most: float, unit: str = "") -> Kind:
    """A number in a range, both ends included."""
    limit = _with_unit(f"a number {least:g}-{most:g}", unit)
    return Kind("number", limit, Annotated[float, Meta(ge=least, le=most)], read=float)


def text(characters_max: int) -> Kind:
    """A line of text."""
    limit = f"1-{characters_max} printable characters"
    return Kind("text", limit, Annotated[str, Meta(min_length=1, max_length=characters_max)], _printable)


def choice(words: Any) -> Kind:
    """One of the words of a `Literal`."""
    *others, last = get_args(words)
    return Kind("word", f"{', '.join(others)} or {last}", words)


def several(item: Kind, items_max: int) -> Kind:
    """A list: an array in TOML, separated by commas in a variable."""

    def each(values: tuple[object, ...]) -> tuple[Any, ...]:
        return tuple(item.checked(value) for value in values)

    def items(text: str) -> list[str]:
        return [one.strip() for one in text.split(",") if one.strip()]

    limit = f"a list of at most {items_max}, each {item.limit}"
    return Kind(f"list of {item.name}s", limit, Annotated[tuple[Any, ...], Meta(max_length=items_max)], each, items)


def _with_unit(limit: str, unit: str) -> str:
    return f"{limit} ({unit})" if unit else limit


def _digits(text: str) -> int | str:
    # int() would also take "1_000", " 7" and other scripts' digits: no operator means those.
    return int(text) if text.isascii() and text.isdigit() else text


def _flag(text: str) -> bool | str:
    return _FLAGS.get(text.lower(), text)


def _printable(text: str) -> str:
    if not text.isprintable():
        raise ValueError
    return text


def _directory(text: str) -> Path:
    path = Path(text)
    if "\0" in text or (path.exists() and not path.is_dir()):
        raise ValueError
    return path


def _socket_path(text: str) -> Path:
    path = Path(text)
    if "\0" in text or not path.name or len(bytes(path)) > SOCKET_PATH_BYTES_MAX:
        raise ValueError
    return path


def _listening(text: str) -> str:
    if _printable(text).startswith(UNIX_PREFIX):
        _socket_path(text.removeprefix(UNIX_PREFIX))
        return text
    host, _, port = text.rpartition(":")
    if not 1 <= len(host) <= 255 or (":" in host and not (host.startswith("[") and host.endswith("]"))):
        raise ValueError
    PORT.from_text(port)
    return text


def _web_origin(text: str) -> str:
    origin = _any_origin(text)
    if not origin.startswith(("http://", "https://")):
        raise ValueError
    return origin


def _page_origin(text: str) -> str:
    origin = _any_origin(text)
    if origin.partition(":")[0] in _SCHEMES_OF_NO_ORIGIN:
        raise ValueError
    return origin


def _any_origin(text: str) -> str:
    origin = normal_origin(text)
    if WILDCARD in text or origin is None or origin.endswith(":0"):
        raise ValueError
    return origin


def _host(text: str) -> str:
    parts = split_authority(f"[{text}]" if text.count(":") > 1 and not text.startswith("[") else text)
    if WILDCARD in text or parts is None or parts[1] or not bare_host(parts[0]):
        raise ValueError
    return bare_host(parts[0])


def _key_file(text: str) -> KeySpec:
    algorithm, colon, rest = _printable(text).partition(":")
    path, mark, kid = rest.partition("#")
    if algorithm not in ALGORITHMS or not colon or not path or (mark and not 1 <= len(kid) <= KID_CHARACTERS_MAX):
        raise ValueError
    if any(f" {name}:" in rest for name in ALGORITHMS):
        # Two keys with a blank between them would be one with a name that no token has (decision 0148).
        raise ValueError
    return KeySpec(algorithm, Path(path), kid or None)


def _jwks(text: str) -> str:
    if "://" not in _printable(text):
        return text
    parts = urlsplit(text)
    if not parts.hostname or "@" in parts.netloc or " " in text or parts.port == 0:
        raise ValueError
    if parts.scheme != "https" and (parts.scheme != "http" or parts.hostname not in _THIS_MACHINE):
        raise ValueError
    return text


def _nats_server(text: str) -> str:
    scheme, mark, place = _printable(text).rpartition("://")
    host, _, port = place.rpartition(":") if not place.endswith("]") and place.count(":") else (place, "", "")
    bare = host.removeprefix("[").removesuffix("]")
    if (mark and scheme not in ("nats", "tls")) or not 1 <= len(bare) <= 255 or set(bare) & set("@/ []"):
        raise ValueError
    if (":" in bare) != host.startswith("[") or (port and not PORT.from_text(port)):
        raise ValueError
    return text


def _word(text: str) -> str:
    if not set(text) <= _WORD_CHARACTERS:
        raise ValueError
    return text


def _file(text: str) -> Path:
    path = Path(text)
    if "\0" in text or not path.name:
        raise ValueError
    return path


def _proxy(text: str) -> IPv4Network | IPv6Network | str:
    return text if text == "unix" else ip_network(text)


def word(characters_max: int) -> Kind:
    """A word that may stand in a subject of NATS, in a header and in a log line."""
    limit = f"1-{characters_max} characters of A-Z a-z 0-9 _ -"
    return Kind("word", limit, Annotated[str, Meta(min_length=1, max_length=characters_max)], _word)


FLAG: Final = Kind("flag", "true or false", bool, read=_flag)
PORT: Final = whole(0, 65535)
DIRECTORY: Final = Kind("path", "the path of a directory", Annotated[str, Meta(min_length=1)], _directory)
"""It need not exist."""
SOCKET_PATH: Final = Kind("path", f"a path of at most {SOCKET_PATH_BYTES_MAX} bytes", str, _socket_path)
"""Where a Unix socket is made."""
LISTENING: Final = Kind(
    "address", f"HOST:PORT, or unix: and a path of at most {SOCKET_PATH_BYTES_MAX} bytes", str, _listening
)
"""Where to listen: on a TCP port of an address, or on a Unix socket."""
ORIGIN: Final = Kind("origin", "an origin such as https://example.org (http or https, no wildcards)", str, _web_origin)
"""A web origin (RFC 6454): scheme, host and port, without a path; in its one spelling."""
PAGE_ORIGIN: Final = Kind(
    "origin",
    "an origin such as https://example.org, capacitor://localhost or null (no wildcards)",
    str,
    _page_origin,
)
"""An origin of pages: a web origin, that of an app's own scheme, or `null`."""
HOST: Final = Kind("host", "a host such as live.example.org (no port, no wildcards)", str, _host)
"""A host as a URL names it, without a port; in its one spelling."""
KEY_FILE: Final = Kind(
    "key",
    f"ALGORITHM:FILE or ALGORITHM:FILE#KID, the algorithm one of {', '.join(ALGORITHMS)}, commas between keys",
    str,
    _key_file,
)
"""A key that verifies tokens; the file is read when the server starts."""
JWKS: Final = Kind("URL or path", "an https:// URL (http:// on this machine only), or the path of a file", _Line, _jwks)
"""Where a JWKS document is."""
FILE: Final = Kind("path", "the path of a file", Annotated[str, Meta(min_length=1)], _file)
"""It is read when the server starts."""
NATS_SERVER: Final = Kind(
    "server", "HOST:PORT, perhaps with nats:// or tls:// before it, and without a user or password", str, _nats_server
)
"""Where a NATS server listens."""
TRUSTED_PROXY: Final = Kind("network", "an address or network such as 10.0.0.0/8, or unix", str, _proxy)
"""A network proxies are in, or the word for a Unix socket."""
