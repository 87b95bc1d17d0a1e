"""Fetching one document: within its host, its size and one deadline, whatever the source does."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.client import HTTPException

import pytest

from web.identity import download
from web.identity.download import fetch_document

HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nX-Long: "


@contextmanager
def talking(talk: Callable[[socket.socket], object]) -> Iterator[str]:
    """A source that does this on each connection, until the connection or the test ends."""
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        while True:
            try:
                connected, _ = listener.accept()
            except OSError:
                return
            threading.Thread(target=answer, args=(connected,), daemon=True).start()

    def answer(connected: socket.socket) -> None:
        with connected:
            try:
                connected.recv(65536)
                talk(connected)
            except OSError:
                pass

    thread = threading.Thread(target=serve)
    thread.start()
    try:
        yield f"127.0.0.1:{listener.getsockname()[1]}"
    finally:
        listener.shutdown(socket.SHUT_RDWR)
        listener.close()
        thread.join()


def trickling(first: bytes, then: bytes) -> Callable[[socket.socket], object]:
    def talk(connected: socket.socket) -> None:
        connected.sendall(first)
        while True:
            connected.sendall(then)
            time.sleep(0.02)

    return talk


@pytest.mark.parametrize(
    ("scheme", "talk"),
    [
        ("http", trickling(b"", b"H")),
        ("http", trickling(HEAD, b"x")),
        ("http", trickling(HEAD + b"\r\n", b"X-More: more\r\n")),
        ("http", trickling(HEAD + b"\r\nContent-Length: 100000\r\n\r\n", b" ")),
        ("http", trickling(HEAD + b"\r\nTransfer-Encoding: chunked\r\n\r\n", b"1\r\n \r\n")),
        ("http", trickling(b"HTTP/1.1 302 Found\r\nLocation: /\r\nContent-Length: 100000\r\n\r\n", b" ")),
        ("http", trickling(b"HTTP/1.1 404 Not Found\r\nContent-Length: 100000\r\n\r\n", b" ")),
        ("http", trickling(b"", b"HTTP/1.1 100 Continue\r\n\r\n")),
        ("http", lambda connected: connected.recv(1)),
        ("https", lambda connected: connected.recv(1)),
        ("https", trickling(b"\x16\x03\x03\x40\x00", b"\x02")),
    ],
    ids=[
        "a status line byte by byte",
        "a header byte by byte",
        "headers without end",
        "a body byte by byte",
        "chunks without end",
        "the body of a redirect",
        "the body of a refusal",
        "interim answers without end",
        "silence",
        "no handshake",
        "a handshake byte by byte",
    ],
)
def test_one_deadline_ends_a_fetch_however_the_source_trickles(
    monkeypatch: pytest.MonkeyPatch, scheme: str, talk: Callable[[socket.socket], object]
) -> None:
    monkeypatch.setattr(download, "FETCH_SECONDS_MAX", 0.3)
    began = time.monotonic()
    with talking(talk) as address, pytest.raises((OSError, HTTPException)):
        fetch_document(f"{scheme}://{address}/jwks")
    assert time.monotonic() - began < 3, "the source would go on for ever"


@pytest.mark.parametrize(
    "answer",
    [
        b"HTTP/1.1 302 Found\r\nLocation: /\r\n\r\n" + b" " * 2 * download.ANSWERS_BYTES_MAX,
        b"HTTP/1.1 200 OK\r\n\r\n" + b" " * (download.DOCUMENT_BYTES_MAX + 1),
    ],
    ids=["a redirect", "the document"],
)
def test_no_answer_is_read_beyond_its_size(answer: bytes) -> None:
    with talking(lambda connected: connected.sendall(answer)) as address, pytest.raises(ValueError, match="bytes"):
        fetch_document(f"http://{address}/jwks")
