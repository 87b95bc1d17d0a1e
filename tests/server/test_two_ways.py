"""The same bytes get the same answer by the short way and by the long one, and do the same."""

from __future__ import annotations

import re
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
import trio
import trio.testing

from tests.edge.peers import connect
from tests.server.harness import Server, running_server
from web.contract.principals import Principal
from web.http import serving
from web.identity.access import Access
from web.server.settings import Settings

pytestmark = pytest.mark.one_way

LAST = b"HEAD /healthz HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
"""Asked at the end: it is answered if the connection is still open."""

CHANGING = re.compile(
    rb"(?<=\r\ndate: )[^\r]+|(?<=\r\nx-request-id: )[^\r]+|(?<=\"epoch\":\")[^\"]+|(?<=\"created_at\":\")[^\"]+"
    rb"|(?<=\"timestamp\":\")[^\"]+|(?<=\"server_time\":\")[^\"]+"
)

FEEDBACK = b'{"diagnosis_id":42,"feedback_id":1,"rating":5}'


@dataclass(frozen=True)
class Pair:
    """Two servers that differ in the setting alone."""

    short: Server
    long: Server


@pytest.fixture
async def pair(settings: Settings, tmp_path: Path) -> AsyncIterator[Pair]:
    other = replace(settings, data=tmp_path / "other", short_way=False)
    async with running_server(settings) as short, running_server(other) as long:
        for server in (short, long):
            await server.register()
        yield Pair(short, long)


PATH = b"/ws/broadcast-feedback-update"
KEYED = b"Idempotency-Key: a"


def post(body: bytes = FEEDBACK, path: bytes = PATH, *lines: bytes, sub: str = "amira") -> Callable[[Server], bytes]:
    """A plain publish."""

    def made(server: Server) -> bytes:
        token = b"Authorization: Bearer " + server.token(sub).encode()
        length = b"Content-Length: %d" % len(body)
        head = (b"POST %b HTTP/1.1" % path, b"Host: localhost", token, b"Content-Type: application/json", length)
        return b"\r\n".join((*head, *lines, b"", body))

    return made


def get(path: bytes, *lines: bytes, sub: str = "amira", method: bytes = b"GET") -> Callable[[Server], bytes]:
    """A plain question."""

    def made(server: Server) -> bytes:
        token = b"Authorization: Bearer " + server.token(sub).encode()
        return b"\r\n".join((b"%b %b HTTP/1.1" % (method, path), b"Host: localhost", token, *lines, b"", b""))

    return made


