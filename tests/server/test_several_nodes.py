"""Several servers in one process that share an engine in memory: any of them takes any request."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path

import httpx
import pytest
import trio

from storage.bus import Bus, MemoryNetwork
from storage.clock import Clock, SystemClock
from storage.memory import MemoryStore
from storage.memory_engine import MemoryEngine
from storage.store import Store
from tests.server.harness import Client, Server, begin, running_server
from tests.server.test_console import console
from tests.server.test_metrics import figures
from web.operating.audit_rows import AUDIT_ROWS
from web.server.settings import Settings

ISOLATED_SECONDS = 0.2


@pytest.fixture(autouse=True)
def _lets_go_soon(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("web.operating.isolation.LOOK_SECONDS", 0.02)


class Node:
    """One of the servers, and its handle on what they share."""

    def __init__(self, name: str, server: Server, store: MemoryStore, network: MemoryNetwork) -> None:
        self.server = server
        self.store = store
        self._name = name
        self._network = network

    def be_deaf(self) -> None:
        """Answer nothing that others ask; they do not know that for a while."""
        self._network.kill(self._name)


@asynccontextmanager
async def running_nodes(data: Path, count: int = 3) -> AsyncIterator[list[Node]]:
    """Servers with one key, on handles of one engine."""
    epochs = iter(f"epoch-{number}" for number in range(1, 1000))
    engine = MemoryEngine(clock=SystemClock(), new_epoch=lambda: next(epochs), rows=AUDIT_ROWS, shared=True)
    async with trio.open_nursery() as answers_nursery, AsyncExitStack() as stack:
        network, nodes = MemoryNetwork(answers_nursery), []
        for number in range(count):
            place, store = data / f"node-{number}", MemoryStore(engine, f"node-{number}")
            bus = network.join(f"node-{number}")

            @asynccontextmanager
            async def opened(
                settings: Settings, clock: Clock, store: MemoryStore = store, bus: Bus = bus
            ) -> AsyncIterator[tuple[Store, Bus]]:
                yield store, bus

            begin(place)
            settings = Settings(port=0, data=place, passivate_after_seconds=60, isolated_seconds=ISOLATED_SECONDS)
            server = running_server(settings, engine=opened)
            nodes.append(Node(f"node-{number}", await stack.enter_async_context(server), store, network))
        yield nodes


@pytest.fixture
async def nodes(tmp_path: Path) -> AsyncIterator[list[Node]]:
    async with running_nodes(tmp_path) as running:
        yield running


async def seqs(client: Client, count: int) -> list[int]:
    return [frame["seq"] for frame in await client.events(count)]


async def test_the_status_of_any_counts_the_connections_of_all(nodes: list[Node]) -> None:
    await nodes[0].server.register()
    async with AsyncExitStack() as stack:
        for node in nodes:
            await stack.enter_async_context(node.server.live())
        for node in nodes:
            status = await node.server.status()
            assert (status["total_connections"], status["connections_open"] >= 3) == (3, True)


async def test_what_is_posted_at_any_is_followed_at_all_in_order(nodes: list[Node]) -> None:
    await nodes[0].server.register()
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(node.server.live()) for node in nodes]
        for number in range(12):
            answer = (await nodes[number % 3].server.publish(number)).json()
            assert answer["seq"] == number + 1
        for client in clients:
            events = await client.events(12)
            assert [(event["seq"], event["data"]["feedback_id"]) for event in events] == [
                (number + 1, number) for number in range(12)
            ]


async def test_the_same_key_at_two_at_once_makes_one_event(nodes: list[Node]) -> None:
    await nodes[0].server.register()
    answers: list[httpx.Response] = []

    async def post(server: Server) -> None:
        body = {"diagnosis_id": 42, "feedback_id": 1, "rating": 5, "comment": "the same"}
        answers.append(await server.post("feedback", body, **{"Idempotency-Key": "once-and-for-all-nodes"}))

    async with trio.open_nursery() as nursery:
        for node in nodes:
            nursery.start_soon(post, node.server)
    assert [answer.json()["seq"] for answer in answers] == [1, 1, 1]
    assert sorted(answer.json()["replayed"] for answer in answers) == [False, True, True]


async def test_a_receipt_counts_subscribers_of_all_as_far_as_they_have_acknowledged_there(nodes: list[Node]) -> None:
    one, other, _ = (node.server for node in nodes)
    await one.register()

    async def subscribers() -> dict[str, int]:
        found: dict[str, int] = (await one.publish()).json()["subscribers"]
        return found

    async with one.live(device="phone", ack="app"):  # it has acknowledged nothing here
        await subscribers()
    async with other.live(device="phone", ack="app") as phone, other.live(device="tablet", ack="app"):
        for _ in range(81):
            last = await subscribers()
        assert (last["known"], last["at_risk"]) == (2, 2)
        await phone.events(81)
        await phone.say(type="ack", seq=82)
        assert (await phone.next_of("acked"))["data"]["seq"] == 82
        # How many are online is told each second, and whoever acknowledges nothing more is at risk 80 events later.
        with trio.fail_after(7):
            while await subscribers() != {"online": 2, "known": 2, "at_risk": 1}:
                await trio.sleep(0.1)


async def test_a_right_that_is_taken_away_at_one_ends_connections_at_the_others(nodes: list[Node]) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register(42, "amira", "bo")
    async with other.live(sub="bo") as viewer, third.live() as owner:
        await one.register(42, "amira")
        assert (await viewer.close_frames())[1:] == (1008, "viewer removed")
        headers = one.bearer("op", "operate")
        await one.http.post("/revocations", json={"sub": "amira"}, headers=headers)
        assert (await owner.close_frames())[1:] == (1008, "revoked")
        for server in (one, other, third):
            assert (await server.publish()).status_code == 401


async def test_whoever_lags_is_shown_online_wherever_it_is_connected(nodes: list[Node]) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register()
    headers = one.bearer("op", "operate")
    async with one.live(device="phone"), other.live(device="tablet"):
        await one.publish()
        for server in (one, other, third):
            for path in ("/actors/42", "/actors"):
                shown = (await server.http.get(path, headers=headers)).json()
                (actor,) = shown.get("items", [shown])
                assert {(lag["device"], lag["online"]) for lag in actor["lag"]} == {("phone", True), ("tablet", True)}


async def test_an_erasure_counts_the_connections_that_it_ends_anywhere(nodes: list[Node]) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register(42, "amira", "bo")
    async with one.live(sub="bo") as first, other.live(sub="bo") as second, other.live() as owner:
        headers = one.bearer("op", "operate")
        answer = await third.http.delete("/subjects", params={"sub": "bo"}, headers=headers)
        assert answer.json()["connections"] == 2
        for client in (first, second):
            assert (await client.close_frames())[1:] == (1008, "disconnected by operator")
        await owner.say(type="ping")
        await owner.next_of("pong")


async def test_a_diagnosis_that_is_deleted_at_one_is_gone_at_all_and_comes_back_at_number_one(
    nodes: list[Node],
) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register()
    await one.publish()
    async with other.live() as client:
        await third.http.delete("/diagnoses/42", headers=third.bearer("registrar", "register"))
        assert (await client.close_frames())[1:] == (1008, "diagnosis deleted")
    await one.register()
    async with other.live() as client:
        assert (await third.publish()).json()["seq"] == 1
        assert await seqs(client, 1) == [1]


async def test_whoever_follows_anywhere_while_epochs_are_renewed_comes_back_and_begins_anew(nodes: list[Node]) -> None:
    await nodes[0].server.register()
    for number in range(3):
        await nodes[number].server.publish(number)
    async with AsyncExitStack() as stack:
        clients = [await stack.enter_async_context(node.server.live()) for node in nodes]
        former = (await nodes[0].server.publish()).json()["epoch"]
        nodes[0].store.engine.renew_epochs()
        for client in clients:
            assert (await client.close_frames())[1:] == (1012, "restart")
    for node in nodes:
        async with node.server.connect(after=4, epoch=former) as client:
            connect, *rest = await client.until_live()
            assert connect["data"]["resume"] == "reset"
            assert [frame["seq"] for frame in rest if "seq" in frame] == [1, 2, 3, 4]
    assert (await nodes[2].server.publish()).json()["seq"] == 5


async def test_a_purge_at_one_is_a_gap_at_the_others(nodes: list[Node]) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register()
    for number in range(3):
        await one.publish(number)
    async with other.live():
        await third.http.delete("/actors/42/outbox", headers=third.bearer("op", "operate"))
    async with other.connect(after=1) as client:
        frames = await client.until_live()
        assert [(frame["data"]["from"], frame["data"]["to"]) for frame in frames if frame["type"] == "gap"] == [(2, 3)]


async def test_a_device_goes_on_at_any_where_it_was_at_another(nodes: list[Node]) -> None:
    await nodes[0].server.register()
    for node in nodes:  # all have the diagnosis in memory
        await node.server.publish()
    for number, node in enumerate([*nodes, *nodes]):
        async with node.server.connect(device="phone", ack="app") as client:
            connect, *rest = await client.until_live()
            got = [frame["seq"] for frame in rest if "seq" in frame]
            assert connect["data"]["resume"] == ("exact" if number else "fresh")
            assert got == (list(range(1, 4)) if not number else [number + 3])
            await client.say(type="ack", seq=got[-1])
            await client.next_of("acked")
        await node.server.until_alone()
        await node.server.publish()


async def test_a_server_whose_store_is_away_is_not_ready_and_ends_nobody(nodes: list[Node]) -> None:
    one, cut_off = nodes[0].server, nodes[1]
    await one.register()
    async with cut_off.server.live() as client:
        cut_off.store.go_away()
        refused = await cut_off.server.publish()
        assert (refused.status_code, refused.json()["code"]) == (503, "storage_unavailable")
        await one.publish()
        with trio.fail_after(10):
            while (await cut_off.server.http.get("/readyz")).status_code == 200:
                await trio.sleep(0.05)
        assert (await one.http.get("/readyz")).status_code == 200
        cut_off.store.come_back()
        assert await seqs(client, 1) == [1]
        assert (await cut_off.server.http.get("/readyz")).status_code == 200
        assert (await cut_off.server.publish()).json()["seq"] == 2


async def test_a_server_that_hears_neither_the_engine_nor_another_lets_its_clients_go(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("storage.bus.SILENT_SECONDS_MAX", 0.0)
    one, cut_off = nodes[0].server, nodes[1]
    await one.register()
    async with one.live() as stays, cut_off.server.live() as first, cut_off.server.live() as second:
        cut_off.store.go_away()
        nodes[0].be_deaf()
        nodes[2].be_deaf()
        for client in (first, second):
            assert (await client.close_frames())[1:] == (1012, "restart")
        cut_off.store.come_back()
        await one.publish()
        assert await seqs(stays, 1) == [1]


async def test_nobody_is_let_in_by_rights_that_may_be_too_old(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    await nodes[0].server.register()
    cut_off = nodes[1]
    async with cut_off.server.live() as client:
        cut_off.store.go_away()
        async with cut_off.server.live():
            """Whoever is known is let in."""
        monkeypatch.setattr("web.following.admission.RIGHTS_SECONDS_MAX", 0.0)
        async with cut_off.server.connect() as other:
            assert (await other.close_frames())[1:] == (1013, "try later")
        cut_off.store.come_back()
        await nodes[0].server.publish()
        assert await seqs(client, 1) == [1]


async def test_a_device_that_moves_to_another_server_replaces_its_older_connection(nodes: list[Node]) -> None:
    await nodes[0].server.register()
    one, other, third = (node.server for node in nodes)
    async with (
        one.live(device="tablet") as tablet,
        one.live(device="phone") as first,
        other.live(device="phone") as second,
    ):
        assert (await first.close_frames())[1:] == (4000, "replaced")
        async with one.live(device="phone") as last:
            assert (await second.close_frames())[1:] == (4000, "replaced")
            await third.publish()
            assert await seqs(last, 1) == await seqs(tablet, 1) == [1]


async def test_a_device_that_is_connected_anywhere_is_not_forgotten_for_another(
    nodes: list[Node], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("actors.roster.DEVICES_MAX", 2)
    one, other, _ = nodes
    await one.server.register()
    async with one.server.live(device="a"):
        async with other.server.live(device="b"), one.server.connect(device="c") as late:
            frames, code, _ = await late.close_frames()
            assert (frames[0]["data"]["code"], code) == ("invalid_field", 1008)
        await one.server.publish(1)
        async with other.server.live(device="c"):
            headers = one.server.bearer("amira")
            found = (await one.server.http.get("/diagnoses/42/delivery?seq=1", headers=headers)).json()
            assert [item["device"] for item in found["items"]] == ["a", "c"]


async def test_an_operator_reaches_the_connections_and_actors_of_all(nodes: list[Node]) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register(42, "amira", "bo")
    headers = one.bearer("op", "operate")
    async with one.live(sub="bo") as first, other.live(sub="bo", device="phone") as second, other.live():
        status = await third.status()
        assert (status["total_connections"], status["connections_by_diagnosis"]) == (3, {"42": 3})
        await third.http.post("/actors/42/restart", headers=headers)
        for server in (one, other, third):
            actor = (await server.http.get("/actors/42", headers=headers)).json()
            assert (actor["incarnation"] >= 1, actor["subscribers"]) == (True, 3)
        assert (await other.http.get("/actors/42", headers=headers)).json()["incarnation"] == 2
        ended = await third.http.delete("/actors/42/subscribers?sub=bo", headers=headers)
        assert ended.json() == {"disconnected": 2, "forgotten": 0}
        for client in (first, second):
            assert (await client.close_frames())[1:] == (1008, "disconnected by operator")
        (row, *_) = (await one.http.get("/audit", headers=headers)).json()["items"]
        assert (row["action"], row["after"]) == ("subscriber.disconnect", {"disconnected": 2, "forgotten": 0})


async def test_an_actor_is_shown_as_it_is_at_each_server_and_at_all_together(nodes: list[Node]) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register()
    headers = one.bearer("op", "operate")
    async with one.live(), one.live(), other.live():
        await other.http.post("/actors/42/restart", headers=headers)
        await other.http.post("/actors/42/stop", headers=headers)
        alone = (await third.http.get("/actors/42", headers=headers)).json()
        (listed,) = (await third.http.get("/actors", headers=headers)).json()["items"]
    shown = [(one["node"], one["state"], one["incarnation"], one["subscribers"]) for one in alone["nodes"]]
    assert sorted(shown) == [("node-0", "passive", 2, 2), ("node-1", "passive", 2, 1), ("node-2", "passive", 0, 0)]
    assert alone["nodes"][0]["node"] == "node-2", "this server comes first"
    assert (alone["state"], alone["incarnation"], alone["subscribers"]) == ("passive", 2, 3)
    assert alone["mailbox"] == {"depth": 0, "limit": 3000}
    assert listed == alone


async def test_a_console_at_any_shows_what_goes_on_at_all(nodes: list[Node]) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register()
    await one.register("rests")
    headers = one.bearer("op", "operate")
    async with one.live(), console(third) as screen:
        await screen.until("42", state="running", subscribers=1)
        assert (screen.rows["rests"]["state"], screen.rows["rests"]["subscribers"]) == ("passive", 0)
        async with other.live(), other.live(sub="amira", device="phone", ack="app"):
            await screen.until("42", subscribers=3)
            await other.publish()
            row = await screen.until("42", head=1, retained=1)
            assert (row["mailbox"], row["crash"]) == (0, None)
            restarts = screen.rows["42"]["incarnation"]
            await other.http.post("/actors/42/restart", headers=headers)
            await screen.until("42", incarnation=restarts + 1)
        await screen.until("42", subscribers=1)
        assert screen.kinds.count("snapshot") == 1
        await one.http.delete("/diagnoses/42", headers=one.bearer("registrar", "register"))
        with trio.fail_after(20):
            while "42" in screen.rows:
                await screen.turn()


async def test_a_console_forgets_what_a_server_had_that_is_gone(nodes: list[Node]) -> None:
    one, third = nodes[0].server, nodes[2].server
    await one.register()
    async with one.live(), console(third) as screen:
        await screen.until("42", subscribers=1)
        nodes[0].be_deaf()
        await screen.until("42", subscribers=0)


async def test_an_event_that_is_pushed_out_is_counted_where_the_newer_one_was_published(nodes: list[Node]) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register()
    async with third.live():
        for number in range(104):
            assert (await (one, other)[number % 2].publish(number)).status_code == 200
        counted = [(await figures(server))["avicenna_evicted_events_total"] for server in (one, other, third)]
        assert counted == [2, 2, 0]


async def test_what_does_not_answer_is_counted_and_left_out(nodes: list[Node], monkeypatch: pytest.MonkeyPatch) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register()
    headers = one.bearer("op", "operate")
    async with one.live(), other.live(), third.live():
        status = await one.status()
        assert (status["nodes"], status["total_connections"]) == ({"known": 3, "answered": 3}, 3)
        monkeypatch.setattr("actors.peers.ASK_SECONDS_MAX", 0.2)
        nodes[2].be_deaf()
        status = await one.status()
        assert (status["nodes"], status["total_connections"]) == ({"known": 3, "answered": 2}, 2)
        actor = (await one.http.get("/actors/42", headers=headers)).json()
        assert ([node["node"] for node in actor["nodes"]], actor["subscribers"]) == (["node-0", "node-1"], 2)


async def test_a_publisher_and_its_traces_learn_of_connections_at_all(nodes: list[Node]) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register(42, "amira", "bo")
    async with one.live(device="phone") as client, other.live(sub="bo", ack="app"):
        receipt = (await third.publish()).json()
        assert (receipt["clients_notified"], receipt["subscribers"]["online"]) == (2, 2)
        await client.next()
        found = await third.http.get("/diagnoses/42/delivery?seq=1", headers=third.bearer("amira"))
        shown = [(row["user_id"], row["online"]) for row in found.json()["items"]]
        assert shown == [("amira", True), ("bo", True)]


async def test_whoever_is_forgotten_at_one_is_forgotten_at_all(nodes: list[Node]) -> None:
    one, other, third = (node.server for node in nodes)
    await one.register()
    await one.publish()
    headers = one.bearer("op", "operate")
    async with other.live(device="phone") as client:
        answer = await third.http.delete("/actors/42/subscribers?sub=amira&forget=1", headers=headers)
        assert answer.json() == {"disconnected": 1, "forgotten": 1}
        assert (await client.close_frames())[1:] == (1008, "disconnected by operator")
    await other.until_alone()
    await trio.sleep(1.5)  # so long would a cursor be on its way that is not held back
    async with other.connect(device="phone") as client:
        assert (await client.next())["data"]["resume"] == "fresh"


async def test_what_an_engine_does_not_do_is_not_supported(nodes: list[Node]) -> None:
    server = nodes[0].server
    answer = await server.http.post("/backup", headers=server.bearer("op", "operate"))
    assert (answer.status_code, answer.json()["code"]) == (501, "not_supported")
