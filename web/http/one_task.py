"""Quart-Trio's two kinds of ASGI connections without their extra tasks: a route runs in the task that called it."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import ExitStack
from functools import cached_property
from typing import Any, Final, NoReturn, cast

import trio
from hypercorn.typing import ASGIReceiveCallable, ASGISendCallable, WebsocketScope
from quart.asgi import ASGIWebsocketConnection
from quart.utils import encode_headers
from quart.wrappers import Response
from quart.wrappers.base import BaseRequestWebsocket
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from quart_trio.wrappers import TrioRequest, TrioWebsocket
from quart_trio.wrappers.request import TrioBody
from werkzeug.exceptions import ClientDisconnected, RequestEntityTooLarge

from web.contract.exchange import Request
from web.contract.operations import EVENT_STREAM

LATE_SECONDS_MAX: Final = 1.0
"""Longest time for reading the part of a body that had arrived when its time was up."""


class _Routed(BaseRequestWebsocket):
    """What Quart asks of every request."""

    asked: Request | None = None
    """Our record of it; `None`: not made yet."""

    @cached_property
    def blueprints(self) -> list[str]:
        """As Quart's, but looked up once: Quart asks again and again, always after the route has been found."""
        return super().blueprints


class _NoBody:
    """In place of the body that Quart would collect: here `LeanRequest.receive_body` reads it."""

    def __init__(self, *_: object) -> None:
        """Quart passes the announced and the largest length."""


class LeanRequest(_Routed, TrioRequest):
    """A request whose body is received by whoever asks for it, and by nobody else."""

    body_class = cast("type[TrioBody]", _NoBody)
    receive: ASGIReceiveCallable

    def __init__(self, method: str, *args: Any, **options: Any) -> None:
        super().__init__(method, *args, **options)
        self.method = method  # Werkzeug has it in upper case, but `post` is not `POST` (RFC 9110 section 9.1)
        self.at_end = ExitStack()
        """Undone when the request is over, however it ends.

        A `finally` around a streamed answer would not do: its client may leave before the first step of it.
        """

    async def receive_body(
        self, bytes_max: int, seconds_max: float, arrived: Callable[[int], None] = lambda length: None
    ) -> bytes:
        """The body, whole. Once.

        Bytes that have arrived when the time is up came in time, however late they are looked at.

        Args:
            arrived: is told of each piece, how long it is, before it is kept; what it raises ends the reception.

        Raises:
            RequestEntityTooLarge: it has more bytes; the rest is not received.
            ClientDisconnected: it will never be whole.
            trio.TooSlowError: it has not come in time.
        """
        if (self.content_length or 0) > bytes_max:
            raise RequestEntityTooLarge
        data = bytearray()
        with trio.move_on_after(seconds_max):
            return await self._rest_of_body(data, bytes_max, arrived)
        with trio.fail_after(LATE_SECONDS_MAX):
            received = -1
            while len(data) > received:
                received = len(data)
                # The reader of the connection is woken by its socket in one turn, and has read in the next.
                await trio.lowlevel.checkpoint()
                await trio.lowlevel.checkpoint()
                with trio.move_on_after(0):
                    return await self._rest_of_body(data, bytes_max, arrived)
        raise trio.TooSlowError

    async def _rest_of_body(self, data: bytearray, bytes_max: int, arrived: Callable[[int], None]) -> bytes:
        """Cancellation: what came is in `data`."""
        while True:
            message = await self.receive()
            if message["type"] != "http.request":
                raise ClientDisconnected
            if len(data) + len(message["body"]) > bytes_max:
                raise RequestEntityTooLarge
            arrived(len(message["body"]))
            data += message["body"]
            if not message["more_body"]:
                return bytes(data)


class LeanHandshake(_Routed, TrioWebsocket):
    """The request of a WebSocket."""


class LeanHttp(TrioASGIHTTPConnection):
    """Serves one request.

    A client that leaves is noticed while its body is received, and while its answer is an event stream. Anything else
    is finished: what a route has begun is done, whether or not somebody still waits for it. A client may end its side
    and read on.
    """

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        request = self._create_request_from_scope(send)
        assert isinstance(request, LeanRequest)
        request.receive = receive
        with request.at_end:
            response = await self.app.handle_request(request)
            if isinstance(response, Response) and isinstance(response.response, DataBody):
                await self._send_whole(send, response, response.response.data)
            elif _ends_by_itself(request):
                await self._send_response(send, response)
            else:
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(_watch, nursery, receive)
                    await self._send_response(send, response)
                    nursery.cancel_scope.cancel()

    async def _send_whole(self, send: ASGISendCallable, response: Response, body: bytes) -> None:
        headers = encode_headers(response.headers)
        await send({"type": "http.response.start", "status": response.status_code, "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})


def _ends_by_itself(request: LeanRequest) -> bool:
    operation = None if request.asked is None else request.asked.operation
    return operation is not None and operation.answer_type != EVENT_STREAM


async def _watch(nursery: trio.Nursery, receive: ASGIReceiveCallable) -> None:
    """End a streamed answer once its client has left."""
    while (await receive())["type"] != "http.disconnect":
        pass
    nursery.cancel_scope.cancel()


class _Silence:
    """In place of the channel a handler would read from."""

    async def receive(self) -> NoReturn:
        raise NotImplementedError("a WebSocket is adopted, or refused")


class LeanWebsocket(TrioASGIWebsocketConnection):
    """Serves the handshake of one WebSocket, which its route refuses or adopts (`web.http.adoption`)."""

    def __init__(self, app: QuartTrio, scope: WebsocketScope) -> None:
        # Not the base class's, which opens a channel: nothing is ever received here.
        self.app = app
        self.scope = scope
        self.receive_channel = cast("trio.MemoryReceiveChannel[bytes | str]", _Silence())
        self._accepted = self._closed = False

    async def __call__(self, receive: ASGIReceiveCallable, send: ASGISendCallable) -> None:
        await ASGIWebsocketConnection.handle_websocket(self, self._create_websocket_from_scope(send), send)

    async def accept_connection(self, *_: Any) -> NoReturn:
        raise NotImplementedError("a WebSocket is adopted, or refused")
