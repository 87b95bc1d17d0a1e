"""The server as a process: killed, restarted, stopped, told nonsense."""

from __future__ import annotations

import re
import signal
import socket
import subprocess
import time
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path

import httpx
import pytest
import trio

from tests.cli.terminal import on_terminal
from tests.logbook import Logbook
from tests.server.process import COMMAND, run, served


@pytest.mark.guarantee(1)
@pytest.mark.guarantee(2)
async def test_events_published_while_a_client_is_away_survive_kill_9_and_arrive_in_order(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data) as (process, server):
        await server.register()
        async with server.live(device="phone", ack="app") as client:
            await server.publish(0)
            await client.events(1)
            await client.say(type="ack", seq=1)
            await client.next_of("acked")
        epochs = {(await server.publish(number)).json()["epoch"] for number in range(1, 6)}
        await process.kill()
    async with served(data) as (process, server):
        async with server.connect(device="phone", ack="app") as client:
            frames = await client.until_live()
            answer = (await server.publish(6)).json()
        assert await process.stop() == 0
    assert frames[0]["data"]["resume"] == "exact"
    assert {frames[0]["data"]["epoch"]} == epochs
    assert [frame["seq"] for frame in frames if "seq" in frame] == [2, 3, 4, 5, 6]
    assert [frame["data"]["feedback_id"] for frame in frames if "seq" in frame] == [1, 2, 3, 4, 5]
    assert answer["seq"] == 7


@pytest.mark.guarantee(4)
async def test_who_was_away_over_a_crash_gets_the_exact_gap_and_the_newest_hundred(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data) as (process, server):
        await server.register(42, "amira", "bo", "cyrus", "dina")
        async with server.live(sub="bo", device="b", ack="app") as online:
            async with server.live(sub="cyrus", device="c", ack="app") as leaving:
                for number in range(1, 41):
                    await server.publish(number)
                await leaving.events(40)
                await leaving.say(type="ack", seq=40)
                await leaving.next_of("acked")
            for number in range(41, 111):
                await server.publish(number)
            assert [event["seq"] for event in await online.events(110)] == list(range(1, 111))
            await online.say(type="ack", seq=110)
            await online.next_of("acked")
            await process.kill()
    async with served(data) as (_, server):
        async with server.connect(sub="bo", device="b", ack="app") as online:
            assert [frame["type"] for frame in await online.until_live()] == ["connect", "live"]
            for number in range(111, 181):
                await server.publish(number)
            assert [event["seq"] for event in await online.events(70)] == list(range(111, 181))
        async with server.connect(sub="cyrus", device="c", ack="app") as back:
            frames = await back.until_live()
        async with server.connect(sub="dina", device="d", ack="app") as new:
            fresh = await new.until_live()
    assert (frames[0]["data"]["resume"], frames[0]["data"]["missed"], frames[0]["data"]["queued"]) == (
        "partial",
        40,
        100,
    )
    assert frames[1]["data"] == {"from": 41, "to": 80, "count": 40, "reason": "evicted"}
    assert [frame["seq"] for frame in frames if "seq" in frame] == list(range(81, 181))
    assert [frame["data"]["feedback_id"] for frame in frames if "seq" in frame] == list(range(81, 181))
    assert frames[-1]["data"] == {"seq": 180}
    assert (fresh[0]["data"]["resume"], fresh[0]["data"]["floor"]) == ("fresh", 80)
    assert [frame["seq"] for frame in fresh if "seq" in frame] == list(range(81, 181))


async def test_a_stopping_server_says_goodbye_and_exits_with_0(tmp_path: Path) -> None:
    async with served(tmp_path / "data") as (process, server):
        await server.register()
        async with server.live() as client, trio.open_nursery() as nursery:
            nursery.start_soon(process.stop)
            frames, code, _ = await client.close_frames()
        assert process.process.returncode == 0
    assert code == 1012
    assert frames[-1]["type"] == "bye"
    assert 0 <= frames[-1]["data"]["retry_after_ms"] <= 5000


@pytest.mark.guarantee(12)
async def test_a_second_server_on_the_same_data_is_told_so_in_one_line(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data):
        second = await trio.run_process(
            [str(COMMAND), "serve", "--port", "0", "--data", str(data)], check=False, capture_stderr=True
        )
    assert second.returncode == 2
    last = second.stderr.decode().strip().splitlines()[-1]
    assert "cannot start" in last
    assert "Traceback" not in second.stderr.decode()


async def test_the_key_and_the_database_are_private(tmp_path: Path) -> None:
    data = tmp_path / "data"
    async with served(data):
        modes = {path.name: path.stat().st_mode & 0o777 for path in data.iterdir()}
    assert data.stat().st_mode & 0o777 == 0o700
    assert len((data / "jwt.key").read_bytes()) == 32
    assert set(modes.values()) == {0o600}
    assert "avicenna.db" in modes


async def test_a_wrong_setting_is_one_clear_line_and_exit_2(tmp_path: Path) -> None:
    command = [str(COMMAND), "serve", "--data", str(tmp_path), "--port", "99999"]
    done = await trio.run_process(command, check=False, capture_stderr=True, stdout=subprocess.DEVNULL)
    assert done.returncode == 2
    assert "65535" in done.stderr.decode()


