"""Whoever listens where a server was expected: remembers what it was sent, and answers as a test wants."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

Answer = Callable[[], tuple[int, object]]


def forbidden() -> tuple[int, object]:
    """What a server answers whose token lacks a right."""
    return 403, {"type": "about:blank", "status": 403, "code": "forbidden", "detail": "no"}


class Stranger:
    """Something that speaks HTTP on a port of its own."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.asked: list[tuple[str, str]] = []
        """Method and path of each request."""
        self.tokens: list[str] = []
        """Every token it was sent."""
        self.answer: Answer = forbidden


@contextmanager
def served_by(handler: type[BaseHTTPRequestHandler]) -> Iterator[str]:
    """The URL of a port of its own, on which this handler answers from a thread."""
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


@contextmanager
def listening() -> Iterator[Stranger]:
    """One of them."""

    class Handler(BaseHTTPRequestHandler):
        def answer(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            stranger.asked.append((self.command, self.path))
            if (sent := self.headers.get("Authorization")) is not None:
                stranger.tokens.append(sent.removeprefix("Bearer "))
            status, body = stranger.answer()
            content = json.dumps(body).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content)

        do_GET = do_PUT = do_POST = do_DELETE = answer  # noqa: N815 - the names http.server looks for

        def log_message(self, *_: object) -> None:
            """Keep quiet."""

    with served_by(Handler) as url:
        stranger = Stranger(url)
        yield stranger
