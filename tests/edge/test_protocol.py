"""RFC 6455 over real sockets: what breaks it is closed with its code, what keeps to it is understood."""

from __future__ import annotations

import socket
import struct
from pathlib import Path

import pytest
import trio

from tests.edge.echo import echo_server
from tests.edge.raw import BINARY, CLOSE, PING, PONG, TEXT, Got, RawClient, client_frame, upgraded
from tests.edge.violations import CONTINUATION, VIOLATIONS
from tests.server.harness import Server, running_server
from web.server.settings import Settings

AT_ONCE = 20
"""Connections at the same time."""


EDGES_OF_UTF8 = [
    chr(number).encode() for number in (0, 0x7F, 0x80, 0x7FF, 0x800, 0xD7FF, 0xE000, 0xFFFD, 0xFFFF, 0x10000, 0x10FFFF)
]
"""The first and last code points of each length."""


async def follower(server: Server) -> RawClient:
    """A client of the real endpoint."""
    port = int(server.url.rpartition(":")[2])
    return await upgraded(port, "/ws/42", f"Authorization: Bearer {server.token('amira')}")


async def judge(client: RawClient, data: bytes, code: int) -> str | None:
    """What is wrong with how the server ends a connection on which this was sent; `None`: nothing."""
    await client.send(data)
    with trio.move_on_after(20):
        frames = await client.rest()
        await client.stream.aclose()
        last = frames[-1]
        if last.opcode != CLOSE:
            return f"the last frame is {last}"
        return None if last.code == code else f"closed with {last.code}"
    return "not closed"


def test_there_are_enough_violations() -> None:
    assert len(VIOLATIONS) >= 121


@pytest.mark.guarantee(15)
async def test_every_violation_ends_an_echo_with_its_close_code() -> None:
    wrong: dict[str, str] = {}
    async with echo_server() as (port, hub):
        slots = trio.CapacityLimiter(AT_ONCE)

        async def check(name: str, data: bytes, code: int) -> None:
            async with slots:
                verdict = await judge(await upgraded(port, "/echo"), data, code)
            if verdict is not None:
                wrong[name] = verdict

        async with trio.open_nursery() as nursery:
            for name, (data, code) in VIOLATIONS.items():
                nursery.start_soon(check, name, data, code)
        assert hub.connections == 0
    assert wrong == {}


@pytest.mark.guarantee(15)
async def test_every_violation_ends_a_follower_with_its_close_code(tmp_path: Path) -> None:
    wrong: dict[str, str] = {}
    async with running_server(Settings(port=0, data=tmp_path / "data")) as server:
        await server.register()
        slots = trio.CapacityLimiter(AT_ONCE)

        async def check(name: str, data: bytes, code: int) -> None:
            async with slots:
                verdict = await judge(await follower(server), data, code)
            if verdict is not None:
                wrong[name] = verdict

        async with trio.open_nursery() as nursery:
            for name, (data, code) in VIOLATIONS.items():
                nursery.start_soon(check, name, data, code)
        await server.until_alone()
    assert wrong == {}


async def test_a_violation_that_arrives_byte_by_byte_has_its_code_too() -> None:
    async with echo_server() as (port, _):
        client = await upgraded(port, "/echo")
        data, code = VIOLATIONS["a surrogate within good text, in two fragments"]
        for byte in data:
            await client.send(bytes((byte,)))
            await trio.lowlevel.checkpoint()
        assert (await client.rest())[-1].code == code
        await client.stream.aclose()


async def test_what_came_before_a_violation_is_still_answered() -> None:
    async with echo_server() as (port, _):
        client = await upgraded(port, "/echo")
        await client.send(client_frame(TEXT, b"first") + client_frame(PING, b"p") + client_frame(3))
        text, pong, close = await client.rest()
        assert (text.payload, pong.payload, close.code) == (b"first", b"p", 1002)
        await client.stream.aclose()


@pytest.mark.parametrize("chop", [1, 7, 65536])
async def test_messages_of_all_lengths_kinds_and_fragmentations_are_understood(chop: int) -> None:
    text = "κόσμε 𝄞 \N{ZERO WIDTH NO-BREAK SPACE} ﷽".encode()
    cut = [client_frame(TEXT if at == 0 else CONTINUATION, text[at : at + 1], fin=False) for at in range(len(text))]
    messages = [
        *((client_frame(TEXT, b"x" * length), Got(TEXT, b"x" * length)) for length in (0, 1, 125, 126, 127, 128)),
        *((client_frame(BINARY, b"\xff" * length), Got(BINARY, b"\xff" * length)) for length in (0, 1, 125, 126)),
        (b"".join(cut) + client_frame(CONTINUATION), Got(TEXT, text)),
        (client_frame(TEXT, fin=False) + client_frame(CONTINUATION), Got(TEXT, b"")),
        (
            client_frame(BINARY, b"\xce", fin=False) + client_frame(CONTINUATION, b"\xba"),
            Got(BINARY, b"\xce\xba"),
        ),
        *((client_frame(TEXT, one), Got(TEXT, one)) for one in EDGES_OF_UTF8),
    ]
    async with echo_server() as (port, _):
        client = await upgraded(port, "/echo")
        for data, echoed in messages:
            for at in range(0, len(data), chop):
                await client.send(data[at : at + chop])
            assert await client.next() == echoed
        await client.leave()