def handshake(path: bytes, *lines: bytes) -> Callable[[Server], bytes]:
    """A plain handshake."""
    lines = (b"Upgrade: websocket", b"Connection: Upgrade", b"Sec-WebSocket-Version: 13", *lines)
    return get(path, *lines, b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==")


def raw(data: bytes) -> Callable[[Server], bytes]:
    return lambda server: data


def together(*pieces: Callable[[Server], bytes]) -> Callable[[Server], bytes]:
    return lambda server: b"".join(piece(server) for piece in pieces)


CASES: dict[str, list[Callable[[Server], bytes]]] = {
    "a publish": [post()],
    "two publishes, one behind the answer of the other": [post(), post()],
    "a publish twice by its key": [post(FEEDBACK, PATH, KEYED), post(FEEDBACK, PATH, KEYED)],
    "a publish of the wrong kind": [post(path=b"/ws/broadcast-effectiveness-update")],
    "a publish by a stranger": [post(sub="mallory")],
    "a publish of no JSON": [post(b"{")],
    "an empty publish": [post(b"")],
    "a publish to a diagnosis that is not registered": [post(FEEDBACK.replace(b"42", b"43"))],
    "questions": [
        get(b"/healthz"),
        get(b"/readyz"),
        get(b"/diagnoses/42"),
        get(b"/diagnoses?limit=1"),
        get(b"/diagnoses?limit=x"),
        get(b"/diagnoses?limit=1&limit=2"),
        get(b"/diagnoses/42/delivery?seq=1"),
        get(b"/diagnoses/42/position?device=a%2Bb"),
        get(b"/actors/42"),
        get(b"/audit"),
    ],
    "paths of no route": [get(b"/nothing"), get(b"/diagnoses/42/nothing"), get(b"/ws/42"), get(b"/ws/43/44")],
    "methods that a path does not take": [get(b"/healthz", method=b"DELETE"), get(b"/ws/status", method=b"PUT")],
    "documents": [get(b"/openapi.json", b"If-None-Match: *"), get(b"/healthz")],
    "a registration without a body": [get(b"/diagnoses/44", b"Content-Length: 0", method=b"PUT")],
    "a question with a body": [get(b"/healthz", b"Content-Length: 2"), raw(b"{}")],
    "a broken token": [raw(b"GET /diagnoses HTTP/1.1\r\nHost: a\r\nAuthorization: Bearer a.b.c\r\n\r\n")],
    "no token": [raw(b"GET /diagnoses HTTP/1.1\r\nHost: a\r\n\r\n")],
    "another scheme": [raw(b"GET /diagnoses HTTP/1.1\r\nHost: a\r\nAuthorization: Basic a\r\n\r\n")],
    "a body one byte too large": [post(b" " * (64 * 1024 + 1))],
    "a body as large as one may be": [post(b" " * 64 * 1024)],
    "refused before its body": [raw(b"POST /ws/broadcast HTTP/1.1\r\nHost: a\r\nContent-Length: 10\r\n\r\n")],
    "refused before its plain body": [
        raw(
            b"POST /ws/broadcast-feedback-update HTTP/1.1\r\nHost: a\r\nContent-Type: application/json\r\n"
            b"Content-Length: 10\r\n\r\n{"
        )
    ],
    "a handshake to nowhere": [handshake(b"/ws/42/43")],
    "a handshake to another kind of path": [handshake(b"/healthz")],
    "a handshake with more behind it": [lambda server: handshake(b"/ws/42")(server) + b"\x81\x80abcd"],
    "an empty line before a publish": [lambda server: b"\r\n" + post()(server)],
    "no HTTP": [raw(b"hello\r\n\r\n")],
}


async def conversation(server: Server, sent: bytes, *, half_closes: bool = False) -> bytes:
    """All that a server answers to these bytes until it closes; what differs between two servers is left out."""
    async with await connect(server.url) as peer:
        await peer.send(sent)
        if half_closes:
            await peer.stream.send_eof()
        return CHANGING.sub(b"...", await peer.end())


def taken(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What the log says of requests since it was last asked, without times."""
    lines = [re.sub(r"[0-9.]+ ms", "ms", one.getMessage()) for one in caplog.records if one.name == "avicenna.access"]
    caplog.clear()
    return lines


async def assert_alike(
    pair: Pair,
    caplog: pytest.LogCaptureFixture,
    made: Callable[[Server], bytes],
    name: str = "",
    *,
    half_closes: bool = False,
) -> bytes:
    """Both servers answer alike, log alike, and have stored the same; the answer."""
    found = []
    for server in (pair.short, pair.long):
        caplog.clear()
        said = await conversation(server, made(server), half_closes=half_closes)
        await trio.testing.wait_all_tasks_blocked(0.05)
        lines = taken(caplog)
        outbox = await server.http.get("/actors/42/outbox", headers=server.bearer("operator", "operate"))
        found.append((said, lines, CHANGING.sub(b"...", outbox.content)))
    assert found[0] == found[1], name
    assert found[0][1], f"the log says something of every request: {name}"
    return found[0][0]


async def test_both_ways_answer_alike(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    for name, pieces in CASES.items():
        said = await assert_alike(pair, caplog, together(*pieces, raw(LAST)), name)
        assert said.startswith(b"HTTP/1.1 "), name
    counted = [(await server.status())["node"]["requests"] for server in (pair.short, pair.long)]
    assert counted[0]["short"] > 20
    assert counted[1]["short"] == 0
    assert sum(counted[0].values()) == sum(counted[1].values())


async def test_both_ways_answer_a_peer_alike_that_has_ended_its_side(
    pair: Pair, caplog: pytest.LogCaptureFixture
) -> None:
    for name, pieces in CASES.items():
        await assert_alike(pair, caplog, together(*pieces), name, half_closes=True)


async def test_a_peer_that_ends_within_a_body_is_answered_400(pair: Pair, caplog: pytest.LogCaptureFixture) -> None:
    said = await assert_alike(pair, caplog, lambda server: post()(server)[:-5], half_closes=True)
    assert said.startswith(b"HTTP/1.1 400 ")


async def test_requests_of_both_ways_are_counted_together(
    tmp_path: Path, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A connection ends after as many requests as it may have, whichever way they took."""
    monkeypatch.setattr(serving, "REQUESTS_MAX", 4)
    plain, other = b"GET /healthz HTTP/1.1\r\nHost: a\r\n\r\n", b"HEAD /healthz HTTP/1.1\r\nHost: a\r\n\r\n"
    async with running_server(settings) as server, await connect(server.url) as peer:
        answers = []
        for sent in (plain, other, other, plain):
            await peer.send(sent)
            answers.append(await peer.answer(has_body=sent is plain))
        assert [answer.headers.get("connection") for answer in answers] == [None, None, None, "close"]
        assert await peer.end() == b""


async def test_the_first_bytes_behind_a_handshake_refuse_it_if_they_come_before_its_answer(
    server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    await server.register()
    may_go_on, is_asked = trio.Event(), trio.Event()
    check = Access.check_may_follow

    async def slow(self: Access, who: Principal, diagnosis_id: str) -> None:
        is_asked.set()
        await may_go_on.wait()
        await check(self, who, diagnosis_id)

    monkeypatch.setattr(Access, "check_may_follow", slow)
    async with await connect(server.url) as peer:
        await peer.send(handshake(b"/ws/42")(server))
        with trio.fail_after(10):
            await is_asked.wait()
        await peer.send(b"\x81")
        may_go_on.set()
        answer = await peer.answer()
        assert (answer.status, answer.headers["connection"]) == (400, "close")
        assert "nothing may follow" in answer.problem["detail"]
        assert await peer.end() == b""
