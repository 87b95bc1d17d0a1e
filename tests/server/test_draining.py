"""`POST /drain`: an operator ends the server from afar, in order."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest
import trio

from tests.server.harness import Server
from tests.server.process import served
from tests.server.test_audit import trailing
from web.server.settings import Settings


async def test_a_drain_is_answered_and_recorded_and_followers_are_told_to_come_back(settings: Settings) -> None:
    async with trailing(settings) as (server, trail):
        await server.register()
        async with server.live() as client:
            answer = await server.http.post("/drain", headers=server.bearer("op", "operate"))
            assert (answer.status_code, answer.json()) == (202, {"status": "draining"})
            frames, code, reason = await client.close_frames()
    assert (frames[-1]["type"], code, reason) == ("bye", 1012, "restart")
    (row,) = [one for one in trail if one.what == "server.drain"]
    assert (row.who, row.target, row.before, row.after) == ("op", "", None, None)


@pytest.mark.parametrize("scope", ["", "monitor broadcast register"])
async def test_who_may_not_operate_ends_nothing(server: Server, scope: str) -> None:
    assert (await server.http.post("/drain", headers=server.bearer("amira", scope))).status_code == 403
    assert (await server.http.post("/drain")).status_code == 401
    assert (await server.http.get("/readyz")).status_code == 200
    acts = (await server.http.get("/audit", headers=server.bearer("op", "operate"))).json()
    assert acts["items"] == []


async def test_a_drained_server_ends_as_after_sigterm(tmp_path: Path) -> None:
    async with served(tmp_path / "data") as (process, server):
        await server.http.post("/drain", headers=server.bearer("op", "operate"))
        with trio.fail_after(15):
            assert await process.process.wait() == 0


@pytest.mark.by_workers
async def test_a_signal_behind_a_drain_is_a_second_one(tmp_path: Path) -> None:
    async with served(tmp_path / "data") as (process, server):
        operator = server.bearer("op", "operate")
        host, _, port = server.url.removeprefix("http://").partition(":")
        asked = (
            f"Host: {host}\r\nAuthorization: {operator['Authorization']}\r\nExpect: 100-continue\r\nContent-Length: 5"
        )
        with trio.fail_after(15):
            # A request that has begun, and whose body does not come, keeps the server from ending by itself.
            async with await trio.open_tcp_stream(host, int(port)) as half:
                await half.send_all(
                    f"POST /revocations HTTP/1.1\r\n{asked}\r\nContent-Type: application/json\r\n\r\n".encode()
                )
                assert (await half.receive_some()).startswith(b"HTTP/1.1 100 ")
                assert (await server.http.post("/drain", headers=operator)).status_code == 202
                process.process.send_signal(signal.SIGTERM)
                assert await process.process.wait() == 128 + signal.SIGTERM
