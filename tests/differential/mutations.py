"""Damage to the written cases: what nobody thought of writing down. A seed and a number make the same damage again."""

from __future__ import annotations

import random
from collections.abc import Iterator
from itertools import pairwise
from typing import Final

from tests.differential.conversation import END, End, Step, Steps
from tests.differential.tables import STREAMS, TABLES, steps_of

BYTES_MAX: Final = 4096
"""Longest case that is damaged. Reason: the long ones are about their length, and slow."""

PIECES: Final = (
    *(b"\r", b"\n", b"\r\n", b"\r\n\r\n", b" ", b"\t", b":", b",", b";", b"\0", b"\x0b", b"\x7f", b"\x80", b"\xff"),
    *(b"0", b"9", b"-", b"+", b"%", b"%2F", b"%00", b"/", b"?", b"&", b"=", b'"', b"{", b"}", b"x", b"HTTP/1.1"),
    *(b"Content-Length: 3\r\n", b"Content-Length: 0\r\n", b"Transfer-Encoding: chunked\r\n", b"0\r\n\r\n"),
    *(b"Connection: close\r\n", b"Connection: keep-alive\r\n", b"Expect: 100-continue\r\n", b"Upgrade: websocket\r\n"),
    *(b"Host: a\r\n", b"X-A: b\r\n", b"X-A: b\r\n c\r\n", b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n"),
)
"""What is put in: bytes that mean something to a parser."""


def _material() -> list[bytes]:
    """The bytes of each case that is not long, without its packets; no two alike.

    No event streams: one with a request behind it ends when its server finds that the client has left.
    """
    found: dict[bytes, None] = {}
    for name, case in TABLES["plain"].cases.items():
        data = b"".join(step for step in steps_of(case) if isinstance(step, bytes))
        if len(data) <= BYTES_MAX and name not in STREAMS:
            found[data] = None
    return list(found)


MATERIAL: Final = _material()


def mutation(seed: int, number: int) -> Steps:
    """The steps of one mutation."""
    chance = random.Random(f"{seed}:{number}")
    data = bytearray(chance.choice(MATERIAL))
    for _ in range(chance.choice((1, 1, 1, 2, 2, 3, 5))):
        _damage(chance, data)
    return _sent(chance, bytes(data[: 2 * BYTES_MAX]))


def mutations(seed: int, first: int, count: int) -> Iterator[tuple[int, Steps]]:
    """So many of them, with their numbers."""
    for number in range(first, first + count):
        yield number, mutation(seed, number)


def _damage(chance: random.Random, data: bytearray) -> None:
    """Change the bytes in one place."""
    at = chance.randint(0, len(data))
    to = min(len(data), at + chance.choice((1, 1, 1, 2, 4, 16, 80)))
    match chance.randint(0, 8):
        case 0 if at < len(data):
            data[at] ^= 1 << chance.randint(0, 7)
        case 1 if at < len(data):
            data[at] = chance.randint(0, 255)
        case 2:
            del data[at:to]
        case 3:
            data[at:at] = data[at:to]
        case 4:
            data[at:to] = chance.choice(PIECES)
        case 5:
            # A piece that is a line goes where lines begin.
            lines = [place + 2 for place in range(len(data) - 1) if data[place : place + 2] == b"\r\n"] or [at]
            begin = chance.choice(lines)
            data[begin:begin] = chance.choice(PIECES)
        case 6:
            other = chance.choice(MATERIAL)
            data[at:] = other[chance.randint(0, len(other)) :]
        case 7:
            data += chance.choice(MATERIAL)
        case _:
            data[at:at] = chance.choice(PIECES)


def _sent(chance: random.Random, data: bytes) -> Steps:
    """The bytes as packets that end anywhere, perhaps with an end of the client's side in one place."""
    count = chance.choice((0, 0, 0, 1, 1, 2, 4))
    places = sorted({0, len(data), *(chance.randint(0, len(data)) for _ in range(count))})
    steps: list[Step] = [data[begin:end] for begin, end in pairwise(places)]
    if chance.random() < 0.15:
        steps[chance.randint(0, len(steps)) :] = [END]
    return tuple(steps)


def shorter(steps: Steps) -> Iterator[Steps]:
    """The same with something left out, the greater parts first."""
    if len(steps) > 1:
        joined = b"".join(step for step in steps if isinstance(step, bytes))
        yield (joined, *(step for step in steps if isinstance(step, End)))
        yield from (steps[:at] + steps[at + 1 :] for at in range(len(steps)))
    longest = max((len(step) for step in steps if isinstance(step, bytes)), default=0)
    size = longest
    while size:
        size //= 2
        for index, step in enumerate(steps):
            if isinstance(step, bytes):
                for at in range(0, len(step), max(size, 1)):
                    left = step[:at] + step[at + max(size, 1) :]
                    yield (*steps[:index], left, *steps[index + 1 :])
