"""Who is let in when many want in: an address has a share, and health and operators have places beyond the limit."""

from __future__ import annotations

import contextlib
import dataclasses
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from ipaddress import ip_network
from pathlib import Path

import httpx
import pytest
import trio

from tests.edge.peers import Peer, connect, request, upgrade
from tests.edge.raw import upgraded
from tests.server.harness import Server, running_server
from web.http.serving import EXTRA_MAX
from web.identity.addresses import sharing_address
from web.server.entrances import OPERATORS_CONNECTIONS_MAX, served_to_operators
from web.server.settings import Settings, SettingsError

ELSEWHERE = "127.0.0.2"


async def connect_from(address: str, url: str) -> Peer:
    host, _, port = url.removeprefix("http://").rpartition(":")
    sock = trio.socket.socket()
    await sock.bind((address, 0))
    with trio.fail_after(10):
        await sock.connect((host, int(port)))
    return Peer(trio.SocketStream(sock))


async def status_of(peer: Peer, head: bytes) -> int:
    await peer.send(head)
    return (await peer.answer()).status


@asynccontextmanager
async def taken(url: str, address: str, count: int) -> AsyncIterator[list[Peer]]:
    """So many connections of an address, each of which has been answered."""
    peers = []
    for _ in range(count):
        peers.append(await connect_from(address, url))
        assert await status_of(peers[-1], request(b"/healthz")) == 200
    try:
        yield peers
    finally:
        for peer in peers:
            await trio.aclose_forcefully(peer.stream)


# The share of an address


