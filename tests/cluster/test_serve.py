"""Two servers of their own processes on one NATS server: what clients of either see."""

from __future__ import annotations

import signal
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager
from functools import partial
from pathlib import Path
from random import Random
from uuid import uuid4

import httpx
import pytest
import trio

from tests.cluster.clients import Follower, Ledger, Publisher
from tests.cluster.links import Links
from tests.cluster.nodes import Node, directory_with_key, nodes_on, start_node, variables_of
from tests.cluster.servers import NatsServer, nats_servers
from tests.server.harness import Client, Server
from tests.server.test_metrics import figures, until
from tests.server.test_publish_sockets import opened, update
from tests.server.test_streams import streamed

pytestmark = [pytest.mark.cluster, pytest.mark.one_process]

NAME = "served"


@pytest.fixture(scope="module")
def nats(tmp_path_factory: pytest.TempPathFactory) -> Iterator[NatsServer]:
    """A server of this file's own, which its tests end and start again."""
    with nats_servers(tmp_path_factory.mktemp("nats")) as (server,):
        yield server


@pytest.fixture(scope="module")
def nodes(nats: NatsServer, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Sequence[Node]]:
    with nodes_on([nats], tmp_path_factory.mktemp("nodes"), NAME) as running:
        yield running


@pytest.fixture
async def pair(nodes: Sequence[Node]) -> AsyncIterator[list[Server]]:
    async with AsyncExitStack() as stack:
        yield [await stack.enter_async_context(Server(one.url, one.data)) for one in nodes]


@pytest.fixture
def diagnosis() -> str:
    """One that no other test has."""
    return f"d{uuid4().hex[:12]}"


async def numbers(client: Client, count: int) -> list[int]:
    return [frame["seq"] for frame in await client.events(count)]


async def until_status(server: Server, wanted: int) -> None:
    """Wait until `/readyz` is answered so."""
    with trio.fail_after(60):
        while (await server.http.get("/readyz")).status_code != wanted:
            await trio.sleep(0.05)


@pytest.mark.guarantee(17)
async def test_what_is_published_at_either_is_followed_at_the_other_with_dense_numbers(
    pair: list[Server], diagnosis: str
) -> None:
    one, other = pair
    await one.register(diagnosis)
    async with one.live(diagnosis) as here, other.live(diagnosis, device="phone") as there:
        for number in range(10):
            answer = await pair[number % 2].publish(number, diagnosis)
            assert (answer.status_code, answer.json()["seq"]) == (200, number + 1)
        assert await numbers(here, 10) == await numbers(there, 10) == list(range(1, 11))
        with trio.fail_after(30):  # each is heard of once a second
            while (status := await other.status())["nodes"] != {"known": 2, "answered": 2}:
                await trio.sleep(0.05)
        assert status["connections_by_diagnosis"][diagnosis] == 2


@pytest.mark.guarantee(18)
async def test_rights_that_are_taken_away_at_one_end_connections_at_the_other(
    pair: list[Server], diagnosis: str
) -> None:
    one, other = pair
    await one.register(diagnosis, "amira", "bo", "cyn")
    async with (
        other.live(diagnosis, "bo") as viewer,
        other.live(diagnosis, "cyn") as revoked,
        other.live(diagnosis) as owner,
    ):
        await one.register(diagnosis, "amira", "cyn")
        assert (await viewer.close_frames())[1:] == (1008, "viewer removed")
        headers = one.bearer("op", "operate")
        made = await one.http.post("/revocations", json={"sub": "cyn"}, headers=headers)
        assert (await revoked.close_frames())[1:] == (1008, "revoked")
        await one.http.delete(f"/revocations/{made.json()['id']}", headers=headers)
        await one.http.delete(f"/diagnoses/{diagnosis}", headers=one.bearer("registrar", "register"))
        assert (await owner.close_frames())[1:] == (1008, "diagnosis deleted")
    await other.register(diagnosis)
    assert (await one.publish(1, diagnosis)).json()["seq"] == 1


async def test_a_device_that_comes_to_the_other_server_takes_over_and_goes_on_where_it_was(
    pair: list[Server], diagnosis: str
) -> None:
    one, other = pair
    await one.register(diagnosis)
    async with one.live(diagnosis, device="phone", ack="app") as first:
        await one.publish(1, diagnosis)
        assert await numbers(first, 1) == [1]
        await first.say(type="ack", seq=1)
        await first.next_of("acked")
        async with other.connect(diagnosis, device="phone", ack="app") as second:
            assert (await second.until_live())[0]["data"]["resume"] == "exact"
            assert (await first.close_frames())[1:] == (4000, "replaced")
            await one.publish(2, diagnosis)
            assert await numbers(second, 1) == [2]