async def test_what_the_server_says_at_start_is_what_one_needs_next_and_stopped_is_its_last_word(
    tmp_path: Path,
) -> None:
    data = tmp_path / "its data"
    logbook = Logbook()

    async def until_said(words: str) -> str:
        with trio.fail_after(20):
            while words not in (said := "".join(logbook.lines)):
                await trio.sleep(0.01)
        return said

    async with served(data, logbook=logbook, AVICENNA_MAX_CONNECTIONS="400") as (process, _):
        said = await until_said("publish to it")
        follow, publish = re.findall(r"(?:follow a diagnosis|publish to it, .*): (.*)\n", said)
        add, tail = follow.split(" && ")
        for pasted in (add, publish, f"{tail} --count 1"):
            done = await trio.run_process(["sh", "-c", pasted], capture_stdout=True)
        assert b"saffron" in done.stdout
        assert await process.stop() == 0
        said = await until_said("stopped")
    assert f"avicenna-live {version('avicenna-live')}, data in {data}, durability full" in said
    assert "limits: 400 connections, 100 of one address" in said
    assert said.splitlines()[-1].endswith("stopped")


def test_the_end_of_its_terminal_stops_a_server_in_order(tmp_path: Path, way: str) -> None:
    log = tmp_path / "log"
    log.touch()
    script = f"exec {COMMAND} serve --port 0 --data {tmp_path / 'data'} 2>>{log}"
    with on_terminal(["sh", "-c", script]) as terminal:
        until_said(log, "listening on")
        terminal.signal(signal.SIGHUP)  # the terminal is there: somebody else has sent it
        until_said(log, "the workers were replaced" if way == "workers" else "keys read anew")
        terminal.go_away()
        assert terminal.until_ended() == 0
    assert log.read_text().endswith("stopped\n")
    assert "draining after SIGHUP" in log.read_text()


def until_said(log: Path, words: str) -> None:
    deadline = time.monotonic() + 20
    while words not in log.read_text():
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.01)


async def test_no_signal_but_those_that_end_a_server_ends_it(tmp_path: Path) -> None:
    async with served(tmp_path / "data") as (process, server):
        for number in (signal.SIGUSR1, signal.SIGUSR2, signal.SIGHUP, signal.SIGHUP):
            process.process.send_signal(number)
        assert (await server.http.get("/healthz")).status_code == 200
        assert await process.stop() == 0


async def test_a_server_that_is_to_survive_its_terminal_does(tmp_path: Path) -> None:
    former = signal.signal(signal.SIGHUP, signal.SIG_IGN)  # as `nohup` does: a child inherits it
    try:
        async with served(tmp_path / "data") as (process, _):
            process.process.send_signal(signal.SIGHUP)
            # Signals of one process come in order of their numbers: had the first one counted, this one would be 143.
            assert await process.stop() == 0
    finally:
        signal.signal(signal.SIGHUP, former)


async def test_a_port_that_is_taken_is_said_once_with_the_cure(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, _, said = await run("serve", "--port", port, "--data", tmp_path / "data")
    assert code == 2
    (line,) = [one for one in said.splitlines() if str(port) in one]
    assert f"cannot listen on 127.0.0.1:{port} (host, port; options --host, --port): " in line
    assert "choose another port" in line
    assert "Traceback" not in said


async def test_a_place_for_operators_that_is_taken_is_said_with_its_setting(tmp_path: Path) -> None:
    path = tmp_path / "operators.sock"
    with socket.create_server(("127.0.0.1", 0)) as taken, socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))
        other.listen()
        for place in (f"127.0.0.1:{taken.getsockname()[1]}", f"unix:{path}"):
            at = ("--port", "0", "--data", tmp_path / "data")
            code, _, said = await run("serve", *at, AVICENNA_OPERATORS_LISTEN=place)
            assert code == 2
            (line,) = [one for one in said.splitlines() if place.removeprefix("unix:") in one]
            assert f"cannot listen on {place} (operators_listen): " in line


@pytest.mark.parametrize(
    ("place", "why"), [("absent/proxy.sock", "No such file"), ("file/proxy.sock", "Not a directory")]
)
async def test_a_unix_socket_that_cannot_be_made_is_named_in_one_line(tmp_path: Path, place: str, why: str) -> None:
    path = tmp_path / place
    (tmp_path / "file").touch()
    at = ("--port", "0", "--data", tmp_path / "data")
    code, _, said = await run("serve", *at, AVICENNA_UNIX_SOCKET=str(path))
    assert code == 2
    (line,) = [one for one in said.splitlines() if "cannot start" in one]
    assert f"cannot listen on {path} (unix_socket): " in line
    assert why in line
    assert "Traceback" not in said


@pytest.mark.guarantee(11)
@pytest.mark.filterwarnings("ignore:Async generator 'httpx:ResourceWarning")  # it leaves a body whose connection ends
async def test_an_orderly_restart_repeats_nothing_for_a_client_without_code(tmp_path: Path) -> None:
    received: list[int] = []
    accepted = 0
    for _ in range(6):
        async with served(tmp_path / "data") as (process, server):
            await server.register()
            async with trio.open_nursery() as nursery:
                is_live = trio.Event()

                async def follow(is_live: trio.Event) -> None:
                    async with server.connect(device="phone") as client:
                        for frame in await client.until_live():
                            received.extend([frame["seq"]] if "seq" in frame else [])
                        is_live.set()
                        frames, code, _ = await client.close_frames()
                    received.extend(frame["seq"] for frame in frames if "seq" in frame)
                    assert code == 1012

                async def publish() -> None:
                    nonlocal accepted
                    with suppress(httpx.HTTPError):
                        while True:
                            answer = await server.publish(accepted)
                            if answer.status_code != 200:
                                return
                            accepted += 1
                            await trio.sleep(0.025)

                nursery.start_soon(follow, is_live)
                await is_live.wait()
                nursery.start_soon(publish)
                before = accepted
                while accepted < before + 30:
                    await trio.sleep(0.01)
                assert await process.stop() == 0
    assert received == sorted(set(received)), "a number came twice"
    assert len(received) >= 150
