"""The client protocol of NATS: the bytes of a server taken apart, and what a client says as bytes. Pure.

A frame is one line, and for a message a block of headers and a body after it. What comes from a server is bounded here:
a line by `LINE_BYTES_MAX`, a message by `MESSAGE_BYTES_MAX`. What goes out is composed whole, so that whoever writes
it can never leave half a frame behind, and no name can bring a frame of its own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Final, NamedTuple

import msgspec

from storage.nats.errors import Garbled, TooLarge

LINE_BYTES_MAX: Final = 64 * 1024
"""Longest line of a server. Reason: INFO names every server of a cluster. Beyond: `Garbled`."""

MESSAGE_BYTES_MAX: Final = 64 * 1024 * 1024
"""Longest message of a server, headers included. Reason: no server can be set to more. Beyond: `Garbled`."""

PING: Final = b"PING\r\n"
PONG: Final = b"PONG\r\n"

_HEADERS_BEGIN: Final = "NATS/1.0"
_SUBJECT: Final = re.compile(r"[!-~]+")
_HEADER_NAME: Final = re.compile(r"[!-9;-~]+")
_NUMBER: Final = re.compile(rb"[0-9]{1,10}")
_LINES: Final = {
    b"MSG": re.compile(rb"\s*(\S+)\s+([0-9]{1,10})\s+(?:(\S+)\s+)?()([0-9]{1,10})\s*"),
    b"HMSG": re.compile(rb"\s*(\S+)\s+([0-9]{1,10})\s+(?:(\S+)\s+)?([0-9]{1,10})\s+([0-9]{1,10})\s*"),
}
"""What follows the first word: subject, subscription, perhaps where to answer, bytes of headers, bytes in all."""


class Message(NamedTuple):
    """A message that has arrived."""

    subject: str
    sid: int
    """The number of the subscription it came for."""
    reply: str
    """Where an answer is expected; empty: nowhere."""
    head: bytes
    """The block of headers as it came; empty: there is none."""
    data: bytes

    @property
    def status(self) -> int:
        """What a server says in the first line of the headers instead of sending a message, as of HTTP; 0: nothing."""
        said = self.head[len(_HEADERS_BEGIN) : self.head.find(b"\r\n")].split(None, 1)
        return int(said[0]) if said and _NUMBER.fullmatch(said[0]) else 0

    @property
    def headers(self) -> dict[str, str]:
        """The headers by name, whose case counts. Of several with one name the last."""
        return headers_of(self.head)


class Outgoing(NamedTuple):
    """A message to be published."""

    subject: str
    data: bytes = b""
    headers: Mapping[str, str] | None = None


class Info(msgspec.Struct, frozen=True, rename={"is_lame_duck": "ldm"}):
    """What a server says of itself: first of all, and again whenever something of it changes."""

    server_name: str = ""
    version: str = ""
    max_payload: int = 1024 * 1024
    """The longest message that it takes, headers included."""
    nonce: str | None = None
    """What is to be signed, where the server asks for it."""
    tls_required: bool = False
    tls_available: bool = False
    connect_urls: list[str] | None = None
    """Servers of its cluster, as `host:port`."""
    is_lame_duck: bool = False
    """It is about to leave: go elsewhere."""


class Refusal(NamedTuple):
    """The server refuses something (`-ERR`)."""

    text: str


class Ping(NamedTuple):
    """The server wants a PONG."""


class Pong(NamedTuple):
    """The answer to a PING of ours."""


class Ok(NamedTuple):
    """The answer to whatever we said, where a server is asked to be verbose."""


Heard = Message | Info | Refusal | Ping | Pong | Ok

_BARE: Final[Mapping[bytes, Heard]] = {b"PING": Ping(), b"PONG": Pong(), b"+OK": Ok()}


class Wire:
    """Takes what a server says apart, whatever pieces it comes in."""

    __slots__ = ("_waiting",)

    def __init__(self) -> None:
        self._waiting = bytearray()

    @property
    def is_between_frames(self) -> bool:
        """Nothing has come of the next frame yet."""
        return not self._waiting

    def taken(self, data: bytes) -> list[Heard]:
        """What is whole with these further bytes.

        Raises:
            Garbled: it is not the protocol, or beyond its bounds. Nothing can be read from this server any more.
        """
        waiting = self._waiting
        waiting += data
        heard: list[Heard] = []
        at = 0
        while (end := waiting.find(b"\r\n", at, at + LINE_BYTES_MAX)) >= 0:
            line = bytes(waiting[at:end])
            word, _, rest = line.partition(b" ")
            word = word.upper()
            if word in _LINES:
                subject, sid, reply, head_bytes, size = _line(word, rest)
                begin = end + 2
                body, stop = begin + head_bytes, begin + size
                if len(waiting) < stop + 2:
                    break
                if waiting[stop : stop + 2] != b"\r\n":
                    raise Garbled("a message is longer than it says")
                heard.append(Message(subject, sid, reply, bytes(waiting[begin:body]), bytes(waiting[body:stop])))
                at = stop + 2
            else:
                heard.append(_heard(word, rest))
                at = end + 2
        else:
            if len(waiting) - at >= LINE_BYTES_MAX:
                raise Garbled(f"a line is longer than {LINE_BYTES_MAX} bytes")
        del waiting[:at]
        return heard


def _line(word: bytes, rest: bytes) -> tuple[str, int, str, int, int]:
    """Of a message: its subject, subscription and reply; how many bytes its headers have, how many it has in all."""
    found = _LINES[word].fullmatch(rest)
    if found is None:
        raise Garbled("the line of a message is none")
    subject, sid, reply, head_bytes, size = found.groups()
    sizes = int(head_bytes or 0), int(size)
    if not sizes[0] <= sizes[1] <= MESSAGE_BYTES_MAX:
        raise Garbled(f"a message of {sizes[1]} bytes with {sizes[0]} of headers")
    return _text(subject), int(sid), _text(reply or b""), *sizes


def _text(data: bytes) -> str:
    return data.decode("utf-8", "replace")


def _heard(word: bytes, rest: bytes) -> Heard:
    """What a line says that no body follows."""
    if word == b"INFO":
        try:
            return msgspec.json.decode(rest, type=Info)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            raise Garbled("INFO is not what it should be") from error
    if word == b"-ERR":
        return Refusal(_text(rest).strip().strip("'"))
    try:
        return _BARE[word]
    except KeyError:
        raise Garbled("a line begins with no word of the protocol") from None


def headers_of(block: bytes) -> dict[str, str]:
    """The headers of a block by name, whose case counts. Of several with one name the last."""
    found = {}
    for line in _text(block).split("\r\n")[1:]:
        name, colon, value = line.partition(":")
        if colon:
            found[name] = value.strip()
    return found


def publish(message: Outgoing, reply: str = "", bytes_max: int = MESSAGE_BYTES_MAX) -> bytes:
    """A message as bytes.

    Args:
        reply: where an answer is expected; empty: nowhere.
        bytes_max: what the server takes, headers included.

    Raises:
        TooLarge: the message is longer.
        ValueError: a subject or a header could be taken for something else.
    """
    subject, data, headers = message
    to = f"{_checked(subject)} {_checked(reply)}" if reply else _checked(subject)
    if not headers:
        line, head = f"PUB {to} {len(data)}\r\n".encode(), b""
    else:
        head = _block(headers)
        line = f"HPUB {to} {len(head)} {len(head) + len(data)}\r\n".encode()
    if len(head) + len(data) > bytes_max:
        raise TooLarge(f"a message of {len(head) + len(data)} bytes, where the server takes {bytes_max}")
    return b"".join((line, head, data, b"\r\n"))


def _block(headers: Mapping[str, str]) -> bytes:
    lines = [_HEADERS_BEGIN]
    for name, value in headers.items():
        if not _HEADER_NAME.fullmatch(name) or "\r" in value or "\n" in value:
            raise ValueError("a header with a colon in its name, or a line break")
        lines.append(f"{name}: {value}")
    return ("\r\n".join(lines) + "\r\n\r\n").encode()


def _checked(subject: str) -> str:
    if not _SUBJECT.fullmatch(subject):
        raise ValueError("a subject has blanks, or characters that are not ASCII")
    return subject


def subscribe(subject: str, sid: int) -> bytes:
    """Ask for messages of a subject, which may have wildcards, under this number."""
    return f"SUB {_checked(subject)} {sid}\r\n".encode()


def unsubscribe(sid: int) -> bytes:
    """Ask for no more messages of this number."""
    return f"UNSUB {sid}\r\n".encode()


def connect(options: Mapping[str, object]) -> bytes:
    """Introduce the client: its name, its user, what it can."""
    return b"CONNECT " + msgspec.json.encode(options) + b"\r\n"
