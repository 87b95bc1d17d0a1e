"""What is recognised as a plain request, and what is left to the general parser."""

from __future__ import annotations

import h11
import pytest

from web.http.plain import BODY_BYTES_MAX, HEADER_LINES_MAX, Plain, recognised

POST = (
    b"POST /ws/broadcast-feedback-update HTTP/1.1\r\n"
    b"Host: localhost:8000\r\n"
    b"Authorization: Bearer a.b.c\r\n"
    b"Content-Type: application/json\r\n"
    b"Content-Length: 2\r\n"
    b"\r\n"
    b"{}"
)
GET = b"GET /diagnoses?limit=10&after=a%20b HTTP/1.1\r\nhost: 10.0.0.1\r\nAccept: */*\r\nUser-Agent: a (b; c)\r\n\r\n"
HANDSHAKE = (
    b"GET /ws/42?after=7 HTTP/1.1\r\n"
    b"Host: localhost\r\n"
    b"Connection: keep-alive, Upgrade\r\n"
    b"Upgrade: websocket\r\n"
    b"Origin: https://live.example.org\r\n"
    b"Sec-WebSocket-Version: 13\r\n"
    b"Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    b"Sec-WebSocket-Extensions: permessage-deflate\r\n"
    b"Sec-WebSocket-Protocol: avicenna.v1, bearer.a.b.c\r\n"
    b"\r\n"
)


def with_header(line: bytes, data: bytes = POST) -> bytes:
    return data.replace(b"\r\n", b"\r\n" + line + b"\r\n", 1)


def plain(data: bytes) -> Plain:
    found = recognised(data)
    assert found is not None, data
    return found


def test_a_plain_publish_is_recognised() -> None:
    found = plain(POST)
    assert (found.method, found.path, found.query) == ("POST", "/ws/broadcast-feedback-update", "")
    assert found.content_length == 2
    assert POST[found.body_begins :] == b"{}"
    assert found.headers["authorization"] == "Bearer a.b.c"
    assert found.key is None


def test_a_question_without_a_body_is_recognised_with_its_query() -> None:
    found = plain(GET)
    assert (found.path, found.query, found.content_length) == ("/diagnoses", "limit=10&after=a%20b", None)
    assert found.headers["user-agent"] == "a (b; c)"


def test_a_handshake_is_recognised_with_its_key_and_without_the_extensions_it_offers() -> None:
    found = plain(HANDSHAKE)
    assert (found.path, found.query, found.key) == ("/ws/42", "after=7", b"dGhlIHNhbXBsZSBub25jZQ==")
    assert "sec-websocket-extensions" not in found.headers
    assert found.headers["origin"] == "https://live.example.org"


PUBLISH = "POST /ws/broadcast-feedback-update HTTP/1.1"
JSON = "Content-Type: application/json"
CLIENTS = {
    "requests": (
        PUBLISH,
        *(
            "Host: localhost:8000",
            "User-Agent: python-requests/2.32.3",
            "Accept-Encoding: gzip, deflate",
            "Accept: */*",
        ),
        *("Connection: keep-alive", "Authorization: Bearer a.b.c", "Content-Length: 46", JSON),
    ),
    "aiohttp": (
        PUBLISH,
        *("Host: localhost:8000", "Authorization: Bearer a.b.c", "Accept: */*", "Accept-Encoding: gzip, deflate"),
        *("User-Agent: Python/3.11 aiohttp/3.10.5", "Content-Length: 46", JSON),
    ),
    "Go": (
        PUBLISH,
        *("Host: localhost:8000", "User-Agent: Go-http-client/1.1", "Content-Length: 46"),
        *("Authorization: Bearer a.b.c", JSON, "Accept-Encoding: gzip"),
    ),
    "Chromium": (
        "GET /ws/42 HTTP/1.1",
        *("Host: localhost:8000", "Connection: Upgrade", "Pragma: no-cache", "Cache-Control: no-cache"),
        *("User-Agent: Mozilla/5.0 (X11; Linux x86_64)", "Upgrade: websocket", "Origin: http://localhost:8000"),
        *("Sec-WebSocket-Version: 13", "Accept-Encoding: gzip, deflate, br", "Accept-Language: en-US,en;q=0.9"),
        *("Cookie: a=b", "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ=="),
        "Sec-WebSocket-Extensions: permessage-deflate; client_max_window_bits",
        "Sec-WebSocket-Protocol: avicenna.v1, bearer.a.b.c",
    ),
    "Firefox": (
        "GET /ws/42?after=7 HTTP/1.1",
        *("Host: localhost:8000", "User-Agent: Mozilla/5.0 (X11; Linux x86_64; rv:128.0)", "Accept: */*"),
        *("Accept-Language: en-US,en;q=0.5", "Accept-Encoding: gzip, deflate", "Sec-WebSocket-Version: 13"),
        *("Origin: http://localhost:8000", "Sec-WebSocket-Extensions: permessage-deflate"),
        *("Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==", "Connection: keep-alive, Upgrade", "Sec-Fetch-Dest: empty"),
        *("Sec-Fetch-Mode: websocket", "Sec-Fetch-Site: same-origin", "Pragma: no-cache", "Cache-Control: no-cache"),
        "Upgrade: websocket",
    ),
}


