"""Clients that never read, against the whole server: they delay nobody, are cut off, and the stop does not wait."""

from __future__ import annotations

import socket
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest
import trio

from tests.edge.raw import upgraded
from tests.server.harness import Server, running_server
from tests.server.process import served
from web.server.settings import Settings

STALLED = 200

STALLED_AT_STOP = 1000

PAYLOAD = "x" * 8000


def port_of(server: Server) -> int:
    return int(server.url.rpartition(":")[2])


@contextmanager
def stalled(server: Server, count: int) -> Iterator[list[socket.socket]]:
    """So many followers with small buffers that ask to follow and read nothing, not even the answer."""
    head = (
        "GET /ws/42?device=d{} HTTP/1.1\r\nHost: localhost\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
        "Sec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Version: 13\r\nAuthorization: Bearer {}\r\n\r\n"
    )
    with ExitStack() as opened:
        sockets = []
        for number in range(count):
            one = opened.enter_context(socket.socket())
            one.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
            one.connect(("127.0.0.1", port_of(server)))
            # A hundred devices of one user at most: so there are several users.
            token = server.token(f"viewer-{number // 100}")
            one.sendall(head.format(number, token).encode())
            sockets.append(one)
        yield sockets


async def until_connected(server: Server, count: int) -> None:
    with trio.fail_after(60):
        while (await server.status())["total_connections"] < count:
            await trio.sleep(0.05)


@pytest.mark.guarantee(7)
async def test_two_hundred_that_never_read_do_not_delay_the_one_that_does(tmp_path: Path) -> None:
    async with running_server(Settings(port=0, data=tmp_path / "data")) as server:
        await server.register(42, "amira", "viewer-0", "viewer-1")
        client = await upgraded(port_of(server), "/ws/42", f"Authorization: Bearer {server.token('amira')}")
        await client.says("connect", "live")

        async def delays(count: int) -> list[float]:
            found = []
            for number in range(count):
                began = time.perf_counter()
                assert (await server.publish(number, comment=PAYLOAD)).status_code == 200
                while (got := await client.next()) is not None and got.opcode != 1:
                    pass
                found.append(time.perf_counter() - began)
            return sorted(found)

        alone = await delays(30)
        with stalled(server, STALLED):
            await until_connected(server, STALLED + 1)
            await delays(30)  # fills their buffers
            among = await delays(30)
            # Writing to nobody takes no time: only the machine's own noise may lie between the two.
            assert among[15] < 3 * alone[15] + 0.1
            with trio.fail_after(60):
                while (await server.status())["total_connections"] > 1:
                    await trio.sleep(0.1)
        assert (await server.publish()).status_code == 200
        await client.stream.aclose()


@pytest.mark.guarantee(11)
async def test_a_thousand_that_never_read_do_not_hold_up_the_stop_and_the_others_are_told(tmp_path: Path) -> None:
    async with served(tmp_path / "data") as (process, server):
        await server.register(42, "amira", *(f"viewer-{number}" for number in range(10)))
        with stalled(server, STALLED_AT_STOP):
            await until_connected(server, STALLED_AT_STOP)
            for number in range(20):
                assert (await server.publish(number, comment=PAYLOAD)).status_code == 200
            async with server.live(start="new") as client:
                began = time.monotonic()
                async with trio.open_nursery() as nursery:
                    nursery.start_soon(process.stop)
                    frames, code, _ = await client.close_frames()
                assert time.monotonic() - began < 10
        assert process.process.returncode == 0
    assert code == 1012
    assert frames[-1]["data"]["code"] == 1012
    assert 0 <= frames[-1]["data"]["retry_after_ms"] <= 5000
