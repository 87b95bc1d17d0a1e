"""A real server in a process of its own: `avicenna-live serve` of the checkout, on a temporary directory."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import tempfile
import time
import urllib.request
from pathlib import Path
from typing import Any, Final, Self

import pytest

CHECKOUT: Final = Path(__file__).parents[3]
COMMAND: Final = CHECKOUT / ".venv" / "bin" / "avicenna-live"

PYTHON: Final = COMMAND.with_name("python")
"""It has what a certificate is made with."""

START_SECONDS_MAX: Final = 30


class Server:
    """A server that can be stopped and started again on its data and port."""

    def __init__(self, directory: Path, **variables: str) -> None:
        """Start it.

        Args:
            directory: its data.
            variables: of its environment.
        """
        if not COMMAND.exists():
            pytest.skip(f"{COMMAND.name} is not installed in the checkout: make setup")
        self.data = directory
        self._variables = {
            key: value for key, value in os.environ.items() if not key.startswith("AVICENNA_")
        } | variables
        self._port = 0
        self.url = ""
        self.start()
        self.operator = self.token("root", "operate")

    def start(self) -> None:
        """Start it, on the port it had."""
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 - closed by `kill`
        self._process = subprocess.Popen(
            [COMMAND, "serve", "--port", str(self._port), "--data", self.data],
            stderr=self._log, stdout=subprocess.DEVNULL, env=self._variables,
        )  # fmt: skip
        deadline = time.monotonic() + START_SECONDS_MAX
        while (found := re.search(r'listening on (http://[^\s":]+:(\d+))', self._said())) is None:
            assert self._process.poll() is None, self._said()
            assert time.monotonic() < deadline, self._said()
            time.sleep(0.02)
        self.url, self._port = found[1], int(found[2])

    def _said(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def kill(self) -> None:
        """SIGKILL."""
        self._process.kill()
        self._process.wait()
        self._log.close()

    @property
    def port(self) -> int:
        """It stays the same when the server is started again."""
        return self._port

    def stop(self) -> None:
        """SIGTERM, and wait."""
        self._process.send_signal(signal.SIGTERM)
        assert self._process.wait(20) == 0
        self._log.close()

    def token(self, sub: str, scope: str = "", ttl: int = 600) -> str:
        """A token made with the server's own key."""
        made = subprocess.run(
            [COMMAND, "token", "--sub", sub, "--scope", scope, "--ttl", str(ttl), "--data", self.data],
            check=True, capture_output=True, text=True, env=self._variables,
        )  # fmt: skip
        return made.stdout.strip()

    def ask(self, method: str, path: str, body: object = None) -> Any:
        """An operator's request; the answer's JSON, `None`: it has none."""
        request = urllib.request.Request(self.url + path, method=method)
        request.add_header("Authorization", f"Bearer {self.operator}")
        request.add_header("Content-Type", "application/json")
        data = None if body is None else json.dumps(body).encode()
        with urllib.request.urlopen(request, data, timeout=10) as answer:
            return json.loads(answer.read() or b"null")

    def register(self, diagnosis_id: int, owner: str = "alice") -> None:
        """Register a diagnosis."""
        self.ask("PUT", f"/diagnoses/{diagnosis_id}", {"owner": owner})

    def publish(self, diagnosis_id: int, count: int = 1, rating: int = 3) -> None:
        """Publish feedback."""
        for _ in range(count):
            body = {"diagnosis_id": diagnosis_id, "feedback_id": 1, "rating": rating}
            self.ask("POST", "/ws/broadcast-feedback-update", body)

    def connections(self) -> int:
        """How many follow."""
        count: int = self.ask("GET", "/ws/status")["total_connections"]
        return count

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self._process.poll() is None:
            self.kill()
