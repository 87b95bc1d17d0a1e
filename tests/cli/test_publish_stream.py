"""`avicenna-live publish --stream` against a real server: a receipt a line, and an honest end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import trio

from tests.hanging import hangable_disk
from tests.server.harness import Server, running_server
from web.server.settings import Settings

COMMAND = [sys.executable, "-m", "web.cli", "publish", "--stream"]


def update(number: int, **fields: object) -> str:
    body = {"type": "feedback_update", "diagnosis_id": 42, "feedback_id": number, "rating": 5}
    return json.dumps(body | fields) + "\n"


async def published(server: Server, text: str, *options: str) -> subprocess.CompletedProcess[bytes]:
    """What the command says of this standard input."""
    command = [*COMMAND, "--data", str(server.data), *options]
    with trio.fail_after(60):
        return await trio.run_process(
            command, stdin=text.encode(), capture_stdout=True, capture_stderr=True, check=False
        )


async def test_each_line_gets_a_receipt_under_its_number(tmp_path: Path) -> None:
    async with running_server(Settings(port=0, data=tmp_path / "data")) as server:
        await server.register()
        done = await published(server, "".join(update(n) for n in range(1, 601)), "--json")
        receipts = [json.loads(line) for line in done.stdout.splitlines()]
        assert [(one["line"], one["seq"]) for one in receipts] == [(n, n) for n in range(1, 601)]
        assert done.returncode == 0
        assert done.stderr.decode().strip() == "600 lines read: 600 stored, 0 refused"


async def test_a_line_that_is_wrong_costs_the_exit_code_and_no_other_line(tmp_path: Path) -> None:
    async with running_server(Settings(port=0, data=tmp_path / "data")) as server:
        await server.register()
        wrong = update(1) + update(2, rating=9) + "oops\n" + '{"id": "mine"}\n' + update(3)
        done = await published(server, wrong)
        said = sorted(done.stdout.decode().splitlines())
        assert [line.split(":")[0] for line in said] == [f"line {n}" for n in range(1, 6)]
        assert said[1] == "line 2: invalid_field: rating must be 1-5"
        assert done.returncode == 2
        denied = await published(server, update(4, diagnosis_id=43))
        assert denied.returncode == 1
        assert b"not_found" in denied.stdout


async def test_a_line_whose_frame_would_be_too_large_is_refused_and_costs_no_other_line(tmp_path: Path) -> None:
    async with running_server(Settings(port=0, data=tmp_path / "data")) as server:
        await server.register()
        room = 64 * 1024 - len(update(2, comment="").strip())
        done = await published(server, update(1) + update(2, comment="x" * room) + update(3))
        said = sorted(done.stdout.decode().splitlines())
        assert said == [
            "line 1: diagnosis 42 #1 stored",
            "line 2: bad_json: a line must be at most 65536 bytes, with the id and key it gets",
            "line 3: diagnosis 42 #2 stored",
        ]
        assert done.returncode == 2


async def test_what_a_restart_leaves_unanswered_is_sent_again_and_makes_one_event(tmp_path: Path) -> None:
    settings = Settings(port=0, data=tmp_path / "data")
    async with running_server(settings) as server:
        await server.register()
        port = int(server.url.rpartition(":")[2])
        command = [*COMMAND, "--url", server.url, "--json"]
        token = server.token("clinic", "broadcast")
        running = await trio.lowlevel.open_process(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env={**os.environ, "AVICENNA_TOKEN": token},
        )
        assert running.stdin is not None
        assert running.stdout is not None
        await running.stdin.send_all("".join(update(n) for n in range(1, 301)).encode())
        said = b""
        with trio.fail_after(30):
            while said.count(b"\n") < 10:
                said += await running.stdout.receive_some()
        server.stop()
    async with running_server(Settings(port=port, data=tmp_path / "data")) as server:
        await running.stdin.send_all("".join(update(n) for n in range(301, 401)).encode())
        await running.stdin.aclose()
        with trio.fail_after(60):
            while chunk := await running.stdout.receive_some():
                said += chunk
            assert await running.wait() == 0
        receipts = [json.loads(line) for line in said.splitlines()]
        assert sorted(one["line"] for one in receipts) == list(range(1, 401))
        assert sorted(one["seq"] for one in receipts) == list(range(1, 401))
        assert (await server.publish(1)).json()["seq"] == 401


async def test_what_a_stopping_server_does_not_finish_is_sent_again_to_the_next_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    disk = hangable_disk(monkeypatch)
    settings = Settings(port=0, data=tmp_path / "data", mailbox_messages_max=3)
    pipe = subprocess.PIPE
    async with running_server(settings) as server:
        await server.register()
        assert (await server.publish(1)).json()["seq"] == 1
        port = int(server.url.rpartition(":")[2])
        environment = {**os.environ, "AVICENNA_TOKEN": server.token("clinic", "broadcast")}
        command = [*COMMAND, "--url", server.url, "--json"]
        running = await trio.lowlevel.open_process(command, stdin=pipe, stdout=pipe, stderr=pipe, env=environment)
        assert running.stdin is not None
        assert running.stdout is not None
        await running.stdin.send_all(update(1).encode())
        said = (await line_of(running.stdout) + "\n").encode()
        with disk.hanging(), trio.fail_after(30):
            # Some are told to the actor, and others wait for room in its mailbox.
            await running.stdin.send_all("".join(update(n) for n in range(2, 21)).encode())
            await running.stdin.aclose()
            while not (await server.status())["node"]["storage_waiting_seconds"]:
                await trio.sleep(0.02)
            server.stop()
            assert (await line_of(running.stderr)).startswith("the connection ended: 1012 restart")
    async with running_server(Settings(port=port, data=tmp_path / "data")):
        with trio.fail_after(60):
            async for chunk in running.stdout:
                said += chunk
            assert await running.wait() == 0
    receipts = [json.loads(line) for line in said.splitlines()]
    assert [(one["line"], one["seq"]) for one in receipts] == [(n, n + 1) for n in range(1, 21)]


async def line_of(stream: trio.abc.ReceiveStream | None) -> str:
    """The next line that a process says, which says no more."""
    assert stream is not None
    said = b""
    while not said.endswith(b"\n"):
        said += await stream.receive_some()
    return said.decode().strip()


async def test_interrupted_it_says_how_far_it_has_come(tmp_path: Path) -> None:
    async with running_server(Settings(port=0, data=tmp_path / "data")) as server:
        await server.register()
        command, pipe = [*COMMAND, "--data", str(server.data)], subprocess.PIPE
        running = await trio.lowlevel.open_process(
            command,
            stdin=pipe,
            stdout=pipe,
            stderr=pipe,
            # A shell without job control has its background processes ignore SIGINT, and they hand that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
        )
        assert running.stdin is not None
        await running.stdin.send_all(update(1).encode())
        with trio.fail_after(30):
            assert await line_of(running.stdout) == "line 1: diagnosis 42 #1 stored"
            running.send_signal(signal.SIGINT)
            assert await line_of(running.stderr) == "1 lines read: 1 stored, 0 refused"
            assert await running.wait() == 130