@pytest.mark.parametrize("length", [65535, 65536, 1_000_000])
async def test_large_messages_are_understood_where_they_are_allowed(length: int) -> None:
    async with echo_server() as (port, _):
        client = await upgraded(port, "/echo")
        async with trio.open_nursery() as nursery:
            nursery.start_soon(client.send, client_frame(TEXT, b"x" * length))
            assert await client.next() == Got(TEXT, b"x" * length)
        await client.leave()


async def test_control_frames_between_fragments_are_answered_at_once_and_do_not_disturb() -> None:
    async with echo_server() as (port, _):
        client = await upgraded(port, "/echo")
        await client.send(client_frame(TEXT, b"a", fin=False), client_frame(PING, b"1"))
        assert await client.next() == Got(PONG, b"1")
        await client.send(client_frame(CONTINUATION, b"b", fin=False), client_frame(PONG, b"unasked"))
        await client.send(client_frame(PING, b""), client_frame(CONTINUATION, b"c"))
        assert await client.next() == Got(PONG, b"")
        assert await client.next() == Got(TEXT, b"abc")
        for number in range(10):
            await client.send(client_frame(PING, b"%d" % number + b"x" * 120))
            assert await client.next() == Got(PONG, b"%d" % number + b"x" * 120)
        await client.leave()


@pytest.mark.parametrize("payload", [b"", *(struct.pack("!H", code) for code in (1000, 1001, 1003, 1014, 3000, 4999))])
async def test_a_close_is_answered_with_its_code_and_nothing_after_it(payload: bytes) -> None:
    async with echo_server() as (port, hub):
        client = await upgraded(port, "/echo")
        await client.send(client_frame(CLOSE, payload), client_frame(TEXT, b"late"), client_frame(PING))
        assert await client.rest() == [Got(CLOSE, payload)]
        assert hub.connections == 0
        await client.stream.aclose()


async def test_a_close_within_a_fragmented_message_is_answered() -> None:
    async with echo_server() as (port, _):
        client = await upgraded(port, "/echo")
        await client.send(client_frame(TEXT, b"a", fin=False), client_frame(CLOSE, b"\x03\xe8so long"))
        assert await client.rest() == [Got(CLOSE, b"\x03\xe8")]
        await client.stream.aclose()


async def test_the_server_itself_has_no_echo(server: Server) -> None:
    assert (await server.http.get("/echo")).status_code == 404


# Too big


@pytest.mark.parametrize(
    "data",
    [
        client_frame(TEXT, b"x" * 8193),
        client_frame(BINARY, b"x" * 8193),
        client_frame(TEXT, b"x" * 8000, fin=False) + client_frame(CONTINUATION, b"x" * 193, fin=False),
    ],
)
async def test_a_message_of_more_than_8_kib_closes_1009(server: Server, data: bytes) -> None:
    await server.register()
    client = await follower(server)
    await client.send(data)
    assert (await client.rest())[-1].code == 1009
    await client.stream.aclose()


async def test_a_message_of_8_kib_is_read(server: Server) -> None:
    await server.register()
    client = await follower(server)
    await client.says("connect", "live")
    await client.send(client_frame(TEXT, b"x" * 4096, fin=False), client_frame(CONTINUATION, b"x" * 4096))
    assert (await client.says("error"))[0]["data"]["code"] == "bad_frame"
    await client.leave()


def memory_kib() -> int:
    """What this process has resident."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * 4


@pytest.mark.parametrize("flood", ["one message of 2 MB", "continuations without end"])
async def test_a_message_without_end_closes_1009_and_takes_no_memory(server: Server, flood: str) -> None:
    await server.register()
    client = await follower(server)
    await client.says("connect", "live")
    before = memory_kib()
    if flood == "one message of 2 MB":
        data = b"\x81\xff" + (2_000_000).to_bytes(8, "big") + b"\0\0\0\0" + b"x" * 2_000_000
    else:
        data = client_frame(TEXT, b"x", fin=False) + client_frame(CONTINUATION, b"y" * 100, fin=False) * 20_000

    async with trio.open_nursery() as nursery:
        nursery.start_soon(client.send, data)
        assert (await client.rest())[-1].code == 1009
    assert memory_kib() - before < 8 * 1024
    await client.stream.aclose()
    await server.until_alone()


async def test_nothing_of_an_unfinished_frame_is_kept_beyond_its_connection(server: Server) -> None:
    await server.register()
    client = await follower(server)
    await client.send(b"\x81\xfe\x10\x00")
    await client.stream.aclose()
    await server.until_alone()


# Endings that are none


async def test_a_reset_is_an_end_like_another(server: Server) -> None:
    await server.register()
    client = await follower(server)
    await client.says("connect", "live")
    assert isinstance(client.stream, trio.SocketStream)
    client.stream.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    await client.stream.aclose()
    await server.until_alone()
    assert (await server.publish()).status_code == 200
