"""The publishers of the benchmarks, against a server of this process that answers as it is told."""

from __future__ import annotations

import json
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

import pytest

from benchmarks import publishing
from benchmarks.generator import Target
from benchmarks.publishing import NotServed, PublishingFailed, stream

UPGRADED = b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\n\r\n"

Answer = Callable[[str], dict[str, object]]
"""The frame for an update with this id."""


def text(frame: dict[str, object]) -> bytes:
    payload = json.dumps(frame).encode()
    return b"\x81" + (bytes([len(payload)]) if len(payload) < 126 else b"\x7e" + len(payload).to_bytes(2)) + payload


def receipt(identity: str) -> dict[str, object]:
    return {"type": "receipt", "id": identity, "receipt": {"status": "broadcasted", "padding": "x" * 200}}


def read_updates(sock: socket.socket) -> Iterator[dict[str, object]]:
    """What a client sends, until it closes; masks of zeros and 16 bits of length, as ours sends them."""
    data = b""
    while True:
        while len(data) >= 8 and len(data) >= (end := 8 + int.from_bytes(data[2:4])):
            yield json.loads(data[8:end])
            data = data[end:]
        if not (chunk := sock.recv(65536)):
            return
        data += chunk


@contextmanager
def server(head: bytes, window: int, answer: Answer) -> Iterator[tuple[Target, list[dict[str, object]]]]:
    """Where it is, and the updates that have come."""
    received: list[dict[str, object]] = []
    listener = socket.create_server(("127.0.0.1", 0))

    def serve() -> None:
        peer, _ = listener.accept()
        # A client that has seen enough closes, whatever is still to be said to it.
        with peer, suppress(ConnectionError):
            asked = b""
            while b"\r\n\r\n" not in asked:
                asked += peer.recv(65536)
            peer.sendall(head)
            if head == UPGRADED:
                peer.sendall(text({"type": "connect", "data": {"window": window}}))
                for update in read_updates(peer):
                    received.append(update)
                    peer.sendall(text(answer(str(update["id"]))))

    thread = threading.Thread(target=serve)
    thread.start()
    port = listener.getsockname()[1]
    try:
        yield Target(address="127.0.0.1", port=port, publish_port=port, publish_path="/", publish_token="t"), received
    finally:
        thread.join(10)
        listener.close()


def test_every_update_of_a_stream_is_answered_and_numbered_on() -> None:
    with server(UPGRADED, 8, receipt) as (target, received):
        done = stream(target, "d", 0.05, first=5)
    assert done.accepted == len(received) > 0
    assert [update["id"] for update in received] == [str(5 + turn) for turn in range(len(received))]
    assert {update["diagnosis_id"] for update in received} == {"d"}
    assert done.refused == 0


def test_a_refused_update_of_a_stream_is_counted() -> None:
    def answer(identity: str) -> dict[str, object]:
        return {"type": "refused", "id": identity} if identity == "2" else receipt(identity)

    with server(UPGRADED, 4, answer) as (target, received):
        done = stream(target, "d", 0.05)
    assert (done.accepted, done.refused) == (len(received) - 1, 1)


def test_a_server_without_a_stream_is_told_from_one_that_fails() -> None:
    with (
        server(b"HTTP/1.1 404 Not Found\r\nContent-Length: 0\r\n\r\n", 1, receipt) as (target, _),
        pytest.raises(NotServed, match="/publish"),
    ):
        stream(target, "d", 0.05)


def test_an_answer_out_of_order_is_a_failure() -> None:
    with (
        server(UPGRADED, 4, lambda identity: receipt(str(int(identity) + 1))) as (target, _),
        pytest.raises(PublishingFailed, match="receipt of 2, where 1 was due"),
    ):
        stream(target, "d", 0.05)


def test_an_update_carries_the_number_that_followers_count() -> None:
    made = json.loads(publishing.update("d", 7))
    assert made["comment"].startswith("bench:7:")
    assert made["diagnosis_id"] == "d"
