"""The bytes of NATS, and who we are for its servers."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from hypothesis import given, settings
from hypothesis import strategies as st
from nats.errors import ProtocolError
from nats.protocol.parser import Parser

from storage.nats import wire
from storage.nats.auth import Credentials, credentials_of_file
from storage.nats.errors import BadCredentials, Garbled, TooLarge
from storage.nats.wire import Heard, Info, Message, Outgoing, Refusal, Wire

SUBJECTS = st.from_regex(r"[!-~]{1,20}", fullmatch=True)
VALUES = st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=20).map(str.strip)
HEADERS = st.dictionaries(st.from_regex(r"[A-Za-z-]{1,12}", fullmatch=True), VALUES, max_size=4)
MESSAGES = st.builds(Outgoing, SUBJECTS, st.binary(max_size=200), HEADERS)


def in_pieces(data: bytes, cuts: list[int]) -> list[Heard]:
    """What is heard of bytes that come in pieces."""
    reading, heard, at = Wire(), list[Heard](), 0
    for cut in [*sorted(one % (len(data) + 1) for one in cuts), len(data)]:
        heard += reading.taken(data[at:cut])
        at = max(at, cut)
    assert reading.is_between_frames
    return heard


def as_delivered(frame: bytes, sid: int) -> bytes:
    """The frame with which a server delivers what this frame has published, to whoever subscribed."""
    line, _, rest = frame.partition(b"\r\n")
    word, subject, *sizes = line.split(b" ")
    number = str(sid).encode()
    return b" ".join([{b"PUB": b"MSG", b"HPUB": b"HMSG"}[word], subject, number, *sizes]) + b"\r\n" + rest


@given(st.lists(st.tuples(MESSAGES, SUBJECTS | st.just(""))), st.lists(st.integers(0, 5000), max_size=8))
def test_what_is_published_is_read_as_it_was_meant_whatever_pieces_it_comes_in(
    sent: list[tuple[Outgoing, str]], cuts: list[int]
) -> None:
    frames = [as_delivered(wire.publish(message, reply), sid) for sid, (message, reply) in enumerate(sent)]
    heard = in_pieces(b"".join(frames), cuts)
    assert len(heard) == len(sent)
    for sid, (one, (message, reply)) in enumerate(zip(heard, sent, strict=True)):
        assert isinstance(one, Message)
        assert (one.subject, one.sid, one.reply, one.data) == (message.subject, sid, reply, message.data)
        assert one.headers == (message.headers or {})
        assert one.status == 0


class Client:
    """What nats-py's parser calls: keeps what it makes of the bytes."""

    def __init__(self) -> None:
        self.heard: list[Any] = []

    async def _process_msg(self, sid: int, subject: bytes, reply: bytes, data: bytes, head: bytes | None) -> None:
        subject, reply = (one.decode("utf-8", "replace").encode() for one in (subject, reply))
        self.heard.append((subject, sid, reply, head or b"", data))

    async def _process_info(self, info: dict[str, Any]) -> None:
        self.heard.append(("info", info.get("server_name", "")))

    async def _process_err(self, text: str) -> None:
        self.heard.append(("refusal", text.strip("'")))

    async def _process_ping(self) -> None:
        self.heard.append("ping")

    async def _process_pong(self) -> None:
        self.heard.append("pong")


def as_theirs(one: Heard) -> Any:
    """What we have heard, as `Client` keeps it; `None`: it keeps nothing of it."""
    match one:
        case Message():
            return one.subject.encode(), one.sid, one.reply.encode(), one.head, one.data
        case Info():
            return "info", one.server_name
        case Refusal():
            return "refusal", one.text.lower()
        case wire.Ping():
            return "ping"
        case wire.Pong():
            return "pong"
    return None


def theirs(data: bytes) -> list[Any] | None:
    """What nats-py hears; `None`: it refuses it, or waits for more."""
    client = Client()
    parser = Parser(client)
    parsing = parser.parse(data)
    try:
        parsing.send(None)
    except StopIteration:
        return None if parser.buf or (parser.needed > 0 and parser.state == 2) else client.heard
    except (ProtocolError, ValueError, UnicodeDecodeError, AttributeError):
        return None
    raise AssertionError("it waits for nothing")


def ours(data: bytes) -> list[Any] | None:
    """What we hear; `None`: it is refused, or more is to come."""
    reading = Wire()
    try:
        heard = reading.taken(data)
    except Garbled:
        return None
    return [kept for one in heard if (kept := as_theirs(one)) is not None] if reading.is_between_frames else None


FRAMES = st.one_of(
    st.builds(lambda message, sid: as_delivered(wire.publish(message), sid), MESSAGES, st.integers(0, 9999)),
    st.sampled_from([wire.PING, wire.PONG, b"+OK\r\n", b"-ERR 'Stale Connection'\r\n"]),
    st.builds(lambda name: b"INFO " + json.dumps({"server_name": name}).encode() + b"\r\n", st.text(max_size=9)),
)


@given(st.lists(FRAMES, max_size=5).map(b"".join))
def test_a_parser_that_is_not_ours_hears_the_same(data: bytes) -> None:
    assert ours(data) == theirs(data) is not None