async def test_what_the_engine_does_itself_is_not_supported_and_the_answer_names_it(pair: list[Server]) -> None:
    answer = await pair[0].http.post("/backup", headers=pair[0].bearer("op", "operate"))
    assert (answer.status_code, answer.json()["code"]) == (501, "not_supported")
    assert "nats account backup" in answer.json()["detail"]


@asynccontextmanager
async def publishing(server: Server, diagnosis: str, count: int) -> AsyncIterator[list[httpx.Response]]:
    """Publish with keys meanwhile; the answers."""
    answers: list[httpx.Response] = []

    async def publish(number: int) -> None:
        body = {"diagnosis_id": diagnosis, "feedback_id": number, "rating": 5, "comment": "x"}
        answers.append(await server.post("feedback", body, **{"Idempotency-Key": key_of(diagnosis, number)}))

    async with trio.open_nursery() as nursery:
        for number in range(1, count + 1):
            nursery.start_soon(publish, number)
        yield answers


def key_of(diagnosis: str, number: int) -> str:
    return f"key-of-{diagnosis}-{number:04}"


@pytest.mark.guarantee(17)
@pytest.mark.parametrize("outage", ["frozen", "ended"])
async def test_while_the_engine_is_away_publishers_wait_or_get_503_sockets_stay_and_nothing_acknowledged_is_lost(
    pair: list[Server], nats: NatsServer, diagnosis: str, outage: str
) -> None:
    one, other = pair
    await one.register(diagnosis)
    ways: dict[str, tuple[Callable[[], None], Callable[[], None]]] = {
        "frozen": (nats.freeze, nats.thaw),
        "ended": (partial(nats.end, signal.SIGKILL), partial(restarted, nats)),
    }
    begin, end = ways[outage]
    async with (
        one.live(diagnosis) as here,
        other.live(diagnosis) as there,
        streamed(other, path=diagnosis) as stream,
        opened(one) as line,
    ):
        await stream.until_live()
        assert (await one.publish(0, diagnosis)).json()["seq"] == 1
        begin()
        sent = update(1, diagnosis, idempotency_key=key_of(diagnosis, 4))
        await line.say(sent)
        async with publishing(one, diagnosis, 3) as answers:
            try:
                for server in pair:
                    await until_status(server, 503)
                    assert (await figures(server))["avicenna_store_away_seconds"] >= 3
                # Whoever is known to a diagnosis in memory is let in, others are to come back.
                async with other.connect(diagnosis) as known, other.connect(diagnosis, device="new") as newcomer:
                    await known.until_live()
                    assert (await newcomer.close_frames())[1:] == (1013, "try later")
                if outage == "frozen":
                    refused = await line.next()
                    assert (refused["type"], refused["problem"]["code"]) == ("refused", "storage_unavailable")
                    with trio.fail_after(60):
                        while len(answers) < 3:
                            await trio.sleep(0.05)
            finally:
                await trio.to_thread.run_sync(end)
        for answer in answers:
            assert answer.status_code == 200 or (answer.status_code == 503 and answer.headers["Retry-After"] == "1"), (
                answer.text
            )
        for server in pair:
            await until_status(server, 200)
            assert (await figures(server))["avicenna_store_away_seconds"] == 0
            await until(server, "avicenna_nodes", 2)
        async with publishing(other, diagnosis, 3) as again:
            pass
        if outage == "ended":  # it was not away for as long as a publisher waits
            assert (await line.next())["type"] in ("receipt", "refused")
        receipt = await line.asks(sent)
        assert receipt["type"] == "receipt"
        assert sorted([receipt["receipt"]["seq"], *(answer.json()["seq"] for answer in again)]) == [2, 3, 4, 5]
        acknowledged = {answer.json()["seq"] for answer in answers if answer.status_code == 200}
        assert acknowledged <= {2, 3, 4, 5}
        assert await numbers(here, 5) == await numbers(there, 5) == [1, 2, 3, 4, 5]
        assert [(await stream.next()).number for _ in range(5)] == [1, 2, 3, 4, 5]


