"""Publishers that the load generator has not: many updates in one request, and a WebSocket with a window.

They are plain Python: what they send is made before, or costs a few microseconds, and they have a core of their own.
"""

from __future__ import annotations

import http.client
import itertools
import os
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Final

import msgspec

from benchmarks.generator import PADDING_CHARACTERS, Target
from benchmarks.place import upgrade_request

BULK_PATH: Final = "/ws/broadcast"
BULK_LINES: Final = 1000
"""Of one request: the most that the server takes."""

BULK_CONNECTIONS: Final = 2
"""While one reads its answer and prepares the next request, the server works for the other."""

STREAM_PATH: Final = "/publish"
STREAM_WINDOW: Final = 256
"""Updates on their way at the same time."""

WAIT_SECONDS_MAX: Final = 30.0
"""Longest wait for a server that says nothing."""

READ_BYTES: Final = 1 << 18


class NotServed(Exception):
    """The server has no such operation; the text names it."""


class PublishingFailed(Exception):
    """A server answered what no publisher expects."""


@dataclass(slots=True)
class Published:
    """What came of it."""

    accepted: int = 0
    refused: int = 0
    seconds: float = 0.0


def update(diagnosis: str, number: int) -> bytes:
    """An update as the load generator makes it, with its `type`; followers count it by its number."""
    comment = f"bench:{number}:{time.monotonic_ns()}:{'x' * PADDING_CHARACTERS}"
    body = {"diagnosis_id": diagnosis, "feedback_id": number, "rating": 5, "comment": comment}
    return msgspec.json.encode({"type": "feedback_update", **body})


@contextmanager
def on_core(core: int) -> Iterator[None]:
    """This thread, and those that it starts, have this core within the block."""
    before = os.sched_getaffinity(0)
    os.sched_setaffinity(0, {core})
    try:
        yield
    finally:
        os.sched_setaffinity(0, before)


class _Result(msgspec.Struct):
    """A line of the answer to many updates; a good one has the status 200."""

    status: int


_RESULTS: Final = msgspec.json.Decoder(_Result)


def bulk_request(connection: http.client.HTTPConnection, token: str, lines: Sequence[bytes]) -> Published:
    """Publish these lines in one request.

    Raises:
        PublishingFailed: the answer is not 200, or no answer comes.
    """
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/x-ndjson"}
    asked = time.perf_counter()
    try:
        connection.request("POST", BULK_PATH, b"\n".join(lines), headers)
        answer = connection.getresponse()
        text = answer.read()
    except (OSError, http.client.HTTPException) as failure:
        raise PublishingFailed(f"{BULK_PATH}: {failure!r}") from failure
    took = time.perf_counter() - asked
    if answer.status != 200:
        raise PublishingFailed(f"{BULK_PATH} was answered {answer.status}")
    results = _RESULTS.decode_lines(text)
    accepted = sum(result.status == 200 for result in results)
    return Published(accepted, len(lines) - accepted, took)


def bulk(target: Target, diagnoses: Sequence[str], seconds: float) -> Published:
    """Publish requests of 1000 lines to the diagnoses in turn, over a few connections, for so long.

    Raises:
        PublishingFailed: the answer to a request is not 200, or does not come.
    """
    assert target.publish_token is not None, "our server knows its publishers"
    token = target.publish_token
    began = time.perf_counter()

    def publish() -> Published:
        mine = Published()
        lines = [update(diagnoses[number % len(diagnoses)], number) for number in range(BULK_LINES)]
        connection = http.client.HTTPConnection(target.address, target.publish_port, timeout=WAIT_SECONDS_MAX)
        with closing(connection):
            while time.perf_counter() < began + seconds:
                done = bulk_request(connection, token, lines)
                mine.accepted += done.accepted
                mine.refused += done.refused
        return mine

    with ThreadPoolExecutor(BULK_CONNECTIONS) as threads:
        of_each = [running.result() for running in [threads.submit(publish) for _ in range(BULK_CONNECTIONS)]]
    accepted, refused = sum(one.accepted for one in of_each), sum(one.refused for one in of_each)
    return Published(accepted, refused, time.perf_counter() - began)


