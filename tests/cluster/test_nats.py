"""The NATS client and real servers."""

from __future__ import annotations

import ssl
import subprocess
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from random import Random
from uuid import uuid4

import pytest
import trio

from storage.nats.auth import Credentials
from storage.nats.connection import Address, Connection
from storage.nats.errors import Denied, JetStreamError, NoResponders, TooLarge, Unanswered
from storage.nats.jetstream import EXPECTED_LAST, MESSAGE_ID, ROLLUP, WRONG_LAST, JetStream
from storage.nats.wire import Message, Outgoing
from tests.cluster.servers import NatsServer, nats_servers
from tests.programs import program
from tests.storage.test_nats_wire import PUBLIC, SEED

pytestmark = pytest.mark.cluster


def new_id() -> str:
    return uuid4().hex


@asynccontextmanager
async def connected(
    *addresses: Address, tls: ssl.SSLContext | None = None, credentials: Credentials | None = None
) -> AsyncIterator[Connection]:
    """A connection to one of these servers, or at least an attempt."""
    connection = Connection(
        addresses, name="tests", new_id=new_id, jitter=Random(1).random, tls=tls, credentials=credentials
    )
    async with trio.open_nursery() as nursery:
        nursery.start_soon(connection.run)
        with trio.fail_after(30):
            while not connection.up.is_set() and connection.refused is None:
                await trio.sleep(0.01)
        yield connection
        nursery.cancel_scope.cancel()


@pytest.fixture
async def connection(one_nats_server: NatsServer) -> AsyncIterator[Connection]:
    async with connected(one_nats_server.address) as made:
        yield made


@pytest.fixture
async def jetstream(connection: Connection) -> JetStream:
    return JetStream(connection, new_id)


def config(name: str, **more: object) -> dict[str, object]:
    """The settings of a stream that has what we use."""
    return {
        "name": name,
        "subjects": [f"{name}.>"],
        "storage": "file",
        "num_replicas": 1,
        "allow_direct": True,
        "allow_atomic": True,
        "allow_rollup_hdrs": True,
        "allow_msg_ttl": True,
        **more,
    }


@pytest.fixture
async def stream(jetstream: JetStream) -> str:
    """The name of a stream of this test's own."""
    name = f"test{new_id()}"
    await jetstream.have_stream(config(name))
    return name


async def test_the_echo_of_a_server_is_what_was_published(connection: Connection) -> None:
    drawn, heard = Random(17), list[Message]()
    connection.subscribe("echo.>", heard.append)
    sent = []
    for number in range(300):
        headers = {f"H{one}": "é" * drawn.randrange(9) + "x" for one in range(drawn.randrange(3))}
        sent.append(Outgoing(f"echo.{number}", drawn.randbytes(drawn.choice([0, 1, 100, 70_000])), headers))
        connection.publish(sent[-1])
    with trio.fail_after(30):
        while len(heard) < len(sent):
            await trio.sleep(0.01)
    assert [(one.subject, one.data, one.headers) for one in heard] == [
        (one.subject, one.data, one.headers) for one in sent
    ]


async def test_a_subject_without_anybody_says_so(connection: Connection) -> None:
    with pytest.raises(NoResponders):
        await connection.request(Outgoing("nobody.is.here"))


async def test_the_largest_message_is_the_one_that_the_server_tells(connection: Connection) -> None:
    heard = list[Message]()
    connection.subscribe("large", heard.append)
    connection.publish(Outgoing("large", b"x" * connection.payload_bytes_max))
    with pytest.raises(TooLarge):
        connection.publish(Outgoing("large", b"x" * (connection.payload_bytes_max + 1)))
    with trio.fail_after(10):
        while not heard:
            await trio.sleep(0.01)
    assert connection.sessions == 1


async def test_messages_are_stored_all_or_none_in_one_round_trip(jetstream: JetStream, stream: str) -> None:
    first = await jetstream.store([Outgoing(f"{stream}.a", b"1"), Outgoing(f"{stream}.b", b"2")])
    assert (first.pos, first.is_duplicate) == (2, False)
    with pytest.raises(JetStreamError) as refused:
        await jetstream.store(
            [
                Outgoing(f"{stream}.a", b"3"),
                Outgoing(f"{stream}.b", b"4", {EXPECTED_LAST: "1"}),
                Outgoing(f"{stream}.c"),
            ]
        )
    assert refused.value.err_code in {WRONG_LAST, 10164}
    found = await jetstream.last(stream, f"{stream}.a")
    assert found is not None
    assert (found.pos, found.data, await jetstream.last(stream, f"{stream}.c")) == (1, b"1", None)
    many = [Outgoing(f"{stream}.a", str(number).encode(), {"N": str(number)}) for number in range(1000)]
    assert (await jetstream.store(many)).pos == 1002


async def test_the_same_message_twice_is_stored_once(jetstream: JetStream, stream: str) -> None:
    message = Outgoing(f"{stream}.a", b"1", {MESSAGE_ID: new_id()})
    first, second = await jetstream.store([message]), await jetstream.store([message])
    assert (second.pos, second.is_duplicate) == (first.pos, True)


