"""The connection to NATS servers, which here do what a test says."""

from __future__ import annotations

import itertools
import logging
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from functools import partial

import pytest
import trio
from trio.testing import MockClock

from storage.nats import connection as connections
from storage.nats.auth import Credentials
from storage.nats.connection import ANSWER_SECONDS_MAX, SILENT_SECONDS_MAX, Address, Connection
from storage.nats.errors import Away, CannotConnect, Denied, NoResponders, TooLarge, Unanswered
from storage.nats.wire import Message, Outgoing
from tests.storage.scripted_nats import Client, Published, Server, Servers
from tests.storage.test_nats_wire import PUBLIC, SEED


class World:
    """Scripted servers, and a connection to them."""

    def __init__(self, servers: Servers, connection: Connection) -> None:
        self.servers = servers
        self.connection = connection

    def server(self, name: str = "") -> Server:
        """This server, or the one that has taken us."""
        return self.servers.by_host[name or self.connection.server]


@asynccontextmanager
async def connected(*servers: Server, known: int = 0, **options: object) -> AsyncIterator[World]:
    """A connection to these servers, of which the first so many are configured (0: all)."""
    numbers = itertools.count(1)
    async with trio.open_nursery() as nursery:
        network = Servers(nursery, *servers)
        addresses = [Address(host, 4222) for host in list(network.by_host)[: known or None]]
        connection = Connection(
            addresses,
            name="a node",
            new_id=lambda: f"id{next(numbers)}",
            jitter=lambda: 0.0,
            dial=network.dial,
            **options,  # type: ignore[arg-type]
        )
        nursery.start_soon(connection.run)
        with trio.move_on_after(30):
            await connection.up.wait()
        yield World(network, connection)
        nursery.cancel_scope.cancel()


def answering(*answers: bytes) -> Callable[[Client, Published], object]:
    """Have a server answer each request with these."""

    async def answer(client: Client, message: Published) -> None:
        for data in answers if message.reply else ():
            await client.message(message.reply, data)

    return answer


async def until(condition: Callable[[], object]) -> None:
    """Wait until something is so."""
    with trio.fail_after(60):
        while not condition():
            await trio.sleep(0.01)


async def test_a_message_reaches_whoever_has_subscribed_until_it_no_longer_has(autojump_clock: MockClock) -> None:
    async with connected(Server("one")) as world:
        heard = list[Message]()
        undo = world.connection.subscribe("a.*", heard.append)
        world.connection.publish(Outgoing("a.b", b"body", {"Name": "value"}))
        await until(lambda: heard)
        assert (heard[0].subject, heard[0].data, heard[0].headers) == ("a.b", b"body", {"Name": "value"})
        undo()
        undo()
        world.connection.publish(Outgoing("a.b", b"more"))
        await until(lambda: len(world.server().published) == 2)
        assert len(heard) == 1


async def test_a_request_gets_its_answer_and_a_second_one_disturbs_nobody(autojump_clock: MockClock) -> None:
    async with connected(Server("one")) as world:
        world.server().answers = answering(b"first", b"second")
        answers = [await world.connection.request(Outgoing("a")) for _ in range(3)]
        assert [one.data for one in answers] == [b"first"] * 3


async def test_many_answers_are_taken_up_to_the_last(autojump_clock: MockClock) -> None:
    async with connected(Server("one")) as world:
        world.server().answers = answering(b"1", b"2", b"end", b"3")
        answers = await world.connection.request_many(Outgoing("a"), lambda one: one.data == b"end")
        assert [one.data for one in answers] == [b"1", b"2", b"end"]


async def test_what_belongs_together_is_written_in_one_piece(autojump_clock: MockClock) -> None:
    async with connected(Server("one")) as world:
        world.server().answers = answering(b"done")
        async with trio.open_nursery() as nursery:
            for name in "xyz":
                before = [Outgoing(f"{name}.{number}", b"." * 90) for number in range(3)]
                nursery.start_soon(partial(world.connection.request, Outgoing(f"{name}.last"), before=before))
        subjects = [one.subject for one in world.server().published]
        assert sorted(subjects[at : at + 4] for at in (0, 4, 8)) == [
            [f"{name}.0", f"{name}.1", f"{name}.2", f"{name}.last"] for name in "xyz"
        ]


