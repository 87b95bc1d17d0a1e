"""How many connections there may be, what becomes of one that fails, and the Unix socket for a proxy."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import logging
import os
import resource
import socket
import stat
from pathlib import Path
from statistics import mean
from typing import Any

import httpx
import pytest
import trio
import trio.testing

from tests.edge.peers import Peer, connect, open_descriptors, request, running_edge, upgrade
from tests.edge.test_http1 import short
from tests.logbook import PAYLOAD_MARKER
from tests.server.harness import running_server
from web.http.accepting import ACCEPTED_AT_ONCE_MAX, TURN_SECONDS_MAX, Address, Batch, accept_from
from web.http.descriptors import RESERVED, connections_possible
from web.http.line import Patience
from web.http.listening import TCP_USER_TIMEOUT_MS, listen_on_tcp, listening_on_unix, url_of
from web.http.open_connections import OpenConnections
from web.http.serving import REFUSED_AT_ONCE_MAX, Edge, Terms
from web.server.logs import Formatter
from web.server.settings import Settings, SettingsError


async def test_a_connection_beyond_the_limit_is_answered_503_and_the_others_live_on() -> None:
    async with running_edge(short, connections_max=2) as edge:
        async with await connect(edge.url) as first, await connect(edge.url) as second:
            for peer in (first, second):
                await peer.send(request())
                assert (await peer.answer()).status == 200
            async with await connect(edge.url) as third:
                await third.send(request())
                answer = await third.answer()
                assert await third.end() == b""
            assert answer.status == 503
            assert answer.problem["code"] == "rate_limited"
            assert int(answer.headers["retry-after"]) >= 1
            await first.send(request())
            assert (await first.answer()).status == 200
        await until_served(edge.url)


async def until_served(url: str) -> None:
    """Wait until there is room again: the server sees the end of a connection a moment after its client."""
    with trio.fail_after(10):
        while True:
            async with await connect(url) as peer:
                await peer.send(request())
                if (await peer.answer()).status == 200:
                    return


async def test_sockets_that_were_given_away_count() -> None:
    given_away = 2
    async with running_edge(short, connections_max=2, elsewhere=lambda: given_away) as edge:
        async with await connect(edge.url) as peer:
            assert (await peer.answer()).status == 503
        given_away = 1
        async with await connect(edge.url) as peer:
            await peer.send(request())
            assert (await peer.answer()).status == 200


async def test_a_flood_of_connections_beyond_the_limit_takes_no_more_descriptors_than_it_may() -> None:
    async with running_edge(short, connections_max=1) as edge, await connect(edge.url) as first:
        await first.send(request())
        assert (await first.answer()).status == 200
        peers = [await connect(edge.url) for _ in range(300)]
        for peer in peers:
            await peer.end()
        closed = open_descriptors()
        for peer in peers:
            await trio.aclose_forcefully(peer.stream)
        assert closed - open_descriptors() <= len(peers) + REFUSED_AT_ONCE_MAX
        await first.send(request())
        assert (await first.answer()).status == 200


class Broken(socket.socket):
    """A socket with a fault nobody has thought of."""

    def recv(self, bytes_max: int, flags: int = 0) -> bytes:
        raise ValueError(PAYLOAD_MARKER)


async def test_an_unexpected_error_of_a_connection_is_logged_without_its_text_and_ends_that_connection_alone(
    caplog: pytest.LogCaptureFixture,
) -> None:
    edge = Edge(short, Terms(connections_max=1, drain_seconds_max=1.0, patience=Patience()))
    server_end, client_end = socket.socketpair()
    await edge.accept(Broken(fileno=server_end.detach()), None)
    with client_end:
        assert client_end.recv(1) == b""
    assert edge.connections == {}
    said = [record for record in caplog.records if record.levelno >= logging.ERROR]
    assert [record.name for record in said] == ["avicenna.http"]
    assert PAYLOAD_MARKER not in Formatter(json=False).format(said[0])


# File descriptors


def test_the_limit_of_open_files_is_raised_for_the_connections_there_may_be() -> None:
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (300, before[1]))
        assert connections_possible(500) == 500
        assert resource.getrlimit(resource.RLIMIT_NOFILE)[0] == 500 + RESERVED
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, before)


def test_a_hard_limit_below_the_connections_there_may_be_is_said(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(resource, "getrlimit", lambda _: (256, 1024))
    monkeypatch.setattr(resource, "setrlimit", lambda *_: None)
    assert connections_possible(10_000) == 1024 - RESERVED
    assert "max_connections is 10000" in caplog.text
    assert str(1024 - RESERVED) in caplog.text


# Unix socket


@pytest.mark.one_process("two servers of one process have no Unix socket")
async def test_a_proxy_reaches_the_server_by_a_unix_socket_beside_tcp(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "live.sock"
    async with running_server(dataclasses.replace(settings, unix_socket=path)) as server:
        assert stat.S_IMODE(path.stat().st_mode) == 0o660
        assert await status_over(path) == 200
        assert (await server.http.get("/healthz")).status_code == 200
        peer = Peer(trio.SocketStream(trio.socket.socket(socket.AF_UNIX)))
        await peer.stream.socket.connect(str(path))
        async with peer:
            await peer.send(upgrade())
            assert (await peer.answer()).status == 101
    assert not path.exists()


async def status_over(path: Path) -> int:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    async with httpx.AsyncClient(transport=transport, base_url="http://live", timeout=10) as client:
        return (await client.get("/healthz")).status_code


@pytest.mark.one_process("two servers of one process have no Unix socket")
async def test_the_unix_socket_can_be_the_only_one(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "live.sock"
    alone = dataclasses.replace(settings, unix_socket=path, tcp=False)
    async with running_server(alone) as server:
        assert server.url == f"unix:{path}"
        assert await status_over(path) == 200


def test_a_server_that_listens_nowhere_is_refused() -> None:
    with pytest.raises(SettingsError, match="unix_socket"):
        Settings(tcp=False)


async def test_a_socket_left_by_a_server_that_is_gone_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "live.sock"
    with socket.socket(socket.AF_UNIX) as gone:
        gone.bind(str(path))
    with listening_on_unix(path):
        assert stat.S_ISSOCK(path.stat().st_mode)
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))
    assert list(tmp_path.iterdir()) == []


async def test_a_socket_on_which_another_server_listens_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "live.sock"
    with listening_on_unix(path):
        with pytest.raises(OSError, match="another server"), listening_on_unix(path):
            pass
        with socket.socket(socket.AF_UNIX) as client:
            client.connect(str(path))


async def test_a_file_at_the_place_of_the_socket_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "live.sock"
    path.write_text("precious")
    with pytest.raises(OSError, match="is no socket"), listening_on_unix(path):
        pass
    assert path.read_text() == "precious"


async def test_a_socket_another_server_has_put_in_its_place_survives_the_end_of_the_first(tmp_path: Path) -> None:
    path = tmp_path / "live.sock"
    with listening_on_unix(path):
        path.unlink()
        with socket.socket(socket.AF_UNIX) as other:
            other.bind(str(path))
            after = path.stat()
    assert os.path.samestat(path.stat(), after)


async def test_a_server_on_every_interface_is_reached_by_ipv4_and_ipv6(settings: Settings) -> None:
    if not socket.has_dualstack_ipv6():
        pytest.skip("this machine has no dual-stack sockets")
    async with running_server(dataclasses.replace(settings, host="::")) as server:
        port = server.url.rpartition(":")[2]
        for host in ("127.0.0.1", "[::1]"):
            answer = await server.http.get(f"http://{host}:{port}/healthz")
            assert answer.status_code == 200


async def test_accepted_sockets_have_no_delay_and_a_user_timeout() -> None:
    with listen_on_tcp("127.0.0.1", 0) as listener:
        async with await connect(url_of(listener)):
            accepted, _ = listener.accept()
            with accepted:
                assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY)
                if hasattr(socket, "TCP_USER_TIMEOUT"):
                    assert accepted.getsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT) == TCP_USER_TIMEOUT_MS


class Reluctant(socket.socket):
    """A listener that cannot give a connection at first."""

    errors: list[int]

    def _accept(self) -> tuple[int, Any]:
        if self.errors:
            raise OSError(self.errors.pop(0), "no")
        return super()._accept()  # type: ignore[misc, no-any-return]


async def test_a_crowd_that_connects_leaves_everybody_else_short_turns(autojump_clock: trio.testing.MockClock) -> None:
    crowd, handling_seconds = 120, TURN_SECONDS_MAX
    listener = listen_on_tcp("127.0.0.1", 0)
    handled, turns = 0, [0]

    async def handler(sock: socket.socket, address: Address | None) -> None:
        nonlocal handled
        sock.close()
        handled += 1
        turns[-1] += 1
        autojump_clock.jump(handling_seconds)

    async def take_turns() -> None:
        while handled < crowd:
            turns.append(0)
            await trio.lowlevel.checkpoint()

    with contextlib.ExitStack() as peers:
        for _ in range(crowd):
            peers.enter_context(socket.create_connection(listener.getsockname()))
        async with trio.open_nursery() as nursery:
            nursery.start_soon(accept_from, listener, OpenConnections().counting(listener), handler, nursery)
            await take_turns()
            nursery.cancel_scope.cancel()
    assert sum(turns) == crowd
    # How many come in one turn depends on the order in which Trio runs what can run, and on when the kernel has made a
    # connection: the mean does not.
    busy = [count for count in turns if count]
    assert mean(busy[len(busy) // 2 :]) <= 4, "of 32 at first"


def test_a_listener_gives_descriptors_whose_sockets_it_has_not_made() -> None:
    # Python's own `socket.accept` stands on this method; no documentation names it.
    with listen_on_tcp("127.0.0.1", 0) as listener, socket.create_connection(listener.getsockname()) as peer:
        listener.setblocking(True)
        descriptor, address = listener._accept()  # type: ignore[attr-defined]
        with socket.socket(fileno=descriptor) as accepted:
            assert (accepted.getpeername(), address) == (peer.getsockname(), peer.getsockname())


def test_connections_are_taken_many_at_once_while_turns_are_short() -> None:
    batch = Batch()
    for _ in range(10):
        batch.turned(2 * TURN_SECONDS_MAX)
    assert batch.size == 1
    for _ in range(ACCEPTED_AT_ONCE_MAX):
        batch.turned(TURN_SECONDS_MAX)
    assert batch.size == ACCEPTED_AT_ONCE_MAX


async def test_what_the_kernel_cannot_accept_now_is_accepted_later(
    autojump_clock: trio.testing.MockClock, caplog: pytest.LogCaptureFixture
) -> None:
    listener = Reluctant(fileno=listen_on_tcp("127.0.0.1", 0).detach())
    listener.setblocking(False)
    listener.errors = [errno.ECONNABORTED, errno.EMFILE, errno.ENOBUFS]
    accepted = trio.Event()

    async def handler(sock: socket.socket, address: Address | None) -> None:
        with sock:
            assert address is not None
            assert address[0] == "127.0.0.1"
        accepted.set()

    async with trio.open_nursery() as nursery:
        nursery.start_soon(accept_from, listener, OpenConnections().counting(listener), handler, nursery)
        with socket.create_connection(listener.getsockname()):
            await accepted.wait()
        nursery.cancel_scope.cancel()
    assert listener.fileno() == -1
    assert [record.levelname for record in caplog.records if record.name == "avicenna.http"] == ["ERROR", "ERROR"]