@settings(max_examples=100)
@given(
    st.lists(FRAMES, min_size=1, max_size=3).map(b"".join),
    st.lists(st.tuples(st.integers(0, 10_000), st.binary(max_size=2), st.integers(0, 2)), min_size=1, max_size=3),
)
def test_where_both_parsers_hear_something_of_mangled_bytes_it_is_the_same(
    data: bytes, changes: list[tuple[int, bytes, int]]
) -> None:
    for at, new, dropped in changes:
        cut = at % len(data) if data else 0
        data = data[:cut] + new + data[cut + dropped :]
    mine, other = ours(data), theirs(data)
    assert mine is None or other is None or mine == other


@pytest.mark.parametrize(
    "data",
    [
        b"HELLO\r\n",
        b"MSG a 1 x\r\n",
        b"MSG a 1\r\n",
        b"MSG a 1 3\r\nabcd\r\n",
        b"MSG a 1 99999999999\r\n",
        b"MSG a 1 68000000\r\n",
        b"HMSG a 1 9 3\r\nabc\r\n",
        b"HMSG a 1 3\r\nabc\r\n",
        b"MSG a -1 3\r\nabc\r\n",
        b"INFO nothing\r\n",
        b'INFO {"max_payload": "much"}\r\n',
        b"x" * wire.LINE_BYTES_MAX,
    ],
)
def test_what_is_not_the_protocol_is_refused(data: bytes) -> None:
    with pytest.raises(Garbled):
        Wire().taken(data + b"\r\n\r\n")


def test_a_line_without_an_end_is_refused_before_it_takes_the_memory() -> None:
    reading = Wire()
    with pytest.raises(Garbled):
        for _ in range(wire.LINE_BYTES_MAX):
            reading.taken(b"PING PING PING")


@pytest.mark.parametrize("subject", ["", "a b", "a\r\nPUB b 0\r\n", "a\tb", "ä"])
def test_a_subject_cannot_bring_a_frame_of_its_own(subject: str) -> None:
    for message, reply in ((Outgoing(subject), ""), (Outgoing("a"), subject or " ")):
        with pytest.raises(ValueError, match="subject"):
            wire.publish(message, reply)
    with pytest.raises(ValueError, match="subject"):
        wire.subscribe(subject, 1)


@pytest.mark.parametrize(("name", "value"), [("a:b", "c"), ("", "c"), ("a b", "c"), ("a", "b\r\nc: d"), ("a", "b\nc")])
def test_a_header_cannot_bring_another(name: str, value: str) -> None:
    with pytest.raises(ValueError, match="header"):
        wire.publish(Outgoing("a", headers={name: value}))


def test_a_message_beyond_what_the_server_takes_is_refused_with_its_headers_counted() -> None:
    whole = len(b"NATS/1.0\r\nA: b\r\n\r\nabc")
    wire.publish(Outgoing("a", b"abc", {"A": "b"}), bytes_max=whole)
    with pytest.raises(TooLarge, match=f"{whole} bytes, where the server takes {whole - 1}"):
        wire.publish(Outgoing("a", b"abc", {"A": "b"}), bytes_max=whole - 1)


@pytest.mark.parametrize(
    ("head", "status"),
    [(b"", 0), (b"NATS/1.0\r\n\r\n", 0), (b"NATS/1.0 503\r\n\r\n", 503), (b"NATS/1.0 204 EOB\r\nA: 1\r\n\r\n", 204)],
)
def test_the_status_of_a_message_is_that_of_its_first_line(head: bytes, status: int) -> None:
    assert Message("a", 1, "", head, b"").status == status


SEED = "SUACSSL3UAHUDXKFSNVUZRF5UHPMWZ6BFDTJ7M6USDXIEDNPPQYYYCU3VY"
PUBLIC = "UDXU4RCSJNZOIQHZNWXHXORDPRTGNJAHAHFRGZNEEJCPQTT2M7NLCNF4"
"""A pair that the documentation of NATS shows."""


def test_a_seed_signs_as_the_user_it_belongs_to() -> None:
    said = Credentials(SEED).answer("a nonce")
    assert said["nkey"] == PUBLIC
    key = Ed25519PublicKey.from_public_bytes(base64.b32decode(PUBLIC)[1:33])
    key.verify(base64.urlsafe_b64decode(said["sig"] + "=="), b"a nonce")


def test_a_file_of_credentials_brings_a_jwt_and_the_same_signature() -> None:
    text = (
        "-----BEGIN NATS USER JWT-----\neyJ0eXAi.eyJq-dGki.c2ln_bmF0\n------END NATS USER JWT------\n\n"
        "************ IMPORTANT ************\n\n"
        f"-----BEGIN USER NKEY SEED-----\n{SEED}\n------END USER NKEY SEED------\n"
    )
    said = credentials_of_file(text).answer("a nonce")
    assert said == {"jwt": "eyJ0eXAi.eyJq-dGki.c2ln_bmF0", "sig": Credentials(SEED).answer("a nonce")["sig"]}
    assert SEED not in repr(credentials_of_file(text))


@pytest.mark.parametrize(
    "text",
    ["", "SU", "no seed at all!", SEED[:-1] + "A", PUBLIC, SEED.replace("SU", "SA", 1), "ä" * 58],
)
def test_what_is_no_seed_of_a_user_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(BadCredentials) as refused:
        Credentials(text)
    assert len(text) < 9 or text not in str(refused.value)
    with pytest.raises(BadCredentials):
        credentials_of_file(text)