async def test_nobody_that_answers_is_certainly_not_done(autojump_clock: MockClock) -> None:
    async with connected(Server("one")) as world:

        async def nobody(client: Client, message: Published) -> None:
            await client.message(message.reply, head=b"NATS/1.0 503\r\n\r\n")

        world.server().answers = nobody
        with pytest.raises(NoResponders):
            await world.connection.request(Outgoing("a"))
        assert world.connection.sessions == 1


async def test_a_server_that_answers_no_request_is_left_though_it_answers_pings(autojump_clock: MockClock) -> None:
    async with connected(Server("one"), Server("two")) as world:
        first = world.connection.server
        world.server().answers = answering()
        before = trio.current_time()
        with pytest.raises(Unanswered):
            await world.connection.request(Outgoing("a"))
        assert trio.current_time() - before == pytest.approx(ANSWER_SECONDS_MAX, abs=0.1)
        await until(lambda: world.connection.sessions == 2)
        assert world.connection.server != first
        world.server().answers = answering(b"here")
        assert (await world.connection.request(Outgoing("a"))).data == b"here"


async def test_the_late_answer_of_a_server_that_was_left_is_nobodys(autojump_clock: MockClock) -> None:
    async with connected(Server("one")) as world:
        late = list[Published]()

        async def keep(client: Client, message: Published) -> None:
            late.append(message)

        world.server().answers = keep
        with pytest.raises(Unanswered):
            await world.connection.request(Outgoing("a"))
        await until(world.connection.up.is_set)
        world.server().answers = answering(b"new")
        (client,) = world.server().clients
        await client.message(late[0].reply, b"old")
        assert (await world.connection.request(Outgoing("b"))).data == b"new"


async def test_a_request_under_way_is_unanswered_at_once_when_the_connection_ends(autojump_clock: MockClock) -> None:
    async with connected(Server("one"), Server("two")) as world:
        world.server().answers = answering()
        before = trio.current_time()
        async with trio.open_nursery() as nursery:

            async def ask() -> None:
                with pytest.raises(Unanswered, match="ended before the answer"):
                    await world.connection.request(Outgoing("a"))

            nursery.start_soon(ask)
            await until(lambda: world.server().published)
            await world.servers.end(world.connection.server)
        assert trio.current_time() - before < 1


async def test_whoever_gives_up_in_whatever_moment_leaves_no_half_frame(autojump_clock: MockClock) -> None:
    async with connected(Server("one", max_payload=10_000)) as world:
        server = world.server()
        server.answers = answering(b"done")
        server.is_stuck = trio.Event()  # so that frames are half written
        for number in range(20):
            with trio.move_on_after(0.01):
                await world.connection.request(Outgoing("a", str(number).encode() * 1000))
        server.is_stuck.set()
        assert (await world.connection.request(Outgoing("b"))).data == b"done"
        assert world.connection.sessions == 1
        assert [one.subject for one in server.published] == ["a"] * 20 + ["b"]


async def test_without_a_connection_nothing_is_sent_and_said_at_once(autojump_clock: MockClock) -> None:
    gone = Server("one")
    gone.is_down = True
    async with connected(gone) as world:
        with pytest.raises(Away):
            world.connection.publish(Outgoing("a"))
        with pytest.raises(Away):
            await world.connection.request(Outgoing("a"))
        since = world.connection.away_since
        assert since is not None
        gone.is_down = False
        await world.connection.up.wait()
        now = world.connection.away_since
        assert now is None
        assert not gone.published


async def test_after_a_reconnect_every_subscription_is_there_before_it_is_told(autojump_clock: MockClock) -> None:
    async with connected(Server("one"), Server("two")) as world:
        heard, told = list[Message](), list[str]()
        world.connection.subscribe("a", heard.append)
        world.connection.subscribe("b", heard.append)()

        def tell() -> None:
            told.append(world.connection.server)
            world.connection.publish(Outgoing("a", b"hello"))

        world.connection.on_up(tell)
        first = world.connection.server
        await world.servers.end(first)
        await until(lambda: heard)
        assert told == [world.connection.server] != [first]
        assert "b" not in world.server().clients[0].subscriptions.values()


async def test_servers_that_are_down_are_tried_ever_more_seldom_and_for_ever(autojump_clock: MockClock) -> None:
    servers = [Server("one"), Server("two")]
    for one in servers:
        one.is_down = True
    async with connected(*servers) as world:
        tries = len(world.servers.dialled)
        assert 40 <= tries <= 200  # within the 30 s that `connected` has waited
        await trio.sleep(3600)
        servers[1].is_down = False
        with trio.fail_after(5):
            await world.connection.up.wait()
        assert 5000 < len(world.servers.dialled) < 20_000


