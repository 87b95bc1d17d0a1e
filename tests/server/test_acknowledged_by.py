"""What acknowledged, as `connect` announces it and `/delivery` tells it."""

from __future__ import annotations

from typing import Any

import pytest

from storage.sqlite import copies
from tests.server.harness import Client, Server, open_socket, running_server
from tests.server.test_streams import streamed
from web.server.settings import Settings


async def deliveries(server: Server, seq: int = 1) -> dict[str | None, dict[str, Any]]:
    """What became of an event, by device."""
    answer = await server.http.get(f"/diagnoses/42/delivery?seq={seq}", headers=server.bearer("op", "operate"))
    return {one["device"]: one for one in answer.json()["items"]}


async def acknowledged_by(server: Server, device: str | None = "phone") -> str | None:
    one = (await deliveries(server))[device]
    assert (one["acknowledged_at"] is None) == (one["acknowledged_by"] is None)
    by: str | None = one["acknowledged_by"]
    return by


async def until_acknowledged(server: Server, seq: int) -> None:
    """Wait until the device `phone` has acknowledged up to `seq`."""
    while (await deliveries(server))["phone"]["cursor"] < seq:
        pass


def page(server: Server, query: str = "") -> Any:
    """A WebSocket as a page of this server opens it."""
    url = server.url.replace("http://", "ws://") + f"/ws/42?token={server.token('amira')}{query}"
    return open_socket(url, extra_headers=[("Origin", server.url)])


async def connect_of(client: Client) -> dict[str, Any]:
    return (await client.until_live())[0]["data"]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("query", "ack"), [("", "app"), ("&ack=transport", "transport"), ("&ack=app", "app")])
async def test_a_page_acknowledges_by_itself_unless_it_asks_for_the_transport(
    query: str, ack: str, server: Server
) -> None:
    await server.register()
    async with page(server, query) as client:
        assert (await connect_of(client))["ack"] == ack


@pytest.mark.parametrize(("parameters", "ack"), [({}, "transport"), ({"ack": "app"}, "app")])
async def test_whoever_is_no_page_is_acknowledged_for_by_its_transport(
    parameters: dict[str, str], ack: str, server: Server
) -> None:
    await server.register()
    async with server.connect(**parameters) as client:
        assert (await connect_of(client))["ack"] == ack


@pytest.mark.parametrize("ack", ["transport", "app", None])
async def test_an_event_stream_acknowledges_by_itself(ack: str | None, server: Server) -> None:
    await server.register()
    async with streamed(server, device="browser", **({} if ack is None else {"ack": ack})) as stream:
        assert (await stream.until_live())[0].frame["data"]["ack"] == "app"


async def test_what_a_page_does_not_acknowledge_is_sent_again_whatever_its_browser_answers(server: Server) -> None:
    await server.register()
    async with page(server, "&device=tab") as client:
        await client.until_live()
        for number in range(5):
            await server.publish(number)
        await client.events(5)
        # A page that is not frozen, and never acknowledges: its WebSocket library answers every Ping.
        await client.connection.ping()
    await server.until_alone()
    assert (await deliveries(server))["tab"]["state"] == "pending"
    async with page(server, "&device=tab") as client:
        assert [frame["seq"] for frame in await client.events(5)] == [1, 2, 3, 4, 5]


async def test_delivery_tells_what_acknowledged(server: Server) -> None:
    await server.register()
    async with server.live(device="phone") as client:
        await server.publish(1)
        await client.events(1)
        await until_acknowledged(server, 1)  # by the Pong of its library
        assert await acknowledged_by(server) == "transport"
        await server.publish(2)
        await client.events(1)
        await client.say(type="ack", seq=2)
        await client.next_of("acked")
        assert await acknowledged_by(server) == "app"
        await server.publish(3)
        await client.events(1)
        await until_acknowledged(server, 3)
        assert await acknowledged_by(server) == "transport"
        await client.say(type="ack", seq=3)
        await client.next_of("acked")
        assert await acknowledged_by(server) == "transport", "the cursor did not move"
        await server.publish(4)
    async with server.live(device="phone", ack="app", after=4):
        assert await acknowledged_by(server) == "app"


@pytest.mark.parametrize(("after", "by"), [(None, None), (0, None), (1, "app")])
async def test_where_a_new_subscriber_begins_is_an_acknowledgement_if_it_says_so(
    after: int | None, by: str | None, server: Server
) -> None:
    await server.register()
    await server.publish(1)
    given: dict[str, Any] = {} if after is None else {"after": after}
    async with server.live(device="phone", ack="app", **given):
        assert await acknowledged_by(server) == by
    async with streamed(server, device="tablet", **given) as stream:
        await stream.until_live()
        assert await acknowledged_by(server, "tablet") == by


async def test_what_acknowledged_is_stored_with_the_cursor(settings: Settings) -> None:
    async with running_server(settings) as server:
        await server.register()
        await server.publish(1)
        async with server.live(device="phone") as client:
            await until_acknowledged(server, 1)
            await client.say(type="ping")
        async with server.live(device="tablet", ack="app") as client:
            await client.say(type="ack", seq=1)
            await client.next_of("acked")
        async with server.live(device="desk", ack="app"):
            pass
    async with running_server(settings) as server:
        assert {device: one["acknowledged_by"] for device, one in (await deliveries(server)).items()} == {
            "phone": "transport",
            "tablet": "app",
            "desk": None,
        }


@pytest.mark.sqlite_only("changes the file of the database")
async def test_a_new_numbering_begins_without_an_acknowledgement(settings: Settings) -> None:
    async with running_server(settings) as server:
        await server.register()
        await server.publish(1)
        async with server.live(device="phone", ack="app", after=1) as client:
            assert await acknowledged_by(server) == "app"
            epoch = (await server.http.get("/diagnoses/42/position", headers=server.bearer("amira"))).json()["epoch"]
            await client.say(type="ping")
    database = settings.data / "avicenna.db"
    copies.restore(database, database)
    async with running_server(settings) as server:
        assert await acknowledged_by(server) is None
        async with server.connect(device="phone", ack="app", after=1, epoch=epoch) as client:
            assert (await connect_of(client))["resume"] == "reset"
            assert await acknowledged_by(server) is None
        async with server.live(device="phone", ack="app", after=1):
            assert await acknowledged_by(server) == "app"
