"""A WebSocket server that says what a test wants: one script for each connection, each on a thread of its own."""

from __future__ import annotations

import logging
import queue
import re
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from http import HTTPStatus
from typing import Final, Self

from anyio import to_thread
from websockets.exceptions import ConnectionClosed
from websockets.http11 import Request, Response
from websockets.sync.server import ServerConnection, serve
from websockets.utils import accept_key

Script = Callable[[ServerConnection], object]

WAIT_SECONDS_MAX: Final = 10

SILENT: Final = logging.getLogger("scripted")
"""The server would log what it receives, and with it tokens."""
SILENT.setLevel(logging.CRITICAL)


class Scripted:
    """The server."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._scripts: queue.SimpleQueue[Script | int] = queue.SimpleQueue()
        self.requests: list[Request] = []
        self.received: queue.SimpleQueue[str] = queue.SimpleQueue()
        """Each text that a client sent and no script took."""
        self.closed: queue.SimpleQueue[int | None] = queue.SimpleQueue()
        """The code of each client's Close, `None`: there was none."""
        self._server = serve(
            self._handle, "127.0.0.1", 0, process_request=self._answer, ping_interval=None, logger=SILENT, ssl=tls
        )
        self._thread = threading.Thread(target=self._server.serve_forever)
        self.url = f"{'http' if tls is None else 'https'}://127.0.0.1:{self._server.socket.getsockname()[1]}"

    def play(self, *scripts: Script | int) -> None:
        """Answer the next connections so: with a script, or an HTTP status in place of the 101."""
        for script in scripts:
            self._scripts.put(script)

    def _answer(self, connection: ServerConnection, request: Request) -> Response | None:
        self.requests.append(request)
        script = self._scripts.get(timeout=WAIT_SECONDS_MAX)
        if isinstance(script, int):
            response = connection.respond(HTTPStatus(script), "")
            response.headers["Retry-After"] = "0"
            return response
        connection.script = script  # type: ignore[attr-defined]
        return None

    def _handle(self, connection: ServerConnection) -> None:
        script: Script = connection.script  # type: ignore[attr-defined]
        try:
            script(connection)
            for message in connection:
                self.received.put(str(message))
        except ConnectionClosed:
            pass
        finally:
            close = connection.protocol.close_rcvd
            self.closed.put(None if close is None else close.code)

    async def next_received(self) -> str:
        """The next text of a client; waits for it."""
        return await to_thread.run_sync(partial(self.received.get, timeout=WAIT_SECONDS_MAX))

    async def next_close(self) -> int | None:
        """The code of a client's next Close, `None`: it has gone without; waits for it."""
        return await to_thread.run_sync(partial(self.closed.get, timeout=WAIT_SECONDS_MAX))

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._thread.join()


def say(*frames: str) -> Script:
    """Send these frames."""

    def script(connection: ServerConnection) -> None:
        for text in frames:
            connection.send(text)

    return script


def close(code: int, reason: str, *frames: str) -> Script:
    """Send these frames; then close."""

    def script(connection: ServerConnection) -> None:
        for text in frames:
            connection.send(text)
        connection.close(code, reason)

    return script


@contextmanager
def deaf(*frames: str) -> Iterator[str]:
    """The URL of a server that upgrades, sends these frames, and then neither reads nor ends."""
    held: list[socket.socket] = []

    def serve() -> None:
        connection, _ = listener.accept()
        held.append(connection)
        head = connection.recv(4096).decode()
        found = re.search(r"(?i)sec-websocket-key: *(\S+)", head)
        if found is None:
            return
        connection.sendall(
            b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
            b"Sec-WebSocket-Accept: " + accept_key(found[1]).encode() + b"\r\n\r\n"
        )
        for text in frames:
            connection.sendall(b"\x81\x7e" + len(text).to_bytes(2, "big") + text.encode())

    with socket.create_server(("127.0.0.1", 0)) as listener:
        thread = threading.Thread(target=serve)
        thread.start()
        yield f"http://127.0.0.1:{listener.getsockname()[1]}"
        thread.join()
        for connection in held:
            connection.close()
