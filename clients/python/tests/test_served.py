"""The client and the real server, in a process of its own. The rest is in the scenario table."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest

from avicenna_live import Broadcaster, FeedbackUpdate, FileStore, Follower, Position, Relay, SqliteOutbox
from avicenna_live.items import Event
from tests.served import Server

pytestmark = pytest.mark.anyio

README = (Path(__file__).parents[1] / "README.md").read_text()
EXAMPLES = re.findall(r"^```python\n(.*?)^```$", README, re.DOTALL | re.MULTILINE)
FOLLOWING = [example for example in EXAMPLES if "live.follow" in example]
CALLS, KEPT, SQLITE, SQLALCHEMY = [example for example in EXAMPLES if example not in FOLLOWING]
"""Those that publish."""


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    with Server(tmp_path_factory.mktemp("data")) as running:
        yield running


@pytest.fixture
def diagnosis(server: Server, request: pytest.FixtureRequest) -> int:
    """A diagnosis of its own."""
    number = abs(hash(request.node.name)) % 10**9
    server.register(number)
    return number


async def test_what_is_finished_is_acknowledged_and_the_next_process_goes_on_behind_it(
    server: Server, diagnosis: int, tmp_path: Path
) -> None:
    server.publish(diagnosis, 4)
    token = server.token("alice")
    seqs: list[int] = []
    for last in (2, 4):
        store = FileStore(tmp_path / "positions.json")
        async with Follower(server.url, token=token, device="d", store=store) as live:
            async for item in live.follow(diagnosis):
                assert isinstance(item, Event)
                assert item.data == {"feedback_id": 1, "rating": 3, "effectiveness": None}
                seqs.append(item.seq)
                if item.seq == last:
                    break
    assert seqs == [1, 2, 2, 3, 4]
    kept = FileStore(tmp_path / "positions.json").load(diagnosis)
    assert isinstance(kept, Position)
    assert kept.seq == 3
    (subscriber,) = server.ask("GET", f"/diagnoses/{diagnosis}/delivery?seq=3")["items"]
    assert (subscriber["cursor"], subscriber["acknowledged_by"]) == (3, "app")


async def test_a_break_leaves_no_connection_behind(server: Server, diagnosis: int) -> None:
    server.publish(diagnosis)
    async with Follower(server.url, token=server.token("alice")) as live:
        async for _ in live.follow(diagnosis):
            break
        with anyio.fail_after(3):
            while server.connections():
                await anyio.sleep(0.02)


@pytest.mark.parametrize("number", range(len(FOLLOWING)))
def test_an_example_of_the_readme_works(server: Server, tmp_path: Path, number: int) -> None:
    for diagnosis_id in (42, "b-7"):
        server.ask("PUT", f"/diagnoses/{diagnosis_id}", {"owner": "alice"})
    script = tmp_path / "example.py"
    script.write_text(FOLLOWING[number].replace("http://127.0.0.1:8000", server.url))
    said = tmp_path / "said"
    with said.open("w") as file:
        running = subprocess.Popen(
            [sys.executable, "-u", script], cwd=tmp_path, stdout=file, stderr=subprocess.STDOUT,
            env=os.environ | {"AVICENNA_TOKEN": server.token("alice")},
            # A shell without job control has its background processes ignore SIGINT, and they hand that on.
            preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),  # noqa: PLW1509
        )  # fmt: skip
        try:
            deadline = time.monotonic() + 20
            while "rating" not in said.read_text():
                # With `get_state` it begins with what is new.
                server.publish(42)
                assert running.poll() is None, said.read_text()
                assert time.monotonic() < deadline, said.read_text()
                time.sleep(0.1)
            running.send_signal(signal.SIGINT)
            running.wait(10)
        finally:
            running.kill()
            running.wait()
    assert "'rating': 3" in said.read_text() or "rating 3\n" in said.read_text()


def run_example(server: Server, diagnosis: int, directory: Path, example: str) -> str:
    """What an example that publishes prints, if it is about this diagnosis."""
    assert "42" in example
    environment = {"AVICENNA_URL": server.url, "AVICENNA_TOKEN": server.token("service", "broadcast")}
    done = subprocess.run(
        [sys.executable, "-c", example.replace("42", str(diagnosis)).replace("http://127.0.0.1:8000", server.url)],
        check=False, capture_output=True, text=True, timeout=30, cwd=directory, env=os.environ | environment,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


async def ids(server: Server, diagnosis: int, count: int) -> list[object]:
    """The first feedback ids, or kinds of other updates, in order."""
    found: list[object] = []
    async with Follower(server.url, token=server.token("alice"), device="ids") as live:
        async for item in live.follow(diagnosis):
            found.append(item.data["feedback_id"] if isinstance(item, FeedbackUpdate) else item.type)
            if len(found) == count:
                return found
    return found


async def test_the_calls_of_the_readme_publish(server: Server, diagnosis: int, tmp_path: Path) -> None:
    said = run_example(server, diagnosis, tmp_path, CALLS)
    assert said == "the update has number 3, and 0 connections got it\n"
    assert await ids(server, diagnosis, 3) == ["recommendation_update", "effectiveness_update", 7]


async def test_the_broadcaster_of_the_readme_publishes(server: Server, diagnosis: int, tmp_path: Path) -> None:
    assert run_example(server, diagnosis, tmp_path, KEPT) == "[]\n"
    assert await ids(server, diagnosis, 14) == list(range(7, 21))


async def test_the_relays_of_the_readme_publish(server: Server, diagnosis: int, tmp_path: Path) -> None:
    asked = (
        "from fastapi.testclient import TestClient\n"
        "with TestClient(app) as client:\n"
        "    assert client.post('/diagnoses/42/feedback/8?rating=3').status_code == 200\n"
    )
    for example in (SQLITE, f"{SQLALCHEMY}\n{asked}"):
        run_example(server, diagnosis, tmp_path, example)
    # What an example that ends at once has left in the table is sent by the next relay.
    with Broadcaster(server.url, token=server.token("service", "broadcast")) as broadcaster:
        Relay(SqliteOutbox(tmp_path / "service.db"), broadcaster).run_once()
        assert broadcaster.broadcast_feedback_update(diagnosis, 9, 5).seq == 3
    assert await ids(server, diagnosis, 3) == [7, 8, 9]


def test_the_readme_has_examples_and_they_are_typed(tmp_path: Path) -> None:
    assert len(FOLLOWING) == 3
    for number, example in enumerate(EXAMPLES):
        (tmp_path / f"example_{number}.py").write_text(example)
    checked = subprocess.run(
        [sys.executable, "-m", "mypy", "--strict", *sorted(tmp_path.glob("*.py"))],
        check=False, capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip
    assert checked.returncode == 0, checked.stdout