@pytest.mark.parametrize("lines", CLIENTS.values(), ids=CLIENTS)
def test_what_usual_clients_send_is_plain(lines: tuple[str, ...]) -> None:
    assert recognised("\r\n".join((*lines, "", "")).encode()) is not None


def test_what_follows_a_request_is_left_where_it_is() -> None:
    found = plain(POST + GET)
    assert found.content_length == 2
    assert (POST + GET)[found.body_begins + 2 :] == GET


def test_a_body_may_still_be_on_its_way() -> None:
    assert plain(POST[:-2]).content_length == 2


@pytest.mark.parametrize("data", [POST, GET, HANDSHAKE], ids=["POST", "GET", "handshake"])
def test_a_head_that_is_not_whole_is_not_recognised(data: bytes) -> None:
    end = data.index(b"\r\n\r\n") + 4
    assert recognised(data[:end].ljust(end)) is not None
    for cut in range(end):
        assert recognised(data[:cut]) is None


@pytest.mark.parametrize("data", [POST, GET, HANDSHAKE], ids=["POST", "GET", "handshake"])
def test_the_general_parser_reads_the_same(data: bytes) -> None:
    found = plain(data)
    parser = h11.Connection(h11.SERVER)
    parser.receive_data(data)
    request = parser.next_event()
    assert isinstance(request, h11.Request)
    query = f"?{found.query}" if found.query else ""
    assert (request.method, request.target) == (found.method.encode(), (found.path + query).encode())
    headers = {name.decode(): value.decode() for name, value in request.headers}
    headers.pop("sec-websocket-extensions", None)
    assert headers == found.headers


