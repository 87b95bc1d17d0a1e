"""`avicenna-live actors`, as an operator on the server's machine types it."""

from __future__ import annotations

import json
import os
from typing import Any

import trio

from tests.server.harness import Server
from tests.server.process import COMMAND


async def command(server: Server, *arguments: str) -> str:
    """What the command prints; it must succeed."""
    line = [str(COMMAND), *arguments, "--url", server.url, "--data", str(server.data)]
    with trio.fail_after(30):
        done = await trio.run_process(line, capture_stdout=True, env=os.environ | {"COLUMNS": "200"})
    return done.stdout.decode()


async def in_json(server: Server, *arguments: str) -> Any:
    return json.loads(await command(server, *arguments, "--json"))


async def test_actors_are_listed_and_shown_for_people_and_for_programs(server: Server) -> None:
    await server.register(42)
    await server.register("other")
    async with server.live(device="phone", ack="app"):
        await server.publish()
        table = await command(server, "actors", "list")
        listed = await in_json(server, "actors", "list")
        text = await command(server, "actors", "show", "42")
        shown = await in_json(server, "actors", "show", "42")
    assert table.splitlines()[0].split()[:3] == ["DIAGNOSIS", "STATE", "INCARNATION"]
    assert [one["diagnosis_id"] for one in listed] == [42, "other"]
    assert "running" in text
    assert "phone" in text
    assert (shown["state"], shown["head"], shown["lag"][0]["lag"]) == ("running", 1, 1)


async def test_an_actor_is_restarted_and_stopped_while_its_connections_stay_open(server: Server) -> None:
    await server.register(42)
    async with server.live() as client:
        assert "incarnation 2, 1 connections open" in await command(server, "actors", "restart", "42")
        assert (await in_json(server, "actors", "stop", "42"))["state"] == "passive"
        await server.publish()
        assert (await client.next())["seq"] == 1