async def test_a_server_that_takes_us_and_ends_at_once_is_not_asked_in_a_tight_loop(autojump_clock: MockClock) -> None:
    server = Server("one", refusal="")
    async with connected(server) as world:
        for _ in range(50):
            await world.connection.up.wait()
            for client in list(server.clients):
                await trio.aclose_forcefully(client.stream)
            await until(lambda: not world.connection.up.is_set())
        assert trio.current_time() > 20


async def test_a_silent_server_is_left(autojump_clock: MockClock) -> None:
    async with connected(Server("one"), Server("two")) as world:
        first, before = world.connection.server, trio.current_time()
        world.server().is_deaf = True
        await until(lambda: world.connection.server not in {first, ""})
        assert trio.current_time() - before < SILENT_SECONDS_MAX + 2


async def test_an_idle_connection_stays(autojump_clock: MockClock) -> None:
    async with connected(Server("one")) as world:
        await trio.sleep(3600)
        assert world.connection.sessions == 1


async def test_a_ping_of_the_server_is_answered(autojump_clock: MockClock) -> None:
    async with connected(Server("one")) as world:
        (client,) = world.server().clients
        await client.send(b"PING\r\nPING\r\n")
        world.connection.publish(Outgoing("a"))
        await until(lambda: world.server().published)
        assert world.connection.sessions == 1


@pytest.mark.parametrize(
    "bad",
    [b"HELLO\r\n", b"MSG a 1 3\r\nabcd\r\n", b"-ERR 'Stale Connection'\r\n", b"-ERR 'Maximum Payload Violation'\r\n"],
)
async def test_a_server_that_says_what_cannot_be_is_left_for_another(autojump_clock: MockClock, bad: bytes) -> None:
    async with connected(Server("one"), Server("two")) as world:
        first = world.connection.server
        await world.server().clients[0].send(bad)
        await until(lambda: world.connection.server not in {first, ""})


async def test_a_server_about_to_shut_down_is_left_once_it_has_answered(autojump_clock: MockClock) -> None:
    async with connected(Server("one"), Server("two")) as world:
        first = world.connection.server

        async def answer_late(client: Client, message: Published) -> None:
            await client.send(b'INFO {"server_name": "%s", "ldm": true}\r\n' % first.encode())
            await trio.sleep(0.2)
            await client.message(message.reply, b"still here")

        world.server().answers = answer_late
        assert (await world.connection.request(Outgoing("a"))).data == b"still here"
        await until(lambda: world.connection.server not in {first, ""})


async def test_other_servers_of_the_cluster_are_learned_and_forgotten_when_they_leave(
    autojump_clock: MockClock,
) -> None:
    one, two = Server("one", connect_urls=["two:4222", "10.0.0.7:5000", "no port:x"]), Server("two")
    async with connected(one, two, known=1) as world:
        assert world.connection.servers == (
            Address("one", 4222),
            Address("two", 4222),
            Address("10.0.0.7", 5000, "one"),
        )
        await one.clients[0].send(b'INFO {"server_name": "one", "connect_urls": ["two:4222"]}\r\n')
        await until(lambda: len(world.connection.servers) == 2)
        await world.servers.end("one")
        await until(lambda: world.connection.server == "two")


async def test_a_message_longer_than_the_server_takes_is_refused_here(autojump_clock: MockClock) -> None:
    async with connected(Server("one", max_payload=10)) as world:
        with pytest.raises(TooLarge):
            await world.connection.request(Outgoing("a"), before=[Outgoing("a", b"x" * 11)])
        world.connection.publish(Outgoing("a", b"x" * 10))
        await until(lambda: world.server().published)
        assert len(world.server().published) == 1


async def test_a_denied_subject_is_named_by_the_requests_that_it_concerns(autojump_clock: MockClock) -> None:
    async with connected(Server("one")) as world:

        async def deny(client: Client, message: Published) -> None:
            if message.subject == "a":
                await client.send(b"-ERR 'Permissions Violation for Publish to \"a\"'\r\n")
            elif message.subject == "b":
                await client.message(message.reply, b"fine")

        world.server().answers = deny
        with pytest.raises(Denied, match="may not publish to a"):
            await world.connection.request(Outgoing("a"))
        with pytest.raises(Denied, match="may not publish to a"):
            await world.connection.request(Outgoing("c"), before=[Outgoing("a")])
        assert (await world.connection.request(Outgoing("b"))).data == b"fine"
        assert world.connection.sessions == 1


