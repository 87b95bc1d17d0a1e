"""A simulated client that publishes over a WebSocket, and checks that it is answered in order."""

from __future__ import annotations

import json
from collections import deque
from collections.abc import Callable, Mapping
from typing import Any

from tests.simulation.clients import EVENT
from tests.simulation.network import CLOSE, HANDSHAKE, PING, TEXT, Frames, Link, close, pong, request, text
from tests.simulation.tokens import Token
from tests.simulation.truth import Published, Violation


class Sender:
    """One connection."""

    def __init__(
        self,
        number: int,
        link: Link,
        sub: str,
        token: Token,
        stored: Callable[[Published, Mapping[str, Any]], object],
        refused: Callable[[Published, int, Mapping[str, Any]], object],
    ) -> None:
        """Not asked for yet; `stored` and `refused` are told of answers."""
        self.number, self.link, self.sub, self.token = number, link, sub, token
        self.frames = Frames()
        self.unanswered: deque[Published] = deque()
        self.receipts = 0
        self.is_ready = False
        self.ending: tuple[int, str] | None = None
        self.asked_to_end = False
        self.is_barred = False
        self.process = 0
        self.hears: Callable[[str], object] = lambda what: None
        self._stored, self._refused = stored, refused
        link.hears = self._hear

    @property
    def is_open(self) -> bool:
        """Whether it may send something."""
        return self.ending is None and not self.link.is_over

    def ask(self) -> None:
        """Ask for the connection."""
        self.link.send(request("GET", "/publish", self.token.text, None, HANDSHAKE))

    def publish(self, one: Published) -> None:
        """Send an update."""
        frame = {"id": str(one.number), "type": EVENT, **json.loads(one.body)}
        if one.key is not None:
            frame["idempotency_key"] = one.key
        self.unanswered.append(one)
        self.link.send(text(frame))

    def _hear(self, data: bytes) -> None:
        for opcode, payload in self.frames.hear(data):
            if opcode == TEXT:
                self._take(json.loads(payload))
            elif opcode == PING:
                self.link.send(pong(payload))
            elif opcode == CLOSE and self.ending is None:
                code = int.from_bytes(payload[:2], "big") if payload else 1005
                self.ending = code, payload[2:].decode()
                self.hears(f"close {code} {self.ending[1]}")
                self.link.send(close(payload[:2]))

    def _take(self, frame: dict[str, Any]) -> None:
        match frame["type"]:
            case "connect":
                if self.is_ready or self.is_barred:
                    raise Violation(f"G16: sender {self.number} of {self.sub} was let in, and may not be")
                self.is_ready = True
            case "receipt":
                self.receipts += 1
                one = self._next(frame)
                self.hears(f"receipt {one.number} {frame['receipt']['seq']}")
                self._stored(one, frame["receipt"])
            case "refused":
                one, problem = self._next(frame), frame["problem"]
                self.hears(f"refused {one.number} {problem['code']}")
                if problem["status"] in (400, 409, 413, 422):
                    raise Violation(f"sender {self.number}: update {one.number} was refused: {problem}")
                self._refused(one, problem["status"], problem)
            case "error" | "bye" as kind:
                self.hears(f"{kind} {frame['data']['code']}")
            case "auth_expiring":
                pass
            case kind:
                raise Violation(f"sender {self.number}: a frame of the type {kind}")

    def _next(self, frame: Mapping[str, Any]) -> Published:
        if not self.unanswered or str(self.unanswered[0].number) != frame["id"]:
            due = [one.number for one in self.unanswered][:3]
            raise Violation(f"sender {self.number}: {frame['id']} is answered, and {due} were due")
        return self.unanswered.popleft()
