"""What the edge relies on in Hypercorn, Quart, h11 and wsproto: if a release changes any of it, a test says what."""

from __future__ import annotations

import inspect
from importlib.metadata import version

import h11
import pytest
import trio
from h11._receivebuffer import ReceiveBuffer
from hypercorn.app_wrappers import ASGIWrapper
from hypercorn.config import Config
from hypercorn.events import Closed, RawData, Updated
from hypercorn.protocol.events import Body, Data, EndBody, Request, Response, StreamClosed
from hypercorn.protocol.h11 import STREAM_ID, H11Protocol, H11WSConnection
from hypercorn.protocol.http_stream import ASGIHTTPState, HTTPStream
from hypercorn.protocol.ws_stream import ASGIWebsocketState, WSStream
from hypercorn.trio.lifespan import Lifespan
from hypercorn.trio.task_group import TaskGroup
from hypercorn.trio.worker_context import WorkerContext
from hypercorn.utils import parse_socket_addr
from quart import Quart
from quart import Response as QuartResponse
from quart.asgi import ASGIHTTPConnection, ASGIWebsocketConnection
from quart.wrappers.base import BaseRequestWebsocket
from quart.wrappers.response import DataBody
from quart_trio import QuartTrio
from quart_trio.asgi import TrioASGIHTTPConnection, TrioASGIWebsocketConnection
from quart_trio.wrappers import TrioRequest
from quart_trio.wrappers.request import TrioBody
from wsproto.frame_protocol import FrameDecoder, MessageDecoder, Opcode

STREAM = ["app", "config", "context", "task_group", "ssl", "client", "server", "send", "stream_id"]
SIGNATURES = {
    H11Protocol: ["app", "config", "context", "task_group", "connection_state", "ssl", "client", "server", "send"],
    HTTPStream: STREAM,
    WSStream: STREAM,
    Lifespan: ["app", "config", "state"],
    WorkerContext: ["max_requests"],
    TaskGroup: [],
    ASGIWrapper: ["app"],
    RawData: ["data", "address"],
    Closed: [],
    Updated: ["idle"],
    Body: ["stream_id", "data"],
    Data: ["stream_id", "data"],
    EndBody: ["stream_id"],
    Request: ["stream_id", "headers", "http_version", "method", "raw_path", "state"],
    Response: ["stream_id", "headers", "status_code"],
    StreamClosed: ["stream_id"],
    H11WSConnection: ["h11_connection"],
}

CALLED = {
    H11Protocol.handle: ["event"],
    H11Protocol.stream_send: ["event"],
    H11Protocol._check_protocol: ["event"],
    H11Protocol._create_stream: ["request"],
    H11Protocol._send_error_response: ["status_code"],
    H11Protocol._send_h11_event: ["event"],
    H11Protocol._maybe_recycle: [],
    HTTPStream.handle: ["event"],
    HTTPStream.app_send: ["message"],
    HTTPStream._send_error_response: ["status_code"],
    WSStream.handle: ["event"],
    WSStream.app_send: ["message"],
    WSStream._send_error_response: ["status_code"],
    Lifespan.handle_lifespan: ["task_status"],
    Lifespan.wait_for_startup: [],
    Lifespan.wait_for_shutdown: [],
    TaskGroup.spawn_app: ["app", "config", "scope", "send"],
    TaskGroup.spawn: ["func", "args"],
    ASGIHTTPConnection._create_request_from_scope: ["send"],
    ASGIHTTPConnection._send_response: ["send", "response"],
    ASGIWebsocketConnection.handle_websocket: ["websocket", "send"],
    TrioASGIHTTPConnection.__call__: ["receive", "send"],
    TrioASGIWebsocketConnection.__call__: ["receive", "send"],
    TrioASGIWebsocketConnection._create_websocket_from_scope: ["send"],
    TrioASGIWebsocketConnection.accept_connection: ["send", "headers", "subprotocol"],
    Quart.ensure_async: ["func"],
    Quart.create_url_adapter: ["request"],
}


@pytest.mark.parametrize("made", SIGNATURES, ids=lambda made: made.__name__)
def test_a_class_takes_what_we_give_it(made: type) -> None:
    assert list(inspect.signature(made).parameters) == SIGNATURES[made]


@pytest.mark.parametrize("method", CALLED, ids=lambda method: method.__qualname__)
def test_a_method_takes_what_we_give_it(method: object) -> None:
    assert callable(method)
    assert list(inspect.signature(method).parameters)[1:] == CALLED[method]  # type: ignore[index]