async def test_a_denied_subscription_is_remembered_and_requests_without_an_inbox_end_at_once(
    autojump_clock: MockClock,
) -> None:
    async with connected(Server("one")) as world:
        (client,) = world.server().clients
        world.connection.subscribe("secret", lambda message: None)
        await client.send(b"-ERR 'Permissions Violation for Subscription to \"secret\"'\r\n")
        await until(lambda: world.connection.denied)
        assert list(world.connection.denied) == ["secret"]

        async def deny(client: Client, message: Published) -> None:
            inbox = f"{message.reply.rpartition('.')[0]}.*"
            await client.send(f"-ERR 'Permissions Violation for Subscription to \"{inbox}\"'\r\n".encode())

        world.server().answers = deny
        with pytest.raises(Denied, match="_INBOX"):
            await world.connection.request(Outgoing("a"))


async def test_what_nobody_takes_is_refused_before_it_fills_the_memory(
    autojump_clock: MockClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(connections, "UNSENT_BYTES_MAX", 10_000)
    async with connected(Server("one")) as world:
        world.server().is_stuck = trio.Event()
        with pytest.raises(Away, match="wait to be written"):
            for _ in range(10_000):
                world.connection.publish(Outgoing("a", b"x" * 1000))
                await trio.lowlevel.checkpoint()
        world.server().is_stuck.set()
        await until(lambda: world.connection.sessions == 2)


async def test_a_user_proves_to_be_it_by_signing_the_nonce(autojump_clock: MockClock) -> None:
    async with connected(Server("one", nonce="abc", auth_required=True), credentials=Credentials(SEED)) as world:
        options = world.server().options
        assert options["nkey"] == PUBLIC
        assert options["sig"] == Credentials(SEED).answer("abc")["sig"]
        assert options["headers"] is options["no_responders"] is True
    async with connected(Server("one"), credentials=Credentials(SEED)) as world:
        assert not {"nkey", "sig", "jwt"} & set(world.server().options)  # it has not asked


@pytest.mark.parametrize(
    ("info", "attributes", "says"),
    [
        ({"nonce": "abc"}, {}, "wants to know who we are"),
        ({"tls_required": True}, {}, "wants TLS"),
        ({}, {"refusal": "Authorization Violation"}, "Authorization Violation"),
    ],
)
async def test_a_server_that_does_not_take_us_says_why(
    autojump_clock: MockClock,
    info: dict[str, object],
    attributes: dict[str, object],
    says: str,
    caplog: pytest.LogCaptureFixture,
) -> None:
    server = Server("one", **info)
    for name, value in attributes.items():
        setattr(server, name, value)
    async with connected(server) as world:
        assert not world.connection.up.is_set()
        assert says in str(world.connection.refused)
    assert len([one for one in caplog.records if one.levelno == logging.WARNING]) == 1, "it is said once"


async def test_a_server_that_does_not_greet_in_time_is_passed_over(autojump_clock: MockClock) -> None:
    mute, other = Server("one"), Server("two")
    mute.greeting = b""
    async with connected(mute, other) as world:
        assert world.connection.server == "two"
    rude = Server("one")
    rude.greeting = b"SSH-2.0-OpenSSH\r\n"
    async with connected(rude, other) as world:
        assert world.connection.server == "two"


@pytest.mark.parametrize(
    ("text", "address"),
    [
        ("nats://one:4333", Address("one", 4333)),
        ("one", Address("one", 4222)),
        ("tls://10.0.0.1/", Address("10.0.0.1", 4222)),
        ("[::1]:5000", Address("::1", 5000)),
        ("nats://[fe80::1]", Address("fe80::1", 4222)),
    ],
)
def test_an_address_is_a_host_and_perhaps_a_port(text: str, address: Address) -> None:
    assert Address.parse(text) == address
    assert Address.parse(str(address)) == address


@pytest.mark.parametrize(
    "text", ["", "one:0", "one:70000", "one:x", "::1", "http://one", "nats://me:secret@one", "a b"]
)
def test_what_is_no_address_is_refused_without_being_shown(text: str) -> None:
    with pytest.raises(CannotConnect) as refused:
        Address.parse(text)
    assert "secret" not in str(refused.value)
