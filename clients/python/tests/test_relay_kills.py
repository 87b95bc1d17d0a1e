"""A service and the server are killed where it hurts, and every row that the service has committed arrives once.

One round here, with each of the deaths; `make relay-test [ROUNDS=200]` has as many as wanted.
"""

from __future__ import annotations

import asyncio
import os
import signal
import sqlite3
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from pathlib import Path
from typing import Final, Literal

import httpx
import pytest

from avicenna_live import Backoff, FeedbackUpdate, Follower
from tests.networks import AnswerTaker
from tests.served import Server
from tests.waiting import until

ROUNDS: Final = int(os.environ.get("RELAY_TEST_ROUNDS", "1"))
DIAGNOSES: Final = (1, 2)
TTL_SECONDS: Final = 24 * 3600
END: Final = "end"

Death = Literal["no", "after the commit", "before the deletion"]


class Service:
    """The service, which comes back by itself."""

    def __init__(self, directory: Path, url: str, token: str) -> None:
        self._database = directory / "service.db"
        held = directory / "token"
        held.write_text(token)
        self._process = subprocess.Popen(
            [sys.executable, "-m", "tests.relay_service", self._database, url, held],
            cwd=Path(__file__).parents[1], stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert self._process.stdout is not None
        self._says = self._process.stdout
        self._http = httpx.Client(base_url=f"http://127.0.0.1:{self._says.readline().strip()}", timeout=30)
        self._numbers = iter(range(1, 10**9))

    def rate(self, diagnosis_id: int, dies: Death = "no") -> None:
        """Have it commit a row; if it dies, wait until it has."""
        path = f"/diagnoses/{diagnosis_id}/ratings/{next(self._numbers)}"
        try:
            assert self._http.post(path, params={"dies": dies}).status_code == 200
        except httpx.TransportError:
            assert dies != "no"
        if dies != "no":
            assert self._says.readline() == "killed\n"

    def committed(self, diagnosis_id: int) -> list[object]:
        """Its ledger: the numbers of a diagnosis in order."""
        return self._ask(f"SELECT number FROM ratings WHERE diagnosis_id = {diagnosis_id} ORDER BY number")

    def waiting(self) -> list[object]:
        """The rows that are not published, or set aside."""
        return self._ask("SELECT id FROM avicenna_outbox")

    def _ask(self, statement: str) -> list[object]:
        with closing(sqlite3.connect(self._database)) as db:
            return [value for (value,) in db.execute(statement)]

    def close(self) -> None:
        """End it."""
        self._http.close()
        self._process.kill()
        with suppress(ProcessLookupError):
            os.kill(int(Path(f"{self._database}.pid").read_text()), signal.SIGKILL)
        self._process.wait()
        self._says.close()


@contextmanager
def following(server: Server, arrived: dict[int, list[tuple[int, object]]]) -> Iterator[None]:
    """Follow the diagnoses until each has told its end; what arrives is its number and its feedback id."""
    token = server.token("alice", ttl=TTL_SECONDS)

    async def follow(live: Follower, diagnosis_id: int) -> None:
        async for item in live.follow(diagnosis_id):
            assert isinstance(item, FeedbackUpdate)
            if item.data["feedback_id"] == END:
                return
            arrived[diagnosis_id].append((item.seq, item.data["feedback_id"]))

    async def main() -> None:
        async with (
            Follower(server.url, token=token, device="d", backoff=Backoff(0.05, 0.5)) as live,
            asyncio.TaskGroup() as tasks,
        ):
            for diagnosis_id in DIAGNOSES:
                tasks.create_task(follow(live, diagnosis_id))

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    yield
    thread.join(60)
    assert not thread.is_alive()


@pytest.mark.timeout(60 + 60 * ROUNDS)  # the server starts anew in each
def test_every_row_that_a_service_commits_arrives_once_whoever_is_killed(tmp_path: Path) -> None:
    arrived: dict[int, list[tuple[int, object]]] = {one: [] for one in DIAGNOSES}
    lost_answers: list[bytes] = []
    began_at = time.monotonic()
    with Server(tmp_path / "data") as server:
        for diagnosis_id in DIAGNOSES:
            server.register(diagnosis_id)
        proxy = AnswerTaker(server.port)
        service = Service(tmp_path, proxy.url, server.token("service", "broadcast", ttl=TTL_SECONDS))

        def kill(answer: bytes) -> None:
            server.kill()
            lost_answers.append(answer)

        with following(server, arrived), closing(proxy), closing(service):
            for number in range(ROUNDS):
                service.rate(1)
                service.rate(2, "after the commit")
                until(lambda: not service.waiting())  # else it dies of a row before, and has not committed this one
                service.rate(1, "before the deletion")
                service.rate(2)
                until(lambda: not service.waiting())
                proxy.take_next(kill)
                service.rate(1)
                service.rate(2)
                until(lambda after=number + 1: len(lost_answers) == after)  # type: ignore[misc]
                server.start()
                until(lambda: not service.waiting())
            committed = {one: service.committed(one) for one in DIAGNOSES}
            for diagnosis_id in DIAGNOSES:
                body = {"diagnosis_id": diagnosis_id, "feedback_id": END, "rating": 1}
                server.operator = server.token("root", "operate")
                server.ask("POST", "/ws/broadcast-feedback-update", body)
    # The server had stored what it could not answer for.
    assert all(b'"replayed":false' in answer for answer in lost_answers)
    for diagnosis_id in DIAGNOSES:
        assert len(committed[diagnosis_id]) == 3 * ROUNDS
        assert arrived[diagnosis_id] == list(enumerate(committed[diagnosis_id], 1))
    print(  # noqa: T201 - the figures of `make relay-test`
        f"{ROUNDS} rounds in {time.monotonic() - began_at:.0f} s: {2 * ROUNDS} kills of the service, {ROUNDS} of the"
        f" server; {sum(map(len, committed.values()))} rows committed, each arrived once"
    )
