"""Networks that lose answers, and a server of which one part is away."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Mapping
from contextlib import suppress
from typing import Final

import h11
import httpx


class Swallowing(httpx.BaseTransport):
    """A network that loses the answers to the first requests."""

    def __init__(self, lost: int) -> None:
        self._inner = httpx.HTTPTransport()
        self._lost = lost

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        response = self._inner.handle_request(request)
        if self._lost:
            self._lost -= 1
            response.read()
            raise httpx.ReadError("the connection ended", request=request)
        return response

    def close(self) -> None:
        self._inner.close()


class PartlyAway(httpx.BaseTransport):
    """A server that answers the lines of some diagnoses with a problem, and stores the others."""

    def __init__(self, away: Mapping[int, int]) -> None:
        """Begin.

        Args:
            away: the status that each of these diagnoses is answered with.
        """
        self._inner = httpx.HTTPTransport()
        self.away = dict(away)
        self.asked: list[tuple[int, object]] = []
        """The diagnosis and the `feedback_id` of each line that has come."""

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        lines = [json.loads(line) for line in request.content.splitlines()]
        self.asked += [(line["diagnosis_id"], line["feedback_id"]) for line in lines]
        stored = iter(self._stored(request, [line for line in lines if line["diagnosis_id"] not in self.away]))
        problem: Final = {"code": "mailbox_full", "detail": "the mailbox is full"}
        results = [
            {"status": self.away[line["diagnosis_id"]], **problem} if line["diagnosis_id"] in self.away
            else next(stored)
            for line in lines
        ]  # fmt: skip
        content = b"".join(json.dumps(one).encode() + b"\n" for one in results)
        return httpx.Response(200, content=content, request=request)

    def _stored(self, request: httpx.Request, lines: list[object]) -> list[object]:
        if not lines:
            return []
        content = b"".join(json.dumps(line).encode() + b"\n" for line in lines)
        headers = {key: value for key, value in request.headers.items() if key != "content-length"}
        passed = httpx.Request("POST", request.url, headers=headers, content=content)
        answer = self._inner.handle_request(passed)
        return [json.loads(line) for line in answer.read().splitlines()]

    def close(self) -> None:
        self._inner.close()


def _whole(begun: bytes, server: socket.socket) -> bytes:
    """The body of an answer that begins so; it may come in parts."""
    reader, body = h11.Connection(h11.CLIENT), b""
    reader.send(h11.Request(method="GET", target="/", headers=[("Host", "stand-in")]))
    reader.send(h11.EndOfMessage())
    reader.receive_data(begun)
    while not isinstance(event := reader.next_event(), h11.EndOfMessage):
        if event is h11.NEED_DATA:
            reader.receive_data(server.recv(65536))
        elif isinstance(event, h11.Data):
            body += event.data
    return body


class AnswerTaker:
    """A TCP proxy that takes an answer away when it is told to: the server has sent it, the client never gets it."""

    def __init__(self, port: int) -> None:
        """Begin, in front of the server on this port."""
        self._port = port
        self._then: Callable[[bytes], object] | None = None
        self._listening = socket.create_server(("127.0.0.1", 0))
        self.url = f"http://127.0.0.1:{self._listening.getsockname()[1]}"
        threading.Thread(target=self._accept, daemon=True).start()

    def take_next(self, then: Callable[[bytes], object]) -> None:
        """Call this with the body of the next answer, and end its connection."""
        self._then = then

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listening.accept()
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        with client, suppress(OSError), socket.create_connection(("127.0.0.1", self._port)) as server:
            threading.Thread(target=self._pass_on, args=(client, server), daemon=True).start()
            while answer := server.recv(65536):
                then, self._then = self._then, None
                if then is not None:
                    then(_whole(answer, server))
                    break
                client.sendall(answer)
            # Another thread reads from both: only this wakes it.
            for one in (client, server):
                with suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def _pass_on(self, client: socket.socket, server: socket.socket) -> None:
        with suppress(OSError):
            while request := client.recv(65536):
                server.sendall(request)
            server.shutdown(socket.SHUT_RDWR)

    def close(self) -> None:
        """Take no connection any more."""
        self._listening.shutdown(socket.SHUT_RDWR)
        self._listening.close()