@pytest.mark.guarantee(17)
async def test_followers_of_a_server_that_is_killed_go_on_at_another_one_with_every_number_once(
    pair: list[Server], nodes: Sequence[Node], nats: NatsServer, diagnosis: str
) -> None:
    one, other = pair
    await one.register(diagnosis)
    ledger, urls = Ledger(), [one.url]
    followers = [Follower(urls, one.key, diagnosis, ledger.wrong.append) for _ in range(8)]
    publisher = Publisher([other.url], one.key, [diagnosis], ledger, Random(1), 0.02)
    ledger.begin()
    async with trio.open_nursery() as nursery:
        for follower in followers:
            nursery.start_soon(follower.run)
        nursery.start_soon(publisher.run)
        with trio.fail_after(60):
            while not all(follower.is_live for follower in followers):
                await trio.sleep(0.01)
        urls.append(other.url)
        await ledger.more(20, 30)
        try:
            await trio.to_thread.run_sync(nodes[0].end, signal.SIGKILL)
            with trio.fail_after(60):
                while not all(follower.back_seconds for follower in followers):
                    await trio.sleep(0.01)
            await ledger.more(20, 30)
        finally:
            again = start_node(nodes[0].data, variables_of([nats], NAME), int(one.url.rpartition(":")[2]))
            nodes[0].process = again.process
        publisher.is_wanted = False
        head = max(ledger.of(diagnosis))
        with trio.fail_after(60):
            while any(follower.position < head for follower in followers):
                await trio.sleep(0.01)
        await trio.to_thread.run_sync(again.wait)
        await until_status(one, 200)
        nursery.cancel_scope.cancel()
    assert ledger.wrong == []
    acknowledged = ledger.of(diagnosis)
    for follower in followers:
        assert (follower.closed, follower.resumes, follower.gaps) == (1, ["exact"], 0)
        assert follower.got.keys() == set(range(1, head + 1))
        assert acknowledged.items() <= follower.got.items()


async def test_a_server_that_hears_nobody_lets_its_clients_go_and_they_go_on_elsewhere(
    pair: list[Server], nats: NatsServer, diagnosis: str, tmp_path: Path
) -> None:
    async with trio.open_nursery() as nursery:
        links = Links(nursery)
        await trio.to_thread.run_sync(links.lead_to, {"n": nats.port}, "c")
        variables = variables_of([nats], NAME) | {
            "AVICENNA_NATS_URL": links.url("c", "n"),
            "AVICENNA_ISOLATED_SECONDS": "1",
        }
        node = start_node(directory_with_key(tmp_path / "node-c"), variables)
        try:
            await trio.to_thread.run_sync(node.wait)
            async with Server(node.url, node.data) as cut:
                await cut.register(diagnosis)
                with trio.fail_after(30):  # one that never heard of others lets nobody go
                    while (await cut.status())["nodes"]["known"] < 3:
                        await trio.sleep(0.05)
                await let_go(cut, pair[0], links, diagnosis)
        finally:
            node.end(signal.SIGKILL)
        nursery.cancel_scope.cancel()


async def let_go(cut: Server, other: Server, links: Links, diagnosis: str) -> None:
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(cut.live(diagnosis, device=f"d{number}")) for number in range(20)]
        assert (await cut.publish(1, diagnosis)).json()["seq"] == 1
        epoch = (await other.http.get(f"/diagnoses/{diagnosis}/position", headers=other.bearer("amira"))).json()[
            "epoch"
        ]
        links.cut("c", "n")
        gone: list[tuple[int, str]] = []

        async def until_closed(client: Client) -> None:
            frames, code, reason = await client.close_frames()
            assert [one["seq"] for one in frames if "seq" in one] == [1]
            gone.append((code, reason))
            nursery.cancel_scope.cancel()

        with trio.fail_after(60):
            async with trio.open_nursery() as nursery:
                for client in clients:
                    nursery.start_soon(until_closed, client)
        assert gone[0] == (1012, "restart")
        async with other.connect(diagnosis, after=1, epoch=epoch) as again:
            assert (await again.until_live())[0]["data"]["resume"] == "exact"
            assert (await other.publish(2, diagnosis)).json()["seq"] == 2
            assert await numbers(again, 1) == [2]
        links.mend()
        await until_status(cut, 200)


def restarted(nats: NatsServer) -> None:
    nats.start()
    nats.wait()