async def test_what_is_stored_is_found_by_subject_position_and_page(jetstream: JetStream, stream: str) -> None:
    for begin in range(0, 2100, 700):
        await jetstream.store(
            [Outgoing(f"{stream}.{number}", b"x" * 1000, {"N": str(number)}) for number in range(begin, begin + 700)]
        )
    found = await jetstream.direct(stream, {"multi_last": [f"{stream}.{number}" for number in range(1024)]})
    assert [one.headers["N"] for one in found] == [str(number) for number in range(1024)]
    page = await jetstream.direct(stream, {"seq": 2001, "next_by_subj": f"{stream}.*", "batch": 50})
    assert [one.pos for one in page] == list(range(2001, 2051))
    assert await jetstream.direct(stream, {"multi_last": [f"{stream}.x"]}) == []
    assert await jetstream.direct(stream, {"seq": 3000, "next_by_subj": f"{stream}.*", "batch": 50}) == []
    with pytest.raises(JetStreamError):
        await jetstream.direct(stream, {"multi_last": [f"{stream}.*"]})  # more than the server answers at once
    at = await jetstream.at(stream, 17)
    assert at is not None
    assert (at.subject, at.headers["N"], at.data) == (f"{stream}.16", "16", b"x" * 1000)
    assert await jetstream.at(stream, 9999) is None


async def test_a_purge_drops_what_a_filter_means(jetstream: JetStream, stream: str) -> None:
    await jetstream.store([Outgoing(f"{stream}.{name}.{number}") for name in "ab" for number in range(10)])
    assert await jetstream.purge(stream, f"{stream}.a.*") == 10
    assert await jetstream.purge(stream, f"{stream}.b.*", before=14) == 3
    assert await jetstream.purge(stream, f"{stream}.c") == 0
    await jetstream.store([Outgoing(f"{stream}.b.1", b"new", {ROLLUP: "sub"})])
    assert [one.data for one in await jetstream.direct(stream, {"multi_last": [f"{stream}.b.1"]})] == [b"new"]


async def test_a_stream_that_is_there_keeps_its_settings_and_shows_them(jetstream: JetStream, stream: str) -> None:
    found = await jetstream.have_stream(config(stream, max_msgs_per_subject=7))
    assert (found["name"], found["max_msgs_per_subject"], found["allow_atomic"]) == (stream, -1, True)


async def test_a_server_that_ends_in_order_is_left_and_asked_again_when_it_is_back(tmp_path: Path) -> None:
    with nats_servers(tmp_path) as (server,):
        async with connected(server.address) as connection:
            jetstream = JetStream(connection, new_id)
            await jetstream.have_stream(config("kept"))
            await jetstream.store([Outgoing("kept.a", b"1")])
            await trio.to_thread.run_sync(server.end)
            with trio.fail_after(10):
                while connection.up.is_set():
                    await trio.sleep(0.01)
            await trio.to_thread.run_sync(server.start)
            await trio.to_thread.run_sync(server.wait)
            with trio.fail_after(30):
                await connection.up.wait()
                found = await jetstream.last("kept", "kept.a")
            assert found is not None
            assert found.data == b"1"


async def test_a_frozen_server_of_three_is_left_for_another_that_it_has_told_of(
    three_nats_servers: Sequence[NatsServer],
) -> None:
    async with connected(three_nats_servers[0].address) as connection:
        with trio.fail_after(30):
            while len(connection.servers) < 3:  # it is told of the others as they come
                await trio.sleep(0.01)
        server = next(one for one in three_nats_servers if one.name == connection.server)
        server.freeze()
        try:
            with pytest.raises(Unanswered):
                await connection.request(Outgoing("$JS.API.INFO"))
            with trio.fail_after(30):
                await connection.up.wait()
            assert connection.server != server.name
        finally:
            server.thaw()


async def test_a_user_may_do_what_it_may_and_is_told_what_it_may_not(tmp_path: Path) -> None:
    may = 'publish: ["a.*", "$JS.API.>"], subscribe: ["_INBOX.>", "a.*"]'
    with nats_servers(
        tmp_path, more=f"authorization {{ users: [{{ nkey: {PUBLIC}, permissions: {{ {may} }} }}] }}"
    ) as (server,):
        async with connected(server.address) as nobody:
            assert not nobody.up.is_set()
            assert "wants to know who we are" in str(nobody.refused)
        async with connected(server.address, credentials=Credentials(SEED)) as connection:
            with pytest.raises(Denied, match="may not publish to secret"):
                await connection.request(Outgoing("secret"))
            connection.subscribe("secret.>", lambda message: None)
            with pytest.raises(NoResponders):
                await connection.request(Outgoing("a.b"))
            assert list(connection.denied) == ["secret.>"]
            assert connection.sessions == 1


REQUEST = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "2")


def certificate(directory: Path) -> tuple[Path, Path]:
    """A certificate for 127.0.0.1 that signs itself, and its key."""
    made = directory / "cert.pem", directory / "key.pem"
    command = [program("openssl"), *REQUEST]
    command += [
        "-subj",
        "/CN=nats",
        "-addext",
        "subjectAltName=IP:127.0.0.1",
        "-out",
        str(made[0]),
        "-keyout",
        str(made[1]),
    ]
    subprocess.run(command, check=True, capture_output=True)
    return made


async def test_tls_is_spoken_where_it_is_configured_and_never_given_up(tmp_path: Path) -> None:
    cert, key = certificate(tmp_path)
    trusting = ssl.create_default_context(cafile=cert)
    more = f'tls {{ cert_file: "{cert}", key_file: "{key}" }}'
    with nats_servers(tmp_path / "secure", more=more) as (server,):
        async with connected(server.address, tls=trusting) as connection:
            with pytest.raises(NoResponders):
                await connection.request(Outgoing("nobody"))
        async with connected(server.address) as plain:
            assert "wants TLS" in str(plain.refused)
        async with connected(server.address, tls=ssl.create_default_context()) as stranger:
            assert "self-signed certificate" in str(stranger.refused)


async def test_a_server_without_tls_is_not_spoken_to_by_a_client_with_it(one_nats_server: NatsServer) -> None:
    async with connected(one_nats_server.address, tls=ssl.create_default_context()) as connection:
        assert "does not speak TLS" in str(connection.refused)
