"""A start after `kill -9` with a million events, and what its check costs those who publish meanwhile.

`python -m benchmarks.restart` (`make bench-restart`); docs/RELIABILITY.md has the figures.
"""

from __future__ import annotations

import argparse
import http.client
import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import quantiles
from typing import Final

from benchmarks.processes import cores, settle_on
from benchmarks.servers import START_SECONDS_MAX, announced, token_for
from benchmarks.storage import DATABASE, fill, forget_pages, kill_a_holder_of, say
from storage.records import OUTBOX_EVENTS_MAX

PUBLISHERS: Final = 4
"""Each publishes as soon as its last event was answered."""

PUBLISHED_TO: Final = 100
"""Diagnoses. Reason: after a moment all are in memory, so that what is measured is publishing."""

LOOK_SECONDS: Final = 1.0
"""Between two looks at whether the check goes on. Reason: the status of an operator reads all diagnoses."""

QUIET_SECONDS: Final = 10.0


class Publishers:
    """Threads that publish to random diagnoses until they are told to stop."""

    def __init__(self, port: int, token: str, diagnoses: int) -> None:
        self._port, self._token, self._diagnoses = port, token, diagnoses
        self.times: list[float] = []
        """Seconds of each publish."""
        self.refused: list[int] = []
        """Statuses other than 200."""

    def publish_until(self, is_over: Callable[[], bool]) -> None:
        """Publish from all threads until something is so."""
        stop = threading.Event()
        threads = [threading.Thread(target=self._publish, args=(stop,)) for _ in range(PUBLISHERS)]
        for thread in threads:
            thread.start()
        while not is_over():
            time.sleep(LOOK_SECONDS)
        stop.set()
        for thread in threads:
            thread.join()

    def _publish(self, stop: threading.Event) -> None:
        connection = http.client.HTTPConnection("127.0.0.1", self._port, timeout=30)
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        while not stop.is_set():
            number = random.randint(1, min(self._diagnoses, PUBLISHED_TO))
            body = json.dumps({"diagnosis_id": f"d-{number}", "feedback_id": 1, "rating": 5})
            asked = time.perf_counter()
            connection.request("POST", "/ws/broadcast-feedback-update", body, headers)
            answer = connection.getresponse()
            answer.read()
            self.times.append(time.perf_counter() - asked)
            if answer.status != 200:
                self.refused.append(answer.status)
        connection.close()

    def row(self, what: str) -> str:
        """The times as a row of a table; they are forgotten."""
        hundredths = quantiles(self.times, n=100)
        shown = f"| {what} | {len(self.times)} | {hundredths[49] * 1000:.1f} | {hundredths[98] * 1000:.1f} |"
        self.times = []
        return f"{shown} {max(self.refused, default='none')} |"


def main(argv: Sequence[str] | None = None) -> int:
    """Measure and print."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.restart", description=(__doc__ or "").split("\n\n")[0])
    parser.add_argument(
        "--diagnoses", type=int, default=10_000, metavar="N", help="with 100 events each; default 10000"
    )
    options = parser.parse_args(argv)
    server_core, _ = cores()
    with tempfile.TemporaryDirectory(prefix="avicenna-bench-") as directory:
        data, said = Path(directory) / "data", Path(directory) / "output"
        say(f"{options.diagnoses} diagnoses of {OUTBOX_EVENTS_MAX} events")
        fill(data, options.diagnoses)
        kill_a_holder_of(data / DATABASE)
        forget_pages(data / DATABASE)
        command = [sys.executable, "-m", "web.cli", "serve", "--port", "0", "--data", str(data)]
        began = time.perf_counter()
        with (
            said.open("wb") as output,
            subprocess.Popen(
                command,
                stdout=output,
                stderr=subprocess.STDOUT,
                preexec_fn=settle_on(server_core),  # noqa: PLW1509
            ) as process,
        ):
            try:
                port, _ = announced(process, said)
                listened = time.perf_counter() - began
                measure(data, port, options.diagnoses, listened)
            finally:
                process.terminate()
    return 0


def measure(data: Path, port: int, diagnoses: int, listened: float) -> None:
    """Publish while the check goes on, and afterwards."""
    operator = {"Authorization": f"Bearer {token_for(data, 'op', 'operate')}"}

    def is_checked() -> bool:
        connection = http.client.HTTPConnection("127.0.0.1", port, timeout=START_SECONDS_MAX)
        connection.request("GET", "/ws/status", headers=operator)
        node = json.loads(connection.getresponse().read())["node"]
        connection.close()
        return not node.get("check_pending", False)

    publishers = Publishers(port, token_for(data, "amira", "broadcast"), diagnoses)
    began = time.perf_counter()
    publishers.publish_until(is_checked)
    lasted = time.perf_counter() - began
    meanwhile = publishers.row("while all outboxes are checked")
    ends_at = time.perf_counter() + QUIET_SECONDS
    publishers.publish_until(lambda: is_checked() and time.perf_counter() >= ends_at)
    print(f"listening after {listened:.2f} s; the check took {lasted:.1f} s beside {PUBLISHERS} publishers\n")
    print("| publishes | number | p50 ms | p99 ms | refused |\n|---|---|---|---|---|")
    print(meanwhile)
    print(publishers.row("afterwards"))


if __name__ == "__main__":
    sys.exit(main())
