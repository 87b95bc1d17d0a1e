"""Has a conversation of `docs/PROTOCOL.md` with a real server, and tells what the server says at each of its lines."""

from __future__ import annotations

import json
import re
from collections import deque
from contextlib import AsyncExitStack
from typing import Any, Final

import trio

from tests.contract import frame_complaint
from tests.documents.protocol_page import Example, Part
from tests.edge.raw import CLOSE, PING, TEXT, RawClient, client_frame, upgraded
from tests.server.harness import Server
from tests.server.test_streams import Stream, connected

TOKENS: Final = {
    "AMIRA": ("amira", "", 600),
    "AMIRA_30S": ("amira", "", 30),
    "FARID": ("farid", "", 600),
    "SERVICE": ("clinic", "broadcast", 600),
    "REGISTRAR": ("registrar", "register", 600),
    "MONITOR": ("dashboard", "monitor", 600),
    "OPERATOR": ("op", "operate", 600),
}
"""What a name in capitals stands for: `sub`, `scope` and seconds to live of a token."""

DIFFERS: Final = frozenset(
    {
        "acknowledged_at",
        "at",
        "bytes",
        "covers_until",
        "created_at",
        "epoch",
        "expires_at",
        "path",
        "seconds_left",
        "sha256",
        "timestamp",
        "token_expires_at",
        "uptime_seconds",
        "version",
    }
)
"""Fields whose value differs from run to run. Of these only the kind is compared."""

EPOCH: Final = "5c0f3a9be1d27846"
"""What stands for the epoch of diagnosis 42 in what a client says."""

_HEADER: Final = re.compile(r"([A-Z][A-Za-z-]+): (.*)")
_NAME: Final = re.compile(r"\b(AMIRA(?:_30S)?|FARID|SERVICE|REGISTRAR|MONITOR|OPERATOR)\b")


class Socket:
    """A WebSocket: a line of the server is a frame, `ping PAYLOAD`, or `close CODE REASON`."""

    def __init__(self, client: RawClient, channel: str) -> None:
        self._client = client
        self._channel = channel
        """Of `docs/asyncapi.yaml`."""

    async def said(self) -> str:
        got = await self._client.next()
        assert got is not None, "the connection is over"
        if got.opcode == PING:
            return f"ping {got.payload.decode()}"
        if got.opcode == CLOSE:
            return f"close {got.code} {got.reason}".strip()
        assert (wrong := frame_complaint(got.json, self._channel)) is None, wrong
        return got.payload.decode()

    async def say(self, text: str) -> None:
        word, _, rest = text.partition(" ")
        match word:
            case "pong":
                await self._client.pong(rest.encode())
            case "close":
                await self._client.send(client_frame(CLOSE, int(rest).to_bytes(2, "big")))
            case _:
                await self._client.send(client_frame(TEXT, text.encode()))


class EventStream:
    """An event stream, line by line; an empty line ends a message."""

    def __init__(self, stream: Stream) -> None:
        self._stream = stream
        self._lines: deque[str] = deque()

    async def said(self) -> str:
        if not self._lines:
            self._lines.extend([*await self._stream.block(), ""])
        line = self._lines.popleft()
        if line.startswith("data: "):
            assert (wrong := frame_complaint(json.loads(line.removeprefix("data: ")))) is None, wrong
        return line

    async def say(self, text: str) -> None:
        raise AssertionError(f"a stream goes one way: {text}")


