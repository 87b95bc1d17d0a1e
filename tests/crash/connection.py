"""One keep-alive HTTP connection that can be cut at any byte: httpx leaves warnings behind when its peer is killed."""

from __future__ import annotations

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from typing import Any, Final

import h11
import trio

READ_BYTES: Final = 64 * 1024
ANSWER_SECONDS_MAX: Final = 60


class Cut(Exception):
    """The server went away before it had answered."""


class Connection:
    """Sends a request and waits for its answer, one at a time."""

    def __init__(self, stream: trio.SocketStream, headers: Mapping[str, str]) -> None:
        """Talk over `stream`, with these headers in every request."""
        self._stream = stream
        self._headers = {"Host": "localhost", **headers}
        self._http = h11.Connection(h11.CLIENT)

    async def ask(self, method: str, path: str, body: object = None, **headers: str) -> tuple[int, Any]:
        """Status and JSON of the answer.

        Raises:
            Cut: the server went away.
        """
        content = b"" if body is None else json.dumps(body).encode()
        fields = self._headers | headers | {"Content-Length": str(len(content))}
        if body is not None:
            fields["Content-Type"] = "application/json"
        request = h11.Request(method=method, target=path, headers=list(fields.items()))
        sent = (self._http.send(request), self._http.send(h11.Data(content)), self._http.send(h11.EndOfMessage()))
        try:
            with trio.fail_after(ANSWER_SECONDS_MAX):
                await self._stream.send_all(b"".join(piece for piece in sent if piece))
                return await self._answer()
        except (trio.BrokenResourceError, h11.RemoteProtocolError) as error:
            raise Cut from error

    async def _answer(self) -> tuple[int, Any]:
        status, content = 0, b""
        while True:
            match self._http.next_event():
                case h11.NEED_DATA:
                    self._http.receive_data(await self._stream.receive_some(READ_BYTES))
                case h11.Response(status_code=status):
                    pass
                case h11.Data(data=data):
                    content += data
                case h11.EndOfMessage():
                    if self._http.our_state is h11.DONE:  # else the server closes: this was the last answer
                        self._http.start_next_cycle()
                    return status, json.loads(content)
                case _:
                    raise Cut


@asynccontextmanager
async def connected(port: int, headers: Mapping[str, str]) -> AsyncIterator[Connection]:
    """A connection to a server of this machine.

    Raises:
        Cut: nobody listens.
    """
    try:
        stream = await trio.open_tcp_stream("127.0.0.1", port)
    except OSError as error:
        raise Cut from error
    try:
        yield Connection(stream, headers)
    finally:
        await trio.aclose_forcefully(stream)