async def test_the_parts_have_the_attributes_we_look_at() -> None:
    async def nothing(event: object) -> None:
        """Goes nowhere."""

    config, context = Config(), WorkerContext(None)
    app = ASGIWrapper(lambda *_: nothing(None))
    async with TaskGroup() as tasks:
        protocol = H11Protocol(app, config, context, tasks, {}, False, None, None, nothing)  # type: ignore[arg-type]
        stream = WSStream(app, config, context, tasks, False, None, None, nothing, STREAM_ID)
    assert isinstance(protocol.connection, h11.Connection)
    assert protocol.connection.trailing_data == (b"", False)
    assert protocol.stream is None
    assert protocol.keep_alive_requests == 0
    assert {"can_read", "connection_state", "task_group", "send", "ssl", "client", "server"} <= set(vars(protocol))
    assert (stream.closed, stream.state) == (False, ASGIWebsocketState.HANDSHAKE)
    assert {"RESPONSE", "CLOSED", "REQUEST"} <= set(ASGIHTTPState.__members__)
    assert {"HANDSHAKE", "CONNECTED", "HTTPCLOSED"} <= set(ASGIWebsocketState.__members__)
    assert not context.terminated.is_set()
    for name in (
        "accesslog",
        "errorlog",
        "h11_max_incomplete_size",
        "include_server_header",
        "keep_alive_max_requests",
        "shutdown_timeout",
    ):
        assert hasattr(config, name), name


def test_the_connection_classes_of_an_application_are_attributes_of_it() -> None:
    assert QuartTrio.asgi_http_class is TrioASGIHTTPConnection
    assert QuartTrio.asgi_websocket_class is TrioASGIWebsocketConnection


def test_the_parts_of_a_request_that_are_replaced_are_attributes_of_its_class() -> None:
    assert isinstance(vars(BaseRequestWebsocket)["blueprints"], property)
    assert TrioRequest.body_class is TrioBody
    assert list(inspect.signature(TrioBody.__init__).parameters)[1:] == [
        "expected_content_length",
        "max_content_length",
    ]


def test_what_a_websocket_connection_is_made_of_is_what_ours_sets() -> None:
    made = TrioASGIWebsocketConnection(QuartTrio("test"), {"type": "websocket"})  # type: ignore[typeddict-item]
    assert set(vars(made)) == {"app", "scope", "send_channel", "receive_channel", "_accepted", "_closed"}


def test_an_answer_of_bytes_has_a_body_that_holds_them() -> None:
    body = QuartResponse(b"abc").response
    assert isinstance(body, DataBody)
    assert body.data == b"abc"


def test_an_address_on_a_unix_socket_is_none() -> None:
    assert parse_socket_addr(trio.socket.AF_UNIX, ("/run/live.sock",)) is None
    assert parse_socket_addr(trio.socket.AF_INET6, ("::1", 80, 0, 0)) == ("::1", 80)


def test_h11_counts_only_incomplete_heads() -> None:
    """Why the edge measures heads itself."""
    connection = h11.Connection(h11.SERVER, max_incomplete_event_size=100)
    connection.receive_data(b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"x" * 1000 + b"\r\n\r\n")
    assert isinstance(connection.next_event(), h11.Request)


def test_h11_refuses_an_empty_line_before_a_request_and_its_buffer_can_be_shortened() -> None:
    """Why the edge takes that line out itself, and how."""
    connection = h11.Connection(h11.SERVER)
    connection.receive_data(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
    assert connection.trailing_data[0].startswith(b"\r\n")
    assert bytes(connection._receive_buffer.maybe_extract_at_most(2) or b"") == b"\r\n"
    assert isinstance(connection.next_event(), h11.Request)
    with pytest.raises(h11.RemoteProtocolError):
        other = h11.Connection(h11.SERVER)
        other.receive_data(b"\r\nGET / HTTP/1.1\r\nHost: a\r\n\r\n")
        other.next_event()


def test_the_buffer_of_h11_can_be_replaced_by_one_that_counts_lines_first() -> None:
    buffer = ReceiveBuffer()
    buffer += b"GET / HTTP/1.1\r\nHost: a\r\n\r\n"
    assert isinstance(buffer._data, bytearray)
    assert buffer._data.count(b"\n") == 3
    assert buffer.maybe_extract_lines() == [bytearray(b"GET / HTTP/1.1"), bytearray(b"Host: a")]
    connection = h11.Connection(h11.SERVER)
    assert isinstance(connection._receive_buffer, ReceiveBuffer)
    for name in ("they_are_waiting_for_100_continue", "client_is_waiting_for_100_continue"):
        assert getattr(connection, name) is False


def test_wsprotos_decoders_show_what_is_missing_of_a_frame_and_a_message() -> None:
    decoder, messages = FrameDecoder(client=False), MessageDecoder()
    assert (len(decoder.buffer), decoder.header, messages.opcode) == (0, None, None)
    decoder.receive_bytes(b"\x01\x8a\x00\x00\x00\x00abc")  # 3 of the 10 bytes of a frame, behind which another follows
    frame = decoder.process_buffer()
    assert frame is not None
    assert decoder.header is not None
    assert (decoder.header.payload_len, decoder.payload_consumed, len(decoder.buffer)) == (10, 3, 0)
    assert messages.process_frame(frame).payload == "abc"
    assert messages.opcode is Opcode.TEXT


def test_the_releases_are_those_that_were_read() -> None:
    assert version("hypercorn").startswith("0.18.")
    assert version("h11").startswith("0.16.")
    assert version("wsproto").startswith("1.3.")
