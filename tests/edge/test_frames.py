"""Frames: what the server writes, and what it makes of a client's bytes."""

from __future__ import annotations

import pytest
from wsproto.frame_protocol import FrameDecoder, Opcode

from tests.edge.raw import PONG, client_frame
from web.websocket import frames
from web.websocket.inbound import Close, Control, Fragment, Inbound, Message, Received, Violation, sole_pong


def masked(first: int, payload: bytes) -> bytes:
    """A short client frame, masked with zeros."""
    return bytes((first, 0x80 | len(payload))) + b"\0\0\0\0" + payload


def received(data: bytes, limit: int = 100) -> list[Received]:
    return list(Inbound().receive(data, limit))


@pytest.mark.parametrize("length", [0, 125, 126, 65535, 65536])
def test_a_client_reads_a_text_frame_as_one_whole_message(length: int) -> None:
    decoder = FrameDecoder(client=True)
    decoder.receive_bytes(frames.text_frame(b"x" * length))
    frame = decoder.process_buffer()
    assert frame is not None
    assert (frame.opcode, frame.message_finished, len(frame.payload)) == (Opcode.TEXT, True, length)
    assert not decoder.buffer


def test_the_handshake_answer_is_the_one_of_the_rfc() -> None:
    head = frames.switching_protocols(b"dGhlIHNhbXBsZSBub25jZQ==", "avicenna.v1")
    assert b"Sec-WebSocket-Accept: s3pPLMBiTxaQ9kYGzzhZRbK+xOo=\r\n" in head
    assert head.endswith(b"Sec-WebSocket-Protocol: avicenna.v1\r\n\r\n")


def test_fragments_become_one_message_with_a_ping_between_them() -> None:
    data = masked(0x01, b"a") + masked(0x89, b"p") + masked(0x80, b"b")
    assert received(data) == [Fragment(1), Control(is_ping=True, payload=b"p"), Message("ab")]


def test_a_decoder_is_idle_only_between_messages() -> None:
    inbound = Inbound()
    for byte in masked(0x81, b"ab")[:-1]:
        assert list(inbound.receive(bytes((byte,)), 100)) == []
        assert not inbound.is_idle
    assert list(inbound.receive(b"b", 100)) == [Message("ab")]
    assert inbound.is_idle


@pytest.mark.parametrize(
    ("data", "code"),
    [
        (masked(0xC1, b"a"), 1002),
        (masked(0x83, b"a"), 1002),
        (masked(0x80, b"a"), 1002),
        (masked(0x09, b"a"), 1002),
        (b"\x81\x01a", 1002),
        (masked(0x81, b"\xff"), 1007),
        (masked(0x88, b"\x03"), 1002),
        (masked(0x88, (1005).to_bytes(2, "big")), 1002),
        (masked(0x88, (1000).to_bytes(2, "big") + b"\xff"), 1007),
        (masked(0x01, b"x" * 60) + masked(0x00, b"x" * 60), 1009),
    ],
)
def test_a_violation_has_its_close_code(data: bytes, code: int) -> None:
    with pytest.raises(Violation) as violation:
        received(data)
    assert violation.value.code == code


def test_a_close_carries_its_code_or_none() -> None:
    assert received(masked(0x88, b"")) == [Close(None)]
    assert received(masked(0x88, (4000).to_bytes(2, "big"))) == [Close(4000)]


@pytest.mark.parametrize("length", [0, 1, 3, 4, 5, 15, 125])
def test_a_pong_that_comes_alone_is_read_at_a_glance(length: int) -> None:
    payload = bytes(range(length))
    assert sole_pong(client_frame(PONG, payload)) == payload


@pytest.mark.parametrize(
    "data",
    [
        b"\x8a",
        client_frame(PONG, b"1")[:-1],
        client_frame(PONG, b"1") + b"\x8a",
        client_frame(PONG, b"1", reserved=4),
        client_frame(PONG, b"1", fin=False),
        client_frame(PONG, b"x" * 126),
        client_frame(0x9, b"1"),
        b"\x8a\x04\0\0\0\0abcd",
    ],
)
def test_anything_else_must_be_decoded(data: bytes) -> None:
    assert sole_pong(data) is None
