"""Ways to break the WebSocket protocol, and the close code each must end with (RFC 6455)."""

from __future__ import annotations

from typing import Final

from tests.edge.raw import BINARY, CLOSE, MASK, PING, PONG, TEXT, client_frame

CONTINUATION: Final = 0x0

_NAMES: Final = {
    CONTINUATION: "continuation",
    TEXT: "text",
    BINARY: "binary",
    CLOSE: "close",
    PING: "ping",
    PONG: "pong",
}

BAD_UTF8: Final = {
    "a lone continuation byte": b"\x80",
    "another lone continuation byte": b"\xbf",
    "two lone continuation bytes": b"\x80\xbf",
    "a start of two with nothing behind it": b"\xc2",
    "a start of three with nothing behind it": b"\xe1",
    "a start of three with one behind it": b"\xe1\x88",
    "a start of four with nothing behind it": b"\xf1",
    "a start of four with two behind it": b"\xf1\x88\x88",
    "a start of two with a letter behind it": b"\xc2A",
    "a start of three with a letter behind it": b"\xe1\x88A",
    "a start of four with a letter behind it": b"\xf1\x88\x88A",
    "two starts": b"\xc2\xc2\x80",
    "an overlong slash in two": b"\xc0\xaf",
    "an overlong slash in three": b"\xe0\x80\xaf",
    "an overlong slash in four": b"\xf0\x80\x80\xaf",
    "an overlong slash in five": b"\xf8\x80\x80\x80\xaf",
    "an overlong slash in six": b"\xfc\x80\x80\x80\x80\xaf",
    "the longest overlong in two": b"\xc1\xbf",
    "the longest overlong in three": b"\xe0\x9f\xbf",
    "the longest overlong in four": b"\xf0\x8f\xbf\xbf",
    "an overlong zero": b"\xc0\x80",
    "the first surrogate": b"\xed\xa0\x80",
    "the last high surrogate": b"\xed\xaf\xbf",
    "the first low surrogate": b"\xed\xb0\x80",
    "the last surrogate": b"\xed\xbf\xbf",
    "a surrogate pair": b"\xed\xa0\x80\xed\xb0\x80",
    "one above the last code point": b"\xf4\x90\x80\x80",
    "an impossible start of four": b"\xf5\x80\x80\x80",
    "a start of five": b"\xf8\x88\x80\x80\x80",
    "a start of six": b"\xfc\x84\x80\x80\x80\x80",
    "the impossible byte FE": b"\xfe",
    "the impossible byte FF": b"\xff",
    "a bad byte behind good text": "κόσμε".encode() + b"\xff",
    "a bad byte before good text": b"\xff" + "κόσμε".encode(),
    "a surrogate within good text": "κόσμε".encode() + b"\xed\xa0\x80edited",
}


def _all() -> dict[str, tuple[bytes, int]]:
    found: dict[str, tuple[bytes, int]] = {}
    for opcode, name in _NAMES.items():
        for reserved in range(1, 8):
            found[f"reserved bits {reserved} on {name}"] = client_frame(opcode, b"ab", reserved=reserved), 1002
    for opcode in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15):
        found[f"unknown opcode {opcode}"] = client_frame(opcode), 1002
        found[f"unknown opcode {opcode} with a payload"] = client_frame(opcode, b"ab"), 1002
    for opcode in (CLOSE, PING, PONG):
        name = _NAMES[opcode]
        found[f"a fragmented {name}"] = client_frame(opcode, fin=False) + client_frame(CONTINUATION), 1002
        found[f"a {name} of 126 bytes"] = client_frame(opcode, b"\x03\xe8" + b"x" * 124), 1002
    for opcode in (TEXT, BINARY, PING, CLOSE):
        found[f"an unmasked {_NAMES[opcode]}"] = bytes((0x80 | opcode, 2)) + b"\x03\xe8", 1002
    text, more = client_frame(TEXT, b"a", fin=False), client_frame(CONTINUATION, b"b")
    found |= {
        "a continuation of nothing": (more, 1002),
        "an unfinished continuation of nothing": (client_frame(CONTINUATION, b"b", fin=False), 1002),
        "a continuation behind a whole message": (text + more + more, 1002),
        "a text within a fragmented text": (text + client_frame(TEXT, b"b"), 1002),
        "an unfinished text within a fragmented text": (text + client_frame(TEXT, b"b", fin=False), 1002),
        "a binary within a fragmented text": (text + client_frame(BINARY, b"b"), 1002),
        "a text within a fragmented binary": (client_frame(BINARY, fin=False) + client_frame(TEXT), 1002),
        "a length of 5 in two bytes": (b"\x81\xfe\x00\x05" + MASK + b"abcde", 1002),
        "a length of 5 in eight bytes": (b"\x81\xff" + (5).to_bytes(8, "big") + MASK + b"abcde", 1002),
        "a length with the highest bit set": (b"\x81\xff" + (1 << 63).to_bytes(8, "big") + MASK, 1002),
        "a close of one byte": (client_frame(CLOSE, b"\x03"), 1002),
        "a close whose reason is not UTF-8": (client_frame(CLOSE, b"\x03\xe8\xce\xba\xed\xa0\x80"), 1007),
    }
    for code in (0, 999, 1004, 1005, 1006, 1015, 1016, 1100, 2000, 2999, 5000, 65535):
        found[f"a close with {code}"] = client_frame(CLOSE, code.to_bytes(2, "big")), 1002
    for name, text in BAD_UTF8.items():
        found[name] = client_frame(TEXT, text), 1007
        halves = client_frame(TEXT, text[:1], fin=False) + client_frame(CONTINUATION, text[1:])
        found[f"{name}, in two fragments"] = halves, 1007
    return found


VIOLATIONS: Final = _all()
"""What a client sends, and what the server closes with, by name."""
