"""What the head of a request may cost: so many bytes, lines and parameters, counted before anything is parsed."""

from __future__ import annotations

from typing import Any

import pytest
import trio
import trio.testing

from tests.edge.peers import ask, connect, request, running_edge, upgrade
from tests.edge.test_http1 import short
from tests.server.harness import Server
from web.http.answers import HEADER_LINES_MAX, PARAMETERS_MAX


def with_lines(count: int, base: bytes, line: bytes = b"a:") -> bytes:
    """The request, with so many header lines in all."""
    more = count + 2 - base.count(b"\r\n")
    return base.removesuffix(b"\r\n") + (line + b"\r\n") * more + b"\r\n"


def with_parameters(count: int, path: bytes = b"/healthz") -> bytes:
    return path + b"?" + b"&".join(b"a%d=" % number for number in range(count))


BASES = pytest.mark.parametrize("base", [request(b"/healthz"), upgrade()], ids=["a request", "an upgrade"])


def test_the_limits_are_those_of_the_contract() -> None:
    assert (HEADER_LINES_MAX, PARAMETERS_MAX) == (100, 64)


@BASES
@pytest.mark.parametrize("count", [HEADER_LINES_MAX + 1, 3900])
async def test_a_head_of_more_than_100_lines_is_answered_431(server: Server, base: bytes, count: int) -> None:
    answer, rest = await ask(server.url, with_lines(count, base))
    assert (answer.status, rest) == (431, b"")
    assert answer.problem["code"] == "too_large"
    assert "100 header lines" in answer.problem["detail"]
    assert answer.headers["connection"] == "close"


async def test_lines_are_counted_before_a_head_is_whole(server: Server) -> None:
    unfinished = with_lines(HEADER_LINES_MAX + 1, request(b"/healthz")).removesuffix(b"\r\n")
    answer, _ = await ask(server.url, unfinished)
    assert answer.status == 431


@pytest.mark.parametrize("end", [b"\r\n", b"\n"])
async def test_lines_that_end_in_other_ways_or_are_folded_are_counted(server: Server, end: bytes) -> None:
    for line in (b"a:", b" folded"):
        sent = with_lines(HEADER_LINES_MAX + 1, request(b"/healthz"), line).replace(b"\r\n", end)
        answer, _ = await ask(server.url, sent)
        assert answer.status == 431


async def test_a_head_of_100_lines_passes_each_time_whatever_is_behind_it(server: Server) -> None:
    head = with_lines(HEADER_LINES_MAX, request(b"/healthz"))
    assert head.count(b"\r\n") == 1 + HEADER_LINES_MAX + 1
    async with await connect(server.url) as peer:
        await peer.send(head * 3 + b"\r\n" + head)
        assert [(await peer.answer()).status for _ in range(4)] == [200] * 4
        for at in range(0, len(head), 50):
            await peer.send(head[at : at + 50])
        assert (await peer.answer()).status == 200


async def test_the_lines_of_a_trailer_are_counted_too(server: Server) -> None:
    await server.register()
    token = b"Bearer " + server.token("amira").encode()
    head = request(
        b"/ws/broadcast-feedback-update",
        b"POST",
        Content_Type=b"application/json",
        Authorization=token,
        Transfer_Encoding=b"chunked",
    )
    body = b'{"diagnosis_id": 42, "feedback_id": 1, "rating": 5}'
    chunk = b"%x\r\n%b\r\n0\r\n" % (len(body), body)
    async with await connect(server.url) as peer:
        await peer.send(head + chunk + b"a: b\r\n" * 3 + b"\r\n" + with_lines(100, request(b"/healthz")))
        assert [(await peer.answer()).status for _ in range(2)] == [200, 200]
        await peer.send(head + chunk + b"\r\n" + with_lines(100, request(b"/healthz")))
        assert [(await peer.answer()).status for _ in range(2)] == [200, 200]
    for lines, status in ((HEADER_LINES_MAX, 200), (HEADER_LINES_MAX + 1, 431), (3000, 431)):
        async with await connect(server.url) as peer:
            await peer.send(head + chunk + b"a:\r\n" * lines + b"\r\n")
            assert (await peer.answer()).status == status


