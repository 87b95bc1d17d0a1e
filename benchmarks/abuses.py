"""The abuses of `make bench-abuse`: each runs until it is told to stop, with plain sockets, from one process."""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import struct
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Final

from web import tokens

HOST: Final = "127.0.0.2"
"""The abuses come from here: an address with limits of its own, unlike 127.0.0.1, which the neighbour has."""

TTL_SECONDS: Final = 3600

Stop = Callable[[], bool]
"""Whether to stop."""


@dataclass(slots=True)
class Place:
    """Where the server is, and who may do what there."""

    port: int
    key: bytes
    made: dict[tuple[str, str], str] = field(default_factory=dict)

    def token(self, sub: str, scope: str = "") -> str:
        """A token of this subject, made once."""
        if (sub, scope) not in self.made:
            self.made[sub, scope] = tokens.issue(
                self.key, sub=sub, scope=scope, ttl_seconds=TTL_SECONDS, now=time.time(), token_id=secrets.token_hex(8)
            )
        return self.made[sub, scope]

    def connect(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection that waits at most 10 s for anything."""
        return socket.create_connection(("127.0.0.1", self.port), timeout=10, source_address=(source, 0))

    def ask(self, method: str, path: str, token: str, body: bytes = b"") -> int:
        """The status of one request on a connection of its own."""
        with self.connect() as sock:
            sock.sendall(http_request(method, path, token, body))
            return read_answer(sock)

    def register(self, name: str, *viewers: str) -> None:
        """A diagnosis, owned by `owner-NAME`."""
        body = json.dumps({"owner": f"owner-{name}", "viewers": list(viewers)}).encode()
        status = self.ask("PUT", f"/diagnoses/{name}", self.token("registrar", "register"), body)
        assert status in (200, 201), status

    def prepare(self, name: str) -> None:
        """What an abuse needs that is no abuse itself."""
        if name in ("backup", "check"):
            line = json.dumps({"type": "recommendation_update", "diagnosis_id": "big", "new_data": {"x": "y" * 30_000}})
            for number in range(12):
                self.register(f"big{number}")
                lines = "\n".join([line.replace('"big"', f'"big{number}"')] * 100).encode()
                assert self.ask("POST", "/ws/broadcast", self.token("op", "operate"), lines) == 200
        if name in ("frames", "acks", "newcomers", "deletion", "bulk", "take-over", "vanishing"):
            self.register("wild")


def http_request(method: str, path: str, token: str | None, body: bytes = b"", **headers: str) -> bytes:
    """A request, whole."""
    kind = "application/x-ndjson" if path == "/ws/broadcast" else "application/json"
    lines = [f"{method} {path} HTTP/1.1", "Host: localhost", f"Content-Length: {len(body)}", f"Content-Type: {kind}"]
    lines += [] if token is None else [f"Authorization: Bearer {token}"]
    lines += [f"{name}: {value}" for name, value in headers.items()]
    return "\r\n".join([*lines, "", ""]).encode() + body


def read_answer(sock: socket.socket) -> int:
    """The status of an answer that has a length; its body is read and thrown away."""
    data = b""
    while b"\r\n\r\n" not in data:
        chunk = sock.recv(1 << 16)
        if not chunk:
            return 0
        data += chunk
    head, _, body = data.partition(b"\r\n\r\n")
    length = next(
        (int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length:")), 0
    )
    missing = length - len(body)
    while missing > 0:
        chunk = sock.recv(min(missing, 1 << 20))
        if not chunk:
            return 0
        missing -= len(chunk)
    return int(head.split()[1])


def websocket(
    place: Place, diagnosis_id: str, *, sub: str | None = None, source: str = "127.0.0.1", **query: str
) -> socket.socket:
    """A follower, upgraded."""
    who = sub or f"owner-{diagnosis_id}"
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    sock = place.connect(source)
    upgrade(sock, f"/ws/{diagnosis_id}?{asked}", place.token(who, "" if sub is None else "monitor"))
    return sock


def upgrade(sock: socket.socket, path: str, token: str | None) -> bytes:
    """Follow, until `live` or a refusal has come; what has come behind the head of the answer."""
    key = base64.b64encode(os.urandom(16)).decode()
    head = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {key}",
        "Sec-WebSocket-Version: 13",
        f"Authorization: Bearer {token}",
    ]
    sock.sendall("\r\n".join([*head, "", ""]).encode())
    data = b""
    while b'"live"' not in data and b'"error"' not in data:
        chunk = sock.recv(1 << 16)
        if not chunk:
            break
        data += chunk
    return data.partition(b"\r\n\r\n")[2]


def client_frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame of at most 125 bytes."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + b"\0\0\0\0" + payload


PING: Final = client_frame(9, b"")
ACK: Final = client_frame(1, b'{"type":"ack","seq":0}')
FRAMES_AT_ONCE: Final = 600
"""What a flood sends at once. Reason: some kilobytes, as much as a server reads at once."""


def flood(stop: Stop, connect: Sequence[Callable[[], socket.socket]], frames: Sequence[bytes]) -> int:
    """Sockets send a frame each as fast as the server reads it, and come back when they are cut.

    Returns how often they were.
    """
    data = [frame * FRAMES_AT_ONCE for frame in frames]
    opened: dict[int, socket.socket] = {}
    cut = 0
    while not stop():
        for index, connect_one in enumerate(connect):
            if index in opened or stop():
                continue
            with suppress(OSError):  # it has stopped, or is about to end
                opened[index] = connect_one()
                opened[index].setblocking(False)
        for index, sock in list(opened.items()):
            try:
                sock.send(data[index % len(data)])
                sock.recv(1 << 16)
            except BlockingIOError:
                pass
            except OSError:
                cut += 1
                opened.pop(index).close()
        time.sleep(0.001)
    for sock in opened.values():
        sock.close()
    return cut


def _flood_of_one_account(place: Place, stop: Stop, frame: bytes, sockets: int) -> None:
    def connect() -> socket.socket:
        return websocket(place, "wild", source=HOST, device=f"f-{secrets.token_hex(4)}")

    flood(stop, [connect] * sockets, [frame])


def frames(place: Place, stop: Stop) -> None:
    """Twenty sockets send empty Pings."""
    _flood_of_one_account(place, stop, PING, 20)


def acks(place: Place, stop: Stop) -> None:
    """One socket acknowledges the same number again and again."""
    _flood_of_one_account(place, stop, ACK, 1)


def _requests(place: Place, stop: Stop, data: bytes, per_second: float) -> None:
    while not stop():
        began = time.monotonic()
        with suppress(OSError), place.connect(HOST) as sock:
            sock.sendall(data)
            sock.recv(1 << 16)
        time.sleep(max(0.0, 1 / per_second - (time.monotonic() - began)))


def heads(place: Place, stop: Stop) -> None:
    """Heads of 16 KB that are all lines, fifty a second."""
    _requests(place, stop, b"GET /healthz HTTP/1.1\r\nHost: x\r\n" + b"a:\r\n" * 4000 + b"\r\n", 50)


def queries(place: Place, stop: Stop) -> None:
    """Queries of 7,900 parameters, fifty a second."""
    _requests(place, stop, b"GET /healthz?" + b"a&" * 7900 + b" HTTP/1.1\r\nHost: x\r\n\r\n", 50)


def unread(place: Place, stop: Stop) -> None:
    """Two thousand connections ask for the largest answer and read nothing."""
    opened: list[socket.socket] = []
    while not stop():
        if len(opened) < 2000:
            with suppress(OSError):
                sock = place.connect(HOST)
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 2048)
                sock.sendall(b"GET /openapi.json HTTP/1.1\r\nHost: x\r\n\r\n")
                opened.append(sock)
        else:
            time.sleep(0.05)


def streams(place: Place, stop: Stop) -> None:
    """Event streams that are given up right after the request."""
    token = place.token("owner-neighbour")
    while not stop():
        with suppress(OSError), place.connect(HOST) as sock:
            sock.sendall(http_request("GET", "/diagnoses/neighbour/events", token))
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        time.sleep(0.01)


def _bulk(place: Place, stop: Stop, token: str, name: str) -> None:
    line = json.dumps({"type": "recommendation_update", "diagnosis_id": name, "new_data": {"x": list(range(700))}})
    body = "\n".join([line] * 1000).encode()[: 4 * 1024 * 1024 - 1]
    while not stop():
        opened: list[socket.socket] = []
        with suppress(OSError):
            for _ in range(4):
                opened.append(place.connect(HOST))
                opened[-1].sendall(http_request("POST", "/ws/broadcast", token, body))
            for sock in opened:
                read_answer(sock)
        for sock in opened:
            sock.close()


def bulk(place: Place, stop: Stop) -> None:
    """Four bulk requests of 4 MiB at a time, of somebody who may."""
    _bulk(place, stop, place.token("owner-wild"), "wild")


def forbidden_bulk(place: Place, stop: Stop) -> None:
    """Four bulk requests of 4 MiB at a time, of somebody who may not."""
    _bulk(place, stop, place.token("stranger"), "neighbour")


def half_bodies(place: Place, stop: Stop) -> None:
    """Sixteen connections declare 4 MiB and send a byte."""
    head = http_request("POST", "/ws/broadcast", place.token("stranger")).replace(b"Length: 0", b"Length: 4194304")
    while not stop():
        opened = []
        for _ in range(16):
            with suppress(OSError):
                opened.append(place.connect(HOST))
                opened[-1].sendall(head + b"x")
        time.sleep(1)
        for sock in opened:
            sock.close()


def newcomers(place: Place, stop: Stop) -> None:
    """People nobody knows follow the neighbour's diagnosis and leave, as fast as they are admitted."""
    number = 0
    while not stop():
        with suppress(OSError):
            opened = [websocket(place, "neighbour", sub=f"new-{number + index}", source=HOST) for index in range(16)]
            number += 16
            for sock in opened:
                sock.close()


def status(place: Place, stop: Stop) -> None:
    """An operator asks for the status, three requests at a time."""
    token = place.token("op", "operate")
    while not stop():
        opened = [place.connect(HOST) for _ in range(3)]
        for sock in opened:
            sock.sendall(http_request("GET", "/ws/status", token))
        for sock in opened:
            read_answer(sock)
            sock.close()


def _operator(place: Place, stop: Stop, path: str) -> None:
    while not stop():
        with suppress(OSError), place.connect(HOST) as sock:
            sock.sendall(http_request("POST", path, place.token("op", "operate")))
            read_answer(sock)


def backup(place: Place, stop: Stop) -> None:
    """Backups of a database of some 40 MB, one after the other."""
    _operator(place, stop, "/backup")


def check(place: Place, stop: Stop) -> None:
    """Checks of the same database."""
    _operator(place, stop, "/check")


def deletion(place: Place, stop: Stop) -> None:
    """A diagnosis with five hundred followers is deleted and registered again."""
    while not stop():
        with suppress(OSError):
            opened = [
                websocket(place, "wild", source=HOST, device=f"d{index % 90}", sub=f"u{index}") for index in range(500)
            ]
            place.ask("DELETE", "/diagnoses/wild", place.token("registrar", "register"))
            place.register("wild")
            for sock in opened:
                sock.close()


def vanishing(place: Place, stop: Stop) -> None:
    """Five hundred followers are reset at once, again and again."""
    while not stop():
        with suppress(OSError):
            opened = [websocket(place, "wild", source=HOST, sub=f"u{index}") for index in range(500)]
            for sock in opened:
                sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            for sock in opened:
                sock.close()


def take_over(place: Place, stop: Stop) -> None:
    """Two clients take one device from each other."""
    while not stop():
        with suppress(OSError):
            older = websocket(place, "wild", source=HOST, device="one")
            newer = websocket(place, "wild", source=HOST, device="one")
            older.close()
            newer.close()


ABUSES: Final[dict[str, Callable[[Place, Stop], None]]] = {
    "frames": frames,
    "acks": acks,
    "heads": heads,
    "queries": queries,
    "unread": unread,
    "streams": streams,
    "bulk": bulk,
    "forbidden-bulk": forbidden_bulk,
    "half-bodies": half_bodies,
    "newcomers": newcomers,
    "status": status,
    "backup": backup,
    "check": check,
    "deletion": deletion,
    "vanishing": vanishing,
    "take-over": take_over,
}
"""By name."""