class Conversation:
    """One example, from its beginning on."""

    def __init__(self, server: Server, stack: AsyncExitStack) -> None:
        self._server = server
        self._stack = stack
        self._connections: list[Socket | EventStream] = []
        self._tokens: dict[str, str] = {}
        """By the names that stand for them: one is made once, and used again."""
        self._epoch = ""

    async def prepare(self, example: Example) -> None:
        """Register diagnosis 42, and publish the events it has already."""
        self._epoch = (await self._server.register(42, "amira", "farid")).json()["epoch"]
        for number in range(example.retained):
            answer = await self._server.publish(number + 1, comment="slept well")
            assert answer.status_code == 200

    async def have(self, part: Part) -> list[tuple[str, str]]:
        """Say what the client says in a part; each line that the server says there, as shown and as said."""
        if part.request is None:
            connection = self._connections[-1 if part.selected is None else part.selected]
            return await self._go_on(connection, part.lines)
        headers, body = self._headers_and_body(part)
        asked = [line for line in part.lines if line[0] == "<"]
        method, target = part.request[0], self._filled(part.request[1])
        if asked[0][1] == "101":
            channel = "publish" if target == "/publish" else "diagnosis"
            connection = Socket(await self._upgraded(target, headers), channel)
            return await self._opened(connection, part)
        # One that begins with when to come back is whole already: an answer like any other.
        if "/events" in target and asked[0][1] == "200" and not asked[1][1].startswith("retry:"):
            connection = EventStream(await self._streamed(target, headers))
            return await self._opened(connection, part)
        return await self._asked(method, target, headers, body, asked)

    def _filled(self, text: str) -> str:
        """What the client says, with tokens and an epoch of this server."""
        return _NAME.sub(lambda found: self._token(found[1]), text).replace(EPOCH, self._epoch)

    def _token(self, name: str) -> str:
        if name not in self._tokens:
            self._tokens[name] = self._server.token(*TOKENS[name])
        return self._tokens[name]

    def _headers_and_body(self, part: Part) -> tuple[dict[str, str], bytes]:
        headers: dict[str, str] = {}
        body: list[str] = []
        for mark, text in part.lines[1:]:
            if mark == ">":
                if (header := _HEADER.fullmatch(text)) is not None and not body:
                    headers[header[1]] = self._filled(header[2])
                else:
                    body.append(text)
        end = "\n" if headers.get("Content-Type") == "application/x-ndjson" else ""
        return headers, ("\n".join(body) + end).encode() if body else b""

    async def _upgraded(self, target: str, headers: dict[str, str]) -> RawClient:
        port = int(self._server.url.rpartition(":")[2])
        client = await upgraded(port, target, *(f"{name}: {value}" for name, value in headers.items()))
        self._stack.push_async_callback(trio.aclose_forcefully, client.stream)
        return client

    async def _streamed(self, target: str, headers: dict[str, str]) -> Stream:
        socket = await self._stack.enter_async_context(await connected(self._server))
        lines = [f"{name}: {value}" for name, value in {"Host": "localhost", **headers}.items()]
        await socket.send_all("\r\n".join([f"GET {target} HTTP/1.1", *lines, "", ""]).encode())
        stream = Stream(socket)
        await stream.begin()
        return stream

    async def _opened(self, connection: Socket | EventStream, part: Part) -> list[tuple[str, str]]:
        self._connections.append(connection)
        opened = next(at for at, (mark, _) in enumerate(part.lines) if mark == "<")
        status = part.lines[opened][1]
        return [(status, status), *await self._go_on(connection, part.lines[opened + 1 :])]

    async def _go_on(self, connection: Socket | EventStream, lines: list[tuple[str, str]]) -> list[tuple[str, str]]:
        found = []
        for mark, text in lines:
            if mark == ">":
                await connection.say(self._filled(text))
            else:
                found.append((text, await connection.said()))
        return found

    async def _asked(
        self, method: str, target: str, headers: dict[str, str], body: bytes, asked: list[tuple[str, str]]
    ) -> list[tuple[str, str]]:
        answer = await self._server.http.request(method, target, headers=headers, content=body)
        content = deque(answer.text.splitlines())
        found = [(asked[0][1], str(answer.status_code))]
        for _, text in asked[1:]:
            if (header := _HEADER.fullmatch(text)) is not None:
                found.append((text, f"{header[1]}: {answer.headers.get(header[1])}"))
            else:
                found.append((text, content.popleft() if content else ""))
        assert not content, f"the answer goes on: {content[0]}"
        return found


OF_SEVERAL: Final = frozenset(
    {"nodes", "clients_notified", "online", "known", "at_risk", "cursor", "state", "acknowledged_at", "acknowledged_by"}
)
"""One process names no nodes. What others know, as who follows and who has acknowledged, comes up to a second late."""


def difference(shown: str, said: str, *, are_several: bool = False) -> str | None:
    """Where a line of the page is not what the server said; `None`: nowhere that matters.

    Args:
        are_several: several processes serve, and the page shows what one says; see `OF_SEVERAL`.
    """
    if are_several and said.startswith("{"):
        shown, said = (json.dumps(_as_of_any(json.loads(one))) for one in (shown, said))
    for prefix in ("data: ", ""):
        if shown.startswith(f"{prefix}{{"):
            if not said.startswith(prefix):
                return f"{shown} / {said}"
            return _difference(json.loads(shown.removeprefix(prefix)), json.loads(said.removeprefix(prefix)), "")
    if shown.startswith("id: "):
        shown, said = (f"id: epoch.{text.rpartition('.')[2]}" for text in (shown, said))
    return None if shown == said else f"{shown} / {said}"


def _as_of_any(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_of_any(one) for name, one in value.items() if name not in OF_SEVERAL}
    return [_as_of_any(one) for one in value] if isinstance(value, list) else value


def _difference(shown: Any, said: Any, where: str) -> str | None:
    name = where.rpartition(".")[2]
    if name in DIFFERS:
        return None if _kind(shown) == _kind(said) else f"{where}: {shown} / {said}"
    if isinstance(shown, dict) and isinstance(said, dict):
        if shown.keys() != said.keys():
            return f"{where}: fields {list(shown)} / {list(said)}"
        return next(filter(None, (_difference(shown[one], said[one], f"{where}.{one}") for one in shown)), None)
    if isinstance(shown, list) and isinstance(said, list):
        if len(shown) != len(said):
            return f"{where}: {shown} / {said}"
        return next(filter(None, (_difference(*pair, where) for pair in zip(shown, said, strict=True))), None)
    return None if shown == said and type(shown) is type(said) else f"{where}: {shown} / {said}"


def _kind(value: object) -> object:
    """What a value that differs from run to run has in common with that of another run."""
    if isinstance(value, str):
        return re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d\.\d{3}Z", value) is not None
    return "number" if isinstance(value, int | float) and not isinstance(value, bool) else type(value)
