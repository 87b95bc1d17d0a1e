"""HTTP/1.1 as the edge takes it, before any route: limits, times, and what is no HTTP/1.1 at all."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from typing import Any

import pytest
import trio
import trio.testing

from tests.edge.peers import KEY, Peer, ask, connect, request, running_edge, upgrade
from tests.server.harness import Server, running_server
from web.http.answers import HEAD_BYTES_MAX
from web.http.line import LINGER_BYTES_MAX, Patience
from web.http.serving import Edge, Terms
from web.server.settings import Settings

ANSWERED = {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"2")]}


async def short(scope: Any, receive: Any, send: Any) -> None:
    """An application that answers every request at once, without reading its body."""
    if scope["type"] == "lifespan":
        while True:
            event = await receive()
            await send({"type": event["type"] + ".complete"})
            if event["type"] == "lifespan.shutdown":
                return
    await send(ANSWERED)
    await send({"type": "http.response.body", "body": b"ok"})


def head_of(size: int, base: bytes) -> bytes:
    """The request, with a header that makes its head exactly so large."""
    head = base.removesuffix(b"\r\n")
    padding = size - len(base) - len(b"X: \r\n")
    return head + b"X: " + b"x" * padding + b"\r\n\r\n"


@pytest.mark.parametrize("base", [request(b"/healthz"), upgrade()], ids=["a request", "an upgrade"])
@pytest.mark.parametrize("pieces", [1, 7])
async def test_a_head_of_one_byte_more_than_16_kib_is_answered_431(server: Server, base: bytes, pieces: int) -> None:
    head = head_of(HEAD_BYTES_MAX + 1, base)
    assert len(head) == HEAD_BYTES_MAX + 1
    async with await connect(server.url) as peer:
        for begin in range(0, len(head), len(head) // pieces + 1):
            await peer.send(head[begin : begin + len(head) // pieces + 1])
            await trio.sleep(0.001)
        answer = await peer.answer()
        assert await peer.end() == b""
    assert answer.status == 431
    assert answer.problem["code"] == "too_large"
    assert answer.headers["connection"] == "close"


async def test_a_head_of_16_kib_passes_however_it_arrives(server: Server) -> None:
    head = head_of(HEAD_BYTES_MAX, request(b"/healthz"))
    async with await connect(server.url) as peer:
        for pieces in (1, 3):
            size = len(head) // pieces + 1
            for begin in range(0, len(head), size):
                await peer.send(head[begin : begin + size])
                await trio.sleep(0.001)
            assert (await peer.answer()).status == 200


async def test_the_limit_of_a_head_is_for_each_request_of_a_connection(server: Server) -> None:
    head = head_of(HEAD_BYTES_MAX, request(b"/healthz"))
    async with await connect(server.url) as peer:
        await peer.send(head * 3)
        assert [(await peer.answer()).status for _ in range(3)] == [200, 200, 200]
        await peer.send(head + head_of(HEAD_BYTES_MAX + 1, request(b"/healthz")))
        assert [(await peer.answer()).status for _ in range(2)] == [200, 431]


@pytest.mark.parametrize(
    ("sent", "status"),
    [
        (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 505),
        (b"GET / HTTP/9.9\r\nHost: test\r\n\r\n", 505),
        (request(b"http://user@test/healthz"), 400),
        (request(b"http://:80/healthz"), 400),
        (request(b"http:///healthz"), 400),
        (request(b"http://a b/healthz"), 400),
        (request(b"http://test:99999/healthz"), 400),
        (request(b"http://test//healthz"), 400),
        (request(b"http://test/healthz#x"), 400),
        (request(b"ws://test/ws/42"), 400),
        (request(b"ftp://test/healthz"), 400),
        (b"GET http://test/healthz HTTP/1.1\r\nHost: a b\r\n\r\n", 400),
        (b"GET http://test/healthz HTTP/1.1\r\n\r\n", 400),
        (upgrade(b"http://user@test/ws/42"), 400),
        (upgrade().replace(b"Host: test", b"Host: a b"), 400),
        *(
            (request(b"/healthz").replace(b"Host: test", b"Host: " + host), 400)
            for host in (
                b"a b",
                b"a@b",
                b"",
                b" ",
                b":80",
                b"a:b",
                b"a:80:80",
                b"a:65536",
                b"a/b",
                b"a?b",
                b"http://a",
                b"a\\b",
                b"[::1",
                b"[::g]",
                b"[]",
                b"::1",
                b"a, b",
                b"<a>",
                b"%zz",
                b"\xc3\xa9",
            )
        ),
        (b"\r\n\r\n" + request(b"/healthz"), 400),
        (b"\n" + request(b"/healthz"), 400),
        (b" \r\n" + request(b"/healthz"), 400),
        (request(b"*", b"OPTIONS"), 400),
        (request(b"test:80", b"CONNECT"), 400),
        (request(b"?x"), 400),
        (request(b"http://["), 400),
        (request(b"//healthz"), 400),
        (request(b"/\xc3\xa9"), 400),
        (b"GET / HTTP/1.1\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nHost: a\r\nHost: b\r\n\r\n", 400),
        (b"nonsense\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + b"\0" * 40, 400),
        (request(b"/", b"POST", Transfer_Encoding=b"gzip"), 501),
        (request(b"/", b"POST", Content_Length=b"many"), 400),
        (request(b"/", b"POST", Content_Length=b"5", Transfer_Encoding=b"chunked") + b"0\r\n\r\n", 400),
        (upgrade(Sec_WebSocket_Version=b"12"), 426),
        (upgrade(without="Sec_WebSocket_Version"), 426),
        (upgrade(without="Sec_WebSocket_Key"), 400),
        (upgrade(Sec_WebSocket_Key=b"short"), 400),
        (upgrade(Sec_WebSocket_Key=b"!" * 24), 400),
        (upgrade(Sec_WebSocket_Protocol=b"\xe9"), 400),
        (upgrade(Sec_WebSocket_Extensions=b"\xe9"), 400),
        (upgrade(Connection=b"Upgrade, \xe9"), 400),
        (upgrade(Content_Length=b"3") + b"abc", 400),
        (upgrade(Transfer_Encoding=b"chunked") + b"0\r\n\r\n", 400),
        (upgrade() + b"\x81\x80\0\0\0\0", 400),
        (upgrade().replace(b"HTTP/1.1", b"HTTP/1.0"), 400),
    ],
)
async def test_what_is_no_proper_request_gets_a_problem_document_and_the_end(
    server: Server, sent: bytes, status: int
) -> None:
    answer, rest = await ask(server.url, sent)
    assert (answer.status, rest) == (status, b"")
    assert answer.problem["code"] == "bad_json"
    assert answer.headers["connection"] == "close"
    assert (await server.http.get("/healthz")).status_code == 200


@pytest.mark.parametrize("coding", [b"gzip", b"gzip, chunked", b"identity", b"chunked\r\nTransfer-Encoding: chunked"])
async def test_a_transfer_coding_that_is_not_known_is_named(server: Server, coding: bytes) -> None:
    answer, _ = await ask(server.url, request(b"/", b"POST", Transfer_Encoding=coding))
    assert answer.status == 501
    assert answer.problem["detail"] == "Transfer-Encoding must be chunked, once: this server knows no other"


@pytest.mark.parametrize(
    "host",
    [
        b"test",
        b"test:80",
        b"test:",
        b"TEST.example.",
        b"my_host",
        b"127.0.0.1:8000",
        b"[::1]:8000",
        b"[::FFFF:1.2.3.4]",
    ],
)
async def test_a_proper_host_passes(server: Server, host: bytes) -> None:
    async with await connect(server.url) as peer:
        await peer.send(request(b"/healthz").replace(b"Host: test", b"Host: " + host))
        assert (await peer.answer()).status == 200


@pytest.mark.parametrize(
    ("target", "path"),
    [
        (b"http://test/healthz", b"/healthz"),
        (b"HTTPS://test:443/healthz", b"/healthz"),
        (b"http://[::1]:80/healthz", b"/healthz"),
        (b"http://test", b"/"),
        (b"http://test:8000?a=http://b/c", b"/?a=http://b/c"),
        (b"http://test/diagnoses?limit=0", b"/diagnoses?limit=0"),
    ],
)
async def test_an_absolute_target_is_its_path_on_the_host_it_names(target: bytes, path: bytes) -> None:
    asked: list[tuple[bytes, bytes, list[bytes]]] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            query = b"?" + scope["query_string"] if scope["query_string"] else b""
            hosts = [value for name, value in scope["headers"] if name == b"host"]
            asked.append((scope["raw_path"] + query, scope["path"].encode(), hosts))
        await short(scope, receive, send)

    async with running_edge(app) as edge, await connect(edge.url) as peer:
        for sent in (request(target), request(target).replace(b"HTTP/1.1\r\nHost: test", b"HTTP/1.0")):
            await peer.send(sent)
            assert (await peer.answer()).status == 200
    authority = target.partition(b"://")[2].partition(b"/")[0].partition(b"?")[0]
    assert asked == [(path, path.partition(b"?")[0], [authority])] * 2


async def test_an_absolute_target_may_become_a_websocket(server: Server) -> None:
    await server.register()
    token = b"Bearer " + server.token("amira").encode()
    async with await connect(server.url) as peer:
        await peer.send(upgrade(b"http://other.example/ws/42?start=new", Authorization=token))
        assert (await peer.answer()).status == 101


async def test_one_empty_line_before_each_request_is_not_looked_at() -> None:
    get, post = request(), request(b"/", b"POST", b"x" * 10)
    async with running_edge(short) as edge, await connect(edge.url) as peer:
        await peer.send(b"".join(b"\r\n" + one for one in (get, post, get, post, post)))
        assert [(await peer.answer()).status for _ in range(5)] == [200] * 5
        for part in (b"\r", b"\n", get):
            await peer.send(part)
            await trio.testing.wait_all_tasks_blocked()
        assert (await peer.answer()).status == 200
        await peer.send(b"\r\n\r\n" + get)
        assert (await peer.answer()).status == 400


async def test_an_empty_line_alone_does_not_begin_a_request() -> None:
    async with (
        running_edge(short, patience={"first_byte_seconds": 0.1, "head_seconds": 1000}) as edge,
        await connect(edge.url) as peer,
    ):
        await peer.send(b"\r\n")
        assert await peer.end() == b"", "closed as a connection that says nothing"


async def test_a_wrong_websocket_version_is_told_the_right_one(server: Server) -> None:
    answer, _ = await ask(server.url, upgrade(Sec_WebSocket_Version=b"8"))
    assert answer.headers["sec-websocket-version"] == "13"


async def test_a_request_for_a_websocket_that_is_none_is_told_so(server: Server) -> None:
    async with await connect(server.url) as peer:
        await peer.send(request(b"/ws/42"))
        answer = await peer.answer()
        assert (answer.status, answer.headers["upgrade"]) == (426, "websocket")
        await peer.send(request(b"/healthz"))
        assert (await peer.answer()).status == 200


async def test_an_upgrade_of_a_path_that_is_no_websocket_is_answered_404_and_closed(server: Server) -> None:
    answer, rest = await ask(server.url, upgrade(b"/nowhere"))
    assert (answer.status, rest) == (404, b"")
    assert answer.problem["code"] == "not_found"


async def test_h2c_is_not_taken_and_the_request_is_answered_in_http_1(server: Server) -> None:
    async with await connect(server.url) as peer:
        await peer.send(
            request(b"/healthz", Connection=b"Upgrade, HTTP2-Settings", Upgrade=b"h2c", HTTP2_Settings=b"?")
        )
        assert (await peer.answer()).status == 200
        await peer.send(request(b"/healthz"))
        assert (await peer.answer()).status == 200


async def test_the_answer_to_a_bad_head_request_has_no_body(server: Server) -> None:
    async with await connect(server.url) as peer:
        await peer.send(request(b"*", b"HEAD"))
        assert (await peer.answer(has_body=False)).status == 400
        assert await peer.end() == b""


async def test_a_proper_upgrade_passes_with_tokens_in_any_case_and_order() -> None:
    opened: list[str] = []

    async def app(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "websocket":
            opened.append(scope["path"])
            await send({"type": "websocket.accept"})
            await send({"type": "websocket.close", "code": 1000})
        else:
            await short(scope, receive, send)

    async with running_edge(app) as edge, await connect(edge.url) as peer:
        await peer.send(upgrade(b"/x", Connection=b"keep-alive, UPGRADE", Upgrade=b"WebSocket", Content_Length=b"0"))
        answer = await peer.answer()
    assert (answer.status, opened) == (101, ["/x"])
    assert answer.headers["sec-websocket-accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert KEY == b"dGhlIHNhbXBsZSBub25jZQ=="


async def pipelined(peer: Peer, *requests: bytes) -> list[int]:
    await peer.send(b"".join(requests))
    return [(await peer.answer()).status for _ in requests]


async def test_pipelined_requests_are_answered_in_order(server: Server) -> None:
    await server.register()
    body = b'{"diagnosis_id": 42, "feedback_id": 1, "rating": 5}'
    token = b"Bearer " + server.token("amira").encode()
    post = request(
        b"/ws/broadcast-feedback-update", b"POST", body, Content_Type=b"application/json", Authorization=token
    )
    get = request(b"/healthz")
    missing = request(b"/nowhere")
    async with await connect(server.url) as peer:
        assert await pipelined(peer, post, get, post, post, missing, get) == [200, 200, 200, 200, 404, 200]


@pytest.mark.parametrize("behind", [b"\r\n", request(b"/healthz"), b"\0" * 100_000])
@pytest.mark.parametrize("at_once", [True, False])
async def test_what_follows_a_last_request_keeps_nobody_from_its_answer(
    server: Server, behind: bytes, at_once: bool
) -> None:
    await server.register()
    body = b'{"diagnosis_id": 42, "feedback_id": 1, "rating": 5}'
    post = request(
        b"/ws/broadcast-feedback-update",
        b"POST",
        body,
        Content_Type=b"application/json",
        Authorization=b"Bearer " + server.token("amira").encode(),
        Connection=b"close",
    )
    async with await connect(server.url) as peer:
        if at_once:
            await peer.send(post + behind)
        else:
            await peer.send(post)
            await peer.send(behind)
        assert (await peer.answer()).status == 200
        assert await peer.end() == b""


async def test_expect_100_continue_is_answered_before_the_body(server: Server) -> None:
    await server.register()
    body = b'{"diagnosis_id": 42, "feedback_id": 1, "rating": 5}'
    token = b"Bearer " + server.token("amira").encode()
    head = request(
        b"/ws/broadcast-feedback-update",
        b"POST",
        body,
        Content_Type=b"application/json",
        Authorization=token,
        Expect=b"100-continue",
    ).removesuffix(body)
    async with await connect(server.url) as peer:
        await peer.send(head)
        assert (await peer.answer()).status == 100
        await peer.send(body)
        assert (await peer.answer()).status == 200


# Times


async def test_a_connection_that_says_nothing_is_closed() -> None:
    async with (
        running_edge(short, idle_seconds=1000, patience={"first_byte_seconds": 0.1}) as edge,
        await connect(edge.url) as peer,
    ):
        assert await peer.end() == b""


def test_publishers_that_send_every_few_seconds_keep_their_connections() -> None:
    assert Settings().keep_alive_seconds == 75
    assert Patience().first_byte_seconds == 10


async def test_the_time_before_the_first_byte_is_another_than_that_between_requests() -> None:
    async with (
        running_edge(short, idle_seconds=0.1, patience={"first_byte_seconds": 1000}) as edge,
        await connect(edge.url) as peer,
    ):
        await trio.sleep(0.3)
        await peer.send(request())
        assert (await peer.answer()).status == 200
        assert await peer.end() == b""


async def test_a_request_that_meets_the_end_of_an_idle_connection_is_answered() -> None:
    edge = Edge(short, Terms(connections_max=1, drain_seconds_max=1.0, patience=Patience()))
    server_end, client_end = socket.socketpair()
    server_end.setblocking(False)
    with client_end:
        async with trio.open_nursery() as connections_nursery:
            connections_nursery.start_soon(edge.accept, server_end, None)
            await trio.testing.wait_all_tasks_blocked()
            client_end.send(request())  # nobody else runs until the connections are told to end
            await edge.retire()
        answer = client_end.recv(65536)
        assert client_end.recv(1) == b""
    assert answer.startswith(b"HTTP/1.1 200 ")
    assert b"connection: close" in answer


async def test_a_head_that_does_not_arrive_in_time_is_answered_408_however_its_bytes_drip() -> None:
    async with (
        running_edge(short, idle_seconds=0.2, patience={"head_seconds": 0.5}) as edge,
        await connect(edge.url) as peer,
        trio.open_nursery() as dripping,
    ):

        async def drip() -> None:
            try:
                for byte in request() + b"GET " * 1000:
                    await peer.send(bytes((byte,)) if byte not in b"\r\n" else b"x")
                    await trio.sleep(0.02)
            except trio.BrokenResourceError:
                return

        dripping.start_soon(drip)
        answer = await peer.answer()
        dripping.cancel_scope.cancel()
    assert answer.status == 408
    assert answer.problem["code"] == "bad_json"


@pytest.mark.parametrize(
    ("first", "status"),
    [
        (request(b"/healthz"), 200),
        (request(b"/nowhere"), 404),
        (request(b"/actors"), 401),
        (request(b"/ws/broadcast", b"POST", b""), 401),
    ],
)
async def test_the_idle_time_of_a_connection_holds_after_a_request_too(
    settings: Settings, first: bytes, status: int
) -> None:
    short_lived = dataclasses.replace(settings, keep_alive_seconds=0.2)
    async with running_server(short_lived) as server, await connect(server.url) as peer:
        await peer.send(first)
        assert (await peer.answer()).status == status
        began = trio.current_time()
        assert await peer.end() == b""
    assert trio.current_time() - began < 10


async def test_a_connection_in_use_is_not_idle() -> None:
    async def slow(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http":
            await trio.sleep(0.5)
        await short(scope, receive, send)

    async with running_edge(slow, idle_seconds=0.1) as edge, await connect(edge.url) as peer:
        await peer.send(request())
        assert (await peer.answer()).status == 200


# Early answers


@pytest.mark.parametrize("size", [10, 100_000, 3_000_000])
async def test_an_answer_that_comes_before_the_body_reaches_a_client_that_sends_all_of_it(size: int) -> None:
    async with running_edge(short) as edge, await connect(edge.url) as peer:
        await peer.send(request(b"/", b"POST", b"x" * size))
        answer = await peer.answer()
    assert (answer.status, answer.body) == (200, b"ok")


async def test_an_answer_that_comes_before_the_body_says_that_it_is_the_last(server: Server) -> None:
    for _ in range(5):
        async with await connect(server.url) as peer:
            await peer.send(request(b"/nowhere", b"POST", b"x" * 10).removesuffix(b"x" * 10))
            answer = await peer.answer()
            assert answer.status == 404
            assert answer.headers["connection"] == "close"
            assert await peer.end() == b""


async def test_a_client_that_goes_on_sending_after_a_last_answer_is_cut_off() -> None:
    ended = trio.Event()

    async with running_edge(short, patience={"linger_seconds": 0.2}) as edge, await connect(edge.url) as peer:
        await peer.send(request(b"/", b"POST", b"").replace(b"Content-Length: 0", b"Content-Length: 999999999"))
        assert (await peer.answer()).status == 200
        with trio.fail_after(15), pytest.raises(trio.BrokenResourceError):
            while True:
                await peer.send(b"x" * 1000)
                await trio.sleep(0.01)
        ended.set()
    assert ended.is_set()


# Answers


async def test_the_head_of_a_stream_is_sent_before_its_first_chunk() -> None:
    more = trio.Event()

    async def streaming(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await short(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await more.wait()
        await send({"type": "http.response.body", "body": b"later"})

    async with running_edge(streaming) as edge, await connect(edge.url) as peer:
        await peer.send(request())
        assert (await peer.answer()).status == 200
        more.set()
        await peer.stream.send_eof()
        assert b"later" in await peer.end()


async def test_a_client_that_ends_its_side_is_still_answered(server: Server) -> None:
    for _ in range(20):
        async with await connect(server.url) as peer:
            await peer.send(request(b"/healthz") + request(b"/nothing"))
            await peer.stream.send_eof()
            assert [(await peer.answer()).status for _ in range(2)] == [200, 404]
            assert await peer.end() == b""


async def test_a_peer_that_accepts_no_byte_is_cut_and_its_request_ends() -> None:
    ended = trio.Event()

    async def endless(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await short(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        async with trio.open_nursery() as nursery:

            async def write() -> None:
                while True:
                    await send({"type": "http.response.body", "body": b"x" * 100_000, "more_body": True})
                    await trio.lowlevel.checkpoint()

            nursery.start_soon(write)
            while (await receive())["type"] != "http.disconnect":
                pass
            nursery.cancel_scope.cancel()
        ended.set()

    async with running_edge(endless, patience={"stall_seconds": 0.3}) as edge, await connect(edge.url) as peer:
        await peer.send(request())
        with trio.fail_after(15):
            await ended.wait()


@pytest.mark.parametrize("kind", ["http", "websocket"])
async def test_an_application_that_goes_on_sending_to_a_peer_that_left_holds_up_nobody(kind: str) -> None:
    started, ended = trio.Event(), trio.Event()

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != kind or scope["path"] != "/deaf":
            await short(scope, receive, send)
            return
        if kind == "http":
            await send({"type": "http.response.start", "status": 200, "headers": []})
            message: dict[str, object] = {"type": "http.response.body", "body": b"x" * 1000, "more_body": True}
        else:
            await send({"type": "websocket.accept"})
            message = {"type": "websocket.send", "text": "x" * 1000, "bytes": None}
        started.set()
        while not ended.is_set():
            await send(message)

    async with running_edge(deaf) as edge:
        async with await connect(edge.url) as peer:
            await peer.send(request(b"/deaf") if kind == "http" else upgrade(b"/deaf"))
            await started.wait()
        for _ in range(5):
            async with await connect(edge.url) as other:
                await other.send(request())
                assert (await other.answer()).status == 200
        ended.set()


async def test_a_stream_ends_once_its_client_no_longer_speaks_http(caplog: pytest.LogCaptureFixture) -> None:
    ended = trio.Event()

    async def deaf(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] != "http":
            await short(scope, receive, send)
            return
        await send({"type": "http.response.start", "status": 200, "headers": []})
        while not ended.is_set():
            await send({"type": "http.response.body", "body": b"x", "more_body": True})
            await trio.sleep(0.001)

    async with running_edge(deaf) as edge, await connect(edge.url) as peer:
        await peer.send(request(b"/", b"POST", Transfer_Encoding=b"chunked"))
        await peer.answer()
        await peer.send(b"nonsense\r\n")
        received = await peer.end()
        ended.set()
    assert b"\r\n0\r\n" not in received, "an answer that was broken off does not look whole"
    assert [one for one in caplog.records if one.levelname == "ERROR"] == []


async def test_a_body_without_an_end_is_answered_413_and_cut(server: Server) -> None:
    await server.register()
    token = b"Bearer " + server.token("amira").encode()
    path = b"/ws/broadcast-feedback-update"
    head = request(path, b"POST", Authorization=token, Content_Type=b"application/json", Transfer_Encoding=b"chunked")
    sent = 0

    async def endless(peer: Peer) -> None:
        nonlocal sent
        await peer.send(head)
        with contextlib.suppress(trio.BrokenResourceError):
            while True:
                await peer.send(b"4000\r\n" + b"x" * 0x4000 + b"\r\n")
                sent += 0x4000

    async with await connect(server.url) as peer, trio.open_nursery() as sending:
        sending.start_soon(endless, peer)
        answer = await peer.answer()
    assert answer.status == 413
    assert sent < 4 * LINGER_BYTES_MAX


async def test_an_error_of_the_application_is_a_problem_document_and_hurts_no_other_connection() -> None:
    async def broken(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/broken":
            raise ValueError("a-payload-is-never-logged")
        await short(scope, receive, send)

    async with running_edge(broken) as edge, await connect(edge.url) as other:
        answer, _ = await ask(edge.url, request(b"/broken", Connection=b"close"))
        await other.send(request())
        assert (await other.answer()).status == 200
    assert answer.status == 500
    assert answer.problem["code"] == "internal_error"