class _Frame(msgspec.Struct):
    """A frame that the server sends to a publisher."""

    type: str
    id: str | None = None


class _Window(msgspec.Struct):
    """What `connect` says that a publisher may have on its way."""

    window: int


class _Connect(msgspec.Struct):
    data: _Window


def stream(target: Target, diagnosis: str, seconds: float, first: int = 1) -> Published:
    """Publish over one WebSocket for so long, with as many updates on their way as the window allows.

    Args:
        first: the number of the first update; the next has the next.

    Raises:
        NotServed: the server answers 404.
        PublishingFailed: it ends the connection, or answers out of order.
    """
    done = Published()
    with socket.create_connection((target.address, target.publish_port), timeout=WAIT_SECONDS_MAX) as sock:
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        frames = _frames(sock, _upgraded(sock, target.publish_token))
        head = next(frames)
        if msgspec.json.decode(head, type=_Frame).type != "connect":
            raise PublishingFailed(f"{STREAM_PATH}: the first frame is {head[:80]!r}")
        window = min(STREAM_WINDOW, msgspec.json.decode(head, type=_Connect).data.window)
        numbers, answered = itertools.count(first), first
        sent, began = first, time.perf_counter()
        while True:
            room = window - (sent - answered) if time.perf_counter() < began + seconds else 0
            # Half of the window at once: a write for each receipt would measure the client.
            if room >= window // 2:
                sock.sendall(b"".join(_masked(diagnosis, next(numbers)) for _ in range(room)))
                sent += room
            if sent == answered:
                break
            frame = msgspec.json.decode(next(frames), type=_Frame)
            if frame.type not in ("receipt", "refused"):
                continue
            if frame.id != str(answered):
                raise PublishingFailed(f"{STREAM_PATH}: {frame.type} of {frame.id}, where {answered} was due")
            answered += 1
            done.accepted += frame.type == "receipt"
            done.refused += frame.type == "refused"
        done.seconds = time.perf_counter() - began
    return done


def _upgraded(sock: socket.socket, token: str | None) -> bytes:
    """Become a publisher; what has come behind the head of the answer."""
    sock.sendall(upgrade_request(STREAM_PATH, token))
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(READ_BYTES)
        if not chunk:
            raise PublishingFailed(f"{STREAM_PATH}: the server closed the connection")
        data += chunk
    head, _, rest = data.partition(b"\r\n\r\n")
    status = int(head.split(b" ", 2)[1])
    if status == 404:
        raise NotServed(f"our server has no {STREAM_PATH}")
    if status != 101:
        raise PublishingFailed(f"{STREAM_PATH} was answered {status}")
    return rest


def _masked(diagnosis: str, number: int) -> bytes:
    """An update as a text frame of a client, with a mask of zeros."""
    payload = b'{"id":"%d",%b' % (number, update(diagnosis, number)[1:])
    return b"\x81\xfe" + len(payload).to_bytes(2) + b"\0\0\0\0" + payload


def _frames(sock: socket.socket, data: bytes) -> Iterator[bytes]:
    """The payloads of the text frames that the server sends, without end."""
    while True:
        at = 0
        while (frame := _frame_at(data, at)) is not None:
            opcode, begin, at = frame
            if opcode == 0x1:
                yield data[begin:at]
            elif opcode == 0x8:
                raise PublishingFailed(f"{STREAM_PATH}: the server closed with {data[begin:at]!r}")
        chunk = sock.recv(READ_BYTES)
        if not chunk:
            raise PublishingFailed(f"{STREAM_PATH}: the server closed the connection")
        data = data[at:] + chunk


def _frame_at(data: bytes, at: int) -> tuple[int, int, int] | None:
    """Opcode, begin and end of the payload of the frame here; `None`: it has not come whole (RFC 6455, 5.2)."""
    if len(data) < at + 2:
        return None
    length, begin = data[at + 1] & 0x7F, at + 2
    if length >= 126:
        begin += 2 if length == 126 else 8
        length = int.from_bytes(data[at + 2 : begin])
    return (data[at] & 0xF, begin, begin + length) if len(data) >= begin + length else None