@pytest.mark.parametrize("path", [b"/healthz", b"/nowhere", b"/ws/42", b"http://test/healthz"])
async def test_a_query_of_more_than_64_parameters_is_answered_414(server: Server, path: bytes) -> None:
    for target in (with_parameters(PARAMETERS_MAX + 1, path), path + b"?" + b"a&" * 7000, path + b"?" + b"&" * 64):
        answer, rest = await ask(server.url, request(target))
        assert (answer.status, rest) == (414, b"")
        assert answer.problem["code"] == "too_large"
        assert "64 parameters" in answer.problem["detail"]


async def test_an_upgrade_of_too_many_parameters_is_answered_before_the_101(server: Server) -> None:
    await server.register()
    token = b"Bearer " + server.token("amira").encode()
    answer, rest = await ask(server.url, upgrade(with_parameters(PARAMETERS_MAX + 1, b"/ws/42"), Authorization=token))
    assert (answer.status, rest) == (414, b"")
    assert answer.problem["code"] == "too_large"


async def test_a_query_of_64_parameters_and_a_path_with_many_ampersands_pass(server: Server) -> None:
    async with await connect(server.url) as peer:
        await peer.send(request(with_parameters(PARAMETERS_MAX)))
        assert (await peer.answer()).status == 200
        await peer.send(request(b"/" + b"&" * 100))
        assert (await peer.answer()).status == 404


# Asking for the body


BODY = b'{"diagnosis_id": 42, "feedback_id": 1, "rating": 5}'


def expecting(target: bytes, method: bytes = b"POST", **headers: bytes) -> bytes:
    return request(target, method, BODY, Expect=b"100-continue", **headers).removesuffix(BODY)


@pytest.mark.parametrize(
    ("target", "content_type", "sub", "status"),
    [
        (b"/ws/broadcast-feedback-update", b"application/json", None, 401),
        (b"/ws/broadcast-feedback-update", b"text/plain", "amira", 415),
        (b"/ws/broadcast", b"application/x-ndjson", None, 401),
        (b"/revocations", b"application/json", "amira", 403),
        (b"/nowhere", b"application/json", None, 404),
        (b"/healthz", b"application/json", None, 405),
    ],
)
async def test_no_body_is_asked_for_of_whom_is_refused_without_it(
    server: Server, target: bytes, content_type: bytes, sub: str | None, status: int
) -> None:
    headers = {"Content_Type": content_type}
    if sub is not None:
        headers["Authorization"] = b"Bearer " + server.token(sub).encode()
    answer, rest = await ask(server.url, expecting(target, **headers))
    assert (answer.status, rest) == (status, b"")
    assert answer.headers["connection"] == "close"


async def test_a_body_is_asked_for_once_also_where_it_comes_in_pieces_or_is_needed_by_nobody(server: Server) -> None:
    await server.register()
    token = b"Bearer " + server.token("op", "operate").encode()
    publish = expecting(b"/ws/broadcast-feedback-update", Content_Type=b"application/json", Authorization=token)
    restart = expecting(b"/actors/42/restart", Authorization=token)
    async with await connect(server.url) as peer:
        for head in (publish, restart, publish):
            await peer.send(head)
            assert (await peer.answer()).status == 100
            for byte in BODY:
                await peer.send(bytes((byte,)))
                await trio.lowlevel.checkpoint()
            assert (await peer.answer()).status == 200


async def test_a_body_that_comes_unasked_is_not_asked_for(server: Server) -> None:
    await server.register()
    token = b"Bearer " + server.token("amira").encode()
    head = expecting(b"/ws/broadcast-feedback-update", Content_Type=b"application/json", Authorization=token)
    async with await connect(server.url) as peer:
        await peer.send(head + BODY)
        assert (await peer.answer()).status == 200


async def test_a_stream_asks_for_no_body(server: Server) -> None:
    await server.register()
    token = b"Bearer " + server.token("amira").encode()
    async with await connect(server.url) as peer:
        await peer.send(expecting(b"/diagnoses/42/events", b"GET", Authorization=token))
        assert (await peer.answer()).status == 200


async def test_an_application_that_answers_without_the_body_asks_for_none() -> None:
    async def asking(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and scope["path"] == "/ask":
            while (await receive())["more_body"]:
                pass
        await short(scope, receive, send)

    async with running_edge(asking) as edge:
        async with await connect(edge.url) as peer:
            await peer.send(expecting(b"/ask"))
            assert (await peer.answer()).status == 100
            await peer.send(BODY)
            assert (await peer.answer()).status == 200
        answer, _ = await ask(edge.url, expecting(b"/"))
        assert answer.status == 200