@pytest.mark.one_process("each worker lets in its part of the share")
async def test_an_address_takes_a_quarter_of_all_connections_and_others_are_served(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    async with running_server(dataclasses.replace(settings, max_connections=40)) as server:
        await server.register()
        async with taken(server.url, ELSEWHERE, 10) as peers:
            for _ in range(3):
                async with await connect_from(ELSEWHERE, server.url) as eleventh:
                    answer = await eleventh.answer()
                    assert await eleventh.end() == b""
                assert (answer.status, answer.problem["code"]) == (503, "rate_limited")
                assert int(answer.headers["retry-after"]) >= 1
            async with await connect_from("127.0.0.3", server.url) as other:
                assert await status_of(other, request(b"/healthz")) == 200
            async with taken(server.url, "127.0.0.1", 20):
                pass
            await trio.aclose_forcefully(peers.pop().stream)
            with trio.fail_after(10):
                while True:
                    async with await connect_from(ELSEWHERE, server.url) as next_one:
                        if await status_of(next_one, request(b"/healthz")) == 200:
                            break
    said = [record.getMessage() for record in caplog.records if "address_share" in record.getMessage()]
    assert len(said) == 1, "one line a minute"
    assert "trusted_proxies" in said[0]


@pytest.mark.one_process("each worker lets in its part of the share")
async def test_a_websocket_keeps_the_place_of_its_address_until_it_ends(settings: Settings) -> None:
    async with running_server(dataclasses.replace(settings, max_connections=40, address_share=0.05)) as server:
        await server.register()
        token = b"Bearer " + server.token("amira").encode()
        first, second = [await connect_from(ELSEWHERE, server.url) for _ in range(2)]
        for peer in (first, second):
            assert await status_of(peer, upgrade(Authorization=token)) == 101
        async with await connect_from(ELSEWHERE, server.url) as third:
            assert (await third.answer()).status == 503
        await trio.aclose_forcefully(first.stream)
        await trio.aclose_forcefully(second.stream)
        with trio.fail_after(10):
            while (await server.status())["connections_open"] > 1:
                await trio.sleep(0.05)
        async with taken(server.url, ELSEWHERE, 2):
            pass


@pytest.mark.parametrize(
    "changes", [{"address_share": 1}, {"trusted_proxies": (ip_network(ELSEWHERE),)}], ids=["off", "a trusted proxy"]
)
async def test_the_share_is_not_for_proxies_and_can_be_turned_off(
    settings: Settings, changes: dict[str, object]
) -> None:
    limited = dataclasses.replace(settings, max_connections=12, **changes)  # type: ignore[arg-type]
    async with running_server(limited) as server, taken(server.url, ELSEWHERE, 11):
        pass


@pytest.mark.parametrize(
    ("peer", "counts_as"),
    [
        ("127.0.0.1", None),
        ("::1", None),
        ("::ffff:127.0.0.1", None),
        ("unix", None),
        ("10.1.2.3", None),
        ("127.0.0.2", "127.0.0.2"),
        ("::ffff:198.51.100.7", "198.51.100.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2::/64"),
    ],
)
def test_whose_share_a_peer_takes_up(peer: str, counts_as: str | None) -> None:
    assert sharing_address(peer, (ip_network("10.0.0.0/8"), "unix")) == counts_as


# Beyond the limit


async def test_a_full_server_answers_health_and_operators_and_nobody_else(settings: Settings) -> None:
    async with running_server(dataclasses.replace(settings, max_connections=3)) as server:
        operate = b"Bearer " + server.token("op", "operate").encode()
        await server.register()
        await server.http.aclose()
        user = b"Bearer " + server.token("amira").encode()
        async with taken_all(server, 3):
            for head, status in (
                (request(b"/healthz"), 200),
                (request(b"/readyz"), 200),
                (request(b"/actors", Authorization=operate), 200),
                (request(b"/ws/status", Authorization=operate), 200),
                (request(b"/actors", Authorization=user), 503),
                (request(b"/actors", Authorization=operate + b"x"), 503),
                (request(b"/actors"), 503),
                (request(b"/openapi.json"), 503),
                (request(b"/diagnoses/42/events", Authorization=operate), 503),
                (upgrade(b"/ws/42", Authorization=operate), 503),
                (request(b"/healthz" + b"?" + b"&" * 64), 414),
            ):
                async with await connect(server.url) as peer:
                    await peer.send(head)
                    answer = await peer.answer()
                    assert answer.status == status, head
                    assert answer.headers["connection"] == "close"
                    assert await peer.end() == b""
                    if status == 503:
                        assert answer.problem["code"] == "rate_limited"
                        assert "retry-after" in answer.headers


@asynccontextmanager
async def taken_all(server: Server, count: int) -> AsyncIterator[None]:
    """All connections are taken, by this machine; waits for those that have ended to be counted out."""
    peers: list[Peer] = []
    with trio.fail_after(10):
        while len(peers) < count:
            peer = await connect(server.url)
            await peer.send(request(b"/healthz"))
            if (await peer.answer()).headers.get("connection") == "close":
                await trio.aclose_forcefully(peer.stream)
            else:
                peers.append(peer)
    yield
    for peer in peers:
        await trio.aclose_forcefully(peer.stream)


async def test_who_comes_beyond_the_limit_and_says_nothing_is_told_so_after_two_seconds(settings: Settings) -> None:
    async with running_server(dataclasses.replace(settings, max_connections=3)) as server:
        await server.http.aclose()
        async with taken_all(server, 3):
            began = trio.current_time()
            async with await connect(server.url) as silent, await connect(server.url) as slow:
                await slow.send(b"GET /healthz HTTP/1.1\r\n")
                for peer in (silent, slow):
                    assert (await peer.answer()).status == 503
                    assert await peer.end() == b""
            assert 1.5 < trio.current_time() - began < 8


async def test_sixteen_are_heard_beyond_the_limit_and_the_next_is_refused_at_once(settings: Settings) -> None:
    assert EXTRA_MAX == 16
    async with running_server(dataclasses.replace(settings, max_connections=3)) as server:
        await server.http.aclose()
        async with taken_all(server, 3):
            extra = [await connect(server.url) for _ in range(EXTRA_MAX)]
            async with await connect(server.url) as one_more:
                answer = await one_more.answer()
                assert answer.status == 503
            for peer in extra:
                await trio.aclose_forcefully(peer.stream)


# A listener for operators


async def operators_url(settings: Settings, path: Path) -> httpx.AsyncClient:
    transport = httpx.AsyncHTTPTransport(uds=str(path))
    return httpx.AsyncClient(transport=transport, base_url="http://live", timeout=10)


@pytest.mark.one_process("two servers of one process have no listener for operators")
async def test_operators_have_a_listener_that_a_full_server_does_not_fill(settings: Settings, tmp_path: Path) -> None:
    path = tmp_path / "operators.sock"
    with_door = dataclasses.replace(settings, max_connections=3, operators_listen=f"unix:{path}")
    async with running_server(with_door) as server:
        await server.register()
        operate, user = server.bearer("op", "operate"), server.bearer("amira")
        await server.http.aclose()
        async with taken_all(server, 3), await operators_url(settings, path) as operators:
            for _ in range(3):
                assert (await operators.get("/healthz")).status_code == 200
                assert (await operators.get("/readyz")).status_code == 200
                assert (await operators.get("/actors", headers=operate)).status_code == 200
                assert (await operators.get("/ws/status", headers=operate)).status_code == 200
            assert (await operators.get("/actors", headers=user)).status_code == 403
            body = {"diagnosis_id": 42, "feedback_id": 1, "rating": 5}
            refused = await operators.post("/ws/broadcast-feedback-update", json=body, headers=user)
            assert (refused.status_code, refused.json()["code"]) == (404, "not_found")
            for elsewhere in ("/diagnoses/42/events", "/ws/42", "/diagnoses", "/nowhere"):
                assert (await operators.get(elsewhere, headers=operate)).status_code == 404
    assert not path.exists()


@pytest.mark.one_process("two servers of one process have no listener for operators")
async def test_beyond_its_connections_the_listener_for_operators_answers_health_as_the_main_one_does(
    settings: Settings, tmp_path: Path
) -> None:
    path = tmp_path / "operators.sock"
    async with (
        running_server(dataclasses.replace(settings, operators_listen=f"unix:{path}")) as server,
        await operators_url(settings, path) as operators,
    ):
        with contextlib.ExitStack() as opened:
            for _ in range(OPERATORS_CONNECTIONS_MAX):
                opened.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
            assert (await operators.get("/healthz")).status_code == 200
            assert (await operators.get("/actors", headers=server.bearer("op", "operate"))).status_code == 200
            assert (await operators.get("/openapi.json")).status_code == 503


@pytest.mark.one_process("two servers of one process have no listener for operators")
async def test_the_main_listener_keeps_all_routes_and_the_other_one_takes_no_websocket(settings: Settings) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    async with running_server(dataclasses.replace(settings, operators_listen=f"127.0.0.1:{port}")) as server:
        await server.register()
        assert (await server.http.get("/actors", headers=server.bearer("op", "operate"))).status_code == 200
        token = server.token("op", "operate")
        client = await upgraded(int(server.url.rpartition(":")[2]), "/ws/42", f"Authorization: Bearer {token}")
        await client.stream.aclose()
        async with await connect(f"http://127.0.0.1:{port}") as peer:
            assert await status_of(peer, upgrade(Authorization=b"Bearer " + token.encode())) == 404


@pytest.mark.parametrize(
    ("path", "is_served"),
    [
        (b"/healthz", True),
        (b"/actors/42/restart", True),
        (b"/subjects//C=DE/O=x", True),
        (b"/audit", True),
        (b"/backup", True),
        (b"/revocations/1", True),
        (b"/ws/broadcast", False),
        (b"/ws/42", False),
        (b"/diagnoses/42/position", False),
        (b"/", False),
        (b"/healthz/", False),
    ],
)
def test_what_operators_are_served(path: bytes, is_served: bool) -> None:
    assert served_to_operators(path) is is_served


@pytest.mark.parametrize(
    "value", ["", "9000", ":9000", "host:", "host:70000", "::1:9000", "unix:", "unix:" + "x" * 101]
)
def test_a_listener_for_operators_is_a_host_with_a_port_or_a_unix_socket(value: str) -> None:
    with pytest.raises(SettingsError, match="operators_listen"):
        Settings(operators_listen=value)


@pytest.mark.parametrize("value", ["127.0.0.1:9000", "[::1]:9000", "localhost:0", "unix:/run/avicenna/operators.sock"])
def test_proper_listeners_pass(value: str) -> None:
    assert Settings(operators_listen=value).operators_listen == value
