"""Where the abuses find the server, and how they talk to it: plain sockets, and tokens of the server's own key."""

from __future__ import annotations

import base64
import json
import os
import secrets
import socket
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

from benchmarks.generator import Generator, Subscriber, Target, plan_text
from benchmarks.peers.listening import POST_PATH
from benchmarks.processes import PRIORITY, cores
from benchmarks.servers import BUILT
from web.identity import tokens

NEAR: Final = "127.0.0.1"
"""Connections from here have no limit for their address."""

FAR: Final = "127.0.0.2"
"""The abuses come from here: an address with limits of its own."""

TTL_SECONDS: Final = 86_400

IN_FLIGHT: Final = 32
"""Followers that connect at the same time."""


@dataclass(slots=True)
class Place:
    """Where the server is, and who may do what there."""

    port: int
    key: bytes
    disk: Path | None = None
    """Where the server's data lie, if that can be frozen."""
    priority: int = PRIORITY
    """Of the load generators that are started from here."""
    made: dict[tuple[str, str], str] = field(default_factory=dict)

    def token(self, sub: str, scope: str = "") -> str:
        """A token of this subject, made once."""
        if (sub, scope) not in self.made:
            self.made[sub, scope] = tokens.issue(
                self.key, sub=sub, scope=scope, ttl_seconds=TTL_SECONDS, now=time.time(), token_id=secrets.token_hex(8)
            )
        return self.made[sub, scope]

    def connect(self, source: str = NEAR, seconds: float = 10) -> socket.socket:
        """A connection that waits so long at most for anything."""
        return socket.create_connection((NEAR, self.port), timeout=seconds, source_address=(source, 0))

    def ask(
        self, method: str, path: str, token: str, body: bytes = b"", *, source: str = NEAR, seconds: float = 10
    ) -> int:
        """The status of one request on a connection of its own."""
        with self.connect(source, seconds) as sock:
            sock.sendall(http_request(method, path, token, body))
            return read_answer(sock)

    def register(self, name: str, *viewers: str) -> None:
        """A diagnosis, owned by `owner-NAME`."""
        body = json.dumps({"owner": f"owner-{name}", "viewers": list(viewers)}).encode()
        status = self.ask("PUT", f"/diagnoses/{name}", self.token("registrar", "register"), body)
        assert status in (200, 201), status

    def follower(self, name: str, sub: str) -> Subscriber:
        """Somebody who follows a diagnosis, for the load generator."""
        return Subscriber(diagnosis=name, path=f"/ws/{name}", token=self.token(sub, "monitor"))

    @contextmanager
    def following(self, followers: Sequence[Subscriber], in_flight: int = IN_FLIGHT) -> Iterator[Generator]:
        """A load generator with these followers, connected; they vanish with the block."""
        with self.generator(followers) as generator:
            generator.connect(in_flight)
            yield generator

    @contextmanager
    def generator(self, followers: Sequence[Subscriber], publisher: str = "owner-neighbour") -> Iterator[Generator]:
        """A load generator that has nobody connected yet, and publishes as this user."""
        target = Target(
            address=NEAR,
            port=self.port,
            publish_port=self.port,
            publish_path=POST_PATH,
            publish_token=self.token(publisher),
            ready='"type":"live"',
        )
        with tempfile.TemporaryDirectory() as directory:
            plan = Path(directory) / "plan"
            plan.write_text(plan_text(target, followers))
            with Generator(BUILT / "load", plan, cores()[1], self.priority) as generator:
                yield generator


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
    place: Place, diagnosis_id: str, *, sub: str | None = None, source: str = NEAR, **query: str
) -> socket.socket:
    """A follower, upgraded."""
    who = sub or f"owner-{diagnosis_id}"
    asked = "&".join(f"{name}={value}" for name, value in query.items())
    sock = place.connect(source)
    upgrade(sock, f"/ws/{diagnosis_id}?{asked}", place.token(who, "" if sub is None else "monitor"))
    return sock


def upgrade(sock: socket.socket, path: str, token: str | None) -> bytes:
    """Follow, until `live` or a refusal has come; what has come behind the head of the answer."""
    sock.sendall(upgrade_request(path, token))
    data = b""
    while b'"live"' not in data and b'"error"' not in data:
        chunk = sock.recv(1 << 16)
        if not chunk:
            break
        data += chunk
    return data.partition(b"\r\n\r\n")[2]


def upgrade_request(path: str, token: str | None) -> bytes:
    """The head of a request for a WebSocket."""
    head = [
        f"GET {path} HTTP/1.1",
        "Host: localhost",
        "Upgrade: websocket",
        "Connection: Upgrade",
        f"Sec-WebSocket-Key: {base64.b64encode(os.urandom(16)).decode()}",
        "Sec-WebSocket-Version: 13",
        f"Authorization: Bearer {token}",
    ]
    return "\r\n".join([*head, "", ""]).encode()


def client_frame(opcode: int, payload: bytes) -> bytes:
    """A masked frame of at most 125 bytes."""
    return bytes((0x80 | opcode, 0x80 | len(payload))) + b"\0\0\0\0" + payload