NOT_PLAIN = {
    "another method": POST.replace(b"POST", b"PATCH"),
    "a method in small letters": POST.replace(b"POST", b"post"),
    "HEAD": GET.replace(b"GET", b"HEAD"),
    "OPTIONS": GET.replace(b"GET", b"OPTIONS"),
    "HTTP/1.0": POST.replace(b"HTTP/1.1", b"HTTP/1.0"),
    "two spaces in the first line": POST.replace(b"POST /", b"POST  /"),
    "an absolute target": POST.replace(b"POST /", b"POST http://localhost/"),
    "an escape in the path": POST.replace(b"/ws/", b"/w%73/"),
    "two slashes": POST.replace(b"/ws/", b"/ws//"),
    "a dot in the path": POST.replace(b"/ws/", b"/ws/../ws/"),
    "a slash at the end": POST.replace(b"-update", b"-update/"),
    "a fragment": GET.replace(b"%20b", b"#b"),
    "a query that needs judging": GET.replace(b"%20b", b"<b>"),
    "more parameters than are taken": GET.replace(b"limit=10", b"&" * 64),
    "line ends of one byte": POST.replace(b"\r\n", b"\n"),
    "one line end of one byte": POST.replace(b"8000\r\n", b"8000\n"),
    "a carriage return within a line": POST.replace(b"a.b.c", b"a\r.c"),
    "a tab": POST.replace(b": 2", b":\t2"),
    "a control byte": POST.replace(b"a.b.c", b"a\x01b"),
    "a byte beyond ASCII": POST.replace(b"a.b.c", b"a\xc3\xa9"),
    "a line that is folded": POST.replace(b"8000\r\n", b"8000\r\n folded\r\n"),
    "a space before the colon": POST.replace(b"Host:", b"Host :"),
    "a line without a colon": with_header(b"colonless"),
    "a name that is none": with_header(b"a(b: c"),
    "no name": with_header(b": c"),
    "a header twice": with_header(b"Authorization: Bearer d.e.f"),
    "a header twice, spelt otherwise": with_header(b"AUTHORIZATION: Bearer d.e.f"),
    "two lengths": with_header(b"content-length: 2"),
    "more header lines than plain ones": with_header(b"\r\n".join(b"a%d: b" % i for i in range(HEADER_LINES_MAX))),
    "no Host": POST.replace(b"Host:", b"Hosts:"),
    "a Host that is none": POST.replace(b"localhost:8000", b"a b"),
    "an empty Host": POST.replace(b"localhost:8000", b""),
    "Transfer-Encoding": with_header(b"Transfer-Encoding: chunked"),
    "TE": with_header(b"TE: trailers"),
    "Trailer": with_header(b"Trailer: a"),
    "Expect": with_header(b"Expect: 100-continue"),
    "Content-Encoding": with_header(b"Content-Encoding: gzip"),
    "Origin": with_header(b"Origin: https://live.example.org"),
    "an upgrade to HTTP/2": with_header(b"Upgrade: h2c"),
    "Connection: close": with_header(b"Connection: close"),
    "Connection that names a header": with_header(b"Connection: keep-alive, Authorization"),
    "Proxy-Connection": with_header(b"Proxy-Connection: keep-alive"),
    "a length with a sign": POST.replace(b": 2", b": +2"),
    "a length in hexadecimal": POST.replace(b": 2", b": 0x2"),
    "a length with an underscore": POST.replace(b": 2", b": 1_0"),
    "an empty length": POST.replace(b": 2", b": "),
    "two lengths in one": POST.replace(b": 2", b": 2, 2"),
    "a length too large": POST.replace(b": 2", b": %d" % (BODY_BYTES_MAX + 1)),
    "a length with many digits": POST.replace(b": 2", b": 0000002"),
    "another type": POST.replace(b"application/json", b"application/x-ndjson"),
    "a type with another charset": POST.replace(b"application/json", b"application/json; charset=latin1"),
    "no type": POST.replace(b"Content-Type", b"Content-Typo"),
    "a body behind GET": with_header(b"Content-Length: 2\r\nContent-Type: application/json", GET) + b"{}",
    "a handshake by POST": HANDSHAKE.replace(b"GET", b"POST"),
    "a handshake with a length": with_header(b"Content-Length: 0", HANDSHAKE),
    "a handshake with more behind it": HANDSHAKE + b"\x81",
    "a handshake without a key": HANDSHAKE.replace(b"Sec-WebSocket-Key", b"Sec-WebSocket-Kex"),
    "a key of another length": HANDSHAKE.replace(b"dGhl", b""),
    "another version of WebSocket": HANDSHAKE.replace(b": 13", b": 8"),
    "a handshake that closes": HANDSHAKE.replace(b"keep-alive, Upgrade", b"close, Upgrade"),
    "Upgrade without its Connection": HANDSHAKE.replace(b"keep-alive, Upgrade", b"keep-alive"),
    "Connection without its Upgrade": HANDSHAKE.replace(b"Upgrade: websocket", b"Updater: websocket"),
    "two protocols offered": HANDSHAKE.replace(b": websocket", b": websocket, h2c"),
    "a head too large": with_header(b"A: " + b"a" * 16 * 1024),
    "an empty line before": b"\r\n" + POST,
    "nothing": b"",
}


@pytest.mark.parametrize("data", NOT_PLAIN.values(), ids=NOT_PLAIN)
def test_what_leaves_a_doubt_is_not_plain(data: bytes) -> None:
    assert data not in (POST, GET, HANDSHAKE), "the case changes something"
    assert recognised(data) is None


@pytest.mark.parametrize("length", [0, 1, BODY_BYTES_MAX])
def test_a_body_has_up_to_64_kib(length: int) -> None:
    assert plain(POST.replace(b": 2", b": %d" % length)).content_length == length
